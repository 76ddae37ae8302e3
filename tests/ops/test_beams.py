"""Orders of rows in a beam search, and what they make of sentences."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_fairseq import ops


@given(data=st.data(), sentences=st.integers(1, 4), rows=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_sentences_follow_their_rows(data: Any, sentences: int, rows: int) -> None:
    row = st.integers(0, sentences * rows - 1)
    order = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=8) | st.permutations(range(sentences * rows))))
    kept, now = ops.RowOrder(order).sentences(sentences, rows)
    kept = torch.arange(sentences) if kept is None else kept
    assert torch.equal(kept.repeat_interleave(now), order // rows)


def test_one_order_answers_for_several_numbers_of_sentences() -> None:
    """Modules with other numbers of rows share an order; each gets its own answer, also when asked again."""
    order = ops.RowOrder(torch.tensor([2, 3, 0, 1]))
    for _ in range(2):
        kept, rows = order.sentences(2, 2)
        assert kept is not None and (kept.tolist(), rows) == ([1, 0], 2)
        kept, rows = order.sentences(2, 4)
        assert kept is not None and (kept.tolist(), rows) == ([0], 4)
        kept, rows = order.sentences(4, 1)
        assert kept is not None and (kept.tolist(), rows) == ([2, 3, 0, 1], 1)
    same = ops.RowOrder(torch.arange(4))
    for _ in range(2):
        assert not same.changes(4) and same.changes(5)
        assert same.sentences(2, 2) == (None, 2)


def test_an_order_of_no_rows_keeps_no_sentence() -> None:
    order = ops.RowOrder(torch.tensor([], dtype=torch.int64))
    kept, rows = order.sentences(2, 3)
    assert kept is not None and (kept.tolist(), rows) == ([], 1)
    assert order.changes(6) and not order.changes(0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_that_stay_are_seen_in_any_integer(dtype: torch.dtype) -> None:
    order = ops.RowOrder(torch.arange(6).to(dtype))
    assert not order.changes(6) and order.sentences(3, 2) == (None, 2) == order.sentences(3, 2)


@given(data=st.data(), sentences=st.integers(1, 4), rows=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_what_a_search_says_is_what_a_look_finds(data: Any, sentences: int, rows: int) -> None:
    """Rows change within their sentences, sentences leave with all of their rows; at first each gets its rows."""
    left = data.draw(st.lists(st.integers(0, sentences - 1), min_size=1, unique=True).map(sorted))
    within = st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)
    order = torch.tensor([sentence * rows + row for sentence in left for row in data.draw(within)])
    first = torch.arange(sentences).repeat_interleave(rows)
    for new, before in ((order, rows), (first, 1)):
        kept, now = ops.RowOrder(new).sentences(sentences, before)
        told, said = ops.RowOrder(new, within=True).sentences(sentences, before)
        assert now == said
        everything = torch.arange(sentences)
        assert torch.equal(everything if kept is None else kept, everything if told is None else told)


def test_an_order_is_looked_at_once_for_all_who_get_the_same_tensor() -> None:
    rows = torch.tensor([1, 0])
    order = ops.row_order(rows)
    assert ops.row_order(rows) is order
    with ops.rows_stay_in_sentences():
        assert ops.row_order(rows) is not order and ops.row_order(rows).within
    order = ops.row_order(rows)
    rows[0] = 0
    assert ops.row_order(rows) is not order and ops.row_order(rows.clone()) is not ops.row_order(rows)
