"""What a reader of the Long Range Arena's data hands over: examples, split by split, and what they are made of."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luna_fairseq.errors import PreparationError

SMOKE_EXAMPLES = 12  # a smoke run of a minute tests a Transformer on so many images of 128 x 128
SPLITS = ("train", "valid", "test")
# Symbols, or names of classes.
BYTE_VALUES = tuple(map(str, range(256)))
TEN_CLASSES, TWO_CLASSES = tuple(map(str, range(10))), ("0", "1")


class Example(NamedTuple):
    """Rows of symbols, by their places in the list of symbols, and the class."""

    rows: tuple[np.ndarray, ...]
    label: int


Splits = Iterator[tuple[str, Iterable[Example]]]


@dataclass(frozen=True)
class Dataset:
    """What a reader has found, before the work begins.

    Args:
        splits: the examples of train, valid and test, each one read to its end before the next.
        classes: their names.
        arch: the published architecture for this data.
        symbols: what rows are made of.
        rows: how many an example has.
        settings: all that decides the result, beside the options that every kind of data has.
    """

    splits: Callable[[], Splits]
    classes: tuple[str, ...]
    arch: str
    symbols: tuple[str, ...] = BYTE_VALUES
    rows: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


def limited(examples: Iterable[Example], smoke: bool) -> Iterable[Example]:
    """The examples of a split, or the first few of them for a smoke run."""
    return islice(examples, SMOKE_EXAMPLES) if smoke else examples


def image_examples(images: Iterable[np.ndarray], labels: Iterable[int]) -> Iterator[Example]:
    """An example for each image, row by row, and its label."""
    return (Example((image.reshape(-1),), int(label)) for image, label in zip(images, labels, strict=True))


def in_tenths(items: Sequence[Any], random: np.random.Generator) -> dict[str, list[Any]]:
    """The items in train, valid and test: 8, 1 and 1 tenths of them, in random order."""
    order = random.permutation(len(items)).tolist()
    ends = [0, len(items) * 8 // 10, len(items) * 9 // 10, len(items)]
    return {split: [items[n] for n in order[ends[k] : ends[k + 1]]] for k, split in enumerate(SPLITS)}


def need_folder(path: Path, what: str) -> Path:
    """The path, if a folder is there; ``what`` says in the error which one to name."""
    if not path.is_dir():
        raise PreparationError(f"the folder {path} does not exist: name {what}")
    return path
