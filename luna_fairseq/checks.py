"""Checks of prepared data before it is read: one clear sentence instead of an error from deep inside."""

import os
import struct
from typing import Iterable, List

import numpy as np
from fairseq.data import indexed_dataset
from fairseq.data.huffman import HuffmanMMapIndex

from luna_fairseq.errors import DataError

_INDEX_HEAD = struct.Struct("<9sQBQ")  # magic, version, type, number of entries
_LEGACY_HEAD = struct.Struct("<8sQQQQQ")  # magic, version, type, bytes of a number, numbers of entries and dimensions


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
        path: without ``.bin`` and ``.idx``; nothing there passes, and so does fairseq's Huffman code.

    Raises:
        DataError: if one of the files is missing or shorter than it should be, as after an interrupted
            fairseq-preprocess, or the index is none, or points outside of the file.
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
    if head[: len(magic)] == magic[: len(head)]:
        _check_mapped(data, index, head)
    elif head.startswith(indexed_dataset.IndexedDataset._HDR_MAGIC):
        _check_legacy(data, index)
    elif not head.startswith(HuffmanMMapIndex._HDR_MAGIC[: len(head)]):
        raise DataError(
            f"{index} is no index that fairseq-preprocess writes, or is damaged: run the preparation again"
        )


def _half_written(index: str) -> DataError:
    return DataError(f"{index} is damaged or only half written: run the preparation again")


def _check_format(index: str, version: int, code: int) -> np.dtype:
    """The type of the numbers in a binarised file.

    Raises:
        DataError: for a version or a type that fairseq does not know.
    """
    if version != 1:
        raise DataError(f"{index} has version {version} and fairseq reads version 1: run the preparation again")
    if code not in indexed_dataset._code_to_dtype:
        raise DataError(f"{index} holds numbers of an unknown type, {code}: it is damaged; run the preparation again")
    return np.dtype(indexed_dataset._code_to_dtype[code])


def _check_mapped(data: str, index: str, head: bytes) -> None:
    """The format of today: for each entry a size (4 bytes), and then for each a place in bytes (8)."""
    if len(head) < _INDEX_HEAD.size:
        raise _half_written(index)
    _, version, code, entries = _INDEX_HEAD.unpack(head)
    item = _check_format(index, version, code).itemsize
    if os.path.getsize(index) < len(head) + 12 * entries:
        raise _half_written(index)
    sizes = np.fromfile(index, np.int32, entries, offset=len(head))
    places = np.fromfile(index, np.int64, entries, offset=len(head) + 4 * entries)
    wrong = np.flatnonzero((sizes < 0) | (places < 0))
    if len(wrong):
        raise DataError(
            f"{index} is damaged (entry {wrong[0]} has size {sizes[wrong[0]]} and lies at {places[wrong[0]]}): run "
            "the preparation again"
        )
    ends = places.astype(np.uint64) + sizes.astype(np.uint64) * np.uint64(item)  # cannot overflow
    _check_size(data, int(ends.max(initial=0)))
    if os.path.getsize(data) == 0:  # the system maps nothing
        raise DataError(f"{data} holds no example: prepare it from a text that is not empty")


def _check_legacy(data: str, index: str) -> None:
    """The format of ``--dataset-impl cached`` and ``lazy``: entries have several dimensions, places count numbers."""
    with open(index, "rb") as file:
        head = file.read(_LEGACY_HEAD.size)
        if len(head) < _LEGACY_HEAD.size:
            raise _half_written(index)
        _, version, code, item, entries, dimensions = _LEGACY_HEAD.unpack(head)
        _check_format(index, version, code)
        if os.path.getsize(index) < len(head) + 8 * (2 * (entries + 1) + dimensions):
            raise _half_written(index)
        starts, places = (np.fromfile(file, np.int64, entries + 1) for _ in range(2))
    ascending = all(rows[0] >= 0 and (np.diff(rows) >= 0).all() for rows in (starts, places))
    if not ascending or starts[-1] > dimensions or not 1 <= item <= 8:
        raise DataError(f"{index} is damaged: run the preparation again")
    _check_size(data, int(places[-1]) * item)


def _check_size(data: str, wanted: int) -> None:
    if os.path.getsize(data) < wanted:
        raise DataError(
            f"{data} has {os.path.getsize(data)} bytes and its index asks for {wanted}: it was only half written, or "
            "the index is damaged; run the preparation again"
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
