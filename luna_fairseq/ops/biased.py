"""Softmax attention with a position bias, block by block: neither its scores nor its weights are ever whole.

PyTorch's own attention does that without a bias. With one that learns it would keep the weights, the bias and its
gradient. Here a block of whole rows is computed, normalised and read while it is in the caches, and computed again in
the backward pass, which then has the gradient of its scores, and so that of the slopes, at hand.
"""

from collections.abc import Iterator
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from luna_fairseq.ops.position_bias import PositionBias

# So many scores at a time.
_BLOCK = 1 << 18

Part = Tuple[slice, slice, slice]
_ALL = slice(None)


def _parts(query: Tensor, key: Tensor) -> Iterator[Part]:
    """Sentences, heads and rows of each block: sentences as wholes if they are small, else heads, else some rows.

    Of few rows the keys, and not the scores, decide.
    """
    (batch, heads, rows, dim), positions = query.shape, key.size(2)
    if not batch * heads * rows * positions:
        return
    at_once, most = max(1, _BLOCK // positions), max(rows, dim)
    if (sentences := at_once // (heads * most)) > 1:
        for first in range(0, batch, sentences):
            yield slice(first, first + sentences), _ALL, _ALL
        return
    some_heads, some_rows = max(1, at_once // most), min(rows, at_once)
    for sentence in range(batch):
        for head in range(0, heads, some_heads):
            for row in range(0, rows, some_rows):
                yield slice(sentence, sentence + 1), slice(head, head + some_heads), slice(row, row + some_rows)


def _side_by_side(x: Tensor) -> Tensor:
    """Sentences and heads of a block in one dimension; copied only if it has several sentences."""
    return x.reshape(-1, *x.shape[2:])


def _product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """``scale * x @ y`` of ``[n, a, b]`` and ``[n, b, c]``, in one pass."""
    return torch.baddbmm(x.new_empty(1), x, y, beta=0, alpha=scale)


class _Biases:
    """The bias of any block.

    Args:
        slope: ``[H]``.
        index, centre, unit: of the places (:class:`luna_fairseq.ops.RowPlaces`).
        mask: ``[B, 1, 1, M]`` bool, or None.
    """

    def __init__(self, slope: Tensor, index: Tensor, centre: Tensor, unit: Tensor, mask: Optional[Tensor]) -> None:
        heads = slope.numel()
        self.shared = index.size(0) == 1  # all sentences have the same places
        self.index = index.unsqueeze(1)
        self.centre = centre.unflatten(1, (heads, centre.size(1) // heads))
        self.area = unit.square().unsqueeze(1)
        self.factor = -slope.view(1, heads, 1, 1) / self.area
        self.closed = None if mask is None else ~mask

    def squares(self, part: Part) -> Tensor:
        """The squared distances, ``[sentences or 1, heads, rows, M]``."""
        own = _ALL if self.shared else part[0]
        return (self.index[own] - self.centre[own, part[1], part[2]]).square_()

    def weights(self, part: Part, squares: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Of a block, ``[sentences * heads, rows, M]``."""
        sentences, heads, _ = part
        scores = _product(query, key.mT, query.size(-1) ** -0.5)
        whole = scores.view(-1, *squares.shape[1:])
        whole.addcmul_(squares, self.factor[_ALL if self.shared else sentences, heads])
        if self.closed is not None:
            whole.masked_fill_(self.closed[sentences], float("-inf"))
        return torch.softmax(scores, dim=-1)


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
        biases = _Biases(slope, index, centre, unit, mask)
        batch, heads, rows, dim = query.shape
        out = query.new_zeros(batch, rows, heads, dim).transpose(1, 2)  # the heads of a row side by side
        ctx.tied = key is value
        for part in _parts(query, key):
            own_key = _side_by_side(key[part[:2]])
            own_value = own_key if ctx.tied else _side_by_side(value[part[:2]])
            weights = biases.weights(part, biases.squares(part), _side_by_side(query[part]), own_key)
            out[part] = (weights @ own_value).view(out[part].shape)
        ctx.save_for_backward(query, key, value, slope, index, centre, unit, mask)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        query, key, value, slope, index, centre, unit, mask = ctx.saved_tensors
        biases = _Biases(slope, index, centre, unit, mask)
        batch, heads, rows, dim = query.shape
        scale = dim**-0.5
        d_query, d_slope = torch.zeros_like(query), torch.zeros_like(slope)
        # Written by the first rows of each sentence and head, if there are any.
        d_key = (key.new_empty if rows else key.new_zeros)(batch, key.size(2), heads, dim).transpose(1, 2)
        d_value = d_key if ctx.tied else (torch.empty_like if rows else torch.zeros_like)(d_key)
        for part in _parts(query, key):
            pairs = part[:2]
            own_query, given = _side_by_side(query[part]), _side_by_side(grad[part])
            own_key = _side_by_side(key[pairs])
            own_value = own_key if ctx.tied else _side_by_side(value[pairs])
            squares = biases.squares(part)
            weights = biases.weights(part, squares, own_query, own_key)
            d_scores = torch._softmax_backward_data(given @ own_value.mT, weights, -1, weights.dtype)
            to_value, to_key = weights.mT @ given, _product(d_scores.mT, own_query, scale)
            for whole, some in (
                ((d_key, to_key.add_(to_value)),) if ctx.tied else ((d_key, to_key), (d_value, to_value))
            ):
                own = whole[pairs]
                (own.add_ if part[2].start else own.copy_)(some.view(own.shape))
            d_query[part] = _product(d_scores, own_key, scale).view(d_query[part].shape)
            d_scores = d_scores.view(-1, *squares.shape[1:])
            if d_scores.size(0) != squares.size(0):
                d_scores = d_scores.sum(dim=0, keepdim=True)
            sums = squares.flatten(2).unsqueeze(2) @ d_scores.flatten(2).unsqueeze(3)
            d_slope[part[1]] -= (sums / biases.area[_ALL if biases.shared else part[0]]).sum(dim=(0, 2, 3))
        return d_query, d_key, None if ctx.tied else d_value, d_slope, None, None, None, None


def biased_attention(query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor], bias: PositionBias) -> Tensor:
    """Attention of rows of P with a position bias; the arguments and the result are those of ``ops.attend``."""
    slope, places = bias
    own = [x.to(query.dtype) for x in (slope, places.index, places.centre, places.unit)]
    return _BiasedAttention.apply(query, key, value, *own, mask)
