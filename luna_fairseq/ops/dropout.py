"""Dropout, and dropout before a residual sum.

On a CPU PyTorch draws one random number an element, which takes more time than everything else that dropout
does; here one 64-bit number serves four elements. On other devices it is PyTorch's own.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 1 << 16  # the probability is rounded to a multiple of 1 / 65536


def _keep_mask(x: Tensor, threshold: int) -> Tensor:
    """Bool, in the shape of ``x``, False with probability ``threshold / 65536``."""
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    return (bits.view(torch.int16)[: x.numel()] >= threshold - _STEPS // 2).view(x.shape)


class _AddDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Optional[Tensor], x: Tensor, threshold: int) -> Tensor:
        keep = _keep_mask(x, threshold)
        ctx.save_for_backward(keep)
        ctx.scale = _STEPS / (_STEPS - threshold)
        if residual is None:
            return x.mul(keep.to(x.dtype)).mul_(ctx.scale)
        return torch.addcmul(residual, x, keep.to(x.dtype), value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (
            grad if ctx.needs_input_grad[0] else None,
            grad.mul(keep.to(grad.dtype)).mul_(ctx.scale),
            None,
        )


def add_dropout(residual: Optional[Tensor], x: Tensor, p: float) -> Tensor:
    """``residual + dropout(x)``; the elements that stay are divided by the probability of staying.

    Args:
        residual: of the shape of ``x``, or None for the dropout alone.
        x: any shape.
        p: probability of dropping an element; on a CPU rounded to a multiple of 1 / 65536.

    Returns:
        in the shape of ``x``; with p = 0 the plain sum (or ``x`` itself).
    """
    threshold = round(p * _STEPS)
    if x.device.type == "cpu" and 0 < threshold < _STEPS and (residual is None or residual.dtype == x.dtype):
        return _AddDropout.apply(residual, x, threshold)
    if p > 0:
        x = F.dropout(x, p, training=True)
    return x if residual is None else residual + x
