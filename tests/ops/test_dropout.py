"""Dropout: which elements go, what the others become, and the gradients."""

from typing import Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_fairseq import ops


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
