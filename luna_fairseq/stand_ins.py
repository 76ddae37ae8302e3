"""What a pickle may build of numpy's: arrays and numbers of plain kinds, and nothing else.

Pickles name numpy's own classes, and those believe what they are told: a dtype may be given a field of objects, whose
pointers are then followed. So a loader puts these stand-ins in their place. They look at everything before they build
anything, and build the real arrays and numbers.
"""

import collections
import math
from typing import Any, Dict, Tuple

import numpy as np

_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
# As every plain dtype has it: no sub-dtype, no names, no fields, no size, no alignment, no flags.
_PLAIN_STATE = (None, None, None, -1, -1, 0)
_MOST_DIMENSIONS = 16
_MOST_BYTES = 1 << 40  # of an array without elements, whose other dimensions may say anything


class RefusedError(ValueError):
    """A pickle asks for something else; the message says for what."""


def _short(value: Any) -> str:
    """What to say of a value that may be of any kind and size."""
    return f"{value[:40]!r}" if isinstance(value, str | bytes) else f"of the type {type(value).__name__}"


def _text(value: Any) -> Any:
    """Python 2 wrote names as bytes."""
    return value.decode("latin1") if type(value) is bytes else value


class DType:
    """In the place of ``numpy.dtype``: ``.dtype`` is the real one."""

    dtype: np.dtype

    def __new__(cls, kind: Any = None, *options: Any) -> "DType":
        kind = _text(kind)
        if type(kind) is not str or kind not in _KINDS or len(options) > 2:
            raise RefusedError(f"a numpy dtype {_short(kind)}")
        self = super().__new__(cls)
        self.dtype = np.dtype(kind)
        return self

    def __setstate__(self, state: Any) -> None:
        plain = type(state) is tuple and len(state) == 8 and type(state[0]) is int
        plain = plain and all(
            type(part) is type(wanted) and part == wanted
            for part, wanted in zip(state[2:], _PLAIN_STATE, strict=True)
        )
        order = _text(state[1]) if plain else None
        if type(order) is not str or order not in ("<", ">", "|", "="):
            raise RefusedError(f"a numpy dtype {self.dtype} that is more than its name says")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        return self.dtype.__reduce__()


def _values(dtype: Any, data: Any) -> Tuple[np.dtype, bytes]:
    """The real dtype, and the bytes of values of it."""
    if type(dtype) is not DType:
        raise RefusedError(f"numpy values whose dtype is {_short(dtype)}")
    if type(data) is not bytes:
        raise RefusedError(f"numpy values in a {type(data).__name__}")
    if dtype.dtype.kind == "b" and data.strip(b"\0\1"):
        raise RefusedError("a truth value that is neither 0 nor 1")
    return dtype.dtype, data


class Array(np.ndarray):
    """In the place of ``numpy.ndarray``: gets its content once; saved, it is numpy's own again."""

    _built = False

    def __new__(cls, *_: Any) -> "Array":
        raise RefusedError("a numpy array that numpy did not write")

    def __setstate__(self, state: Any) -> None:
        if self._built:
            raise RefusedError("a numpy array with two contents")
        if type(state) is not tuple or len(state) != 5:
            raise RefusedError(f"a numpy array whose content is {_short(state)}")
        _, shape, dtype, columns_first, data = state
        dtype, data = _values(dtype, data)
        if (
            type(shape) is not tuple
            or len(shape) > _MOST_DIMENSIONS
            or not all(type(size) is int and size >= 0 for size in shape)
            or type(columns_first) not in (bool, int)
            or math.prod(shape) * dtype.itemsize != len(data)
            or math.prod(max(1, size) for size in shape) * dtype.itemsize > _MOST_BYTES
        ):
            raise RefusedError(f"a numpy array of {dtype} whose shape does not fit its {len(data)} bytes")
        super().__setstate__((1, shape, dtype, bool(columns_first), data))  # type: ignore[arg-type]
        self._built = True

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


def reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    """In the place of numpy's function of this name: an array without content, which gets it afterwards."""
    if kind is not Array or shape != (0,) or _text(code) != "b":
        raise RefusedError(f"a numpy array of another class ({_short(kind)})")
    return np.ndarray.__new__(Array, (0,), np.uint8)


def scalar(dtype: Any, data: Any) -> Any:
    """In the place of numpy's function of this name: a number."""
    dtype, data = _values(dtype, data)
    if len(data) != dtype.itemsize:
        raise RefusedError(f"a numpy number {dtype} of {len(data)} bytes")
    return np.frombuffer(data, dtype)[0]


def no_bytes() -> bytes:
    """In the place of ``bytes``, which the content of an empty array calls."""
    return b""


def default_dictionary(factory: Any = None) -> Dict[Any, Any]:
    """In the place of ``collections.defaultdict``, whose factory is called later."""
    if not any(factory is known for known in (None, dict, list, int)):
        raise RefusedError(f"a dictionary that calls something ({_short(factory)})")
    return collections.defaultdict(factory)


# By the names that pickles have, of numpy 1 and of numpy 2.
NUMPY: Dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": DType,
    **{
        f"{module}.multiarray.{name}": function
        for module in ("numpy.core", "numpy._core")
        for name, function in (("_reconstruct", reconstruct), ("scalar", scalar))
    },
}
