"""``luna-fairseq prepare listops``: generated, or read from the published files."""

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np

from luna_fairseq.data.files import inputs, need_file
from luna_fairseq.data.lra import command
from luna_fairseq.data.lra.dataset import TEN_CLASSES, Dataset, Example, Splits, limited
from luna_fairseq.data.lra.draw_expressions import Limits, generate
from luna_fairseq.data.lra.expressions import SYMBOLS, read_published

GENERATED: command.Generated = {
    "seed": (1, "decides what is drawn"),
    "train": (96000, "examples of train"),
    "valid": (2000, "examples of valid"),
    "test": (2000, "examples of test"),
    "min_length": (Limits.min_length, "expressions have more symbols than this"),
    "max_length": (Limits.max_length, "expressions have fewer symbols than this"),
    "max_depth": (Limits.max_depth, "of an expression; a digit has depth 1"),
    "max_arguments": (Limits.max_arguments, "of an operator"),
}


def read(args: argparse.Namespace) -> Dataset:
    """ListOps: 96,000, 2,000 and 2,000 different expressions of more than 500 and fewer than 2,000 symbols."""
    dataset = partial(Dataset, classes=TEN_CLASSES, arch="luna_lra_listop", symbols=SYMBOLS)
    if args.data:
        names = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
        files = {split: need_file(args.data / name) for split, name in names.items()}

        def published() -> Splits:
            for split, path in files.items():
                yield split, limited(_examples(read_published(path)), args.smoke)

        return dataset(published, settings=inputs(files.values(), args.data))

    limits = Limits(args.min_length, args.max_length, args.max_depth, args.max_arguments)
    counts = command.counts_of(args)

    def generated() -> Splits:
        rows = iter(generate(sum(counts.values()), args.seed, limits, args.workers))
        for split, count in counts.items():
            yield split, _examples(islice(rows, count))

    return dataset(generated, settings={"seed": args.seed, **vars(limits), **counts})


def _examples(rows: Iterator[tuple[bytes, int]]) -> Iterator[Example]:
    return (Example((np.frombuffer(expression, dtype=np.uint8),), value) for expression, value in rows)


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, read, "--out listops")
    command.add_generated(parser, GENERATED)
    args = parser.parse_args(arguments)
    command.fill_generated(parser, args, GENERATED)
    return command.prepare(prog, "listops", args, read)
