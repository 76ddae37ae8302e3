"""A bias on the scores of the pack step: every row of P begins with a part of the sentence of its own.

Nothing in the paper tells a row of P where to look, and it learns it slowly. Position-dependent scores for the rows
of a fixed-size memory are Britz, Guan and Luong's (2017). Here a sentence is cut into as many equal parts as it has
rows, each part into as many as there are heads, and a score falls with the square of the distance from the middle of
the head's part of the row's part:

    score -= slope_h * ((s - centre_jh) / unit)^2      s = 0, 1, ... among the real positions of the sentence
    width = words / rows      centre_jh = (j + (h + 1/2) / H) * width - 1/2      unit = max(1, width / H)

All of it but the slope follows from the lengths of a sentence, so its neighbours in a batch and the side of its
padding are of no effect.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from luna_fairseq.ops.tracing import making_a_graph

# So many scores at a time: their distances are made anew in each layer and pass, and stay in the caches.
_BLOCK = 1 << 17

# In half precision no score falls by more; as a weight it is nothing, and float16 ends at 65,504.
_LEAST = -3e4


@dataclass(frozen=True, eq=False)
class RowPlaces:
    """Where the rows of P look, head by head; made once a batch for all layers (:func:`row_places`).

    B' is B, or 1 if all sentences are of the same lengths.

    Attributes:
        index: ``[B', 1, M]``, the number of each position among the real ones of its sentence.
        centre: ``[B', H * L, 1]``, where a row looks.
        unit: ``[B', 1, 1]``, what distances are measured in.
    """

    index: Tensor
    centre: Tensor
    unit: Tensor


class PositionBias(NamedTuple):
    """The bias of one layer.

    Attributes:
        slope: ``[H]``, learned.
        places: of the batch.
    """

    slope: Tensor
    places: RowPlaces


def row_places(
    rows: int, heads: int, x: Tensor, mask: Optional[Tensor] = None, packed_mask: Optional[Tensor] = None
) -> RowPlaces:
    """Where the rows of P look in the sentences of a batch.

    Args:
        rows: L.
        heads: H, of the pack step.
        x: ``[B, M, D]``, what they look at; only its shape, device and precision are read.
        mask: ``[B, 1, 1, M]`` from :func:`luna_fairseq.ops.key_mask`, or None.
        packed_mask: ``[B, 1, 1, L]`` likewise, which rows belong to a sentence, or None. What the others do is read
            by nobody.
    """
    options: Any = {"device": x.device, "dtype": torch.float64 if x.dtype == torch.float64 else torch.float32}
    if mask is None:
        index = torch.arange(x.size(1), **options).view(1, 1, -1)
        words = torch.full((1, 1, 1), x.size(1), **options)
    else:
        index = (mask.squeeze(1).cumsum(dim=-1) - 1).to(options["dtype"])
        words = mask.squeeze(1).sum(dim=-1, keepdim=True).to(options["dtype"])
    own: Any = rows if packed_mask is None else packed_mask.squeeze(1).sum(dim=-1, keepdim=True)
    width = words / own
    part = (torch.arange(heads, **options) + 0.5).view(-1, 1) / heads + torch.arange(rows, **options)
    centre = part.view(1, -1, 1) * width - 0.5
    batch = max(index.size(0), centre.size(0))
    return RowPlaces(
        index.expand(batch, -1, -1), centre.expand(batch, -1, -1), (width / heads).clamp(min=1.0).expand(batch, 1, 1)
    )


def _blocks(places: RowPlaces) -> Iterator[Tuple[slice, slice, slice, Tensor]]:
    """Parts of the scores ``[B, H * L, M]``: their sentences, the same in ``places``, rows, and squared distances.

    A place that all sentences share is computed once for all of them.
    """
    (batch, rows, _), positions = places.centre.shape, places.index.size(2)
    if not rows * positions:
        return
    at_once = max(1, _BLOCK // positions) if places.index.device.type == "cpu" else batch * rows
    sentences = max(1, at_once // rows)
    for first in range(0, batch, sentences):
        own = slice(first, first + sentences)
        for row in range(0, rows, at_once):
            some = slice(row, row + at_once)
            squares = (places.index[own] - places.centre[own, some]).square_()
            yield (own if batch > 1 else slice(None)), own, some, squares


class _AddPositionBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, slope: Tensor, index: Tensor, centre: Tensor, unit: Tensor) -> Tensor:
        places = RowPlaces(index, centre, unit)
        heads, rows = slope.numel(), centre.size(1)
        factor = -slope.repeat_interleave(rows // heads).view(1, rows, 1) / unit.square()
        if scores.numel():
            parts = scores.view(-1, rows, index.size(2))
            for sentences, own, some, squares in _blocks(places):
                parts[sentences, some].addcmul_(squares, factor[own, some])
        ctx.mark_dirty(scores)
        ctx.heads = heads
        ctx.save_for_backward(index, centre, unit)
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None
        places = RowPlaces(*ctx.saved_tensors)
        rows, positions = places.centre.size(1), places.index.size(2)
        sums = grad.new_zeros(places.centre.shape[:2])
        if grad.numel():
            parts = grad.reshape(-1, rows, positions)
            for sentences, own, some, squares in _blocks(places):
                part = parts[sentences, some]
                if part.size(0) != squares.size(0):
                    part = part.sum(dim=0, keepdim=True)
                sums[own, some] = squares.mul_(part).sum(dim=2)
        sums = sums / places.unit.square().squeeze(2)
        return grad, -sums.unflatten(1, (ctx.heads, rows // ctx.heads)).sum(dim=(0, 2)), None, None, None


def add_position_bias(scores: Tensor, bias: PositionBias) -> Tensor:
    """Add the bias of a pack step, in place; nothing of the size of the scores is kept for the gradient.

    Args:
        scores: ``[B, H, L, M]`` or ``[B, H * L, M]``, contiguous, float32 or float64, fresh from an operation.
        bias: of the same rows and positions.

    Returns:
        ``scores``.
    """
    slope, places = bias
    own = [x.to(scores.dtype) for x in (slope, places.index, places.centre, places.unit)]
    if making_a_graph():  # the number of parts would be that of one length
        factor = -own[0].repeat_interleave(places.centre.size(1) // slope.numel()).view(1, -1, 1) / own[3].square()
        return scores + ((own[1] - own[2]).square() * factor).reshape(-1, *scores.shape[1:])
    return _AddPositionBias.apply(scores, *own)


def position_bias_tensor(bias: PositionBias, dtype: torch.dtype) -> Tensor:
    """The bias by itself, ``[B', H, L, M]`` of that type, for an attention that makes its scores out of sight."""
    places = bias.places
    zeros = places.index.new_zeros(places.index.size(0), places.centre.size(1), places.index.size(2))
    whole = add_position_bias(zeros, bias).clamp(min=_LEAST)
    return whole.unflatten(1, (bias.slope.numel(), -1)).to(dtype)
