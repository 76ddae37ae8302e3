"""Rows of a beam search, several to a sentence.

What depends on the sentence alone is kept once for all of its rows: row i belongs to sentence ``i // rows``, where
``rows`` is how many rows each sentence has. For as long as a search only exchanges rows within sentences, nothing
of it moves.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor


def moved(new_order: Tensor, before: int) -> bool:
    """Whether ``new_order`` (``[B']`` int64) changes anything about ``before`` rows."""
    return new_order.numel() != before or not torch.equal(new_order, torch.arange(before, device=new_order.device))


def reorder_sentences(new_order: Tensor, sentences: int, rows: int) -> Tuple[Optional[Tensor], int]:
    """What becomes of the sentences if row i becomes what row ``new_order[i]`` was.

    Args:
        new_order: ``[B']`` int64; any order, any length.
        sentences: how many there are.
        rows: how many rows each has.

    Returns:
        which sentences to keep, ``[S']`` int64, or None if they stay as they are; and how many rows each has then.
    """
    sentence = torch.div(new_order, rows, rounding_mode="floor")
    if sentence.numel() == sentences * rows:
        now = torch.arange(sentences * rows, device=new_order.device)
        if torch.equal(sentence, torch.div(now, rows, rounding_mode="floor")):
            return None, rows
    kept, counts = torch.unique_consecutive(sentence, return_counts=True)
    rows = int(counts.max())
    if not bool((counts == rows).all()):
        return sentence, 1
    return (kept if moved(kept, sentences) else None), rows
