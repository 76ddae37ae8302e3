"""``luna-fairseq prepare retrieval``: the published pairs of papers of the ACL anthology (AAN), byte by byte."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from luna_fairseq.data.files import inputs, need_file
from luna_fairseq.data.lra import command
from luna_fairseq.data.lra.dataset import TWO_CLASSES, Dataset, Example, Splits, limited
from luna_fairseq.errors import PreparationError

LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}


def read_pairs(path: Path) -> Iterator[Example]:
    """The pairs of documents of one file: label, two names, two texts, between tabs."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.removesuffix(b"\n").split(b"\t")
            if cells == [b""]:
                continue
            if len(cells) != 5:
                raise PreparationError(
                    f"{path}, line {number} has {len(cells)} columns and not 5, for label, two names and two texts: "
                    "mend it"
                )
            if cells[0] not in LABELS:
                label = cells[0][:40].decode("utf-8", "replace")
                raise PreparationError(f"{path}, line {number}: the label {label!r} is neither 0 nor 1: mend it")
            first, second = (np.frombuffer(cell, dtype=np.uint8) for cell in cells[3:])
            yield Example((first, second), LABELS[cells[0]])


def read(args: argparse.Namespace) -> Dataset:
    """Retrieval: pairs of papers of the ACL anthology, byte by byte; whether one cites the other."""
    names = {"train": "train", "valid": "eval", "test": "test"}
    files = {split: need_file(args.data / f"new_aan_pairs.{name}.tsv") for split, name in names.items()}

    def splits() -> Splits:
        for split, path in files.items():
            yield split, limited(read_pairs(path), args.smoke)

    settings = inputs(files.values(), args.data)
    return Dataset(splits, TWO_CLASSES, "luna_lra_aan", rows=2, settings=settings)


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, read, "--data tsv_data --out retrieval")
    command.add_data(parser)
    return command.prepare(prog, "retrieval", parser.parse_args(arguments), read)
