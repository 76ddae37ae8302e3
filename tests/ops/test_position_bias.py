"""The bias of the pack step against the formula: every gradient, any block, long texts, half precision, memory."""

from typing import Any, List, Optional, Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.ops import biased
from luna_fairseq.ops import position_bias as position_bias_ops
from luna_fairseq.ops.naive import naive_attention, naive_position_bias
from support.models import assert_close
from support.tensors import leaves, padding_mask

SIDES = ["none", "left", "right", "empty"]
BLOCKS = [1, 7, 40, 200, 10**6]  # less than a row, rows, heads, sentences, all


def _padding(batch: int, positions: int, seed: int, side: str) -> Optional[Tensor]:
    """With ``empty``, the first sentence is padding from end to end."""
    if side == "none":
        return None
    padding = padding_mask(batch, positions, seed, "left" if side == "left" else "right")
    if side == "empty":
        padding[0] = True
    return padding


def _own_rows(rows: int, padding: Tensor, fixed: bool) -> int:
    """How many rows of P belong to a sentence; one that is all padding is opened, with all rows."""
    words = int((~padding).sum()) or padding.numel()
    return rows if fixed or padding.all() else min(rows, words)


def _packed_mask(rows: int, padding: Optional[Tensor], fixed: bool) -> Optional[Tensor]:
    if fixed or padding is None:
        return None
    return ops.key_mask(torch.arange(rows) >= (~padding).sum(dim=1, keepdim=True))


def _naive(slope: Tensor, rows: int, padding: Tensor) -> Tensor:
    """``[H, rows, M]`` of one sentence."""
    heads = slope.numel()
    opened = padding & ~padding.all()
    return torch.stack([naive_position_bias(slope[h], h, heads, rows, opened) for h in range(heads)])


CASE: Any = dict(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9)),  # B, H, L, M
    side=st.sampled_from(SIDES),
    fixed=st.booleans(),
    seed=st.integers(0, 99),
)


@given(**CASE, block=st.sampled_from(BLOCKS), joined=st.booleans())
@settings(max_examples=60, deadline=None)
def test_bias_is_the_formula_with_every_gradient(
    sizes: Tuple[int, ...], side: str, fixed: bool, seed: int, block: int, joined: bool
) -> None:
    """Of the scores it changes those in place."""
    batch, heads, rows, positions = sizes
    rows = rows if fixed else min(rows, positions)
    shape = (batch, heads, rows, positions)
    scores, slope, weight = leaves(shape, (heads,), shape, seed=seed)
    padding = _padding(batch, positions, seed, side)
    mask, packed_mask = ops.key_mask(padding), _packed_mask(rows, padding, fixed)
    places = ops.row_places(rows, heads, torch.empty(batch, positions, 1).double(), mask, packed_mask)
    assert places.centre.size(0) == (1 if padding is None else batch)

    want, read = scores.clone(), torch.zeros(scores.shape, dtype=torch.bool)
    every = torch.zeros(batch, positions, dtype=torch.bool) if padding is None else padding
    for b in range(batch):
        own, real = _own_rows(rows, every[b], fixed), ~every[b] | every[b].all()
        read[b, :, :own] = real
        want[b, :, :own] = want[b, :, :own] + _naive(slope, own, every[b])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(position_bias_ops, "_BLOCK", block)
        made = scores.clone()
        made = made.flatten(1, 2).clone() if joined else made
        got = ops.add_position_bias(made, ops.PositionBias(slope, places))
        assert got.data_ptr() == made.data_ptr()
        got = got.view(scores.shape)
        assert_close(got, want, "scores", rel=1e-12, mask=read)
        grads = [torch.autograd.grad(out, [scores, slope], weight * read) for out in (got, want)]
    for name, *pair in zip(("scores", "slope"), *grads, strict=True):
        assert_close(*pair, f"gradient of {name}", rel=1e-10)


@given(
    **CASE, way=st.sampled_from(["folded", "blocks", "dropout"]), tied=st.booleans(), block=st.sampled_from(BLOCKS)
)
@settings(max_examples=60, deadline=None)
def test_pack_with_the_bias_is_the_formula_with_every_gradient(
    sizes: Tuple[int, ...], side: str, fixed: bool, seed: int, way: str, tied: bool, block: int
) -> None:
    """Folded, and after projecting, block by block or as with dropout; and the weights that are shown."""
    batch, heads, rows, positions = sizes
    rows = rows if fixed else min(rows, positions)
    dim, width = 3, 5
    query, x, w_key, w_value, b_key, b_value, slope = leaves(
        (batch, heads, rows, dim), (batch, positions, width), *[(heads * dim, width)] * 2, *[(heads * dim,)] * 2,
        (heads,), seed=seed,
    )  # fmt: skip
    padding = _padding(batch, positions, seed, side)
    mask, packed_mask = ops.key_mask(padding), _packed_mask(rows, padding, fixed)
    bias = ops.PositionBias(slope, ops.row_places(rows, heads, x, mask, packed_mask))
    key = nn.functional.linear(x, w_key, b_key).unflatten(2, (heads, dim)).transpose(1, 2)
    value = key if tied else nn.functional.linear(x, w_value, b_value).unflatten(2, (heads, dim)).transpose(1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(biased, "_BLOCK", block)
        if way == "folded":
            projections = (w_key, b_key), ((w_key, b_key) if tied else (w_value, b_value))
            got = ops.folded_pack(query, x, *projections, mask, 0.0, bias)
        else:  # with a probability that drops nothing
            got = ops.attend(query, key, value, mask, 1e-300 if way == "dropout" else 0.0, bias)
        weight = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        read = torch.zeros(got.shape, dtype=torch.bool)
        every = torch.zeros(batch, positions, dtype=torch.bool) if padding is None else padding
        for b in range(batch):
            read[b, :, : _own_rows(rows, every[b], fixed)] = True
        inputs = [query, x, w_key, b_key, slope, *([] if tied else [w_value, b_value])]
        got_grads = torch.autograd.grad(got, inputs, weight * read, retain_graph=True)
    weighted = ops.attention_weights(query, key, mask, bias).double() @ value

    want = []
    for b in range(batch):
        own, opened = _own_rows(rows, every[b], fixed), every[b] & ~every[b].all()
        biases = torch.zeros(heads, rows, positions).double()
        biases = torch.cat([_naive(slope, own, every[b]), biases[:, own:]], dim=1)
        want.append(
            torch.stack(
                [naive_attention(query[b, h], key[b, h], value[b, h], opened, biases[h]) for h in range(heads)]
            )
        )
    wanted = torch.stack(want)
    assert_close(got, wanted, "pack", rel=1e-10, mask=read)
    assert_close(weighted, wanted, "weights", rel=1e-5, mask=read)
    wanted_grads = torch.autograd.grad(wanted, inputs, weight * read)
    for number, pair in enumerate(zip(got_grads, wanted_grads, strict=True)):
        assert_close(*pair, f"gradient {number}", rel=1e-9)


def test_numbers_by_hand() -> None:
    """Six words, two rows, three heads: a row's part has three words, a head's part one, and it looks there."""
    places = ops.row_places(2, 3, torch.empty(1, 6, 1))
    assert places.centre.flatten().tolist() == pytest.approx([0, 3, 1, 4, 2, 5])
    assert places.unit.item() == 1.0  # never less than a word, whatever the number of heads
    scores = ops.add_position_bias(torch.zeros(1, 3, 2, 6), ops.PositionBias(torch.tensor([1.0, 2.0, 0.0]), places))
    assert scores[0, 0, 1].tolist() == pytest.approx([-9, -4, -1, 0, -1, -4])
    assert scores[0, 1, 0].tolist() == pytest.approx([-2, 0, -2, -8, -18, -32])
    assert not scores[0, 2].any()
    assert ops.row_places(2, 1, torch.empty(1, 6, 1)).unit.item() == 3.0


@pytest.mark.parametrize("heads", [1, 8])
def test_65536_positions(heads: int) -> None:
    """Words are counted exactly; a row of float32 may look a hundredth of a word beside its middle."""
    x = torch.empty(1, 65536, 1)
    found = []
    for kind in (x, x.double()):
        places = ops.row_places(256, heads, kind)
        last = ops.RowPlaces(places.index, places.centre[:, -1:], places.unit)  # of the last head
        scores = torch.zeros(1, 1, 65536, dtype=kind.dtype)
        found.append((places, ops.add_position_bias(scores, ops.PositionBias(torch.ones(1), last))))
    (places, got), (exact, want) = found
    assert places.index.dtype == torch.float32 and torch.equal(places.index.double(), exact.index)
    assert (places.centre - exact.centre).abs().max() < 0.01
    near = want > -30
    assert near.sum() > 10
    assert_close(got.double(), want, "near the middle", rel=0.02, mask=near)


def test_a_sentence_gives_the_same_alone_and_padded_on_either_side() -> None:
    slope = torch.tensor([0.5, 1.5])
    for words in (1, 3, 8, 11):
        alone = ops.add_position_bias(
            torch.zeros(1, 2, min(4, words), words),
            ops.PositionBias(slope, ops.row_places(min(4, words), 2, torch.empty(1, words, 1))),
        )
        for left in (True, False):
            padding = torch.arange(11) < 11 - words if left else torch.arange(11) >= words
            padding = torch.stack([padding, torch.zeros(11, dtype=torch.bool)])
            masks = ops.key_mask(padding), _packed_mask(4, padding, fixed=False)
            places = ops.row_places(4, 2, torch.empty(2, 11, 1), *masks)
            got = ops.add_position_bias(torch.zeros(2, 2, 4, 11), ops.PositionBias(slope, places))
            assert torch.equal(got[:1, :, : min(4, words)][..., ~padding[0]], alone)


def _saved(call: Any, *arguments: Any) -> List[int]:
    """The sizes of what a call keeps for the backward pass."""
    sizes: List[int] = []

    def note(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        call(*arguments)
    return sizes


@pytest.mark.parametrize("padded", [True, False])
def test_nothing_of_the_size_of_the_scores_is_kept_for_it(padded: bool) -> None:
    """The folded pack keeps what it does without, the other nothing, or with dropout no more than PyTorch's."""
    query, x, weight, slope, scores = leaves((3, 2, 4, 8), (3, 99, 16), (16, 16), (2,), (3, 2, 4, 99))
    mask = ops.key_mask(padding_mask(3, 99, 1, "right")) if padded else None
    key = (x @ weight).unflatten(2, (2, 8)).transpose(1, 2)
    bias = ops.PositionBias(slope, ops.row_places(4, 2, x, mask))

    def kept(call: Any, *arguments: Any) -> List[List[int]]:
        """The sizes of what is kept, without the bias and with it, apart from keys and values."""
        return [
            sorted(n for n in _saved(call, *arguments, added) if n >= scores.numel() and n != key.numel())
            for added in (None, bias)
        ]

    for rate in (0.0, 0.1):
        plain, ours = kept(ops.folded_pack, query, x, (weight, None), (weight, None), mask, rate)
        assert ours == plain
        plain, ours = kept(ops.attend, query, key, key, mask, rate)
        assert len(ours) <= len(plain) and (rate or not ours)
    assert max(_saved(ops.add_position_bias, scores * 1, bias)) < scores.numel() / 4


def _long_case(padded: str) -> Tuple[Any, ...]:
    """Sentences of 60, 7 and 31 words, 12 rows, and which rows are read."""
    query, key, value, weight = leaves((3, 2, 12, 3), (3, 2, 60, 3), (3, 2, 60, 3), (3, 2, 12, 3))
    words = torch.tensor([[60], [7], [31]]) if padded != "none" else torch.full((3, 1), 60)
    position = torch.arange(60)
    padding = position < 60 - words if padded == "left" else position >= words
    masks = (None, None) if padded == "none" else (ops.key_mask(padding), _packed_mask(12, padding, fixed=False))
    places = ops.row_places(12, 2, key[:, 0], *masks)
    read = (torch.arange(12) < words)[:, None, :, None].expand(weight.shape)
    return query, key, value, weight, padding, masks[0], places, read


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padded", ["none", "left", "right"])
def test_what_is_too_far_to_matter_is_left_out(padded: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, weight, padding, mask, places, read = _long_case(padded)
    slope = torch.tensor([8.0, 6.0], dtype=torch.float64, requires_grad=True)
    value = key if tied else value
    monkeypatch.setattr(biased, "_NEAR_SCORES", 0)
    monkeypatch.setattr(biased, "_NEAR_ROWS", 3)
    monkeypatch.setattr(biased, "_BLOCK", 500)
    biases = biased._Biases(slope, places.index, places.centre, places.unit, mask)
    parts = biases.parts(query, key)
    assert len({part[2].start for part in parts}) == 4
    assert all(part[3] != slice(None) and part[3].stop - part[3].start < 45 for part in parts)

    got = ops.attend(query, key, value, mask, 0.0, ops.PositionBias(slope, places))
    wanted = []
    for b in range(3):
        rows = int(read[b, 0, :, 0].sum())
        bias = torch.cat([_naive(slope, rows, padding[b]), torch.zeros(2, 12 - rows, 60).double()], dim=1)
        one = [naive_attention(query[b, h], key[b, h], value[b, h], padding[b], bias[h]) for h in range(2)]
        wanted.append(torch.stack(one))
    want = torch.stack(wanted)
    assert_close(got, want, "pack", rel=1e-12, mask=read)
    inputs = [query, key, slope, *([] if tied else [value])]
    for number, pair in enumerate(
        zip(*[torch.autograd.grad(x, inputs, weight * read) for x in (got, want)], strict=True)
    ):
        assert_close(*pair, f"gradient {number}", rel=1e-10)


def test_nothing_is_left_out_that_may_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """No slope, one that turns rows away from their places, scores that reach any distance, or no number."""
    query, key, value, _, _, mask, places, read = _long_case("right")
    monkeypatch.setattr(biased, "_NEAR_SCORES", 0)
    monkeypatch.setattr(biased, "_NEAR_ROWS", 3)
    query, key = query.detach(), key.detach()
    steep = torch.full((2,), 8.0, dtype=torch.float64)
    far = key.clone()
    far[0, :, 59] *= 1e4  # whoever looks its way sees nothing else
    for slope, keys in (
        (torch.tensor([2.0, 0.0]), key),
        (torch.tensor([-0.1, 2.0]), key),
        (steep, far),
        (steep, key * float("nan")),
        (steep, key),
    ):
        bias = ops.PositionBias(slope.double(), places)
        parts = biased._Biases(bias.slope, places.index, places.centre, places.unit, mask).parts(query, keys)
        whole = [
            part[3] == slice(None) or part[3].stop - part[3].start == (60, 7, 31)[part[0].start] for part in parts
        ]
        assert all(whole) == (keys is not key or slope is not steep)
        got = ops.attend(query, keys, value, mask, 0.0, bias)
        want = ops.attention_weights(query, keys, mask, bias).double() @ value
        if keys.isfinite().all():
            assert_close(got, want, "pack", rel=1e-5, mask=read)
        else:
            assert got.isnan()[read].all()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("block", [7, 10**6])
def test_second_derivatives(padded: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (biased, position_bias_ops):
        monkeypatch.setattr(module, "_BLOCK", block)
    query, x, weight, slope = leaves((2, 2, 2, 3), (2, 5, 4), (6, 4), (2,))
    mask = ops.key_mask(padding_mask(2, 5, 1, "right")) if padded else None
    places = ops.row_places(2, 2, x, mask)

    def folded(query: Tensor, x: Tensor, weight: Tensor, slope: Tensor) -> Tensor:
        bias = ops.PositionBias(slope, places)
        return ops.folded_pack(query, x, (weight, None), (weight, None), mask, 0.0, bias)

    def projected(query: Tensor, x: Tensor, weight: Tensor, slope: Tensor) -> Tensor:
        key = (x @ weight.mT).unflatten(2, (2, 3)).transpose(1, 2)
        return ops.attend(query, key, key, mask, 0.0, ops.PositionBias(slope, places))

    inputs = (query, x, weight, slope)
    for function in (folded, projected):
        first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
        assert all(gradient.requires_grad for gradient in first)  # or it is not looked at below
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Also where it would be infinite, and a row that belongs to no sentence is far from every word."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 30, 8), torch.randn(2, 2, 400, 8)
    padding = torch.arange(400) >= torch.tensor([[2], [400]])
    masks = ops.key_mask(padding), _packed_mask(30, padding, fixed=False)
    places = ops.row_places(30, 2, key.to(dtype)[:, 0], *masks)
    assert places.centre.dtype == torch.float32
    for slope in (1.0, 300.0):
        bias = ops.PositionBias(torch.full((2,), slope, requires_grad=True), places)
        want = ops.attend(query, key, key, masks[0], 0.0, bias)
        half = ops.PositionBias(torch.full((2,), slope, dtype=dtype, requires_grad=True), places)
        got = ops.attend(query.to(dtype), key.to(dtype), key.to(dtype), masks[0], 0.0, half)
        assert got.dtype == dtype and torch.isfinite(got).all()
        assert torch.isfinite(position_bias_ops.position_bias_tensor(half, dtype)).all()
        assert_close(got[1].float(), want[1], "output", rel=0.03)
        got.float().square().sum().backward()
        assert torch.isfinite(half.slope.grad).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(ops.attend(query, key, key, masks[0], 0.0, bias)[1].float(), want[1], "autocast", rel=0.03)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_in_nothing_out(sizes: Tuple[int, int, int]) -> None:
    batch, rows, positions = sizes
    scores = torch.zeros(batch, 2, rows, positions, requires_grad=True)
    slope = torch.ones(2, requires_grad=True)
    for mask in (None, torch.ones(batch, 1, 1, positions, dtype=torch.bool)):
        places = ops.row_places(rows, 2, torch.empty(batch, positions, 1), mask)
        got = ops.add_position_bias(scores * 1, ops.PositionBias(slope, places))
        got.sum().backward()
        assert got.shape == scores.shape and not slope.grad.any()
