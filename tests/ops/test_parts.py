"""Attention in parts on the pretended device against the formula, with every gradient; and when it is taken."""

import itertools
from typing import Any, Dict, List, Optional

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from luna_fairseq import ops
from luna_fairseq.modules import LunaAttention
from luna_fairseq.ops import parts
from support import pretended
from support.models import assert_close
from support.pretended import apart
from support.tensors import padding_mask

BATCH, HEADS, ROWS, DIM = 2, 2, 5, 8
KERNEL = "_scaled_dot_product_efficient_attention"


def _drawn(rows: int, keys: int, *more: int) -> List[Tensor]:
    """Queries, keys, values and the slope, and sums for scores, as a layer has them: heads beside each other."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, size, HEADS, DIM) for size in (rows, keys, keys, rows)]
    drawn = [torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes]
    return [*drawn, *(torch.randn(*more, generator=generator) for _ in more[:1])]


def _formula(query: Tensor, key: Tensor, value: Tensor, added: Optional[Tensor]) -> Tensor:
    scores = query @ key.mT * query.size(-1) ** -0.5
    return torch.softmax(scores if added is None else scores + added, dim=-1) @ value


def _run(attention: Any, drawn: List[Tensor], slope: Tensor) -> Dict[str, Tensor]:
    """Output and gradients."""
    inputs = [x.detach().requires_grad_() for x in drawn]
    out = attention(*inputs)
    names = ("query", "key", "value", "added")
    return {"output": out.detach(), **dict(zip(names, torch.autograd.grad(out, inputs, slope), strict=False))}


def _same(got: Dict[str, Tensor], want: Dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, wanted in want.items():
        assert_close(got[name].double(), wanted, name, rel=1e-5)


# One process, as the device is made known in each.
CASES = [
    (parts.Cut(3, 16, False), 55, "padding"),
    (parts.Cut(3, 16, False), 48, "none"),
    (parts.Cut(4, 16, True), 64, "padding"),
    (parts.Cut(4, 16, True), 64, "learned"),
    (parts.Cut(3, 16, False), 53, "learned"),
]


@apart
def test_keys_in_parts_are_the_formula() -> None:
    """Keys that are left over; parts of nothing but padding; a sentence of nothing else; sums that are learned."""
    for (cut, keys, masks), tied in itertools.product(CASES, (False, True)):
        _check_keys(cut, keys, masks, tied)


def _check_keys(cut: parts.Cut, keys: int, masks: str, tied: bool) -> None:
    query, key, value, slope, *learned = _drawn(ROWS, keys, *((1, HEADS, ROWS, keys) if masks == "learned" else ()))
    mask = None
    if masks == "padding":
        padding = padding_mask(BATCH, keys, 3, "right")
        padding[0, 20:], padding[1] = True, True
        mask = ops.key_mask(padding)
    given = [query, key, *([] if tied else [value]), *learned]
    added = None if mask is None else torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))

    def plain(query: Tensor, key: Tensor, *others: Tensor) -> Tensor:
        return _formula(query, key, key if tied else others[0], others[-1] if learned else added)

    want = _run(plain, [x.double() for x in given], slope.double())
    with pretended.device() as counts:
        device_mask = pretended.sent(mask)

        def in_parts(query: Tensor, key: Tensor, *others: Tensor) -> Tensor:
            chosen = others[-1] if learned else device_mask
            return parts.attention_in_parts(query, key, key if tied else others[0], chosen, cut)

        got = pretended.back(_run(in_parts, pretended.sent(given), pretended.sent(slope)))
        forward = [k.programs for k in counts.kernels if k.name == KERNEL]
    rest = [] if cut.together or not keys % 16 else [HEADS]
    assert forward == ([BATCH * cut.parts * HEADS] if cut.together else [cut.parts * HEADS, *rest] * BATCH)
    _same(got, want)


@apart
def test_queries_in_parts_are_the_formula() -> None:
    """Parts that are filled up, too."""
    for length, masked in itertools.product((12, 14), (False, True)):
        _check_queries(length, masked)


def _check_queries(length: int, masked: bool) -> None:
    query, key, value, slope = _drawn(length, ROWS)
    mask = ops.key_mask(padding_mask(BATCH, ROWS, 3, "right")) if masked else None
    added = None if mask is None else torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))
    given = [query, key, value]
    want = _run(lambda *x: _formula(*x, added), [x.double() for x in given], slope.double())
    with pretended.device() as counts:
        sent_mask = pretended.sent(mask)
        got = pretended.back(
            _run(
                lambda *x: parts.attention_of_parts(*x, sent_mask, 0.0, 4),
                pretended.sent(given),
                pretended.sent(slope),
            )
        )
        backward = [k.programs for k in counts.kernels if k.name == f"{KERNEL}_backward"]
    assert backward == [4 * BATCH * HEADS]
    _same(got, want)


@apart
def test_a_layer_in_parts_is_that_of_the_cpu() -> None:
    """Both steps of Luna, with padding, a sentence of nothing else and the position bias: every gradient."""
    right = parts.best_cut, parts.best_number
    for bias in (0.0, 1.0):
        parts.best_cut, parts.best_number = right
        _check_layer(bias)


def _check_layer(bias: float) -> None:
    torch.manual_seed(0)
    layer = LunaAttention(2 * DIM, HEADS, position_bias=bias)
    generator = torch.Generator().manual_seed(1)
    x, packed, slope = (torch.randn(BATCH, size, 2 * DIM, generator=generator) for size in (40, ROWS, 40))
    padding = torch.zeros(BATCH, 40, dtype=torch.bool)
    padding[0, 12:], padding[1] = True, True
    mask = ops.key_mask(padding)

    def run(x: Tensor, packed: Tensor, mask: Tensor, slope: Tensor) -> Dict[str, Tensor]:
        layer.zero_grad()
        x, packed = x.requires_grad_(), packed.requires_grad_()
        out, packed_out, _ = layer(x, packed, x, mask)
        (out * slope).sum().backward(retain_graph=True)
        packed_out.square().sum().backward()
        found = {"output": out, "packed": packed_out, "d_x": x.grad, "d_packed": packed.grad}
        return {**found, **{name: p.grad for name, p in layer.named_parameters()}}

    want = run(x.clone(), packed.clone(), mask, slope)
    parts.best_cut = lambda *sizes: parts.Cut(2, 16, False) if sizes[-1] == 40 else None
    parts.best_number = lambda *sizes: 5 if sizes[-1] == ROWS else 1
    with pretended.device() as counts:
        pretended.sent_module(layer)
        found = pretended.back(run(*pretended.sent((x, packed, mask, slope))))
        programs = [k.programs for k in counts.kernels if k.programs]
    assert programs[:5] == [2 * HEADS, HEADS, 2 * HEADS, HEADS, 5 * BATCH * HEADS]
    for name, wanted in want.items():
        assert_close(found[name], wanted.detach(), name, rel=1e-4 if name == "position_slope" else 1e-5)


@apart
def test_what_stays_with_torch() -> None:
    """Dropout, the plain form if it is asked for or has second derivatives, types and widths that no kernel has."""
    parts.best_cut = lambda *_: parts.Cut(2, 16, False)
    with pretended.device() as counts, pytest.MonkeyPatch.context() as patch:
        query, key, value, _ = pretended.sent(_drawn(ROWS, 40))

        def taken(*given: Tensor, dropout: float = 0.0) -> bool:
            counts.clear()
            ops.attend(*given, dropout_p=dropout)
            return len([k for k in counts.kernels if k.name == KERNEL]) > 1

        assert taken(query, key, value)
        assert not taken(query, key, value, dropout=0.1)
        assert not taken(*(x.double() for x in (query, key, value)))
        assert not taken(*(x[..., :7] for x in (query, key, value)))
        with sdpa_kernel(SDPBackend.MATH):
            assert parts.cut(query, key, value, None) is None
        patch.setenv("LUNA_KERNELS", "torch")
        assert not taken(query, key, value)
    assert parts.cut(*_drawn(ROWS, 40)[:3], None) is None  # a CPU
    with pretended.device():
        query, key, value, _ = pretended.sent(_drawn(ROWS, 40))
        out = parts.attention_in_parts(query.requires_grad_(), key, value, None, parts.Cut(2, 16, False))
        with pytest.raises(RuntimeError, match="no second derivative: run the forward pass in"):
            torch.autograd.grad(out.sum(), query, create_graph=True)


def test_where_it_pays() -> None:
    """One long document of 8 heads, and several; not where there are programs enough, or too few words."""
    assert parts.best_cut(1, 8, 16, 65536) == (32, 2048, True)
    assert parts.best_cut(1, 8, 16, 16384) == (32, 512, True)
    assert parts.best_cut(4, 8, 16, 16384) == (8, 2048, True)
    assert parts.best_cut(1, 8, 128, 16000) == (10, 1600, True)
    assert parts.best_cut(1, 8, 16, 16001) == (32, 496, False)
    assert parts.best_cut(2, 8, 16, 30011) == (32, 928, False)
    assert parts.best_cut(1, 8, 16, 4096) is None
    assert parts.best_cut(64, 8, 16, 65536) is None
    assert parts.best_cut(1, 512, 16, 65537) is None
    assert parts.best_number(1, 8, 65536, 16) == 32
    assert parts.best_number(4, 8, 4096, 16) == 8
    assert parts.best_number(1, 8, 16001, 16) == 32
    assert parts.best_number(64, 8, 256, 16) == 1
    assert parts.best_number(1, 8, 2048, 2048) == 1


@apart
def test_comparing_finds_what_is_wrong() -> None:
    """What decides on a GPU, here: the parts pass, sums that are left out of the weights do not."""
    with pretended.device():
        compared = torch.device("gpu", 0), torch.bfloat16, 16
        assert parts.compare(*compared) is None
        right = torch.softmax
        torch.softmax = lambda x, dim: right(0 * x if dim == 1 else x, dim)  # type: ignore[assignment]
        wrong = parts.compare(*compared)
        torch.softmax = right
        assert wrong is not None and "heads of 16: off by" in wrong
