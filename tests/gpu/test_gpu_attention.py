"""Both attentions on a GPU against the formulas: every type, output and every gradient."""

from typing import Any, Dict, Optional, Tuple

import pytest
import torch
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.doctor.attention import check_attention
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from luna_fairseq.ops import parts, proving
from luna_fairseq.ops.naive import naive_causal_luna
from support.devices import EACH, SLOW_ON_CPU, gradients, to
from support.tensors import leaves, padding_mask

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of the norm of an output or a gradient.
TOLERANCE = {torch.float64: 1e-9, **proving.TOLERANCE}


def off(got: Tensor, want: Tensor) -> float:
    """How far, in shares of the norm."""
    assert torch.isfinite(got).all()
    return (
        (got.detach().cpu().double() - want.detach().double()).norm() / want.double().norm().clamp(min=1e-6)
    ).item()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_published_numbers_and_the_slow_form(device: str, dtype: str) -> None:
    """What the doctor looks at, tied and untied."""
    check_attention(device, dtype)


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("masks", ["packed", "left"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", EACH)
def test_causal_attention_is_the_formula(
    device: str, dtype: torch.dtype, masks: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One position at a time, in float64 on the CPU."""
    monkeypatch.setenv("LUNA_KERNELS", kernels)
    batch, heads, length, dim, rows = 2, 1, 140 if device == "cuda" else 20, 16, 5
    drawn = leaves(*[(batch, heads, length, dim)] * 3, (batch, heads, length, rows), dtype=torch.float32)
    given = dict(zip(("query", "key", "value", "scores"), (x.detach().to(dtype) for x in drawn), strict=True))
    packed_padding = padding_mask(batch, rows, 5, "right") if masks == "packed" else None
    padding = padding_mask(batch, length, 6, "left") if masks == "left" else None
    slope = torch.randn(batch, heads, length, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    real = torch.ones(batch, length, dtype=torch.bool) if padding is None else ~padding
    slope = slope * real[:, None, :, None]

    def run(on: Optional[str]) -> Tuple[Tensor, Dict[str, Tensor]]:
        x: Dict[str, Any] = {k: (to(on, t) if on else t.double()).requires_grad_() for k, t in given.items()}
        weights = ops.CAUSAL_ACTIVATIONS["softplus"](x["scores"])
        call = x["query"], x["key"], x["value"], weights
        if on:
            masked = dict(packed_mask=ops.key_mask(packed_padding), padding_mask=padding)
            out, _ = ops.causal_luna_attention(*call, **to(on, masked))
        else:
            out = torch.stack(
                [
                    naive_causal_luna(
                        *(t[b, 0] for t in call),
                        None if packed_padding is None else packed_padding[b],
                        None if padding is None else padding[b],
                    )[None]
                    for b in range(batch)
                ]
            )
        out.backward(slope.to(out))
        return out.detach().cpu() * real[:, None, :, None], {k: t.grad for k, t in x.items()}

    (got, found), (want, wanted) = run(device), run(None)
    assert off(got, want) <= TOLERANCE[dtype]
    for name, grad in wanted.items():
        assert off(found[name], grad) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["tied", "untied", "biased", "causal tied", "causal untied", "causal forgetting"])
@pytest.mark.parametrize("device", EACH)
def test_layers_are_those_of_the_cpu_in_float64(device: str, kind: str, dtype: torch.dtype) -> None:
    """With padding; the same numbers for both, so that only the arithmetic differs."""
    torch.manual_seed(0)
    layer: Any
    if kind.startswith("causal"):
        layer = CausalLunaAttention(
            64, 2, tie_kv="untied" not in kind, decay=0.5 if kind == "causal forgetting" else 0.0
        )
    else:
        layer = LunaAttention(64, 2, tie_kv=kind != "untied", position_bias=0.5 if kind == "biased" else 0.0)
    layer.to(dtype)
    x, packed = (t.detach().to(dtype) for t in leaves((2, 150, 64), (2, 6, 64), dtype=torch.float32))
    padding = padding_mask(2, 150, 1, "right")
    slope = torch.randn(2, 150, 64, generator=torch.Generator().manual_seed(1)).to(dtype) * ~padding[..., None]

    results = []
    for on, kind_of in ((device, dtype), ("cpu", torch.float64)):
        layer.to(on, kind_of).zero_grad()
        own, own_packed = (to(on, t).to(kind_of).requires_grad_() for t in (x, packed))
        mask = to(on, padding)
        if kind.startswith("causal"):
            y = layer(own, own_packed, None, mask)
        else:
            y = layer(own, own_packed, own, ops.key_mask(mask))[0]
        y.backward(to(on, slope).to(kind_of))
        grads = {"x": own.grad.cpu(), "P": own_packed.grad.cpu(), **gradients(layer)}
        results.append((y.detach().cpu() * ~padding[..., None], grads))
    (got, found), (want, wanted) = results
    assert off(got, want) <= TOLERANCE[dtype]
    # A gradient that hardly matters next to the others may be off by their rounding.
    largest = max(grad.norm().item() for grad in wanted.values())
    for name, grad in wanted.items():
        error = (found[name].double() - grad).norm().item()
        assert error <= TOLERANCE[dtype] * (grad.norm().item() + 0.1 * largest), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(proving.TOLERANCE), ids=str)
def test_attention_in_parts_is_the_formula(dtype: torch.dtype) -> None:
    """As the first use of a type looks at it; then a long document, whose pack and unpack steps are cut."""
    device = torch.device("cuda", torch.cuda.current_device())
    assert parts.compare(device, dtype, 64) is None
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, size, 8, 64) for size in (16, 20011, 20011)]
    drawn = [to("cuda", torch.randn(s, generator=generator).transpose(1, 2).to(dtype)) for s in shapes]
    mask = torch.arange(20011, device=device).view(1, 1, 1, -1) < 15000
    for query, key, value, m in ((*drawn, mask), (drawn[1], drawn[0], drawn[0], None)):
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        cut = parts.cut(*inputs, m), parts.number_of_parts(*inputs)
        assert cut[0] is not None or cut[1] > 1
        out = ops.attend(*inputs, m)
        found = [out, *torch.autograd.grad(out.float().square().sum(), inputs)]
        wide = [x.detach().double().requires_grad_() for x in inputs]
        scores = wide[0] @ wide[1].mT / 8
        scores = scores if m is None else scores.masked_fill(~m, float("-inf"))
        out = torch.softmax(scores, dim=-1) @ wide[2]
        want = [out, *torch.autograd.grad(out.square().sum(), wide)]
        assert all(off(x, y.cpu()) <= 2 * proving.TOLERANCE[dtype] for x, y in zip(found, want, strict=True))
