"""Random tensors and padding masks for the tests of the arithmetic."""

from typing import Tuple

import torch
from torch import Tensor


def padding_mask(batch: int, length: int, seed: int, side: str) -> Tensor:
    """Padding masks with at least one real position a row."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, length + 1, (batch, 1), generator=generator)
    positions = torch.arange(length)
    return positions < length - sizes if side == "left" else positions >= sizes


def leaves(*shapes: Tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, dtype=dtype, generator=generator).requires_grad_() for s in shapes)
