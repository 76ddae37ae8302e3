"""A data folder for fairseq's fine-tuning tasks: texts in pieces, and labels."""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luna_fairseq.data.binarise import split_builder
from luna_fairseq.data.pieces import (
    DICTIONARY,
    Pieces,
    check_known,
    quiet_import,
    read_dictionary,
    wrong_dictionary,
)
from luna_fairseq.errors import PreparationError

BATCH = 1000  # examples that are cut into pieces at once


@dataclass(frozen=True)
class Example:
    """The texts of one example; the label is None if it is not known."""

    texts: tuple[str, ...]
    label: str | None


class Output:
    """A data folder in the making.

    Args:
        folder: where to write.
        pieces: the files of the encoder.
        dictionary: the dict.txt that belongs to them.
        limit: write at most so many examples of every split.
    """

    def __init__(self, folder: Path, pieces: Pieces, dictionary: Path, limit: int | None) -> None:
        self._folder, self._pieces, self._source, self._limit = folder, pieces, dictionary, limit

    def begin(self, inputs: int, labels: Sequence[str], first_pieces: int | None = None) -> None:
        """Load the pieces and make the folders.

        Args:
            inputs: how many texts an example has.
            labels: the classes; without them, labels are numbers in a text file.
            first_pieces: keep only so many pieces of the first text.
        """
        read_dictionary(self._source)  # its errors are clearer than fairseq's
        self._encoder = self._pieces.load()
        with quiet_import():
            from fairseq.data import Dictionary
        self._dictionary, self._labels = Dictionary.load(str(self._source)), Dictionary()
        self._inputs = [self._folder / f"input{number}" for number in range(inputs)]
        self._first_pieces = first_pieces
        for folder in self._inputs:
            folder.mkdir()
            shutil.copyfile(self._source, folder / DICTIONARY)
        (self._folder / "label").mkdir()
        for label in labels:
            self._labels.add_symbol(label, n=0)

    def write(self, split: str, examples: Iterable[Example]) -> None:
        """Binarise one split."""
        counts: Counter[str] = Counter()
        labels: list[str] = []
        examples = itertools.islice(examples, self._limit)
        with ExitStack() as stack:
            inputs = [split_builder(stack, folder / split, self._dictionary) for folder in self._inputs]
            while batch := list(itertools.islice(examples, BATCH)):
                for number, target in enumerate(inputs):
                    for ids in self._encode([example.texts[number] for example in batch], number):
                        target.add_item(ids)
                        counts.update(pieces=len(ids) - 1, unknown=int((ids == self._dictionary.unk()).sum()))
                counts.update(examples=len(batch))
                labels += [example.label for example in batch if example.label is not None]
        if not counts["examples"]:
            raise PreparationError(f"there are no examples for {split}: name a folder that has some")
        if split == "train":
            check_known(counts["unknown"], counts["pieces"], split, wrong_dictionary(self._source))
        self._write_labels(split, labels)
        share = counts["unknown"] / max(1, counts["pieces"])
        print(f"{split}: {counts['examples']:,} examples, {counts['pieces']:,} pieces, {share:.2%} unknown")

    def _write_labels(self, split: str, labels: Sequence[str]) -> None:
        folder = self._folder / "label"
        if not labels:
            return
        if len(self._labels) == self._labels.nspecial:
            text = "".join(f"{label}\n" for label in labels)
            (folder / f"{split}.label").write_text(text, encoding="utf-8")
            return
        with ExitStack() as stack:
            target = split_builder(stack, folder / split, self._labels)
            for label in labels:
                target.add_item(self._labels.encode_line(label, add_if_not_exist=False))
        if split == "train":
            for label in labels:
                self._labels.add_symbol(label)
            self._labels.save(str(folder / DICTIONARY))

    def _encode(self, texts: Sequence[str], number: int) -> Iterator[Any]:
        different = list(dict.fromkeys(texts))  # the questions about a passage follow one another
        ids = {}
        for text, pieces in zip(different, self._encoder.encode(different), strict=True):
            if number == 0 and self._first_pieces is not None:
                pieces = " ".join(pieces.split()[: self._first_pieces])
            ids[text] = self._dictionary.encode_line(pieces, add_if_not_exist=False)
        return (ids[text] for text in texts)
