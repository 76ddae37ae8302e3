"""The published files of CIFAR-10, which are pickles: read without running anything that they hold."""

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from luna_fairseq.console import one_line
from luna_fairseq.data.files import need_file
from luna_fairseq.errors import PreparationError
from luna_fairseq.stand_ins import NUMPY

GREY = (0.2989, 0.5870, 0.1140)  # how much red, green and blue count


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain objects and arrays of numbers, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return self._latin1
        if (stand_in := NUMPY.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return stand_in

    @staticmethod
    def _latin1(text: str, encoding: str) -> bytes:
        return text.encode("latin1")


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The grey images [N, 1024] and the labels [N] of a file of CIFAR-10."""
    with open(need_file(path), "rb") as file:
        content = _unpickle(file, path)
    try:
        data, labels = content[b"data"], content[b"labels"]
        good = (
            isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == 3 * 1024 and data.dtype == np.uint8
        )
        good = good and len(labels) == len(data) and all(type(label) is int and 0 <= label < 10 for label in labels)
    except (KeyError, TypeError, IndexError):
        good = False
    if not good:
        raise PreparationError(
            f"{path} does not have data of 3,072 bytes an image and labels from 0 to 9: name the folder "
            "cifar-10-batches-py"
        )
    colours = np.array(data).reshape(-1, 3, 1024).astype(np.float64)
    grey = sum(weight * colours[:, number] for number, weight in enumerate(GREY))
    return np.rint(grey).astype(np.uint8), np.array(labels, dtype=np.int64)


def _unpickle(file: IO[bytes], path: Path) -> Any:
    try:
        return _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # broken pickles raise nearly anything
        raise PreparationError(
            f"{path} is not a file of CIFAR-10: {one_line(error) or type(error).__name__}"
        ) from error
