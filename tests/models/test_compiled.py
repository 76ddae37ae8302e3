"""torch.compile of both attentions and both layers: one graph without a break, for every length.

By ``aot_eager``, which traces and differentiates as every back end does, and then runs torch's own operations.
"""

from collections.abc import Callable, Iterator
from typing import Any, List

import pytest
import torch
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.modules import CausalLunaAttention, LunaAttention, LunaDecoderLayer, LunaEncoderLayer
from luna_fairseq.ops import folded
from support.models import assert_close, make_model
from support.tensors import leaves

pytestmark = [
    pytest.mark.long,
    # What traces a function with a gradient of its own makes one of its class, and warns of that.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

LENGTHS = [(150, 40), (41, 130)]  # of the positions and of what is read, one after the other


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _results(call: Callable[..., Tensor], module: Any, *inputs: Tensor) -> List[Tensor]:
    """Output and every gradient."""
    module.zero_grad()
    own = [x.detach().clone().requires_grad_() for x in inputs]
    out = call(*own)
    out.square().mean().backward()
    return [out.detach(), *(x.grad for x in own if x.grad is not None), *(p.grad for p in module.parameters())]


def _check(module: Any, call: Callable[..., Tensor], lengths: Any = LENGTHS, rel: float = 1e-5) -> None:
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for length, read in lengths:
        inputs = leaves((2, length, 32), (2, 6, 32), (2, read, 32), dtype=torch.float32)
        got, want = (_results(run, module, *inputs) for run in (compiled, call))
        assert len(got) == len(want)
        for number, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_close(one, other, f"tensor {number} at {length}", rel=rel)


def _padded(x: Tensor) -> Tensor:
    return torch.arange(x.size(1), device=x.device).expand(x.size(0), -1) >= x.size(1) - 2


@pytest.mark.parametrize(
    ("kind", "tie_kv"),
    [
        ("pack and unpack", False),
        ("with a bias", True),
        ("causal softplus", True),
        ("causal elu", False),
        ("forgetting softplus", False),
    ],
)
def test_attentions(kind: str, tie_kv: bool) -> None:
    """With padding."""
    torch.manual_seed(0)
    module: Any
    if kind.endswith(("softplus", "elu")):
        decay = 2.0 if kind.startswith("forgetting") else 0.0
        module = CausalLunaAttention(32, 4, tie_kv=tie_kv, activation=kind.split()[1], decay=decay)
        # In chunks, for any length, torch takes minutes of reasoning about the shapes of a decay.
        lengths = [(100, 40), (41, 130)] if decay else LENGTHS
        return _check(module, lambda x, packed, _: module(x, packed, None, _padded(x)), lengths)
    module = LunaAttention(32, 4, tie_kv=tie_kv, position_bias=0.5 if kind == "with a bias" else 0.0)
    return _check(module, lambda x, packed, read: module(x, packed, read, ops.key_mask(_padded(read)))[0])


@pytest.mark.parametrize(("side", "untied"), [("encoder", False), ("decoder", True)])
def test_layers(side: str, untied: bool) -> None:
    """Those of a whole model."""
    model = make_model(untie_luna_kv=untied).train()
    layer: Any = getattr(model, side).layers[0]
    if side == "encoder":
        assert isinstance(layer, LunaEncoderLayer)
        return _check(
            layer, lambda x, packed, _: sum(y.sum(dim=1) for y in layer(x, packed, ops.key_mask(_padded(x))))
        )
    assert isinstance(layer, LunaDecoderLayer)

    def call(x: Tensor, packed: Tensor, read: Tensor) -> Tensor:
        y, packed_out, _ = layer(x, packed, read, ops.key_mask(_padded(read)), padding_mask=_padded(x))
        return y.sum(dim=1) + packed_out.sum(dim=1)

    return _check(layer, call)


def test_causal_attention_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is folded there."""
    monkeypatch.setattr(folded, "full_precision_on_cpu", lambda _: False)
    module = CausalLunaAttention(32, 4)
    _check(module, lambda x, packed, _: module(x, packed))
