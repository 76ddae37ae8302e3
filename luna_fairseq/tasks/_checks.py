"""What the tasks check before they read data: one clear sentence instead of an error from deep inside."""

import os
from typing import Any, Iterable

import numpy as np
from fairseq.data import indexed_dataset


class DataError(ValueError):
    """Prepared data does not fit the options, or is damaged."""


def check_folder(folder: str) -> None:
    """Raise ``FileNotFoundError`` if a data folder does not exist."""
    if not folder:
        raise FileNotFoundError("no data folder given: name one that fairseq-preprocess has written")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"data folder {folder} does not exist: name one that fairseq-preprocess has written")


def check_dictionary(*path: str, remedy: str = "run fairseq-preprocess, or name the folder above it") -> None:
    """Raise ``FileNotFoundError`` if a dictionary does not exist."""
    name = os.path.join(*path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"dictionary {name} does not exist: {remedy}")


def check_complete(path: str, dataset: Any) -> None:
    """Compare a binarised file with its index.

    Args:
        path: without ``.bin`` and ``.idx``.
        dataset: what was loaded from there; only fairseq's memory-mapped kind is checked.

    Raises:
        DataError: if the file holds less than the index says, as after an interrupted fairseq-preprocess.
    """
    if not isinstance(dataset, indexed_dataset.MMapIndexedDataset) or len(dataset) == 0:
        return
    wanted = int(dataset.sizes.sum(dtype=np.int64)) * np.dtype(dataset._index.dtype).itemsize
    name = indexed_dataset.data_file_path(path)
    found = os.path.getsize(name)
    if found < wanted:
        raise DataError(
            f"{name} has {found} bytes and its index asks for {wanted}: it was only half written; run the "
            "preparation again"
        )


def check_labels(labels: Iterable[int], num_classes: int, where: str) -> None:
    """Raise :class:`DataError` for a label below 0 or not below ``num_classes``.

    Args:
        labels: in the order of the examples.
        num_classes: how many there may be.
        where: the file, for the sentence.
    """
    for i, label in enumerate(labels):
        if not 0 <= label < num_classes:
            known = (
                "is no number of a class, or not in the label dictionary,"
                if label < 0
                else f"has number {label} (counted from 0)"
            )
            raise DataError(
                f"the label of example {i} in {where} {known} and --num-classes is {num_classes}: correct "
                "--num-classes, or prepare the data again"
            )
