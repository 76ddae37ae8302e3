"""Softmax attention against the formula."""

import itertools
from typing import Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_fairseq import ops
from luna_fairseq.ops.naive import naive_attention
from support.models import assert_close
from support.tensors import leaves, padding_mask


@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_softmax_attention_is_the_formula(sizes: Tuple[int, int, int], padded: bool, seed: int) -> None:
    n, m, dim = sizes
    query, key, value = leaves((2, 3, n, dim), (2, 3, m, dim), (2, 3, m, dim), seed=seed)
    padding = padding_mask(2, m, seed, "right") if padded else None
    mask = ops.key_mask(padding)
    got = ops.attend(query, key, value, mask)
    weighted = ops.attention_weights(query, key, mask).double() @ value
    for b, h in itertools.product(range(2), range(3)):
        want = naive_attention(query[b, h], key[b, h], value[b, h], None if padding is None else padding[b])
        assert_close(got[b, h], want, "attend", rel=1e-10)
        assert_close(weighted[b, h], want, "attention_weights", rel=1e-5)


def test_weights_of_half_precision_are_float32() -> None:
    """Rounded to bfloat16, the weights of a row of 300 would not sum to 1."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 300, 8, generator=generator).bfloat16() for _ in range(2))
    weights = ops.attention_weights(query, key)
    assert weights.dtype == torch.float32
    assert_close(weights.sum(-1), torch.ones(1, 2, 300), "row sums", rel=1e-6)


def test_a_row_of_padding_is_opened_and_no_other() -> None:
    padding = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    mask = ops.key_mask(padding)
    assert mask is not None and mask.shape == (3, 1, 1, 3)
    assert mask[:, 0, 0].tolist() == [[True, True, True], [False, True, False], [True, True, True]]
    assert ops.key_mask(None) is None


@pytest.mark.parametrize("queries", [1, 5, 9])
def test_few_queries_without_a_gradient_attend_alike(queries: int) -> None:
    """By products or by torch's kernel, with a mask in either form."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, queries, 4), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    own = ops.key_mask(torch.arange(6) >= torch.tensor([[6], [4]]))
    for mask in (None, own, ops.additive_mask(own, query.dtype)):
        want = ops.attend(query, key, value, mask)
        with torch.no_grad():
            assert_close(ops.attend(query, key, value, mask), want, "output")
