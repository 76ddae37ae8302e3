"""Orders of rows in a beam search, and what they make of sentences."""

from typing import Any

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
