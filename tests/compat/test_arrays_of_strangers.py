"""Checkpoints that are made to break the memory of who loads them: numpy's values are plain, or refused."""

import argparse
import collections
import math
import pickle
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_fairseq.errors import CheckpointError
from luna_fairseq.stand_ins import Array, DType, RefusedError, reconstruct, scalar
from support.evil import Pickled, rewrite
from support.runs import in_a_child

INT = np.dtype("i8")
RECONSTRUCT, SCALAR = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]


def dtype(kind: str, *state: Any) -> Pickled:
    """A dtype that is told another state than its own; ``state`` begins behind the version."""
    return Pickled(np.dtype, (kind, False, True), (3, *state))


def array(shape: Any, kind: Any, data: Any, columns_first: Any = False, whose: Any = np.ndarray) -> Pickled:
    return Pickled(RECONSTRUCT, (whose, (0,), b"b"), (1, shape, kind, columns_first, data))


def with_fields(fields: Dict[str, Any]) -> Pickled:
    return array((1,), dtype("i8", "<", None, tuple(fields), fields, 8, 1, 0), b"\x41" * 8)


CRAFTED: Dict[str, Any] = {
    "a field of objects": with_fields({"optimizer_name": (np.dtype("O"), 0)}),
    "a field far outside": with_fields({"optimizer_name": (INT, 800_000_000)}),
    "a title": with_fields({"optimizer_name": (INT, 0, "title")}),
    "names without fields": dtype("i8", "<", None, ("optimizer_name",), None, -1, -1, 0),
    "a sub-dtype": dtype("i8", "|", (INT, (2,)), None, None, 16, 8, 0),
    "a size": array((1,), dtype("i8", "<", None, None, None, 800, 1, 0), b"\0" * 8),
    "flags": dtype("i8", "<", None, None, None, -1, -1, 63),
    "a byte order": dtype("i8", "x", None, None, None, -1, -1, 0),
    "metadata": dtype("i8", "<", None, None, None, -1, -1, 0, {}),
    "a short state": dtype("i8", "<"),
    "objects": array((1,), np.dtype("O"), [1]),
    "bytes of objects": array((1,), np.dtype("O"), b"\x41" * 8),
    "a record": array((1,), np.dtype("i8,i8"), b"\0" * 16),
    "void": array((1,), np.dtype("V8"), b"\0" * 8),
    "text": array((1,), np.dtype("U2"), b"\xff" * 8),
    "time": array((1,), np.dtype("M8[ns]"), b"\0" * 8),
    "a negative shape": array((-2, -4), INT, b"\0" * 64),
    "a shape that is too large": array((1 << 40,), INT, b"\0" * 8),
    "a shape that is too small": array((1,), INT, b"\0" * 64),
    "a shape beyond the machine": array((1 << 62, 4), INT, b""),
    "a huge shape of nothing": array((0, 1 << 62), INT, b""),
    "a shape of truths": array((True,), INT, b"\0" * 8),
    "a shape that is no tuple": array([1], INT, b"\0" * 8),
    "many dimensions": array((1,) * 60, INT, b"\0" * 8),
    "a list for bytes": array((1,), INT, [1]),
    "no bytes": array((1,), INT, None),
    "a truth of 2": array((2,), np.dtype("b1"), b"\1\2"),
    "a class for a dtype": array((1,), np.dtype, b"\0" * 8),
    "a short content": Pickled(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,))),
    "an array of options": Pickled(RECONSTRUCT, (argparse.Namespace, (0,), b"b")),
    "an array that is there": Pickled(RECONSTRUCT, (np.ndarray, (1 << 30,), b"b")),
    "an array of its own": Pickled(np.ndarray, ((1,), INT)),
    "a short number": Pickled(SCALAR, (INT, b"\0")),
    "a long number": Pickled(SCALAR, (INT, b"\0" * 16)),
    "a number of objects": Pickled(SCALAR, (np.dtype("O"), 5)),
    "a number without a dtype": Pickled(SCALAR, (8, b"\0" * 8)),
    "a dictionary that calls": Pickled(collections.defaultdict, (np.dtype,)),
}


def checkpoint(**more: Any) -> Dict[str, Any]:
    history = {"optimizer_name": "FairseqAdam", "lr_scheduler_state": {"best": 1.5}, "num_updates": 7}
    state = {"model": {}, "args": None, "cfg": None, "optimizer_history": [history], "extra_state": {}}
    return {**state, **more}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_values_are_refused(name: str, tmp_path: Path) -> None:
    """In the place where fairseq itself writes into what it has loaded."""
    path = tmp_path / "x.pt"
    torch.save(checkpoint(optimizer_history=[CRAFTED[name]]), path)

    def work() -> None:
        for load in (checkpoint_utils.load_checkpoint_to_cpu, torch.load):
            with pytest.raises((CheckpointError, RefusedError)) as raised:
                load(str(path))
            if load is not torch.load:
                assert str(raised.value).startswith(f"{path} was not loaded: it holds "), raised.value
                assert "that no fairseq checkpoint holds" in str(raised.value)

    assert in_a_child(work) == 0


def test_places_outside_of_a_sparse_tensor_are_not_followed(tmp_path: Path) -> None:
    """torch loads it, and ends where it is made dense."""
    path, parts = tmp_path / "x.pt", (torch.tensor([[10**8]]), torch.ones(1), torch.Size([3]), True)
    sparse = Pickled(torch._utils._rebuild_sparse_tensor, (torch.sparse_coo, parts))
    torch.save(checkpoint(model={"weight": sparse}), path)

    def work() -> None:
        with pytest.raises(CheckpointError, match="it holds a sparse tensor that no fairseq checkpoint holds"):
            checkpoint_utils.load_checkpoint_to_cpu(str(path))["model"]["weight"].to_dense()

    assert in_a_child(work) == 0


def test_an_array_gets_its_content_once() -> None:
    """A tensor may lie on it by then."""
    made = reconstruct(Array, (0,), b"b")
    content = (1, (2,), DType("i8", False, True), False, bytes(16))
    made.__setstate__(content)
    with pytest.raises(RefusedError, match="two contents"):
        made.__setstate__(content)


VALUES = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.array([True, False]),
    np.array(2.5, np.float16),
    np.zeros((0, 3), np.float32),
    *(np.dtype(kind).type(1) for kind in ("b1", "i1", "u2", "i4", "u8", "f2", "f4", "f8")),
]


@pytest.mark.parametrize("numpy", ["numpy.core", "numpy._core"])
def test_plain_values_are_loaded_and_saved_again(numpy: str, tmp_path: Path) -> None:
    """From pickles of numpy 1 and of numpy 2, as numpy's own."""
    path = tmp_path / "x.pt"
    torch.save(checkpoint(extra_state={"values": VALUES, "train_iterator": {}}), path)
    rewrite(path, b"numpy._core.multiarray", f"{numpy}.multiarray".encode())
    for again in (False, True):
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        for got, want in zip(state["extra_state"]["values"], VALUES, strict=True):
            assert type(got) is type(want) and got.shape == want.shape
            assert got.dtype == want.dtype.newbyteorder("=")  # numpy turns the bytes round where it has to
            assert np.array_equal(got, want) and got.flags.f_contiguous == want.flags.f_contiguous
        if not again:
            torch.save(state, path)
    # Without the plugin, too: torch.load alone has given a stand-in, which is pickled as numpy's.
    loaded = torch.load(path)["extra_state"]["values"][0]
    assert type(pickle.loads(pickle.dumps(loaded))) is np.ndarray


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_are_named(protocol: int, tmp_path: Path) -> None:
    torch.save(checkpoint(extra_state={"values": VALUES}), tmp_path / "x.pt", pickle_protocol=protocol)
    with pytest.warns(UserWarning, match="pickle protocol"), pytest.raises(CheckpointError, match=r"x\.pt"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))


KINDS = st.sampled_from(["b1", "i8", "u1", "f4", b"f8", "O", "i8,i8", "V4", "S3", 8, None])
ORDERS = st.sampled_from(["<", ">", "|", b"=", "x", None])
PARTS = st.one_of(st.none(), st.integers(-2, 70), st.binary(max_size=9), st.just(("a",)), st.just({"a": (INT, 0)}))
SIZES = st.lists(st.integers(-1, 4) | st.sampled_from([1 << 31, 1 << 62, True]), max_size=4).map(tuple)


def _or_refused(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except RefusedError:
        return None


@given(data=st.data(), kind=KINDS, order=ORDERS, parts=st.lists(PARTS, min_size=6, max_size=7), size=SIZES)
@settings(max_examples=300, deadline=None)
def _fuzz(data: Any, kind: Any, order: Any, parts: Any, size: Any) -> None:
    made = _or_refused(lambda: DType(kind, False, True))
    if made is None:
        return
    plain = [None, None, None, -1, -1, 0]
    state = data.draw(st.sampled_from([plain, plain, parts]))
    if _or_refused(lambda: made.__setstate__((3, order, *state)) or True) is None:
        assert state != plain or order in ("x", None)
        return
    assert made.dtype.fields is None and made.dtype.subdtype is None and made.dtype.kind in "biuf"
    right = max(0, math.prod(size)) * made.dtype.itemsize
    content = bytes(min(right, 4096)) if data.draw(st.booleans()) else data.draw(st.binary(max_size=80))
    values = reconstruct(Array, (0,), b"b")
    if _or_refused(lambda: values.__setstate__((1, size, made, data.draw(st.booleans()), content)) or True):
        assert values.shape == size and values.nbytes == len(content) and values.sum() is not None
        assert values.base is None and values.flags.owndata
    number = _or_refused(lambda: scalar(made, content))
    assert number is None or (len(content) == made.dtype.itemsize and np.isscalar(number))


def test_random_pickles_of_numpy_build_plain_values_or_nothing() -> None:
    assert in_a_child(_fuzz) == 0
