"""Linear layers at inference: oneDNN's products against ``nn.Linear``, and layouts that are never out of date."""

import copy
import pickle
from collections.abc import Callable
from typing import Optional

import pytest
import torch
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.ops import inference
from support.models import assert_close


def make_layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 160, bias=bias)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def in_products(layer: nn.Module, x: Tensor, weights: Optional[ops.LaidOutWeights], relu: bool = False) -> Tensor:
    with torch.no_grad(), ops.inference_products(x, weights):
        return ops.linear(layer, x, relu)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many products oneDNN was asked for."""
    found = []
    real = inference._multiply
    assert inference._available()
    monkeypatch.setattr(inference, "_multiply", lambda *args: found.append(1) or real(*args))
    return lambda: len(found)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lay_out", [False, True])
def test_it_is_the_layer(calls: Callable[[], int], lay_out: bool, bias: bool, relu: bool) -> None:
    """Also for an input that is not contiguous, and one that is the same for all sentences."""
    layer, weights = make_layer(bias), ops.LaidOutWeights() if lay_out else None
    wide = drawn(3, 128, 100)
    for x in (wide.mT, wide.mT.contiguous(), drawn(1, 300, 128).expand(3, -1, -1)):
        want = layer(x)
        assert_close(in_products(layer, x, weights, relu), want.relu() if relu else want, "output")
    assert calls() == 3
    assert weights is None or len(weights) == 1


def test_gradients_that_are_wanted_within_are_there(calls: Callable[[], int]) -> None:
    """A hook of somebody's may ask for them in the middle of an inference; oneDNN's products have none."""
    layer, x = make_layer(), drawn(400, 128).requires_grad_()
    with torch.no_grad(), ops.inference_products(x), torch.enable_grad():
        (found,) = torch.autograd.grad(ops.linear(layer, x).sum(), x)
    (want,) = torch.autograd.grad(layer(x).sum(), x)
    assert_close(found, want, "d x")
    assert calls() == 0


def test_what_is_not_possible_is_left_to_the_layer(calls: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, weights = make_layer(), ops.LaidOutWeights()
    x = drawn(400, 128)
    with ops.inference_products(x, weights):  # with gradients
        assert torch.equal(ops.linear(layer, x), layer(x))
    for other in (layer.double(), layer.bfloat16()):
        own = x.to(other.weight.dtype)
        assert torch.equal(in_products(other, own, weights), other(own))
    layer = make_layer()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(in_products(layer, x, weights), layer(x))
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "enabled", False)
        assert torch.equal(in_products(layer, x, weights), layer(x))
    assert torch.equal(in_products(layer, x[:1], weights), layer(x[:1]))
    assert torch.equal(in_products(layer, x[:100], None), layer(x[:100]))
    small = nn.Linear(128, 4)
    assert torch.equal(in_products(small, x, weights), small(x))
    layer.register_forward_hook(lambda _, inputs, output: output + 1)
    assert torch.equal(in_products(layer, x, weights), layer(x))
    assert calls() == 0 and len(weights) == 0


def other_numbers(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(2.0)


def other_storage(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data * 2.0


def other_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * 2.0)


CHANGES = {
    "in place": other_numbers,
    "storage": other_storage,
    "parameter": other_parameter,
    "load_state_dict": lambda layer: layer.load_state_dict(nn.Linear(128, 160).state_dict()),
    "to and back": lambda layer: layer.to(torch.bfloat16).to(torch.float32),
    "half and back": lambda layer: layer.half().float(),
    "bias": lambda layer: layer.bias.data.add_(1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_was_changed_is_seen(change: str) -> None:
    layer, weights, x = make_layer(), ops.LaidOutWeights(), drawn(40, 128)
    before = in_products(layer, x, weights)
    assert len(weights) == 1
    CHANGES[change](layer)
    for _ in range(2):
        found = in_products(layer, x, weights)
        assert_close(found, layer(x), "output")
        assert not torch.equal(found, before)


def test_a_copy_has_no_layouts() -> None:
    layer, weights = make_layer(), ops.LaidOutWeights()
    in_products(layer, drawn(40, 128), weights)
    for other in (copy.copy(weights), copy.deepcopy(weights), pickle.loads(pickle.dumps(weights))):
        assert len(other) == 0 and len(weights) == 1


def test_a_torch_without_these_products_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make_layer(), drawn(400, 128)

    def wrong(x: Tensor, *_: object, **__: object) -> Tensor:
        return x.new_zeros(x.size(0), 48)

    def missing(*_: object, **__: object) -> Tensor:
        raise AttributeError("no such operation")

    try:
        for broken in (wrong, missing):
            inference._available.cache_clear()
            monkeypatch.setattr(inference, "_multiply", broken)
            assert torch.equal(in_products(layer, x, None), layer(x))
    finally:
        inference._available.cache_clear()
