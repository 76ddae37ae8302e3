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
def test_both_attentions_are_the_same_folded(tie_kv: bool, bias: bool) -> None:
    """And the same parameters get a gradient, which DistributedDataParallel counts on."""
    torch.manual_seed(0)
    x, packed, context = leaves((3, 9, 8), (3, 4, 8), (3, 7, 6))
    mask, packed_mask = (ops.key_mask(torch.rand(3, length) < 0.4) for length in (7, 4))
    attention = LunaAttention(8, 2, 4, context_dim=6, tie_kv=tie_kv, bias=bias).double()
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
