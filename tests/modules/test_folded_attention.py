"""Both attentions with their projections folded into the rows of P, against themselves without."""

from typing import Any, Callable, Dict, List

import pytest
import torch
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from support.models import assert_close
from support.tensors import leaves


def _both_ways(layer: nn.Module, call: Callable[[], Tensor], inputs: List[Tensor]) -> Dict[bool, Any]:
    """Output and gradients without and with folding."""
    found = {}
    for fold in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            asked = []
            patch.setattr(ops, "folding_pays", lambda *args, fold=fold, asked=asked: asked.append(args) or fold)
            out = call()
        assert asked
        torch.manual_seed(0)
        every = [*inputs, *layer.parameters()]
        found[fold] = [out, *torch.autograd.grad(out, every, torch.randn_like(out), allow_unused=True)]
    return found


@pytest.mark.parametrize("tie_kv", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position_bias", [0.0, 1.5])
def test_both_attentions_are_the_same_folded(tie_kv: bool, bias: bool, position_bias: float) -> None:
    """And the same parameters get a gradient, which DistributedDataParallel counts on."""
    torch.manual_seed(0)
    x, packed, context = leaves((3, 9, 8), (3, 4, 8), (3, 7, 6))
    mask, packed_mask = (ops.key_mask(torch.rand(3, length) < 0.4) for length in (7, 4))
    options: Dict[str, Any] = dict(context_dim=6, tie_kv=tie_kv, bias=bias, position_bias=position_bias)
    attention = LunaAttention(8, 2, 4, **options).double()
    causal = CausalLunaAttention(8, 2, tie_kv=tie_kv, bias=bias).double()
    for layer, call, inputs in (
        (attention, lambda: attention(x, packed, context, mask, packed_mask)[0], [x, packed, context]),
        (causal, lambda: causal(x, packed, packed_mask), [x, packed]),
    ):
        found = _both_ways(layer, call, inputs)
        for plain, fold in zip(*found.values(), strict=True):
            assert (plain is None) == (fold is None)
            if plain is not None:
                assert_close(fold, plain, type(layer).__name__, rel=1e-11)


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


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("name", ["pc_proj", "q_proj", "out_proj"])
def test_hooks_of_every_kind_are_called(kind: str, name: str) -> None:
    torch.manual_seed(0)
    x, packed = torch.randn(1, 300, 16, requires_grad=True), torch.randn(1, 2, 16)
    layer = LunaAttention(16, 2)
    calls: List[str] = []
    getattr(layer.get_submodule(name), f"register_{kind}_hook")(lambda *_: calls.append(kind))
    layer(x, packed, x)[0].sum().backward()
    assert calls == [kind]


@pytest.mark.parametrize("tie_kv", [True, False])
def test_what_folding_is_asked_about(tie_kv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions, D, L, heads, products saved and taken; and steps of decoding do not fold what is kept for them."""
    asked: List[Any] = []
    monkeypatch.setattr(ops, "folding_pays", lambda x, *sizes: asked.append((tuple(x.shape), *sizes)))
    attention = LunaAttention(8, 2, 4, context_dim=6, tie_kv=tie_kv)
    x, packed, context = torch.randn(3, 9, 8), torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    pack, unpack = ((3, 7, 6), 8, 5, 4, 1 if tie_kv else 2, 2), ((3, 9, 8), 8, 5, 2, 2, 2)
    attention(x, packed, context)
    assert asked == [pack, unpack]
    asked.clear()
    attention(x, packed, context, incremental_state={})
    assert asked == [pack]
    asked.clear()
    attention(x, packed, context, need_weights=True)
    assert asked == []
    CausalLunaAttention(8, 2, tie_kv=tie_kv)(x, packed)
    assert asked == [((3, 9, 8), 8, 5, 2, 1, 1)]


def test_folds_if_it_pays_and_not_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    called: List[str] = []
    for name in ("folded_pack", "folded_unpack", "folded_scores"):
        original = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *args, name=name, original=original: called.append(name) or original(*args)
        )
    attention, causal = LunaAttention(16, 2, 2), CausalLunaAttention(16, 2)
    long, short, packed = torch.randn(1, 300, 16), torch.randn(1, 2, 16), torch.randn(1, 2, 16)
    assert ops.folding_pays(long, 16, 2, 2, 1, 2) and not ops.folding_pays(short, 16, 2, 2, 2, 2)
    attention(long, packed, long)
    causal(long, packed)
    assert called == ["folded_pack", "folded_unpack", "folded_scores"]
    called.clear()
    attention(short, packed, short)
    weights = attention(long, packed, long, need_weights=True)[2]
    assert called == []
    assert_close(weights.sum(-1), torch.ones(2, 1, 300), "row sums")


@pytest.mark.parametrize("folds", [True, False])
def test_dropout_reaches_both_steps(folds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pack and unpack, in training alone."""
    rates: List[float] = []

    def record(name: str, rate: Callable[..., List[float]]) -> None:
        original = getattr(ops, name)

        def recorded(*args: Any, **options: Any) -> Any:
            rates.extend(rate(*args, **options))
            return original(*args, **options)

        monkeypatch.setattr(ops, name, recorded)

    for name, place in (("attend", 4), ("folded_pack", 5), ("folded_unpack", 6)):
        record(name, lambda *args, place=place: [args[place]])
    record("causal_luna_attention", lambda *_, **options: [options["pack_dropout"], options["unpack_dropout"]])
    monkeypatch.setattr(ops, "folding_pays", lambda *_: folds)
    x, packed = torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    for layer, call in (
        (attention := LunaAttention(8, 2, dropout=0.25), lambda: attention(x, packed, x)),
        (causal := CausalLunaAttention(8, 2, dropout=0.25), lambda: causal(x, packed)),
    ):
        for training, want in ((True, 0.25), (False, 0.0)):
            rates.clear()
            layer.train(training)
            call()
            assert rates == [want, want]
