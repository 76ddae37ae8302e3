"""Causal Luna attention in linear time and memory (paper, section 3.3).

Both sums of the method are causal linear attention, ``o_t = sum_{s<=t} (q_t . k_s) v_s``, so one function
serves them. It works chunk by chunk: inside a chunk a masked product, between chunks a running ``k v^T``.
Nothing of size ``N * K * L`` is ever built.
"""

import math
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# One product of N x N per head is cheaper than chunks up to about this length (two CPU cores, K = 64, L = 32).
_SINGLE_PRODUCT = 128
_CHUNK = 64


def _softplus2(scores: Tensor) -> Tensor:
    return F.softplus(scores, beta=math.log(2.0))


def _elu1(scores: Tensor) -> Tensor:
    return F.elu(scores) + 1.0


# w(.) of the paper: positive, w(0) = 1. softplus with beta = ln 2 is log2(1 + 2^x); 1 + elu is its ablation.
CAUSAL_ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {"softplus": _softplus2, "elu": _elu1}


class CausalState(NamedTuple):
    """What decoding has to remember of all earlier positions, whatever their number.

    Attributes:
        key_sum: ``[B, H, K, L]``, the sum of ``k_s a_s^T``, in float32 or wider.
        value_sum: ``[B, H, L, K]``, the sum of ``a_s v_s^T``, in float32 or wider.
        steps: ``[B]`` int64, how many real positions the sums hold.
    """

    key_sum: Tensor
    value_sum: Tensor
    steps: Tensor


def causal_products(
    query: Tensor, key: Tensor, value: Tensor, start: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """Causal linear attention: ``o_t = q_t . (start + sum_{s<=t} k_s v_s^T)``.

    Args:
        query, key: ``[B, H, N, E]``.
        value: ``[B, H, N, F]``.
        start: ``[B, H, E, F]``, the sum over earlier positions, or None for zero.

    Returns:
        ``[B, H, N, F]``, and the sum after the last position ``[B, H, E, F]``.
    """
    length = query.size(2)
    if length <= _SINGLE_PRODUCT:
        out = torch.tril(query @ key.transpose(-1, -2)) @ value
        total = key.transpose(-1, -2) @ value
        if start is not None:
            out = out + query @ start
            total = total + start
        return out, total

    # Zero keys add nothing, so a length that no chunk divides is filled up with them.
    fill = -length % _CHUNK
    if fill:
        query, key, value = (F.pad(t, (0, 0, 0, fill)) for t in (query, key, value))
    query, key, value = (t.unflatten(2, (-1, _CHUNK)) for t in (query, key, value))
    inside = torch.tril(query @ key.transpose(-1, -2)) @ value
    # [B, H, chunks + 1, E, F]: entry c is the sum over everything before chunk c.
    sums = key.transpose(-1, -2) @ value
    first = torch.zeros_like(sums[:, :, :1]) if start is None else start.unsqueeze(2)
    sums = torch.cat([first, sums], dim=2).cumsum(dim=2)
    out = inside + query @ sums[:, :, :-1]
    return out.flatten(2, 3)[:, :, :length], sums[:, :, -1]


def causal_luna_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack_weights: Tensor,
    *,
    packed_mask: Optional[Tensor] = None,
    padding_mask: Optional[Tensor] = None,
    pack_dropout: float = 0.0,
    unpack_dropout: float = 0.0,
    state: Optional[CausalState] = None,
) -> Tuple[Tensor, CausalState]:
    """Causal Luna attention over positions that follow those of ``state``.

    With ``a_s`` the pack weights of position s and t the number of real positions up to and including it::

        p_t = softmax_L( 1/t * sum_{s<=t} (q_t . k_s) a_s )
        y_t = 1/t * sum_{s<=t} (p_t . a_s) v_s

    The sums are taken in float32 (float64 for float64 input) whatever the dtype of the model: in half
    precision they overflow after some hundreds of positions.

    Args:
        query: ``[B, H, N, K]``, already scaled by ``1 / sqrt(K)``.
        key, value: ``[B, H, N, K]``.
        pack_weights: ``[B, H, N, L]``, positive: the activation of x against P.
        packed_mask: ``[B, 1, 1, L]`` bool, True = a row of P that belongs to the sentence, or None.
        padding_mask: ``[B, N]`` bool, True = padding: adds nothing to the sums and is not counted.
        pack_dropout: probability for the pack weights; one mask, shared by both sums.
        unpack_dropout: probability for ``p_t``.
        state: the sums of earlier positions, or None at the first one.

    Returns:
        ``[B, H, N, K]`` in the dtype of ``value``, and the state after the last position.
    """
    with torch.autocast(device_type=query.device.type, enabled=False):
        wide = torch.promote_types(query.dtype, torch.float32)
        out_dtype = value.dtype
        query, key, value, pack_weights = (t.to(wide) for t in (query, key, value, pack_weights))
        batch, _, length, _ = query.shape

        if pack_dropout > 0.0:
            pack_weights = F.dropout(pack_weights, pack_dropout)
        if padding_mask is None:
            steps = torch.arange(1, length + 1, device=query.device).expand(batch, -1)
        else:
            pack_weights = pack_weights.masked_fill(padding_mask[:, None, :, None], 0.0)
            steps = (~padding_mask).long().cumsum(dim=1)
        if state is not None:
            steps = steps + state.steps.unsqueeze(1)
        # Positions before the first real one have nothing to average: any finite divisor will do.
        mean = steps.clamp(min=1).to(wide).reciprocal()[:, None, :, None]

        scores, key_sum = causal_products(
            query * mean, key, pack_weights, None if state is None else state.key_sum
        )
        if packed_mask is not None:
            scores = scores.masked_fill(~packed_mask, float("-inf"))
        unpack_weights = torch.softmax(scores, dim=-1)
        if unpack_dropout > 0.0:
            unpack_weights = F.dropout(unpack_weights, unpack_dropout)
        out, value_sum = causal_products(
            unpack_weights * mean, pack_weights, value, None if state is None else state.value_sum
        )
        return out.to(out_dtype), CausalState(key_sum, value_sum, steps[:, -1])
