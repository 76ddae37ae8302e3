"""The Triton kernels as a GPU runs them, compiled, against the torch form; a CPU interprets small ones."""

from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed (pip install luna-fairseq[kernels])")

from luna_fairseq import ops
from luna_fairseq.ops import fused, proving
from support.devices import SLOW_ON_CPU, to
from support.tensors import leaves, padding_mask

# Type, width of a head, rows of P, positions.
SIZES = [(64, 16, 256), (64, 32, 1000), (32, 1, 1), (128, 128, 300), (96, 256, 65), (20, 33, 130), (64, 16, 4096)]
CASES: List[Any] = [pytest.param("cpu", torch.float32, 16, 5, 40, marks=pytest.mark.long)]
CASES += [
    pytest.param("cuda", dtype, *sizes, marks=pytest.mark.gpu)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for sizes in SIZES
]


def drawn(device: str, dtype: torch.dtype, dim: int, rows: int, length: int) -> Dict[str, Tensor]:
    shapes = [(2, length, 2, dim)] * 4 + [(2, rows, 2, dim)]
    tensors = leaves(*shapes, dtype=torch.float32)
    names = ("query", "key", "value", "context", "packed")
    return {name: to(device, x.detach().to(dtype)).transpose(1, 2) for name, x in zip(names, tensors, strict=True)}


def run(given: Dict[str, Tensor], dtype: torch.dtype, tied: bool, **options: Any) -> Dict[str, Tensor]:
    """Output and every gradient, computed in ``dtype``."""
    x = {name: tensor.detach().to(dtype, copy=True).requires_grad_() for name, tensor in given.items()}
    weights = ops.causal_pack_weights(x["context"], x["packed"] * x["packed"].size(-1) ** -0.5, "softplus")
    out, _ = ops.causal_luna_attention(x["query"], x["key"], x["key" if tied else "value"], weights, **options)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    padding = options.get("padding_mask")
    if padding is not None:
        slope, out = (t.masked_fill(padding[:, None, :, None], 0.0) for t in (slope, out))
    out.backward(slope)
    return {"output": out.detach(), **{k: t.grad for k, t in x.items() if t.grad is not None}}


@pytest.mark.parametrize(("tied", "decay"), [(True, 0.0), (False, 0.0), (False, 0.3)])
@pytest.mark.parametrize(("device", "dtype", "dim", "rows", "length"), CASES)
def test_kernels_are_the_torch_form(
    device: str,
    dtype: torch.dtype,
    dim: int,
    rows: int,
    length: int,
    tied: bool,
    decay: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Masks of P for tied keys and values, padding before the text for others; the torch form in float64."""
    given = drawn(device, dtype, dim, rows, length)
    packed = ops.key_mask(padding_mask(2, rows, 5, "right")) if tied else None
    options = to(device, dict(packed_mask=packed, padding_mask=None if tied else padding_mask(2, length, 6, "left")))
    options["decay"] = decay
    want = run(given, torch.float64, tied, **options)
    monkeypatch.setenv("LUNA_KERNELS", "triton")
    assert fused.kernels(given["query"], given["key"], given["value"], rows) is not None
    got = run(given, dtype, tied, **options)
    assert got.keys() == want.keys()
    for name, wanted in want.items():
        assert torch.isfinite(got[name]).all(), name
        error = ((got[name].double() - wanted).norm() / wanted.norm().clamp(min=1e-6)).item()
        assert error <= proving.TOLERANCE[dtype], f"{name}: off by {error:.2g}"


@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_dropout_is_drawn_once_and_the_same_again(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same bits, gradients included; another one others."""
    monkeypatch.setenv("LUNA_KERNELS", "triton")
    length = 33 if device == "cpu" else 700
    given = drawn(device, torch.float32, 16, 5, length)
    results = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        results.append(run(given, torch.float32, False, pack_dropout=0.25, unpack_dropout=0.5))
    first, again, other = results
    assert all(torch.isfinite(x).all() and torch.equal(x, again[name]) for name, x in first.items())
    assert not torch.equal(first["output"], other["output"])

    from luna_fairseq.ops.triton import launch

    ones = torch.ones(2, 2, length, 5, device=device)
    call = launch._Call(given["query"], given["key"], None, ones, None, None, None, (0.25, 7, 0.0, 0), None)
    kept = call.sums()[0]
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(kept.eq(0).float().mean().item() - 0.25) < 0.08


@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_a_text_in_two_calls_is_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that the first has left, and a single position, as in decoding."""
    monkeypatch.setenv("LUNA_KERNELS", "triton")
    length = 36 if device == "cpu" else 200
    given = drawn(device, torch.float32, 16, 5, length)
    weights = ops.CAUSAL_ACTIVATIONS["softplus"](given["context"] @ given["packed"].mT)
    want, _ = ops.causal_luna_attention(given["query"].double(), *[given["key"].double()] * 2, weights.double())
    state = ops.CausalState.start(given["packed"], 2, True)
    parts = []
    for start, end in ((0, length // 2), (length // 2, length - 1), (length - 1, length)):
        key = given["key"][:, :, start:end]
        out, state = ops.causal_luna_attention(
            given["query"][:, :, start:end], key, key, weights[:, :, start:end], state=state
        )
        parts.append(out)
    got = torch.cat(parts, dim=2)
    assert ((got - want).norm() / want.norm()).item() <= proving.TOLERANCE[torch.float32]
    assert state.steps.tolist() == [length] * 2
