"""Attention with folded projections against attention after projecting."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from luna_fairseq.ops import folded
from support.models import assert_close

SIZES = st.tuples(*[st.integers(1, 7)] * 3, st.integers(1, 3), st.integers(1, 4))  # B, N, L, H, K


def _drop(_: Optional[Tensor], weights: Tensor, p: float) -> Tensor:
    """Dropout whose mask depends on the size alone: every third weight goes."""
    keep = (torch.arange(weights.numel()) % 3 != 0).view(weights.shape)
    return weights * keep / (1 - p) if p > 0 else weights


def _leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def _compare(got: Tensor, want: Tensor, leaves: List[Optional[Tensor]]) -> None:
    assert_close(got, want, "output", rel=1e-11)
    inputs = [leaf for leaf in leaves if leaf is not None]
    slope = torch.randn_like(got)
    for number, pair in enumerate(
        zip(*(torch.autograd.grad(out, inputs, slope) for out in (got, want)), strict=True)
    ):
        assert_close(*pair, f"gradient {number}", rel=1e-10)


def _padding(sizes: Tuple[int, int], padded: bool) -> Optional[Tensor]:
    return ops.key_mask(torch.rand(*sizes) < 0.4) if padded else None  # also rows that are padding from end to end


@given(sizes=SIZES, bias=st.booleans(), padded=st.booleans(), p=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_unpack(sizes: Tuple[int, ...], bias: bool, padded: bool, p: float, seed: int) -> None:
    torch.manual_seed(seed)
    batch, length, rows, heads, dim = sizes
    x, key, value = _leaf(batch, length, 5), _leaf(batch, heads, rows, dim), _leaf(batch, heads, rows, dim)
    query = (_leaf(heads * dim, 5), _leaf(heads * dim) if bias else None)
    out = (_leaf(6, heads * dim), _leaf(6) if bias else None)
    mask = _padding((batch, rows), padded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded, "add_dropout", _drop)
        got = ops.folded_unpack(x, query, key, value, out, mask, p)
    q = nn.functional.linear(x, *query).unflatten(2, (heads, dim)).transpose(1, 2)
    scores = q @ key.mT * dim**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = _drop(None, scores.softmax(-1).transpose(1, 2).contiguous(), p).transpose(1, 2)
    _compare(
        got, nn.functional.linear((weights @ value).transpose(1, 2).flatten(2), *out), [x, key, value, *query, *out]
    )


@given(sizes=SIZES, bias=st.booleans(), padded=st.booleans(), p=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pack(sizes: Tuple[int, ...], bias: bool, padded: bool, p: float, seed: int) -> None:
    torch.manual_seed(seed)
    batch, length, rows, heads, dim = sizes
    query, x = _leaf(batch, heads, rows, dim), _leaf(batch, length, 5)
    key, value = ((_leaf(heads * dim, 5), _leaf(heads * dim) if bias else None) for _ in range(2))
    mask = _padding((batch, length), padded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded, "add_dropout", _drop)
        got = ops.folded_pack(query, x, key, value, mask, p)
    k, v = (nn.functional.linear(x, *proj).unflatten(2, (heads, dim)).transpose(1, 2) for proj in (key, value))
    scores = query @ k.mT * dim**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    _compare(got, _drop(None, scores.softmax(-1), p) @ v, [query, x, *key, *value])


def _both_ways(layer: nn.Module, call: Callable[[], Tensor], leaves: List[Tensor]) -> Dict[bool, Any]:
    """Output and gradients without and with folding."""
    found = {}
    for fold in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            asked = []
            patch.setattr(ops, "folding_pays", lambda *args, fold=fold, asked=asked: asked.append(args) or fold)
            out = call()
        assert asked
        torch.manual_seed(0)
        every = [*leaves, *layer.parameters()]
        found[fold] = [out, *torch.autograd.grad(out, every, torch.randn_like(out), allow_unused=True)]
    return found


@pytest.mark.parametrize("tie_kv", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_both_attentions_are_the_same_folded(tie_kv: bool, bias: bool) -> None:
    """And the same parameters get a gradient, which DistributedDataParallel counts on."""
    torch.manual_seed(0)
    x, packed, context = _leaf(3, 9, 8), _leaf(3, 4, 8), _leaf(3, 7, 6)
    mask, packed_mask = _padding((3, 7), True), _padding((3, 4), True)
    attention = LunaAttention(8, 2, 4, context_dim=6, tie_kv=tie_kv, bias=bias).double()
    causal = CausalLunaAttention(8, 2, tie_kv=tie_kv, bias=bias).double()
    for layer, call, leaves in (
        (attention, lambda: attention(x, packed, context, mask, packed_mask)[0], [x, packed, context]),
        (causal, lambda: causal(x, packed, packed_mask), [x, packed]),
    ):
        found = _both_ways(layer, call, leaves)
        for plain, fold in zip(*found.values(), strict=True):
            assert (plain is None) == (fold is None)
            if plain is not None:
                assert_close(fold, plain, type(layer).__name__, rel=1e-11)


@pytest.mark.parametrize("length", [32, 256, 4096])
def test_folds_where_it_is_less_work(length: int) -> None:
    x = torch.empty(1, length, 512)
    assert ops.folding_pays(x, 512, 16, 8, 2, 2) == (length > 32)  # of 16 rows
    assert ops.folding_pays(x, 512, 32, 8, 1, 2) == (length > 1024)  # the pack step, tied
    assert not ops.folding_pays(x, 512, 128, 8, 2, 2)
    assert not ops.folding_pays(x.bfloat16(), 512, 16, 8, 2, 2)
    with torch.autocast("cpu"):
        assert not ops.folding_pays(x, 512, 16, 8, 2, 2)


@pytest.mark.parametrize("changed", ["hook", "class", "forward"])
def test_a_changed_projection_sees_what_it_projects(changed: str) -> None:
    """Quantisation noise is such a hook, an adapter is such a class."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    x, packed = torch.randn(1, 300, 16), torch.randn(1, 2, 16)
    plain, layer = LunaAttention(16, 2), LunaAttention(16, 2)
    layer.load_state_dict(plain.state_dict())
    assert ops.folding_pays(x, 16, 2, 2, 2, 2)
    if changed == "hook":
        layer.q_proj.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        plain.q_proj.weight.data.mul_(2)
    elif changed == "forward":
        forward = layer.q_proj.forward
        layer.q_proj.forward = lambda x: forward(2 * x)
        plain.q_proj.weight.data.mul_(2)
    else:
        layer.out_proj = Doubled(16, 16)
        layer.out_proj.load_state_dict(plain.out_proj.state_dict())
        for parameter in plain.out_proj.parameters():
            parameter.data.mul_(2)
    assert_close(layer(x, packed, x)[0], plain(x, packed, x)[0], "output", rel=1e-5)
