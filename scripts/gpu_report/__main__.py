"""What a GPU does with Luna; run from the root of a clone by scripts/gpu_report.sh, which says more.

python -m scripts.gpu_report run PART FOLDER    one part; finished ones stay as they are
python -m scripts.gpu_report tables FOLDER      FOLDER/report.json, FOLDER/report.md, which is printed, too
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, Dict

from scripts.gpu_report import GRACE, SECONDS

PROG = "python -m scripts.gpu_report"


def run_part(args: argparse.Namespace) -> int:
    """Measure one part; the exit code is 0 whatever it finds."""
    signal.alarm(SECONDS[args.part] + GRACE)  # whatever hangs, what was found until then is written
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells when it starts and stops
    import logging

    import torch

    from scripts.bench.measuring import machine
    from scripts.gpu_report.findings import DONE, Findings, read
    from scripts.gpu_report.parts import PARTS
    from scripts.gpu_report.sizes import chosen

    logging.disable(logging.INFO)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(f"{PROG}: torch finds no GPU here: set DEVICE=cpu and SMOKE=1 for a trial on a CPU", file=sys.stderr)
        return 1
    sizes = chosen(args.device, args.smoke)
    what: Dict[str, Any] = {"machine": machine(sizes.device), "smoke": args.smoke}
    if args.device == "cuda":
        what["machine"] += f", CUDA {torch.version.cuda or torch.version.hip}"
    before = read(args.folder, [args.part]).get(args.part, {})
    if before.get("state") == DONE and what.items() <= before.items():
        print(f"{args.part}: already there, in {args.folder}", file=sys.stderr)
        return 0
    findings = Findings(args.folder / f"{args.part}.json", what, SECONDS[args.part])
    PARTS[args.part](sizes, findings)
    findings.end()
    return 0


def write_tables(args: argparse.Namespace) -> int:
    """Write and print the report; returns 1 if something is computed wrongly, or was not looked at to its end."""
    from luna_fairseq.data.files import write_json
    from luna_fairseq.outputs import whole_file
    from scripts.gpu_report.findings import DONE, read
    from scripts.gpu_report.tables import report

    found = read(args.folder, list(SECONDS))
    if not found:
        print(f"{PROG}: there is no part of a report in {args.folder}: run one first", file=sys.stderr)
        return 1
    text = report(found)
    write_json(args.folder / "report.json", found)
    with whole_file(args.folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text, end="")
    checked = found.get("correctness", {}).get("state") == DONE
    return int(not checked or any(part["wrong"] for part in found.values()))


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one part")
    run.add_argument("part", choices=list(SECONDS))
    run.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    run.add_argument("--smoke", action="store_true", help="sizes that mean nothing")
    tables = commands.add_parser("tables", help="what is there")
    for command in (run, tables):
        command.add_argument("folder", type=Path, help="where the findings are")
    args = parser.parse_args()
    return run_part(args) if args.command == "run" else write_tables(args)


if __name__ == "__main__":
    sys.exit(main())
