"""``luna-fairseq average``: average checkpoints, and write a model card."""

import argparse
import re
from pathlib import Path
from typing import List

from luna_fairseq.console import help_parser, run

DESCRIPTION = """Average the weights of checkpoints, and write a model card beside the result.

    luna-fairseq average --inputs checkpoints --num-epoch-checkpoints 5 --output checkpoints/average.pt
    luna-fairseq average --inputs a.pt b.pt c.pt --output average.pt

The options are those of fairseq's scripts/average_checkpoints.py. The average has no optimizer: it translates, and
fine-tuning begins with it, but the training does not go on from it.
"""


def _average(args: argparse.Namespace) -> None:
    from luna_fairseq import plugin  # here, because it takes seconds

    plugin.load()  # today's torch loads no fairseq checkpoint without it
    from luna_fairseq.average import average_checkpoints, last_checkpoints
    from luna_fairseq.checkpoint_files import is_average, save_atomically
    from luna_fairseq.model_card import card_path, read_scores, write_card
    from luna_fairseq.outputs import replaceable

    paths = [Path(name) for name in args.inputs]
    by_update = args.num_update_checkpoints is not None
    count = args.num_update_checkpoints if by_update else args.num_epoch_checkpoints
    if count is not None:
        if len(paths) != 1 or not paths[0].is_dir():
            raise ValueError(
                f"--inputs is {' '.join(args.inputs)}: with --num-epoch-checkpoints or --num-update-checkpoints name "
                "one folder that exists"
            )
        paths = last_checkpoints(paths[0], count, by_update, args.checkpoint_upper_bound)
    output = Path(args.output)
    replaceable(output)
    if output.exists() and (
        output.resolve() in [path.resolve() for path in paths]
        or re.fullmatch(r"checkpoint(\d+|_\d+_\d+|_last|_best\S*)\.pt", output.name)
    ):
        raise ValueError(f"{output} is a checkpoint of a run, with its optimizer: name another --output")
    if output.exists() and output.stat().st_size and not is_average(output):
        raise ValueError(f"{output} is there, and luna-fairseq average did not make it: name another --output")
    card = card_path(output)
    replaceable(card)
    read_scores(card)  # no other file is written over
    for path in paths:
        print(f"averaging {path}")
    averaged = average_checkpoints(paths)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(averaged, output)
    write_card(card, output.name, averaged, [])  # scores were those of other weights
    print(f"wrote {output} and {card}")


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("--inputs", nargs="+", required=True, help="checkpoint files, or one folder of a run")
    parser.add_argument("--output", required=True, help="file to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--num-epoch-checkpoints", type=int, metavar="N", help="the last N checkpointEPOCH.pt")
    which.add_argument(
        "--num-update-checkpoints", type=int, metavar="N", help="the last N checkpoint_EPOCH_UPDATE.pt"
    )
    parser.add_argument("--checkpoint-upper-bound", type=int, metavar="K", help="none later than epoch (or update) K")
    args = parser.parse_args(arguments)
    return run(prog, lambda: _average(args), RuntimeError, ValueError)
