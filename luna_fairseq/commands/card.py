"""``luna-fairseq card``: write the model card of a checkpoint, or add scores to it."""

import argparse
from pathlib import Path
from typing import List

from luna_fairseq.console import help_parser, run

DESCRIPTION = """Write the model card of a checkpoint, or add scores to it: X.md beside X.pt.

    luna-fairseq card checkpoints/average.pt
    sacrebleu text/test.de -i test.out.de -m bleu > bleu.json
    luna-fairseq card checkpoints/average.pt --test-set newstest2014 --score bleu.json

It says on what data, with which options and for how long the model was trained, its validation, and the versions.
What you write above or below the card's own part stays.
"""


def _card(args: argparse.Namespace) -> None:
    from luna_fairseq import plugin  # here, because it takes seconds

    plugin.load()  # today's torch loads no fairseq checkpoint without it
    from fairseq import checkpoint_utils

    from luna_fairseq.model_card import card_path, parse_scores, read_scores, write_card

    path = Path(args.checkpoint)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: name the file")
    card = card_path(path)
    scores = read_scores(card)
    for given in args.score:
        scores += parse_scores(given, args.test_set)
    write_card(card, path.name, checkpoint_utils.load_checkpoint_to_cpu(str(path)), scores)
    print(f"wrote {card}")


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("checkpoint", help="a file; the card of X.pt is X.md beside it")
    parser.add_argument(
        "--score", nargs="+", default=[], metavar="SCORE",
        help="files that sacrebleu has printed, or 'METRIC VALUE SIGNATURE'; one of the same test set, metric and "
        "signature takes the place of the earlier",
    )  # fmt: skip
    parser.add_argument("--test-set", default="test", metavar="NAME", help="what they were measured on")
    args = parser.parse_args(arguments)
    return run(prog, lambda: _card(args), RuntimeError, ValueError)
