"""Causal attention whose heads forget: what lies n positions back counts ``exp(-rate n)`` (not in the paper).

The published causal attention reads plain means of all positions so far, in which the last word weighs as much as
the first. Here every head has a rate of its own, as in RetNet (Sun et al. 2023) and, added to the scores of softmax
attention, in ALiBi (Press et al. 2022), and the means are weighted ones::

    p_t = softmax_L( 1/z_t * sum_{s<=t} exp(-rate (t - s)) (q_t . k_s / sqrt(K)) a_s )
    y_t = 1/z_t * sum_{s<=t} exp(-rate (t - s)) (p_t . a_s) v_s              z_t = sum_{s<=t} exp(-rate (t - s))

Sums still have one size, and shrink by ``exp(-rate)`` with every position; no factor is ever above 1.
"""

from typing import Optional

import torch
from torch import Tensor

SPAN = 32.0  # the fastest rate of a model over the slowest


_LEAST = 1e-6  # of a rate: a smaller one changes nothing, and in the end has no digits


def check_decay(decay: float) -> None:
    """Raise ValueError for a rate at which nothing can be forgotten."""
    if not (decay == 0.0 or _LEAST <= decay < float("inf")):
        raise ValueError(f"--causal-decay is {decay}: it must be 0 (none) or at least {_LEAST:g}, and finite")


def decay_rates(fastest: float, heads: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The rate of every head, ``[H, 1, 1]``: from ``fastest`` down to ``fastest / SPAN`` by equal factors.

    Made on the device, as a tensor of numbers of the host would have to be waited for.
    """
    share = torch.arange(heads, device=device, dtype=dtype) / max(1, heads - 1)
    return (fastest * SPAN**-share).view(-1, 1, 1)


def decayed_mean(rates: Tensor, steps: Tensor) -> Tensor:
    """``1 / z_t``, ``[B, H, N, 1]``, for numbers of positions so far, ``[B, N]``; 1 where there are none."""
    steps = steps.clamp(min=1).to(rates.dtype)[:, None, :, None]
    return torch.expm1(-rates) / torch.expm1(-rates * steps)


def left_after(rates: Tensor, positions: Tensor) -> Tensor:
    """``exp(-rate n)``, ``[B, H, N, 1]``, for numbers n of positions, ``[B, N]``."""
    return torch.exp(-rates * positions.to(rates.dtype)[:, None, :, None])


def decay_triangle(rates: Tensor, length: int) -> Tensor:
    """``exp(-rate (t - s))`` of every pair of positions, 0 where s comes after t: ``[H, N, N]``."""
    at = torch.arange(length, device=rates.device)
    distance = (at[:, None] - at).to(rates.dtype)
    return torch.exp(-rates * distance.clamp(min=0.0)).tril()


class ChunkDecay:
    """What decay multiplies in chunks of c positions, and between them; without rates all of it is the plain sums.

    Args:
        rates: ``[H, 1, 1]`` float32 or wider, or None.
        chunk: c.
    """

    def __init__(self, rates: Optional[Tensor], chunk: int) -> None:
        self._triangle: Optional[Tensor] = None
        self._since: Optional[Tensor] = None
        self._until: Optional[Tensor] = None
        self.whole: Optional[Tensor] = None  # what is left of a sum behind a chunk, [H, 1, 1]
        if rates is not None:
            at = torch.arange(1, chunk + 1, device=rates.device).to(rates.dtype).view(-1, 1)
            self._triangle = decay_triangle(rates, chunk)
            self._since, self._until = torch.exp(-rates * at), torch.exp(-rates * (chunk - at))
            self.whole = torch.exp(-rates * chunk)

    def pairs(self, x: Tensor) -> Tensor:
        """Products of positions, ``[n * H, c, c]``, where the second does not come after the first; in place."""
        return x.tril_() if self._triangle is None else self._times(x, self._triangle, in_place=True)

    def triangle(self, like: Tensor) -> Tensor:
        """What :meth:`pairs` multiplies, as something that multiplies ``[n * H, c, c]``."""
        if self._triangle is None:
            return like.new_ones(like.shape[1:]).tril_()
        return self._triangle.to(like.dtype).repeat(like.size(0) // self._triangle.size(0), 1, 1)

    def since_start(self, x: Tensor) -> Tensor:
        """What meets the sums before the chunk, ``[n * H, c, E]``, by how much of them is left at each position."""
        return x if self._since is None else self._times(x, self._since)

    def until_end(self, x: Tensor) -> Tensor:
        """What goes into the sums behind the chunk, ``[n * H, c, E]``, by how much of it is left there."""
        return x if self._until is None else self._times(x, self._until)

    @staticmethod
    def _times(x: Tensor, factor: Tensor, in_place: bool = False) -> Tensor:
        by_head, factor = x.view(-1, factor.size(0), *x.shape[1:]), factor.to(x.dtype)
        return (by_head.mul_(factor) if in_place else by_head * factor).view(x.shape)
