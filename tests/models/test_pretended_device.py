"""Models on a pretended second device: the CPU's numbers, and no more launches, bytes and waits than today."""

import functools
from collections.abc import Callable
from typing import Any, Dict

import pytest

from support import gpu_counts, pretended
from support.models import PAD, assert_close, make_batch, make_bert, make_lm, make_model, make_sentences
from support.runs import in_a_child


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """A test in a process of its own: torch forgets no device that it has been told of, and others look for one."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        assert in_a_child(lambda: test(**given)) == 0

    return run


def _loss(model: Any, *inputs: Any) -> Any:
    """Of the real targets: what stands at the others is read by nobody, and is another on a device."""
    return (model(*inputs)[0].float() * inputs[-1].ne(PAD).unsqueeze(-1)).square().mean()


@pytest.mark.parametrize("name", ["luna", "luna_untied", "luna_bert", "luna_lm"])
@apart
def test_values_and_gradients_are_those_of_the_cpu(name: str) -> None:
    """Padding on either side; the only waits are those of whoever reads the loss."""
    made: Dict[str, Any] = {
        "luna": make_model,
        "luna_untied": lambda: make_model(untie_luna_kv=True),
        "luna_bert": make_bert,
        "luna_lm": make_lm,
    }
    model = made[name]().eval()
    source, target = (
        make_batch(make_sentences([3, 12, 7]), "left"),
        make_batch(make_sentences([6, 2, 9], seed=1), "right"),
    )
    inputs = (source, None, target) if name in ("luna", "luna_untied") else (target,)
    loss = _loss(model, *inputs)
    loss.backward()
    want, wanted = loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with pretended.device() as counts:
        pretended.sent_module(model)
        loss = _loss(model, *pretended.sent(inputs))
        assert not counts.waits, counts.waits
        loss.backward()
        assert not counts.waits, counts.waits
        got, found = pretended.back(loss.detach()), pretended.gradients(model)
    assert_close(got, want, "loss")
    assert found.keys() == wanted.keys()
    for key, grad in found.items():
        assert_close(grad, wanted[key], key)


@apart
def test_tensors_of_two_devices_do_not_meet() -> None:
    model = make_model().eval()
    source = make_batch(make_sentences([3, 12]), "left")
    with pretended.device():
        pretended.sent_module(model)
        with pytest.raises(pretended.MixedDevicesError):
            model(source, None, source)


# Counted with torch's own operations, without the Triton kernels, which need a real GPU.
@pytest.mark.parametrize(
    ("kind", "length", "launches", "gigabytes"),
    [
        ("causal Luna", 4096, 134, 5.11),
        ("causal Luna", 65536, 131, 20.2),
        ("Luna", 4096, 31, 0.70),
        ("Luna", 65536, 31, 2.8),
    ],
)
@apart
def test_a_layer_costs_no_more(kind: str, length: int, launches: int, gigabytes: float) -> None:
    """d = 512, l = 16, bfloat16, 16,384 tokens or one text, forward and backward with the projections."""
    found = gpu_counts.layer(kind, 512, 16, length)
    assert found["launches"] <= launches and found["gigabytes"] <= gigabytes, found


@pytest.mark.parametrize(
    ("arch", "launches", "order", "waits"),
    [("luna_base_tied", 268, 22, 3), pytest.param("luna_base_untied", 280, 28, 3, marks=pytest.mark.long)],
)
@apart
def test_a_decoding_step_costs_no_more(arch: str, launches: int, order: int, waits: int) -> None:
    """Six layers, beam 5."""
    found = gpu_counts.decoding(arch)
    assert found["step"] <= launches and found["order"] <= order, found
    assert found["step waits"] == 0 and found["order waits"] <= waits, found
