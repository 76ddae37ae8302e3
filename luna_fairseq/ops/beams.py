"""Rows of a beam search, several to a sentence.

What depends on the sentence alone is kept once for all of its rows: row i belongs to sentence
``i // rows_per_sentence``. For as long as a search only exchanges rows within sentences, nothing of it moves.
"""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor


class RowOrder:
    """A new order of rows, with what was found out about it: every look at its values waits for a GPU.

    Args:
        rows: ``[B']`` int64, row i becomes what row ``rows[i]`` was; any order, any length.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._changes: Dict[int, bool] = {}
        self._sentences: Dict[Tuple[int, int], Tuple[Optional[Tensor], int]] = {}

    def changes(self, before: int) -> bool:
        """Whether anything about ``before`` rows changes."""
        if before not in self._changes:
            self._changes[before] = _changes(self.rows, before)
        return self._changes[before]

    def sentences(self, before: int, rows_per_sentence: int) -> Tuple[Optional[Tensor], int]:
        """What becomes of ``before`` sentences.

        Returns:
            which of them to keep, ``[S']`` int64, or None if they stay as they are; and how many rows each has then.
        """
        known = (before, rows_per_sentence)
        if known not in self._sentences:
            self._sentences[known] = _sentences(self.rows, before, rows_per_sentence)
        return self._sentences[known]


def _changes(order: Tensor, before: int) -> bool:
    return order.numel() != before or not torch.equal(
        order, torch.arange(before, device=order.device).to(order.dtype)
    )


def _sentences(order: Tensor, before: int, rows_per_sentence: int) -> Tuple[Optional[Tensor], int]:
    sentence = torch.div(order, rows_per_sentence, rounding_mode="floor")
    if sentence.numel() == before * rows_per_sentence:
        now = torch.arange(before, device=order.device).repeat_interleave(rows_per_sentence)
        if torch.equal(sentence, now.to(order.dtype)):
            return None, rows_per_sentence
    kept, counts = torch.unique_consecutive(sentence, return_counts=True)
    if counts.numel() == 0 or not torch.equal(counts, counts[:1].expand_as(counts)):
        return sentence, 1
    return (kept if _changes(kept, before) else None), int(counts[0])


def select_rows(tensors: Dict[str, Optional[Tensor]], rows: Optional[Tensor]) -> Dict[str, Optional[Tensor]]:
    """Those rows of each, or all of them; what is one tensor stays one."""
    if rows is None:
        return tensors
    once = {id(x): x for x in tensors.values() if x is not None}
    selected = {key: x.index_select(0, rows) for key, x in once.items()}
    return {name: None if x is None else selected[id(x)] for name, x in tensors.items()}


def rows_per_sentence(batch: int, sentences: int) -> int:
    """How many rows of the batch each sentence has.

    Raises:
        ValueError: if they are not equally many.
    """
    if batch == sentences:
        return 1
    if sentences == 0 or batch % sentences != 0:
        raise ValueError(
            f"{batch} rows cannot belong to {sentences} packed sequences: give each row its own, or each equally many"
        )
    return batch // sentences
