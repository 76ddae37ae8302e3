"""Softmax attention, the one operation behind both the pack and the unpack step (paper, section 3.1)."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq.ops import parts
from luna_fairseq.ops.biased import biased_attention
from luna_fairseq.ops.dropout import add_dropout
from luna_fairseq.ops.position_bias import PositionBias, add_position_bias, position_bias_tensor
from luna_fairseq.ops.tracing import being_traced

# On a CPU torch's attention is made for blocks of queries: 1 takes it 2.4 times as long as two products, 5 1.3 times.
_FEW_QUERIES = 8


def full_precision_on_cpu(x: Tensor) -> bool:
    """Whether what is computed from ``x`` is in float32 or float64, and on a CPU."""
    full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return full and x.device.type == "cpu"


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


def _is_a_step(query: Tensor) -> bool:
    """Whether so few queries attend, without a gradient, that torch's kernel takes longer than two products."""
    if being_traced() or torch.is_grad_enabled():  # first: a graph must not depend on the length
        return False
    return query.size(2) <= _FEW_QUERIES and full_precision_on_cpu(query)


def _attend_in_products(query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor]) -> Tensor:
    scores = (query * query.size(-1) ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.add_(mask) if mask.is_floating_point() else scores.masked_fill_(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ value


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    bias: Optional[PositionBias] = None,
) -> Tensor:
    """Softmax attention, scaled by ``1 / sqrt(K)``, without keeping the weights (but with dropout on a CPU).

    PyTorch computes it by the fastest kernel that fits. Most have no second derivative; the one that
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` chooses has.

    Args:
        query: ``[B, H, N, K]``.
        key, value: ``[B, H, M, K]``.
        mask: from :func:`key_mask`, or None; without a bias also what is added to scores, in the dtype of ``query``.
        dropout_p: probability of dropping an attention weight.
        bias: of the pack step, where the queries are rows of P; or None.

    Returns:
        ``[B, H, N, K]``.
    """
    if bias is None:
        if _is_a_step(query) and dropout_p == 0.0:
            return _attend_in_products(query, key, value, mask)
        return _fused(query, key, value, mask, dropout_p)
    if not full_precision_on_cpu(query):  # a score would be rounded before its softmax
        added = position_bias_tensor(bias, query.dtype)
        added = added if mask is None else added.masked_fill(~mask, float("-inf"))
        return _fused(query, key, value, added, dropout_p)
    if dropout_p == 0.0 and not being_traced():  # its blocks would be those of one length, and of one batch
        return biased_attention(query, key, value, mask, bias)
    scores = add_position_bias((query * query.size(-1) ** -0.5) @ key.mT, bias)
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    return add_dropout(None, torch.softmax(scores, dim=-1), dropout_p) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor], dropout_p: float) -> Tensor:
    """PyTorch's fastest kernel; on a GPU in parts, where long sentences are few."""
    if dropout_p == 0.0 and (cut := parts.cut(query, key, value, mask)):
        return parts.attention_in_parts(query, key, value, mask, cut)
    if (mask is None or mask.size(2) == 1) and (number := parts.number_of_parts(query, key, value)) > 1:
        return parts.attention_of_parts(query, key, value, mask, dropout_p, number)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


def attention_weights(
    query: Tensor, key: Tensor, mask: Optional[Tensor] = None, bias: Optional[PositionBias] = None
) -> Tensor:
    """The weights that :func:`attend` applies, before dropout: ``[B, H, N, M]`` float32, rows sum to 1."""
    scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.size(-1))
    if bias is not None:
        scores = add_position_bias(scores, bias)
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1)
