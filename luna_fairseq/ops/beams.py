"""Rows of a beam search, several to a sentence.

What depends on the sentence alone is kept once for all of its rows: row i belongs to sentence
``i // rows_per_sentence``. For as long as a search only exchanges rows within sentences, nothing of it moves.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

_within_sentences: ContextVar[bool] = ContextVar("within_sentences", default=False)


@contextmanager
def rows_stay_in_sentences() -> Iterator[None]:
    """Orders that are made known in here are those of fairseq's beam search, and nobody needs to look at them.

    At first every sentence becomes equally many consecutive rows. From then on rows change within their sentences,
    and sentences leave with all of their rows. What was before an order is never gone back to, so that the next
    step may overwrite what it finds.
    """
    token = _within_sentences.set(True)
    try:
        yield
    finally:
        _within_sentences.reset(token)


class RowOrder:
    """A new order of rows, with what was found out about it: every look at its values waits for a GPU.

    Args:
        rows: ``[B']`` int64, row i becomes what row ``rows[i]`` was; any order, any length.
        within: what :func:`rows_stay_in_sentences` says.
    """

    def __init__(self, rows: Tensor, within: bool = False) -> None:
        self.rows = rows
        self.within = within
        self._changes: Dict[int, bool] = {}
        self._sentences: Dict[Tuple[int, int], Tuple[Optional[Tensor], int]] = {}

    def changes(self, before: int, rows_per_sentence: int = 0) -> bool:
        """Whether anything about ``before`` rows may change.

        Args:
            before: how many rows there were.
            rows_per_sentence: of these; 0 where it is not known.
        """
        if self.within and self.rows.numel() == before:
            if rows_per_sentence == 1:
                return False
            if self.rows.device.type != "cpu":  # a copy costs less than a look
                return True
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
            told = _sentences_within(self.rows, before, rows_per_sentence) if self.within else None
            self._sentences[known] = told or _sentences(self.rows, before, rows_per_sentence)
        return self._sentences[known]


# The last order, and which of its tensor's contents it was; at most one.
_last: List[Tuple[RowOrder, int]] = []


def row_order(rows: Tensor) -> RowOrder:
    """The order ``rows``, the same object for encoder and decoder, which fairseq gives the same tensor.

    Args:
        rows: as of :class:`RowOrder`.
    """
    within = _within_sentences.get()
    if rows.is_inference():  # whether it has been changed cannot be seen
        return RowOrder(rows, within)
    for order, version in _last:
        if order.rows is rows and version == rows._version and order.within == within:
            return order
    order = RowOrder(rows, within)
    _last[:] = [(order, rows._version)]
    return order


def _sentences_within(order: Tensor, before: int, rows_per_sentence: int) -> Optional[Tuple[Optional[Tensor], int]]:
    """What :func:`rows_stay_in_sentences` says of an order; None if it does not fit."""
    rows = order.numel()
    if rows == before * rows_per_sentence:
        return None, rows_per_sentence
    if rows_per_sentence == 1 and before and rows > before and rows % before == 0:
        return None, rows // before
    if 0 < rows < before * rows_per_sentence and rows % rows_per_sentence == 0:
        first = order if rows_per_sentence == 1 else order[::rows_per_sentence]
        return torch.div(first, rows_per_sentence, rounding_mode="floor"), rows_per_sentence
    return None


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


# The identity of a tensor -> the tensor, and its selected rows.
Selected = Dict[int, Tuple[Tensor, Tensor]]


def select_rows(
    tensors: Dict[str, Optional[Tensor]], rows: Optional[Tensor], selected: Optional[Selected] = None
) -> Dict[str, Optional[Tensor]]:
    """Those rows of each, or all of them; what is one tensor stays one.

    Args:
        tensors: of any name.
        rows: which; None for all.
        selected: what the same rows of others were, to be read and added to.
    """
    if rows is None:
        return tensors
    selected = {} if selected is None else selected
    for x in tensors.values():
        if x is not None and id(x) not in selected:
            selected[id(x)] = x, x.index_select(0, rows)
    return {name: None if x is None else selected[id(x)][1] for name, x in tensors.items()}


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
