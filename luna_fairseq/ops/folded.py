"""Attention between many positions and a few rows of P, with the projections of the positions folded into the rows.

A score ``(x W) . k`` is ``x . (W k)``, and a mean of projected positions is the projected mean. So a projection may
be applied to L rows instead of N positions. Every head then works in the full width, which with few rows is less
work (a quarter for D = 512, H = 8, L = 16). The results are those of projecting first, but for rounding.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from luna_fairseq.ops.blocks import wide_type
from luna_fairseq.ops.dropout import add_dropout
from luna_fairseq.ops.position_bias import PositionBias, add_position_bias
from luna_fairseq.ops.softmax import full_precision_on_cpu
from luna_fairseq.ops.tracing import making_a_graph

# Weight [H * K, D] and bias [H * K] or None, as of nn.Linear.
Projection = Tuple[Tensor, Optional[Tensor]]


def folding_pays(x: Tensor, dim: int, rows: int, heads: int, saved: int, taken: int) -> bool:
    """Whether folding is possible without loss of precision and takes less time than projecting ``x``.

    Args:
        x: ``[B, N, D']``, the positions.
        dim: D, the width of the heads together.
        rows: L.
        heads: H.
        saved: how many products of ``x`` with a D x D' matrix are saved.
        taken: how many with an H L x D' matrix of its own sentence take their place.
    """
    # In half precision a score would be rounded before its softmax; on a GPU this was never measured.
    if making_a_graph() or x.numel() == 0 or not full_precision_on_cpu(x):
        return False
    _, positions, width = x.shape
    # In products of N x D' with D' x D: those saved and the scores; those taken and the folding, which counts twice
    # for being done a sentence and a head at a time. Measured times follow this within a tenth.
    plain = saved + taken * rows / width
    folded = taken * (heads * rows / dim + 2 * rows / positions)
    return folded <= 0.95 * plain


def fold(rows: Tensor, weight: Tensor) -> Tensor:
    """Each row through its own head's part of a projection, against its direction.

    Args:
        rows: ``[B, H, L, K]``.
        weight: ``[H * K, D]``, the weight of a projection from D to H heads.

    Returns:
        ``[B, H * L, D]``.
    """
    batch, heads, length, dim = rows.shape
    # All sentences in one product a head.
    folded = rows.transpose(0, 1).reshape(heads, -1, dim) @ weight.unflatten(0, (heads, dim))
    return folded.unflatten(1, (batch, length)).transpose(0, 1).flatten(1, 2)


def folding_spares_launches(rows: Tensor, embed_dim: int) -> bool:
    """Whether decoding keeps the rows of P with the projection of the positions folded in, and projects none.

    That is one product a step instead of two and two copies. Each sentence has rows of its own to read: where that
    takes longer than a launch it does not pay, nor on a CPU, where launches cost nothing.

    Args:
        rows: ``[S, H, L, K]``, the queries of P.
        embed_dim: D.
    """
    folded = rows.size(1) * rows.size(2)
    small = folded <= embed_dim and rows.size(0) * folded <= 32 * embed_dim
    return rows.device.type != "cpu" and small and not making_a_graph()


def folded_rows(rows: Tensor, projection: Projection) -> Tuple[Tensor, Optional[Tensor]]:
    """Rows through the projection of the positions that they will meet, for :func:`scores_of_folded`.

    Args:
        rows: ``[B, H, L, K]``.
        projection: of the positions.

    Returns:
        ``[B, H * L, D]``; and what the bias adds to a score, ``[B, 1, H * L]``, or None. In float32 or wider.
    """
    with torch.autocast(device_type=rows.device.type, enabled=False):
        wide = wide_type(rows)
        weight, bias = (None if x is None else x.to(wide) for x in projection)
        assert weight is not None
        rows = rows.to(wide)
        constant = None if bias is None else (rows @ bias.view(rows.size(1), -1, 1)).flatten(1, 2).mT
        return fold(rows, weight), constant


def scores_of_folded(x: Tensor, folded: Tensor, constant: Optional[Tensor]) -> Tensor:
    """``(x W^T + b) . r`` of every position and row, in float32 or wider.

    Args:
        x: ``[B, N, D]``.
        folded, constant: from :func:`folded_rows`.

    Returns:
        ``[B, N, H * L]``.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        x = x.to(folded.dtype)
        return x @ folded.mT if constant is None else torch.baddbmm(constant, x, folded.mT)


def folded_scores(x: Tensor, rows: Tensor, projection: Projection) -> Tensor:
    """:func:`scores_of_folded` of rows ``[B, H, L, K]`` and the projection of ``x``."""
    return scores_of_folded(x, *folded_rows(rows, projection))


def folded_unpack(
    x: Tensor,
    query: Projection,
    key: Tensor,
    value: Tensor,
    out: Projection,
    mask: Optional[Tensor],
    dropout_p: float,
) -> Tensor:
    """The queries of x attend to rows, and are projected: ``out(softmax(query(x) . k / sqrt(K)) v)``.

    Args:
        x: ``[B, N, D]``.
        query, out: the projections.
        key, value: ``[B, H, L, K]``.
        mask: ``[B, 1, 1, L]`` from :func:`luna_fairseq.ops.key_mask`, or None.
        dropout_p: probability of dropping an attention weight.

    Returns:
        ``[B, N, D]``.
    """
    scores = folded_scores(x, key * key.size(-1) ** -0.5, query).unflatten(2, (key.size(1), -1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = add_dropout(None, torch.softmax(scores, dim=-1), dropout_p).flatten(2)
    weight, bias = out
    folded = fold(value, weight.mT)
    return weights @ folded if bias is None else torch.baddbmm(bias, weights, folded)


def folded_pack(
    query: Tensor,
    x: Tensor,
    key: Projection,
    value: Projection,
    mask: Optional[Tensor],
    dropout_p: float,
    position_bias: Optional[PositionBias] = None,
) -> Tensor:
    """Rows attend to x: ``softmax(q . key(x) / sqrt(K)) value(x)``.

    Args:
        query: ``[B, H, L, K]``.
        x: ``[B, M, D]``.
        key, value: the projections of x.
        mask: ``[B, 1, 1, M]`` from :func:`luna_fairseq.ops.key_mask`, or None.
        dropout_p: probability of dropping an attention weight.
        position_bias: added to the scores, or None.

    Returns:
        ``[B, H, L, K]``.
    """
    batch, heads, length, dim = query.shape
    query = query * dim**-0.5
    weight, bias = key
    folded = fold(query, weight)
    if bias is None:
        scores = folded @ x.mT
    else:  # the same for every position: of no effect, but the parameter keeps its (zero) gradient
        constant = query @ bias.view(heads, dim, 1)
        scores = torch.baddbmm(constant.flatten(1, 2), folded, x.mT)
    if position_bias is not None:
        scores = add_position_bias(scores, position_bias)
    if mask is not None:
        scores = scores.masked_fill(~mask.squeeze(1), float("-inf"))
    weights = add_dropout(None, torch.softmax(scores, dim=-1), dropout_p)
    weight, bias = value
    means = (weights @ x).unflatten(1, (heads, length)).transpose(0, 1).flatten(1, 2)
    out = (means @ weight.unflatten(0, (heads, dim)).mT).unflatten(1, (batch, length)).transpose(0, 1)
    if bias is None:
        return out
    # Dropped weights do not sum to 1.
    total = weights.sum(dim=-1).view(batch, heads, length, 1) if dropout_p > 0 else 1.0
    return out + total * bias.view(heads, 1, dim)
