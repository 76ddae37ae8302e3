"""Softmax attention, the one operation behind both the pack and the unpack step (paper, section 3.1)."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def key_mask(padding_mask: Optional[Tensor]) -> Optional[Tensor]:
    """Turn a padding mask into the mask that attention wants.

    A row that is padding from end to end is opened instead of closed: softmax over nothing is NaN,
    and what such a row computes is ignored by everybody.

    Args:
        padding_mask: ``[B, M]`` bool, True = padding, or None when nothing is padded.

    Returns:
        ``[B, 1, 1, M]`` bool, True = may be attended to, or None.
    """
    if padding_mask is None:
        return None
    empty = padding_mask.all(dim=1, keepdim=True)
    return (~padding_mask | empty)[:, None, None, :]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Softmax attention, scaled by ``1 / sqrt(K)``, without keeping the weights.

    PyTorch computes it by the fastest kernel that fits. Most have no second derivative; the one that
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` chooses has.

    Args:
        query: ``[B, H, N, K]``.
        key, value: ``[B, H, M, K]``.
        mask: from :func:`key_mask`, or None.
        dropout_p: probability of dropping an attention weight.

    Returns:
        ``[B, H, N, K]``.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


def attention_weights(query: Tensor, key: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """The weights that :func:`attend` applies, before dropout: ``[B, H, N, M]`` float32, rows sum to 1."""
    scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1)
