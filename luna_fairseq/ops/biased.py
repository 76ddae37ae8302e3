"""Softmax attention with a position bias, block by block: neither its scores nor its weights are ever whole.

PyTorch's own attention does that without a bias. With one that learns it would keep the weights, the bias and its
gradient. Here a block of rows is computed, normalised and read while it is in the caches, and computed again in
the backward pass, which then has the gradient of its scores, and so that of the slopes, at hand.

Of a long text a row sees only what is near its place: further away the bias makes every weight 0. How near follows
from the slopes and from the largest score that queries and keys of their lengths can make; what is further is left
out, as long as that is more than it costs to find out.
"""

import math
from collections.abc import Iterator
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from luna_fairseq.ops.position_bias import PositionBias

# So many scores at a time.
_BLOCK = 1 << 18

# Rows of a block that reads only a part of the positions, and what such a sentence has at least.
_NEAR_ROWS = 16
_NEAR_SCORES = 1 << 14

# A weight that is smaller than the largest of its row by this factor, a logarithm, is 0: what rounding loses is more.
_NOTHING = {torch.float32: 30.0, torch.float64: 50.0}

# Sentences, heads, rows and positions of a block.
Part = Tuple[slice, slice, slice, slice]
_ALL = slice(None)


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
        self.slope = slope
        self.unit = unit
        self.index = index.unsqueeze(1)
        self.centre = centre.unflatten(1, (heads, centre.size(1) // heads))
        self.area = unit.square().unsqueeze(1)
        self.factor = -slope.view(1, heads, 1, 1) / self.area
        self.closed = None if mask is None else ~mask

    def squares(self, part: Part) -> Tensor:
        """The squared distances, ``[sentences or 1, heads, rows, positions]``."""
        own = _ALL if self.shared else part[0]
        return (self.index[own, :, :, part[3]] - self.centre[own, part[1], part[2]]).square_()

    def weights(self, part: Part, squares: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Of a block, ``[sentences * heads, rows, positions]``."""
        sentences, heads, _, positions = part
        scores = _product(query, key.mT, query.size(-1) ** -0.5)
        whole = scores.view(-1, *squares.shape[1:])
        whole.addcmul_(squares, self.factor[_ALL if self.shared else sentences, heads])
        if self.closed is not None:
            whole.masked_fill_(self.closed[sentences, :, :, positions], float("-inf"))
        return torch.softmax(scores, dim=-1)

    def parts(self, query: Tensor, key: Tensor) -> List[Part]:
        """The blocks, the same in both passes."""
        with torch.no_grad():
            return list(_near_parts(self, query, key) or _whole_parts(query, key.size(2)))


def _whole_parts(query: Tensor, positions: int) -> Iterator[Part]:
    """Blocks of all positions: sentences as wholes if they are small, else heads, else some rows.

    Of few rows the keys, and not the scores, decide.
    """
    batch, heads, rows, dim = query.shape
    if not batch * heads * rows * positions:
        return
    at_once, most = max(1, _BLOCK // positions), max(rows, dim)
    if (sentences := at_once // (heads * most)) > 1:
        for first in range(0, batch, sentences):
            yield slice(first, first + sentences), _ALL, _ALL, _ALL
        return
    some_heads, some_rows = max(1, at_once // most), min(rows, at_once)
    for sentence in range(batch):
        for head in range(0, heads, some_heads):
            for row in range(0, rows, some_rows):
                own = slice(sentence, sentence + 1)
                yield own, slice(head, head + some_heads), slice(row, row + some_rows), _ALL


def _near_parts(biases: _Biases, query: Tensor, key: Tensor) -> List[Part]:
    """Blocks of some rows and the positions around their places; none if that saves less than a quarter."""
    (batch, heads, rows, dim), positions = query.shape, key.size(2)
    if rows <= _NEAR_ROWS or rows * positions < _NEAR_SCORES or not batch * heads:
        return []
    longest = [torch.linalg.vector_norm(x, dim=-1).amax(dim=(0, 2)).double() for x in (query, key)]
    # From -most to most is what the product of a query and a key can be; the nearest word is half a word away.
    most = longest[0] * longest[1] * dim**-0.5
    slope = biases.slope.double()
    reach = ((2 * most + _NOTHING[query.dtype]) / slope + 0.25).sqrt().max().item() if (slope > 0).all() else math.inf
    if not math.isfinite(reach):
        return []
    away = (reach * biases.unit).squeeze(2)  # in words
    first = biases.centre[:, 0, ::_NEAR_ROWS] - away[..., None]
    ends_of_blocks = [min(row + _NEAR_ROWS, rows) - 1 for row in range(0, rows, _NEAR_ROWS)]
    last = biases.centre[:, -1, ends_of_blocks] + away[..., None]
    index = biases.index[:, 0, 0].contiguous()
    # Padding on the left has numbers below 0, that on the right the number of the last word.
    starts = torch.searchsorted(index, first.flatten(1).clamp(min=0.0)).tolist()
    words = torch.searchsorted(index, index[:, -1:].contiguous()) + 1
    ends = torch.searchsorted(index, last.flatten(1), right=True).minimum(words).tolist()
    read = sum(max(0, end - start) for own in zip(starts, ends, strict=True) for start, end in zip(*own, strict=True))
    if read > 0.75 * len(starts) * len(starts[0]) * positions:
        return []
    found: List[Part] = []
    for sentence, (own_starts, own_ends) in enumerate(zip(starts, ends, strict=True)):
        for block, (start, end) in enumerate(zip(own_starts, own_ends, strict=True)):
            if start >= end:  # rows that belong to no sentence; what they do is read by nobody
                continue
            some = slice(block * _NEAR_ROWS, (block + 1) * _NEAR_ROWS)
            at_once = max(1, _BLOCK // (heads * _NEAR_ROWS * (end - start))) if biases.shared else 1
            for one in range(0, batch, at_once) if biases.shared else (sentence,):
                found.append((slice(one, one + at_once), _ALL, some, slice(start, end)))
    return found


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
        ctx.parts = biases.parts(query, key)
        for part in ctx.parts:
            pairs = (part[0], part[1], part[3])
            own_key = _side_by_side(key[pairs])
            own_value = own_key if ctx.tied else _side_by_side(value[pairs])
            weights = biases.weights(part, biases.squares(part), _side_by_side(query[part[:3]]), own_key)
            own = out[part[:3]]
            own.copy_((weights @ own_value).view(own.shape))
        ctx.save_for_backward(query, key, value, slope, index, centre, unit, mask)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        query, key, value, slope, index, centre, unit, mask = ctx.saved_tensors
        biases = _Biases(slope, index, centre, unit, mask)
        batch, heads, _, dim = query.shape
        scale = dim**-0.5
        d_query, d_slope = torch.zeros_like(query), torch.zeros_like(slope)
        # Written by the first rows of each sentence and head, if there are any that read all positions.
        once = bool(ctx.parts) and all(part[3] == _ALL for part in ctx.parts)
        d_key = (key.new_empty if once else key.new_zeros)(batch, key.size(2), heads, dim).transpose(1, 2)
        d_value = d_key if ctx.tied else (torch.empty_like if once else torch.zeros_like)(d_key)
        for part in ctx.parts:
            own_rows, pairs = part[:3], (part[0], part[1], part[3])
            own_query, given = _side_by_side(query[own_rows]), _side_by_side(grad[own_rows])
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
                (own.copy_ if once and not part[2].start else own.add_)(some.view(own.shape))
            d_query[own_rows] = _product(d_scores, own_key, scale).view(d_query[own_rows].shape)
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
