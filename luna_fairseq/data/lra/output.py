"""What is written of the Long Range Arena's data: binarised tokens, or pixels as text."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from luna_fairseq.data.binarise import split_builder
from luna_fairseq.data.lra.dataset import BYTE_VALUES, Dataset, Example
from luna_fairseq.data.pieces import DICTIONARY, quiet_import
from luna_fairseq.errors import PreparationError


class Tokens:
    """Binarised splits, for ``lra-text``.

    Args:
        folder: where to write.
        data: what is written.
    """

    options = "--task lra-text"

    def __init__(self, folder: Path, data: Dataset) -> None:
        with quiet_import():
            from fairseq.data import Dictionary
        names = ["src-bin", "src1-bin"][: data.rows]
        self._folders = [folder / name for name in (*names, "label-bin")]
        self._symbols = [data.symbols] * data.rows + [data.classes]
        self._dictionaries = [Dictionary() for _ in self._folders]
        for folder, dictionary, symbols in zip(self._folders, self._dictionaries, self._symbols, strict=True):
            folder.mkdir()
            for symbol in symbols:
                dictionary.add_symbol(symbol, n=0)

    def write(self, split: str, examples: Iterable[Example]) -> None:
        """Write a split."""
        import torch

        first, end = self._dictionaries[0].nspecial, self._dictionaries[0].eos()
        counts = [np.zeros(len(symbols), dtype=np.int64) for symbols in self._symbols]
        with ExitStack() as stack:
            builders = [
                split_builder(stack, folder / split, dictionary)
                for folder, dictionary in zip(self._folders, self._dictionaries, strict=True)
            ]
            for example in examples:
                rows = (*example.rows, np.array([example.label]))
                for builder, row, count in zip(builders, rows, counts, strict=True):
                    ids = np.full(len(row) + 1, end, dtype=np.int64)
                    np.add(row, first, out=ids[:-1], dtype=np.int64)
                    builder.add_item(torch.from_numpy(ids))
                    count += np.bincount(row, minlength=len(count))
        if split == "train":
            self._write_dictionaries(counts)

    def _write_dictionaries(self, counts: Sequence[np.ndarray]) -> None:
        *texts, labels = counts
        totals = [np.sum(texts, axis=0)] * len(texts) + [labels]  # both documents have the same dictionary
        for folder, dictionary, symbols, total in zip(
            self._folders, self._dictionaries, self._symbols, totals, strict=True
        ):
            for symbol, count in zip(symbols, total.tolist(), strict=True):
                dictionary.add_symbol(symbol, n=count)
            dictionary.save(str(folder / DICTIONARY))


class Pixels:
    """Text files of grey values and of labels, for ``lra-image``.

    Args:
        folder: where to write.
        data: what is written.
    """

    options = "--task lra-image --input-type image"

    def __init__(self, folder: Path, data: Dataset) -> None:
        self._input, self._label = folder / "input", folder / "label"
        for folder in (self._input, self._label):
            folder.mkdir()

    def write(self, split: str, examples: Iterable[Example]) -> None:
        """Write a split."""
        with (
            open(self._input / f"{split}.src", "w", encoding="ascii") as images,
            open(self._label / f"{split}.label", "w", encoding="ascii") as labels,
        ):
            for example in examples:
                images.write(" ".join(map(BYTE_VALUES.__getitem__, example.rows[0].tolist())) + "\n")
                labels.write(f"{example.label}\n")


class Tally:
    """What a split has, counted while it is written.

    Args:
        classes: their names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes, self._examples = classes, [0] * len(classes)
        self._lengths: list[int] = []

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Count the examples, and give them on."""
        for example in examples:
            self._examples[example.label] += 1
            self._lengths += map(len, example.rows)
            yield example

    def report(self, split: str) -> None:
        """Say how many examples every class has; none at all are an error."""
        if not self._lengths:
            raise PreparationError(f"there are no examples for {split}: name data that has some")
        classes = ", ".join(f"{name}: {count:,}" for name, count in zip(self._classes, self._examples, strict=True))
        lengths = f"{sum(self._lengths):,} symbols, {min(self._lengths):,} to {max(self._lengths):,} in a row"
        print(f"{split}: {sum(self._examples):,} examples ({classes}), {lengths}")
