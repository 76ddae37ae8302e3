"""Softmax attention with a position bias, block by block: neither its scores nor its weights are ever whole.

PyTorch's own attention does that without a bias. With one that learns it would keep the weights, the bias and its
gradient. Here a block of whole rows is computed, normalised and read while it is in the caches, and computed again in
the backward pass, which then has the gradient of its scores, and so that of the slopes, at hand.
"""

from collections.abc import Iterator
from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luna_fairseq.ops.position_bias import PositionBias

# So many scores at a time.
_BLOCK = 1 << 18

Part = Tuple[slice, slice, slice]
_ALL = slice(None)


def _parts(batch: int, heads: int, rows: int, positions: int) -> Iterator[Part]:
    """Sentences, heads and rows of each block: sentences as wholes if they are small, else heads, else some rows."""
    if not batch * heads * rows * positions:
        return
    at_once = max(1, _BLOCK // positions)
    if (sentences := at_once // (heads * rows)) > 1:
        for first in range(0, batch, sentences):
            yield slice(first, first + sentences), _ALL, _ALL
        return
    some_heads, some_rows = max(1, at_once // rows), min(rows, at_once)
    for sentence in range(batch):
        for head in range(0, heads, some_heads):
            for row in range(0, rows, some_rows):
                yield slice(sentence, sentence + 1), slice(head, head + some_heads), slice(row, row + some_rows)


class _Attention:
    """The blocks of one attention.

    Args:
        query: ``[B, H, L, K]``, scaled.
        key: ``[B, H, M, K]``.
        slope: ``[H]``.
        index, centre, unit: of the places (:class:`luna_fairseq.ops.RowPlaces`).
        mask: ``[B, 1, 1, M]`` bool, or None.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        slope: Tensor,
        index: Tensor,
        centre: Tensor,
        unit: Tensor,
        mask: Optional[Tensor],
    ) -> None:
        _, heads, rows, _ = query.shape
        self.query, self.key = query, key
        self.shared = index.size(0) == 1  # all sentences have the same places
        self.index = index.unsqueeze(1)
        self.centre = centre.unflatten(1, (heads, rows))
        self.area = unit.square().unsqueeze(1)
        self.factor = -slope.view(1, heads, 1, 1) / self.area
        self.closed = None if mask is None else ~mask

    def own(self, sentences: slice) -> slice:
        """Those sentences among the places."""
        return _ALL if self.shared else sentences

    def weights(self, part: Part) -> Tuple[Tensor, Tensor]:
        """Of a block: the weights, and the squared distances, ``[sentences or 1, heads, rows, M]``."""
        sentences, heads, rows = part
        own = self.own(sentences)
        squares = (self.index[own] - self.centre[own, heads, rows]).square_()
        scores = self.query[part] @ self.key[sentences, heads].mT
        scores.addcmul_(squares, self.factor[own, heads])
        if self.closed is not None:
            scores.masked_fill_(self.closed[sentences], float("-inf"))
        return torch.softmax(scores, dim=-1), squares


class _BiasedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        slope: Tensor,
        index: Tensor,
        centre: Tensor,
        unit: Tensor,
        mask: Optional[Tensor],
    ) -> Tensor:
        attention = _Attention(query, key, slope, index, centre, unit, mask)
        batch, heads, rows, dim = query.shape
        out = query.new_zeros(batch, rows, heads, dim).transpose(1, 2)  # the heads of a row side by side
        for part in _parts(batch, heads, rows, key.size(2)):
            out[part] = attention.weights(part)[0] @ value[part[:2]]
        ctx.tied = key is value
        ctx.save_for_backward(query, key, value, slope, index, centre, unit, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        query, key, value, slope, *places, mask = ctx.saved_tensors
        attention = _Attention(query, key, slope, *places, mask)
        batch, heads, rows, dim = query.shape
        d_query, d_slope = torch.zeros_like(query), torch.zeros_like(slope)
        positions = key.size(2)
        d_key = key.new_zeros(batch, positions, heads, dim).transpose(1, 2)
        d_value = d_key if ctx.tied else torch.zeros_like(d_key)
        for part in _parts(batch, heads, rows, positions):
            sentences, some, _ = part
            own = attention.own(sentences)
            weights, squares = attention.weights(part)
            given = grad[part]
            d_value[sentences, some] += weights.mT @ given
            d_scores = (given @ value[sentences, some].mT).mul_(weights)
            d_scores.addcmul_(weights, d_scores.sum(dim=-1, keepdim=True), value=-1)
            del weights
            d_query[part] = d_scores @ key[sentences, some]
            d_key[sentences, some] += d_scores.mT @ query[part]
            if attention.shared and d_scores.size(0) > 1:
                d_scores = d_scores.sum(dim=0, keepdim=True)
            sums = squares.mul_(d_scores).sum(dim=(2, 3), keepdim=True)
            d_slope[some] -= (sums / attention.area[own]).sum(dim=(0, 2, 3))
        return d_query, d_key, None if ctx.tied else d_value, d_slope, None, None, None, None


def biased_attention(query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor], bias: PositionBias) -> Tensor:
    """Attention of rows of P with a position bias; the arguments and the result are those of ``ops.attend``."""
    slope, places = bias
    own = [x.to(query.dtype) for x in (slope, places.index, places.centre, places.unit)]
    return _BiasedAttention.apply(query * query.size(-1) ** -0.5, key, value, *own, mask)
