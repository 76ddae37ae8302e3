"""``luna-fairseq doctor``: whether the plugin works on this machine, a line for each check."""

import argparse
import json
import os
import signal
from typing import Any, List

from luna_fairseq.console import help_parser, run

DESCRIPTION = """Whether the plugin works on this machine: a line for each check, ok, failed, or not tried and why.

    luna-fairseq doctor
    luna-fairseq doctor --device cpu --json > doctor.json

Versions; the repairs of fairseq; both attentions, forward and backward, against published numbers and the slow
reference, on every device in every precision; two updates and a resumed one of a tiny model next to three in one go;
its translations; two processes, if there are two GPUs; time and memory next to softmax attention. It takes less than
a minute on two cores, and writes into a temporary folder alone. The exit code is 0 if nothing failed, 1 otherwise.
Begin a report of an error with what it prints.
"""


def _examine(args: argparse.Namespace, interrupted: List[int]) -> bool:
    from luna_fairseq.doctor.examination import examine
    from luna_fairseq.doctor.verdicts import FAILED

    verdicts = []
    for verdict in examine(args.device):
        if interrupted:  # where it came nobody could be told: Python ignores what a destructor raises
            raise KeyboardInterrupt
        verdicts.append(verdict)
        if not args.json:
            print("\n".join(verdict.lines()))
    failed = [verdict.name for verdict in verdicts if verdict.verdict == FAILED]
    if args.json:
        checks = [{name: value for name, value in vars(verdict).items() if name != "table"} for verdict in verdicts]
        print(json.dumps({"ok": not failed, "checks": checks}, indent=1))
    elif failed:
        print(f"{len(failed)} of {len(verdicts)} checks failed: {'; '.join(failed)}")
    else:
        print("nothing failed")
    return not failed


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON document, at the end")
    parser.add_argument(
        "--device", nargs="+", default=[], metavar="DEVICE", help="cpu, cuda or cuda:N; default: all that are there"
    )
    args = parser.parse_args(arguments)
    # The trainings of the examination leave them alone then. A terminal that is closed, but not under nohup, counts.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    interrupted: List[int] = []

    def interrupt(number: int, frame: Any) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells when it starts and stops
    healthy: List[bool] = []
    try:
        code = run(prog, lambda: healthy.append(_examine(args, interrupted)), ValueError)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code or int(not healthy[0])
