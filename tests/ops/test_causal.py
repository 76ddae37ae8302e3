"""The linear-time causal attention against the formulas: blocks, gradients, precision, decoding state."""

import itertools
from typing import Any, Dict, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.ops import blocks as blocks_of
from luna_fairseq.ops.decay import SPAN
from luna_fairseq.ops.naive import naive_causal_luna
from support.models import assert_close, assert_grads_close
from support.tensors import leaves, padding_mask

LENGTHS = [1, 2, 63, 64, 65, 128, 129, 200]  # below, at and above one product and whole chunks


def _causal_inputs(length: int, packed: int, dtype: torch.dtype) -> Dict[str, Tensor]:
    batch, heads, dim = 2, 3, 5
    query, key, value, scores = leaves(
        *[(batch, heads, length, dim)] * 3, (batch, heads, length, packed), dtype=dtype
    )
    return {"query": query, "key": key, "value": value, "scores": scores}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("masks", "decay"),
    [("none", 0.0), ("packed", 0.0), ("left", 0.0), ("right", 0.0), ("packed", 5.0), ("left", 0.02)],
)
@pytest.mark.parametrize("length", LENGTHS)
def test_causal_attention_is_the_formula_with_every_gradient(
    length: int, masks: str, decay: float, dtype: torch.dtype
) -> None:
    inputs = _causal_inputs(length, 4, dtype)
    packed_padding = padding_mask(2, 4, 5, "right") if masks == "packed" else None
    padding = padding_mask(2, length, 6, masks) if masks in ("left", "right") else None
    activation = ops.CAUSAL_ACTIVATIONS["softplus"]
    rates = ops.decay_rates(decay, 3, torch.device("cpu"), torch.float64).flatten().tolist()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 3, length, 5, dtype=torch.float64, generator=generator)
    if padding is not None:
        weight = weight.masked_fill(padding[:, None, :, None], 0.0)  # outputs at padding mean nothing

    def run(fast: bool, kind: torch.dtype) -> Tuple[Tensor, Dict[str, Tensor]]:
        leaves = {k: t.detach().to(kind).requires_grad_() for k, t in inputs.items()}
        a = activation(leaves["scores"])
        args = (leaves["query"], leaves["key"], leaves["value"], a)
        if fast:
            out, state = ops.causal_luna_attention(
                *args, packed_mask=ops.key_mask(packed_padding), padding_mask=padding, decay=decay
            )
            assert state is None
        else:
            out = torch.stack(
                [
                    torch.stack(
                        [
                            naive_causal_luna(
                                *(t[b, h] for t in args),
                                None if packed_padding is None else packed_padding[b],
                                None if padding is None else padding[b],
                                rates[h],
                            )
                            for h in range(3)
                        ]
                    )
                    for b in range(2)
                ]
            )
        (out.double() * weight).sum().backward()
        return out.detach(), {k: t.grad.double() for k, t in leaves.items()}

    got, got_grads = run(fast=True, kind=dtype)
    want, want_grads = run(fast=False, kind=torch.float64)
    assert got.dtype == dtype
    real = None if padding is None else ~padding[:, None, :].expand(-1, 3, -1)
    assert_close(got.double(), want, "output", rel=1e-10 if dtype == torch.float64 else 1e-5, mask=real)
    if dtype == torch.float64:
        for name, grad in want_grads.items():
            assert_close(got_grads[name], grad, f"gradient of {name}", rel=1e-9)
    else:
        assert_grads_close(got_grads, want_grads)


@pytest.mark.parametrize("rows", [1, 2 * 64 * 3, 2 * 256 * 3, 10**9], ids=["chunk", "chunks", "sentences", "all"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("length", "dims", "chunk"), [(30, (4, 6), 32), (200, (4, 6), 32), (200, (64, 80), 64)])
def test_sums_are_the_same_whatever_the_blocks(
    length: int,
    dims: Tuple[int, int],
    chunk: int,
    decay: float,
    device: str,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also those of a GPU, computed here; of heads that forget, too."""
    monkeypatch.setattr(blocks_of, "_CPU_BLOCK", rows * sum(dims))
    monkeypatch.setattr(blocks_of, "_LEAST_CHUNKS", 1)
    monkeypatch.setattr(blocks_of, "_GROUP", 3)
    monkeypatch.setattr(blocks_of, "on_cpu", lambda _: device == "cpu")
    dim, value_dim = dims
    inputs = leaves((5, 3, length, dim), (5, 3, length, dim), (5, 3, length, value_dim))
    assert blocks_of.chunk_length(*dims) == chunk
    scale, weight = torch.rand(5, 1, length, 1).double(), torch.randn(5, 3, length, value_dim).double()
    rates = ops.decay_rates(decay, 3, torch.device("cpu"), torch.float64)
    with torch.autocast("cpu"):  # of no effect
        got = ops.causal_products(*inputs, scale, rates if decay else None)
    query, key, value = inputs
    at = torch.arange(length)
    left = torch.exp(-rates * (at[:, None] - at).clamp(min=0))
    want = scale * (((query @ key.mT) * left).tril() @ value)
    assert_close(got, want, "output", rel=1e-12)
    grads = (torch.autograd.grad(out, inputs, weight) for out in (got, want))
    for name, *pair in zip(("query", "key", "value"), *grads, strict=True):
        assert_close(*pair, f"gradient of {name}", rel=1e-12)


@pytest.mark.parametrize(("heads", "rows"), [(8, 32), (8, 256), (16, 256), (16, 512)])
def test_few_sums_are_kept_for_the_backward_pass(heads: int, rows: int) -> None:
    """Also where a chunk is as much work as a block should be."""
    query, key, value = (torch.rand(1, heads, 2048, dim, requires_grad=True) for dim in (64, 64, rows))
    out = ops.causal_products(query, key, value, torch.ones(1, 1, 2048, 1))
    saved: Any = out.grad_fn.saved_tensors  # type: ignore[union-attr]
    *inputs, scale = saved[:4]
    sums = [x for x in saved[4:] if x is not None]
    assert scale.shape == (1, heads, 2048, 1)
    assert {x.shape for x in sums} == {(heads, 64, rows)}
    assert sum(x.numel() for x in sums) <= sum(x.numel() for x in inputs) / 8
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in sums), "no block is kept with it"


def test_length_of_a_chunk() -> None:
    """32 where K L is at most 32 (K + L); 64 elsewhere."""
    for head_dim, rows, want in ((64, 64, 32), (64, 65, 64), (16, 512, 32)):
        assert blocks_of.chunk_length(head_dim, rows) == want


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_blocks_hold_whole_sentences_or_some_chunks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5 sentences, 3 heads and K + L = 10: 2 sentences, 1 sentence, 10 chunks of one, never fewer than 8."""
    monkeypatch.setattr(blocks_of, "on_cpu", lambda _: device == "cpu")
    chunk = 32
    for length, numbers, sentences, chunks in (
        (192, 2 * 192 * 30, 2, [192 // chunk]),
        (192, 2 * 192 * 30 - 10, 1, [192 // chunk]),
        (768, 10 * 32 * 30, 1, [10, 10, 4]),
        (768, 5, 1, [8, 8, 8]),
        (128, 5, 1, [1]),
    ):
        monkeypatch.setattr(blocks_of, "_CPU_BLOCK", numbers)
        key, value = torch.empty(5, 3, length, 4), torch.empty(5, 3, length, 6)
        blocks = blocks_of.Blocks(key, value)
        if device == "gpu":  # everything at once
            sentences, chunks = 5, [1 if length == 128 else length // chunk]
        assert list(blocks.starts) == list(range(0, 5, sentences))
        assert [len(part) for part in blocks.ranges] == chunks
        assert blocks.chunk == (128 if length == 128 else chunk)
        assert blocks.view(blocks.cut(value), 0, blocks.ranges[0]).shape == (chunks[0], sentences, 3, blocks.chunk, 6)


def test_results_lie_as_projections_read_them() -> None:
    """As ``[B, N, H, E]``, so that joining the heads copies nothing; gradients likewise."""
    inputs = leaves((2, 3, 70, 4), (2, 3, 70, 4), (2, 3, 70, 5))
    out = ops.causal_products(*inputs, torch.ones(2, 1, 70, 1).double())
    for x in (out, *torch.autograd.grad(out, inputs, torch.ones_like(out))):
        assert x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("masks", "decay"), [("none", 0.0), ("packed", 0.0), ("left", 0.0), ("right", 0.0), ("left", 0.4)]
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_second_derivatives(
    length: int, tied: bool, masks: str, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all the gradients exact, in one product and in chunks, whose last one is not full."""
    monkeypatch.setattr(blocks_of, "SINGLE_PRODUCT", 4)
    monkeypatch.setattr(blocks_of, "chunk_length", lambda *_: 2)
    query, key, value, scores = leaves(*[(2, 1, length, 2)] * 3, (2, 1, length, 3))
    packed_padding = padding_mask(2, 3, 5, "right") if masks == "packed" else None
    padding = padding_mask(2, length, 6, masks) if masks in ("left", "right") else None

    def attend(*inputs: Tensor) -> Tensor:
        query, scores, key, *rest = inputs
        return ops.causal_luna_attention(
            query,
            key,
            rest[0] if rest else key,
            ops.CAUSAL_ACTIVATIONS["softplus"](scores),
            packed_mask=ops.key_mask(packed_padding),
            padding_mask=padding,
            decay=decay,
        )[0]

    inputs = (query, scores, key) if tied else (query, scores, key, value)
    assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)
    once, again = (
        torch.autograd.grad(attend(*inputs).square().sum(), inputs, create_graph=create) for create in (False, True)
    )
    for got, want in zip(again, once, strict=True):
        assert_close(got, want, "first derivative", rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("parts", [[1, 1, 1, 1, 1, 1], [2, 2, 2], [1, 2, 3], [3, 2, 1]], ids=str)
@torch.no_grad()
def test_every_part_continues_the_sums(parts: List[int], overwrite: bool, decay: float) -> None:
    """The state of one or several positions at a time, against the formula."""
    rates = ops.decay_rates(decay, 3, torch.device("cpu"), torch.float64).flatten().tolist()
    query, key, value, scores = _causal_inputs(6, 4, torch.float64).values()
    weights = ops.CAUSAL_ACTIVATIONS["softplus"](scores)
    state = ops.CausalState.start(torch.zeros(2, 3, 4, 5, dtype=torch.float64), 2, tie_kv=False)
    outs = []
    for part in zip(*(t.split(parts, dim=2) for t in (query, key, value, weights)), strict=True):
        out, new_state = ops.causal_luna_attention(*part, state=state, overwrite=overwrite, decay=decay)
        assert new_state is not None
        outs.append(out)
        state = new_state
    got = torch.cat(outs, dim=2)
    for b, h in itertools.product(range(2), range(3)):
        want = naive_causal_luna(query[b, h], key[b, h], value[b, h], weights[b, h], rate=rates[h])
        assert_close(got[b, h], want, f"parts {parts}", rel=1e-10)
    assert state.steps.tolist() == [6, 6]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_makes_nobody_forget(side: str) -> None:
    """Whatever part it is in: a sentence leaves what it leaves alone, and its positions see what they see alone."""
    inputs = [x.detach() for x in leaves(*[(1, 3, 9, 5)] * 3, (1, 3, 9, 4))]
    inputs[3] = inputs[3].exp()
    start = ops.CausalState.start(torch.zeros(1, 3, 4, 5, dtype=torch.float64), 1, tie_kv=False)
    want = ops.causal_luna_attention(*inputs, state=start, decay=0.5)
    for pads in (1, 3):
        fill = torch.randn(1, 3, pads, 5, dtype=torch.float64)
        parts = [[x[:, :, :4], x[:, :, 4:]] for x in inputs]
        state, outs = start, []
        for number in (0, 1):
            part = [pair[number] for pair in parts]
            pieces = [[fill[..., : x.size(-1)], x] if side == "left" else [x, fill[..., : x.size(-1)]] for x in part]
            padding = torch.zeros(1, part[0].size(2) + pads, dtype=torch.bool)
            real = slice(pads, None) if side == "left" else slice(None, -pads)
            padding[:, :pads] = side == "left"
            padding[:, -pads:] = padding[:, -pads:] | (side == "right")
            padded = [torch.cat(piece, dim=2) for piece in pieces]
            out, state = ops.causal_luna_attention(*padded, padding_mask=padding, state=state, decay=0.5)
            outs.append(out[:, :, real])
        assert_close(torch.cat(outs, dim=2), want[0], "output", rel=1e-12)
        for got, expected in zip(state[:2], want[1][:2], strict=True):
            assert_close(got, expected, "state", rel=1e-12)


def test_rates_of_heads() -> None:
    """From the first head's down by equal factors; a single head has the first one's."""
    for heads in (1, 2, 8):
        rates = ops.decay_rates(5.0, heads, torch.device("cpu"), torch.float64)
        assert rates.shape == (heads, 1, 1) and rates[0].item() == 5.0
        if heads > 1:
            assert rates[-1].item() == pytest.approx(5.0 / SPAN)
            shares = rates[1:] / rates[:-1]
            assert shares.max().item() == pytest.approx(shares.min().item())


def test_elu_activation_is_one_plus_elu() -> None:
    x = torch.tensor([-50.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    for name, want in (
        ("elu", torch.where(x > 0, x + 1, x.exp())),
        ("softplus", torch.log2(1 + torch.exp2(x))),
    ):
        got = ops.CAUSAL_ACTIVATIONS[name](x)
        assert_close(got, want, name, rel=1e-12)
        assert got[2] == 1.0 and (got >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    """Half-precision sums of 600 positions at this scale overflow, or stop counting."""
    torch.manual_seed(0)
    q, k, v = (8 * torch.randn(1, 2, 600, 16) for _ in range(3))
    a = ops.CAUSAL_ACTIVATIONS["softplus"](8 * torch.randn(1, 2, 600, 8))
    args = [t.to(dtype) for t in (q, k, v, a)]
    got, state = ops.causal_luna_attention(
        *args, state=ops.CausalState.start(torch.zeros(1, 2, 8, 16, dtype=dtype), 1, False)
    )
    want, _ = ops.causal_luna_attention(*(t.double() for t in args))
    assert got.dtype == dtype
    assert state.key_sum.dtype == state.value_sum.dtype == torch.float32
    assert state.steps.tolist() == [600]
    assert_close(got.double(), want, "output", rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("length", [100, 4096])
def test_causal_attention_is_as_exact_as_softmax_attention(length: int, scale: float, dtype: torch.dtype) -> None:
    """From queries, keys, values and P in half precision: at most twice its error, output and gradients."""
    torch.manual_seed(0)
    inputs = [scale * torch.randn(1, 2, length, 16) for _ in range(3)] + [scale / 4 * torch.randn(1, 2, 32, 16)]
    slope = torch.randn(1, 2, length, 16)

    def luna(q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> Tensor:
        return ops.causal_luna_attention(q, k, v, ops.causal_pack_weights(k, p, "softplus"))[0]

    def softmax(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    errors = []
    for attention in (softmax, luna):
        results = []
        for wide in (dtype, torch.float64):
            q, k, v, p = (x.to(dtype).to(wide).requires_grad_() for x in inputs)
            out = attention(q, k, v, p)
            results.append([out, *torch.autograd.grad(out, [q, k, v], slope.to(dtype).to(wide))])
        assert all(torch.isfinite(got).all() for got in results[0])
        errors.append(
            [((got.double() - want).norm() / want.norm()).item() for got, want in zip(*results, strict=True)]
        )
    assert all(ours <= 2 * theirs for theirs, ours in zip(*errors, strict=True)), errors


def test_pack_dropout_shares_one_mask_between_the_sums() -> None:
    """A pack weight that is dropped is missing from the keys' sum and from the values' sum."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 1, 2).double() for _ in range(3))
    outs = {
        round(
            ops.causal_luna_attention(q, k, v, torch.ones(1, 1, 1, 1).double(), pack_dropout=0.5)[0][
                0, 0, 0, 0
            ].item(),
            9,
        )
        for _ in range(40)
    }
    assert outs == {0.0, round(2 * v[0, 0, 0, 0].item(), 9)}


def test_a_sum_for_both_is_refused_where_keys_are_no_values() -> None:
    state = ops.CausalState.start(torch.zeros(1, 2, 4, 4), 1, tie_kv=True)
    query, key, value = torch.randn(3, 1, 2, 1, 4)
    with pytest.raises(ValueError, match="the state holds one sum"):
        ops.causal_luna_attention(query, key, value, torch.ones(1, 2, 1, 4), state=state)


@pytest.mark.parametrize("decoding", [True, False])
def test_unpack_dropout_drops_rows_of_p(decoding: bool) -> None:
    """Of the one row of P, with a pack weight of 1: the value is doubled or gone."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 1, 2).double() for _ in range(3))
    outs = set()
    for _ in range(40):
        state = ops.CausalState.start(torch.zeros(1, 1, 1, 2).double(), 1, tie_kv=False) if decoding else None
        weights = torch.ones(1, 1, 1, 1).double()
        out, _ = ops.causal_luna_attention(query, key, value, weights, unpack_dropout=0.5, state=state)
        outs.add(round(out[0, 0, 0, 0].item(), 9))
    assert outs == {0.0, round(2 * value[0, 0, 0, 0].item(), 9)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_gradients_through_dropout(rate: float, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and second derivatives for masks that are drawn alike at every call; blocks of one chunk."""
    for name, value in (("SINGLE_PRODUCT", 2), ("_LEAST_CHUNKS", 1), ("_CPU_BLOCK", 1)):
        monkeypatch.setattr(blocks_of, name, value)
    monkeypatch.setattr(blocks_of, "chunk_length", lambda *_: 2)
    query, key, value, scores = leaves(*[(2, 1, 5, 2)] * 3, (2, 1, 5, 3))

    def attend(query: Tensor, scores: Tensor, key: Tensor, *value: Tensor) -> Tensor:
        torch.manual_seed(3)
        weights = ops.CAUSAL_ACTIVATIONS["softplus"](scores)
        return ops.causal_luna_attention(query, key, value[0] if value else key, weights, unpack_dropout=rate)[0]

    own = () if tied else (value,)
    assert bool(attend(query, scores, key, *own).any()) == (rate < 1.0)
    for inputs in ((query, scores, key, *own), (key, scores, key, *own)):
        assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(attend, inputs, fast_mode=True)


def test_what_is_kept_for_the_backward_pass() -> None:
    """Inputs, as they are, the probabilities, and a sum for each block but the first; one where keys are values."""
    query, key, value = (torch.rand(1, 8, 2048, 64).bfloat16().requires_grad_() for _ in range(3))
    weights = torch.rand(1, 8, 2048, 16, requires_grad=True)
    for tied in (True, False):
        given = [query, key, *([] if tied else [value]), weights]
        kept: Dict[int, Tensor] = {}

        def keep(x: Tensor, kept: Dict[int, Tensor] = kept) -> Tensor:
            kept[x.data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            ops.causal_luna_attention(query, key, key if tied else value, weights)
        own = [x for x in kept.values() if all(x.data_ptr() != y.data_ptr() for y in given)]
        numbers = sum(x.untyped_storage().nbytes() for x in own) / 4
        assert numbers <= (1.23 if tied else 1.45) * weights.numel(), [x.shape for x in own]
