"""The Triton kernels, interpreted on a CPU, against the formulas, with every gradient; compiled for two GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed (pip install luna-fairseq[kernels])")

from luna_fairseq import ops
from luna_fairseq.modules.attention import CausalLunaAttention
from luna_fairseq.ops import both_sums, fused
from luna_fairseq.ops.naive import naive_causal_luna
from luna_fairseq.ops.triton import launch
from support import pretended
from support.models import assert_close
from support.pretended import apart
from support.running import ROOT
from support.tensors import leaves, padding_mask

KERNELS = "chunk_sums running_sums unpack query_gradient key_gradient pack_weights pack_gradient".split()
CHUNK = launch.config(torch.float32).chunk


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels compute everything that fits; the interpreter learns to multiply and to round bfloat16."""
    from triton import language as tl
    from triton.runtime import interpreter

    if not isinstance(launch.kernels.unpack, interpreter.InterpretedFunction):
        pytest.skip("kernels are compiled here, which tests/gpu tries")
    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return plain(self, *wide, *rest)

    plain_cast = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self: Any, x: Any, dtype: Any) -> Any:
        if x.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:  # to the nearest, as a GPU does
            rounded = torch.from_numpy(np.ascontiguousarray(x.data)).to(torch.bfloat16)
            return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
        return plain_cast(self, x, dtype)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setenv("LUNA_KERNELS", "triton")


def inputs(batch: int, heads: int, length: int, dim: int, rows: int) -> Dict[str, Tensor]:
    """As a layer has them: heads beside each other; queries of P, from which pack weights are made, last."""
    shapes = [(batch, length, heads, dim)] * 4 + [(batch, rows, heads, dim)]
    drawn = leaves(*shapes, dtype=torch.float32)
    names = ("query", "key", "value", "context", "packed")
    return {name: x.detach().transpose(1, 2) for name, x in zip(names, drawn, strict=True)}


def run(
    given: Dict[str, Tensor],
    dtype: torch.dtype,
    tied: bool,
    kernels: bool,
    slope: Tensor,
    activation: str = "softplus",
    **options: Any,
) -> Dict[str, Tensor]:
    """Output and gradients, by the kernels in ``dtype`` or by the torch form in float64 from the same numbers."""
    kind = dtype if kernels else torch.float64
    x = {name: tensor.to(dtype).to(kind, copy=True).requires_grad_() for name, tensor in given.items()}
    calls = launch if kernels else ops
    weights = calls.causal_pack_weights(x["context"], x["packed"] * x["packed"].size(-1) ** -0.5, activation)
    value = x["key"] if tied else x["value"]
    attention = ops.causal_luna_attention
    out, _ = attention(x["query"], x["key"], value, weights, **options)
    out.backward(slope.to(kind))
    return {"output": out.detach(), **{name: tensor.grad for name, tensor in x.items() if tensor.grad is not None}}


def check(got: Dict[str, Tensor], want: Dict[str, Tensor], rel: float) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert torch.isfinite(got[name]).all(), name
        error = ((got[name].double() - expected).norm() / expected.norm().clamp(min=1e-6)).item()
        assert error <= rel, f"{name}: off by {error:.2g}"


@pytest.mark.parametrize(
    ("length", "rows", "tied", "masks", "decay"),
    [
        (1, 1, True, "none", 0.0),
        (CHUNK + 3, 5, False, "packed", 0.0),
        (CHUNK + 3, 5, True, "packed", 0.2),
        pytest.param(2 * CHUNK + 9, 17, True, "left", 0.0, marks=pytest.mark.long),
        pytest.param(2 * CHUNK + 9, 17, False, "left", 0.01, marks=pytest.mark.long),
        pytest.param(2 * CHUNK, 16, False, "right", 0.0, marks=pytest.mark.long),
        pytest.param(CHUNK - 1, 33, True, "packed", 0.0, marks=pytest.mark.long),
        pytest.param(CHUNK - 1, 33, False, "packed", 5.0, marks=pytest.mark.long),
    ],
)
def test_the_kernels_are_the_formula(length: int, rows: int, tied: bool, masks: str, decay: float) -> None:
    """One position at a time, in float64: output and every gradient."""
    batch, heads, dim = 2, 1, 20
    given = inputs(batch, heads, length, dim, rows)
    packed_padding = padding_mask(batch, rows, 5, "right") if masks == "packed" else None
    padding = padding_mask(batch, length, 6, masks) if masks in ("left", "right") else None
    slope = torch.randn(batch, heads, length, dim, generator=torch.Generator().manual_seed(1))
    if padding is not None:
        slope = slope.masked_fill(padding[:, None, :, None], 0.0)
    options = dict(packed_mask=ops.key_mask(packed_padding), padding_mask=padding, decay=decay)
    got = run(given, torch.float32, tied, True, slope, **options)

    x = {name: tensor.to(torch.float64, copy=True).requires_grad_() for name, tensor in given.items()}
    scores = x["context"] @ x["packed"].mT * dim**-0.5
    weights = torch.log2(1 + torch.exp2(scores))
    value = x["key"] if tied else x["value"]
    rows_of = zip(x["query"], x["key"], value, weights, strict=True)
    out = torch.stack(
        [
            naive_causal_luna(
                *(one[0] for one in each),
                None if packed_padding is None else packed_padding[b],
                None if padding is None else padding[b],
                decay,
            )[None]
            for b, each in enumerate(rows_of)
        ]
    )
    out.backward(slope.double())
    want = {name: tensor.grad for name, tensor in x.items() if tensor.grad is not None}
    real = None if padding is None else ~padding[:, None].expand(-1, heads, -1)
    assert_close(got.pop("output").double(), out.detach(), "output", rel=2e-6, mask=real)
    check(got, want, rel=2e-5)


@pytest.mark.parametrize("activation", ["softplus", pytest.param("elu", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("shape", "dtype", "tied", "decay"),
    [
        ((1, 2, 40, 16, 16), torch.bfloat16, True, 0.0),
        pytest.param((1, 2, 150, 64, 16), torch.bfloat16, False, 0.0, marks=pytest.mark.long),
        pytest.param((1, 2, 1100, 16, 16), torch.bfloat16, False, 0.1, marks=pytest.mark.long),
        pytest.param((1, 1, 150, 48, 33), torch.float16, True, 0.0, marks=pytest.mark.long),
        pytest.param((1, 1, 35, 128, 40), torch.float32, True, 0.0, marks=pytest.mark.long),
        pytest.param((1, 3, 600, 20, 5), torch.float32, True, 0.3, marks=pytest.mark.long),
    ],
)
def test_every_type_and_size(
    shape: Tuple[int, ...], dtype: torch.dtype, tied: bool, decay: float, activation: str
) -> None:
    """Against the torch form in float64, which the tests of test_causal.py hold to the formula."""
    given = inputs(*shape)
    slope = torch.randn(shape[:4], generator=torch.Generator().manual_seed(1)).to(dtype)
    got, want = (run(given, dtype, tied, kernels, slope, activation, decay=decay) for kernels in (True, False))
    assert got["output"].dtype == dtype and got["output"].transpose(1, 2).is_contiguous()
    check(got, want, rel={torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}[dtype])


@pytest.mark.parametrize("padded", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("length", [1, pytest.param(CHUNK + 5, marks=pytest.mark.long)])
def test_a_state_is_continued_with_every_gradient(length: int, decay: float, tied: bool, padded: bool) -> None:
    """Output, new state, and the gradients of both sums of the old one."""
    batch, heads, dim, rows = 2, 2, 20, 7
    given = inputs(batch, heads, length, dim, rows)
    given["key_sum"], given["value_sum"] = (
        x.detach() for x in leaves(*[(batch, heads, rows, dim)] * 2, dtype=torch.float32)
    )
    padding = padding_mask(batch, length, 6, "left") if padded else None
    slopes = [x.detach() for x in leaves((batch, heads, length, dim), *[(batch, heads, rows, dim)] * 2, seed=3)]
    results = []
    for kernels in (True, False):
        x = {
            name: tensor.to(torch.float32 if kernels else torch.float64, copy=True).requires_grad_()
            for name, tensor in given.items()
        }
        weights = F.softplus(x["context"] @ x["packed"].mT)
        old = ops.CausalState(x["key_sum"], x["key_sum" if tied else "value_sum"], torch.tensor([3, 11]))
        value = x["key"] if tied else x["value"]
        options = dict(padding_mask=padding, state=old, decay=decay)
        out, new = ops.causal_luna_attention(x["query"], x["key"], value, weights, **options)
        assert (new.key_sum is new.value_sum) == tied
        found = (out, *new[:2])
        sum((part.double() * slope).sum() for part, slope in zip(found, slopes, strict=True)).backward()
        grads = {name: tensor.grad for name, tensor in x.items() if tensor.grad is not None}
        results.append({"output": out.detach(), "key sum": new[0].detach(), "value sum": new[1].detach(), **grads})
        assert torch.equal(new.steps, old.steps + (length if padding is None else (~padding).sum(dim=1)))
    check(*results, rel=2e-5)


def test_what_kernels_keep_is_what_dropout_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks that they draw put into the torch form: output and every gradient; and again in the next run."""
    shape = batch, heads, length, dim, rows = 1, 2, CHUNK + 8, 16, 6
    given, p = inputs(*shape), (0.25, 0.5)
    slope = torch.randn(batch, heads, length, dim, generator=torch.Generator().manual_seed(1))
    options = dict(pack_dropout=p[0], unpack_dropout=p[1])
    torch.manual_seed(7)
    got = run(given, torch.float32, False, True, slope, **options)
    torch.manual_seed(7)
    again = run(given, torch.float32, False, True, slope, **options)
    assert all(torch.equal(got[name], again[name]) for name in got)

    torch.manual_seed(7)
    seeds = torch.randint(2**31 - 1, (2,)).tolist()
    ones = torch.ones(batch, heads, length, rows)
    masks = []
    for rate, seed in zip(p, seeds, strict=True):
        call = launch._Call(given["query"], given["key"], None, ones, None, None, None, (rate, seed, 0.0, 0), None)
        masks.append(call.sums()[0].view(batch, heads, length, rows))
    for rate, mask in zip(p, masks, strict=True):
        assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
        assert abs(mask.eq(0).float().mean() - rate) < 0.1
    assert (masks[0].eq(0) & masks[1].eq(0)).float().mean() == pytest.approx(p[0] * p[1], abs=0.06)
    left = list(masks)
    monkeypatch.setattr(F, "dropout", lambda x, _: x * left.pop(0))
    monkeypatch.setattr(both_sums, "making_a_graph", lambda: True)  # where torch's own dropout is called
    want = run(given, torch.float32, False, False, slope, **options)
    assert not left
    check(got, want, rel=2e-5)


def test_a_row_of_p_without_any_is_as_in_torch_and_strides_do_not_matter() -> None:
    """Gradients whose numbers do not lie side by side, expanded keys, one head, rows beyond the mask."""
    query, value = torch.randn(2, 1, 1, 9, 16).unbind()
    key = torch.randn(1, 1, 1, 16).expand(1, 1, 9, 16)
    weights = torch.rand(1, 1, 5, 9).mT
    mask = torch.tensor([True, False, False, False, True]).view(1, 1, 1, 5)
    results = []
    for calls in (ops.causal_luna_attention, None):
        x = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (query, value, weights)]
        wide = x if calls else [t.double() for t in x]
        keys = key if calls else key.double()
        out, _ = ops.causal_luna_attention(wide[0], keys, wide[1], wide[2], packed_mask=mask)
        out.sum().backward()
        results.append({"output": out.detach(), **{str(i): t.grad for i, t in enumerate(x)}})
    check(*results, rel=2e-5)


def test_second_derivatives_are_refused() -> None:
    given = inputs(1, 1, 3, 16, 2)
    x = given["query"].requires_grad_()
    out, _ = ops.causal_luna_attention(x, given["key"], given["value"], torch.ones(1, 1, 3, 2))
    with pytest.raises(RuntimeError, match="set LUNA_KERNELS=torch"):
        torch.autograd.grad(out.sum(), x, create_graph=True)
    context = given["context"].requires_grad_()
    weights = ops.causal_pack_weights(context, given["packed"], "softplus")
    with pytest.raises(RuntimeError, match="set LUNA_KERNELS=torch"):
        torch.autograd.grad(weights.sum(), context, create_graph=True)


COMPARED = (launch, torch.device("cpu"), torch.float32, 3, 16)


@pytest.mark.long
@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_comparing_finds_what_is_wrong(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides on a GPU, here: good kernels pass, gradients that are a hundredth too large do not."""
    right = launch._Call.backward
    monkeypatch.setattr(launch._Call, "backward", lambda *args: tuple(x * factor for x in right(*args)))
    wrong = fused.compare(*COMPARED)
    assert wrong is None if factor == 1.0 else "heads of 16: off by 0.01" in wrong


def test_kernels_that_do_not_run_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch._Call, "forward", lambda _: 1 / 0)
    assert fused.compare(*COMPARED) == "ZeroDivisionError: division by zero"


# Bytes that a block may have.
SHARED = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("arch", SHARED)
def test_the_kernels_compile_without_spills(arch: int, dtype: str, tmp_path: Path) -> None:
    """For A100 and H100, whatever the launcher can choose: one configuration for each type."""
    program = ROOT / "tests" / "support" / "compiled.py"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env.update(TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, program, str(arch), dtype], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == 7
    for kernel in said:
        assert kernel["stack"] == 0, f"registers are spilled: {kernel}"
        assert kernel["shared"] <= SHARED[arch], kernel


@apart
def test_bytes_and_launches_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """16,384 tokens, d = 512, l = 16, bfloat16, forward and backward, with the projections: as docs/gpu.md says."""
    pretended.count_kernels(monkeypatch, launch.kernels, KERNELS)
    monkeypatch.setattr(fused, "kernels", lambda *_: launch)
    with pretended.device("meta") as counts:
        layer = pretended.sent_module(CausalLunaAttention(512, 8).to("meta", torch.bfloat16))
        shapes = (4, 4096, 512), (4, 16, 512)
        x, packed = (pretended.sent(torch.empty(s, dtype=torch.bfloat16, device="meta")) for s in shapes)
        layer(x.requires_grad_(), packed.requires_grad_()).backward(torch.empty_like(x))
    ours = [kernel.moved for kernel in counts.kernels if kernel.name in KERNELS]
    found = (len(counts.kernels), round(counts.moved / 1e9, 2), len(ours), round(sum(ours) / 1e9, 2))
    assert found == (30, 0.95, 10, 0.46), found
