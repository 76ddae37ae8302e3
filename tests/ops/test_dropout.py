"""Dropout: which elements go, what the others become, and the gradients."""

from typing import Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.ops import dropout
from support.tensors import leaves


def test_share_of_dropped_elements() -> None:
    torch.manual_seed(1)
    for p in (0.001, 0.1, 0.3, 0.5, 0.9):
        x = torch.ones(1000, 1003)
        y = ops.add_dropout(None, x, p)
        dropped = y.eq(0)
        spread = (p * (1 - p) / x.numel()) ** 0.5
        assert abs(dropped.double().mean() - p) < 5 * spread + 1 / 65536
        assert y[~dropped].unique().item() == pytest.approx(1 / (1 - p), rel=1e-4)
        # Neighbours, which share one random number, are independent.
        for step in (1, 2, 3, 4):
            flat = dropped.flatten()
            both = (flat[step:] & flat[:-step]).double().mean()
            assert abs(both - p * p) < 6 * (p * p / x.numel()) ** 0.5 + 2e-5, (p, step)


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    p=st.sampled_from([0.1, 0.3, 0.5]),
    residual=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    transposed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients(
    shape: Tuple[int, ...], p: float, residual: bool, dtype: torch.dtype, transposed: bool
) -> None:
    """Against the plain formula with the mask that was drawn."""
    torch.manual_seed(len(shape))
    x = torch.rand(shape, dtype=dtype) + 1
    x = (x.transpose(0, -1) if transposed else x).detach().requires_grad_()
    base = torch.rand_like(x).requires_grad_() if residual else None
    y = ops.add_dropout(base, x, p)
    out = torch.rand_like(y) + 0.5
    y.backward(out)
    keep = x.grad.ne(0)
    assert torch.equal(keep, y.detach().ne(0 if base is None else base.detach()))
    want = torch.where(keep, x / (1 - p), 0) + (0 if base is None else base)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(y, want.to(dtype), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad, torch.where(keep, out / (1 - p), 0).to(dtype), rtol=tolerance, atol=tolerance)
    if base is not None:
        assert torch.equal(base.grad, out)


def test_limits() -> None:
    x = torch.randn(5, 3)
    assert ops.add_dropout(None, x, 0.0) is x
    assert torch.equal(ops.add_dropout(x, x, 0.0), x + x)
    assert not ops.add_dropout(None, x, 1.0).any()
    assert torch.equal(ops.add_dropout(x, x, 1.0), x)


def test_the_seed_decides() -> None:
    x = torch.ones(333)
    torch.manual_seed(5)
    first = ops.add_dropout(None, x, 0.5)
    assert not torch.equal(ops.add_dropout(None, x, 0.5), first)
    torch.manual_seed(5)
    assert torch.equal(ops.add_dropout(None, x, 0.5), first)


def test_the_probability_is_rounded_to_a_65536th() -> None:
    """0.1 is 6,554 of them, with the scale that goes with it; one of them less than all keeps something."""
    torch.manual_seed(0)
    x = torch.ones(2_000_000, dtype=torch.float64)
    assert ops.add_dropout(None, x[:100], 0.1).max().item() == pytest.approx(65536 / (65536 - 6554), rel=1e-12)
    kept = ops.add_dropout(None, x, 65535 / 65536)
    assert 10 < kept.ne(0).sum() < 60 and kept.max() == 65536
    assert 10 < ops.add_dropout(None, x, 1 / 65536).eq(0).sum() < 60


@pytest.mark.parametrize("residual", [True, False])
def test_a_cpu_draws_one_number_for_four_elements(residual: bool) -> None:
    x = torch.rand(5, 3)
    torch.manual_seed(3)
    keep = dropout._keep_mask(x, 1 << 14)
    torch.manual_seed(3)
    y = ops.add_dropout(x if residual else None, x, 0.25)
    torch.testing.assert_close(y, x * keep / 0.75 + (x if residual else 0))


def test_a_residual_of_another_dtype_decides() -> None:
    """As under autocast: the sum is taken in the wider one."""
    torch.manual_seed(0)
    residual, x = torch.full((1000,), 1.0), torch.full((1000,), 3.0, dtype=torch.bfloat16, requires_grad=True)
    y = ops.add_dropout(residual, x, 0.25)
    y.sum().backward()
    assert y.dtype == torch.float32 and x.grad is not None and x.grad.dtype == torch.bfloat16
    dropped = y.eq(1)
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(y[~dropped], torch.full_like(y[~dropped], 5.0))


@pytest.mark.parametrize("residual", [True, False])
def test_second_derivatives(residual: bool) -> None:
    def squared(x: Tensor, *base: Tensor) -> Tensor:
        torch.manual_seed(0)
        return ops.add_dropout(base[0] if base else None, x, 0.5).square()

    inputs = leaves((3, 5), (3, 5))[: 2 if residual else 1]
    assert torch.autograd.gradgradcheck(squared, tuple(inputs))
