"""The formulas of the paper, one position at a time: slow, obvious, and right in float64.

The tests hold the fast forms to these functions; a reader who wants to know what Luna computes starts here.
All take unbatched per-head tensors (see :mod:`luna_fairseq.ops` for the letters).
"""

import math
from typing import Optional

import torch
from torch import Tensor


def naive_attention(
    query: Tensor, key: Tensor, value: Tensor, padding: Optional[Tensor] = None, bias: Optional[Tensor] = None
) -> Tensor:
    """Softmax attention (section 3.1), used by pack (query from P) and by unpack (query from x).

    Args:
        query: ``[N, K]``.
        key, value: ``[M, K]``.
        padding: ``[M]`` bool, True = padding, or None.
        bias: ``[N, M]``, added to the scores, or None.

    Returns:
        ``[N, K]``.
    """
    rows = []
    for number, q in enumerate(query):
        scores = torch.stack([q @ k / math.sqrt(q.numel()) for k in key])
        if bias is not None:
            scores = scores + bias[number]
        if padding is not None:
            scores = scores.masked_fill(padding, float("-inf"))
        weights = torch.softmax(scores, dim=0)
        rows.append(torch.stack([w * v for w, v in zip(weights, value, strict=True)]).sum(dim=0))
    return torch.stack(rows)


def naive_position_bias(slope: Tensor, head: int, heads: int, rows: int, padding: Tensor) -> Tensor:
    """The bias of the pack step towards a row's own part of the sentence (not in the paper).

    Args:
        slope: of this head, no dimensions.
        head, heads: its number, counted from 0, and how many there are.
        rows: of this sentence's P, ``min(l, words)`` unless all l are used.
        padding: ``[M]`` bool, True = padding.

    Returns:
        ``[rows, M]``; 0 at padding.
    """
    words = int((~padding).sum())
    width = words / rows
    unit = max(1.0, width / heads)
    bias = []
    for row in range(rows):
        centre = (row + (head + 0.5) / heads) * width - 0.5
        word = 0
        for is_padding in padding.tolist():
            if is_padding:
                bias.append(0.0 * slope)
            else:
                bias.append(-slope * ((word - centre) / unit) ** 2)
                word += 1
    return torch.stack(bias).view(rows, -1)


def naive_causal_luna(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack_weights: Tensor,
    packed_padding: Optional[Tensor] = None,
    padding: Optional[Tensor] = None,
    rate: float = 0.0,
) -> Tensor:
    """Causal Luna attention (section 3.3), by two running sums.

    Args:
        query: ``[N, K]``; scaled by ``1 / sqrt(K)`` in here.
        key, value: ``[N, K]``.
        pack_weights: ``[N, L]``.
        packed_padding: ``[L]`` bool, True = not a row of this sentence's P, or None.
        padding: ``[N]`` bool, True = padding, or None.
        rate: at which the head forgets (not in the paper): sums shrink by ``exp(-rate)`` with every real position.

    Returns:
        ``[N, K]``; zero before the first real position.
    """
    key_sum = query.new_zeros(key.size(1), pack_weights.size(1))
    value_sum = query.new_zeros(pack_weights.size(1), value.size(1))
    count = 0.0
    rows = []
    for t in range(query.size(0)):
        if padding is None or not padding[t]:
            left = math.exp(-rate)
            count = left * count + 1
            key_sum = left * key_sum + torch.outer(key[t], pack_weights[t])
            value_sum = left * value_sum + torch.outer(pack_weights[t], value[t])
        scores = query[t] @ key_sum / math.sqrt(query.size(1)) / max(count, 1)
        if packed_padding is not None:
            scores = scores.masked_fill(packed_padding, float("-inf"))
        rows.append(torch.softmax(scores, dim=0) @ value_sum / max(count, 1))
    return torch.stack(rows)
