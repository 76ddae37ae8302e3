"""Checks of prepared data before it is read: one clear sentence instead of an error from deep inside."""

import os
import struct
from typing import Iterable, List

import numpy as np
from fairseq.data import indexed_dataset

from luna_fairseq.errors import DataError

_INDEX_HEAD = struct.Struct("<9sQBQ")  # magic, version, type, number of entries


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


def check_complete(path: str) -> None:
    """Compare a binarised file with its index, without loading either.

    Args:
        path: without ``.bin`` and ``.idx``; nothing there, or data of another kind than fairseq's memory-mapped
            one, passes.

    Raises:
        DataError: if one of the files is missing or shorter than it should be, as after an interrupted
            fairseq-preprocess.
    """
    data, index = indexed_dataset.data_file_path(path), indexed_dataset.index_file_path(path)
    there = [name for name in (data, index) if os.path.exists(name)]
    if not there:
        return
    if len(there) == 1:
        raise DataError(f"{there[0]} is there without its .bin or .idx: run the preparation again")
    magic = indexed_dataset.MMapIndexedDataset.Index._HDR_MAGIC
    with open(index, "rb") as file:
        head = file.read(_INDEX_HEAD.size)
    if head[: len(magic)] != magic[: len(head)]:
        return
    entries = item = 0
    if len(head) == _INDEX_HEAD.size:
        _, _, code, entries = _INDEX_HEAD.unpack(head)
        item = np.dtype(indexed_dataset._code_to_dtype[code]).itemsize
    # A size (4 bytes) and a place (8) for each entry.
    if len(head) < _INDEX_HEAD.size or os.path.getsize(index) < len(head) + 12 * entries:
        raise DataError(f"{index} is damaged or only half written: run the preparation again")
    wanted = int(np.fromfile(index, np.int32, entries, offset=len(head)).sum(dtype=np.int64)) * item
    if os.path.getsize(data) < wanted:
        raise DataError(
            f"{data} has {os.path.getsize(data)} bytes and its index asks for {wanted}: it was only half written; "
            "run the preparation again"
        )


def check_labels(labels: Iterable[int], num_classes: int, where: str, option: str = "--num-classes") -> None:
    """Raise :class:`DataError` for a label below 0 or not below ``num_classes``.

    Args:
        labels: in the order of the examples.
        num_classes: how many there may be.
        where: the file, for the sentence.
        option: what says how many.
    """
    for i, label in enumerate(labels):
        if not 0 <= label < num_classes:
            known = (
                "is not the number of a class, or not in the label dictionary,"
                if label < 0
                else f"has number {label} (counted from 0)"
            )
            raise DataError(
                f"the label of example {i} in {where} {known} and {option} is {num_classes}: correct {option}, "
                "or prepare the data again"
            )


def read_labels(path: str) -> List[int]:
    """The numbers of classes in a file, one a line; -1, which :func:`check_labels` refuses, for what is none."""
    with open(path) as file:
        return [int(line) if line.isdigit() else -1 for line in file.read().split()]


def check_count(path: str, labels: int, examples: int, what: str = "labels") -> None:
    """Raise :class:`DataError` if a file has another number of labels than there are examples."""
    if labels != examples:
        raise DataError(f"{path} has {labels} {what} for {examples} examples: prepare the data again")
