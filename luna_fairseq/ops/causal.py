"""Causal Luna attention in linear time and memory (paper, section 3.3).

Both sums of the method are causal linear attention, ``o_t = sum_{s<=t} (q_t . k_s) v_s``, so one function
serves them. It works chunk by chunk: inside a chunk a masked product, between chunks a running ``k v^T``.
Nothing of size ``N * K * L`` is ever built.
"""

import math
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Operations a position: N (K + L) for one product, 64 (K + L) + 2 K L in chunks; equal at N = 107 for K = 64, L = 32.
_SINGLE_PRODUCT = 128
_CHUNK = 64


def _softplus2(scores: Tensor) -> Tensor:
    return F.softplus(scores, beta=math.log(2.0))


def _elu1(scores: Tensor) -> Tensor:
    return F.elu(scores) + 1.0


# w(.) of the paper: positive, w(0) = 1. softplus with beta = ln 2 is log2(1 + 2^x); 1 + elu is its ablation.
CAUSAL_ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {"softplus": _softplus2, "elu": _elu1}


def causal_pack_weights(context: Tensor, packed_query: Tensor, activation: str) -> Tensor:
    """The positive weights with which each position is packed: ``a_s = w(x_s W_pc (P W_pq)^T / sqrt(K))``.

    In float32 (float64 for float64 input) from the product on: in bfloat16 a score of some hundreds is off by one.

    Args:
        context: ``[B, H, N, K]``, the positions.
        packed_query: ``[B, H, L, K]``, the queries of P, scaled by ``1 / sqrt(K)``.
        activation: a key of ``CAUSAL_ACTIVATIONS``.

    Returns:
        ``[B, H, N, L]``.
    """
    with torch.autocast(device_type=context.device.type, enabled=False):
        wide = torch.promote_types(context.dtype, torch.float32)
        return CAUSAL_ACTIVATIONS[activation](context.to(wide) @ packed_query.to(wide).mT)


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

    @classmethod
    def start(cls, packed_query: Tensor) -> "CausalState":
        """The state before the first position, for a packed query ``[B, H, L, K]``."""
        batch, heads, length, dim = packed_query.shape
        zeros = packed_query.new_zeros(
            batch, heads, dim, length, dtype=torch.promote_types(packed_query.dtype, torch.float32)
        )
        return cls(zeros, zeros.mT, torch.zeros(batch, dtype=torch.long, device=packed_query.device))


def _chunk_sums(key: Tensor, value: Tensor) -> Tensor:
    """``k^T v`` over everything before each chunk: ``[G, C, c, E], [G, C, c, F] -> [G, C, E, F]``."""
    return _sum_before(key.mT @ value)


def _sum_before(x: Tensor) -> Tensor:
    """Exclusive cumulative sum over dim 1 (by shifting: subtracting x again would round it into the result)."""
    return F.pad(x[:, :-1].cumsum(dim=1), (0, 0, 0, 0, 1, 0))


def _products(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
    """``out_t = sum_{s<=t} (q_t . k_s) v_s`` for ``[G, N, E], [G, N, E], [G, N, F] -> [G, N, F]``."""
    if query.size(1) <= _SINGLE_PRODUCT:
        out.copy_(torch.bmm(torch.bmm(query, key.mT).tril_(), value))
        return
    query, key, value = (t.unflatten(1, (-1, _CHUNK)) for t in (query, key, value))
    inside = (query @ key.mT).tril_() @ value
    torch.add(inside, query @ _chunk_sums(key, value), out=out.unflatten(1, (-1, _CHUNK)))


def _products_backward(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, outs: Tuple[Tensor, Tensor, Tensor]
) -> None:
    """Gradients of :func:`_products` for query, key and value, written into ``outs``."""
    d_query, d_key, d_value = outs
    if query.size(1) <= _SINGLE_PRODUCT:
        pairs = torch.bmm(grad, value.mT).tril_()
        d_query.copy_(torch.bmm(pairs, key))
        d_key.copy_(torch.bmm(pairs.mT, query))
        d_value.copy_(torch.bmm(torch.bmm(query, key.mT).tril_().mT, grad))
        return
    query, key, value, grad = (t.unflatten(1, (-1, _CHUNK)) for t in (query, key, value, grad))
    d_query, d_key, d_value = (t.unflatten(1, (-1, _CHUNK)) for t in outs)
    pairs = (grad @ value.mT).tril_()
    torch.add(pairs @ key, grad @ _chunk_sums(key, value).mT, out=d_query)
    # What later chunks want of this one: the sums run backwards.
    later = _sum_before((query.mT @ grad).flip(1)).flip(1)
    torch.add(pairs.mT @ query, value @ later.mT, out=d_key)
    torch.add((query @ key.mT).tril_().mT @ grad, key @ later, out=d_value)


class _CausalProducts(torch.autograd.Function):
    """Causal linear attention with a gradient that recomputes instead of storing.

    Tensors are ``[B, H, N, E]`` views of ``[B, N, H, E]`` memory, and so are the results: on a CPU the heads are
    taken one by one, which needs no copies; elsewhere all at once.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        out = _empty_like_heads(value)
        for q, k, v, o in _by_head(query, key, value, out):
            _products(q, k, v, o)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors
        outs = (_empty_like_heads(query), _empty_like_heads(key), _empty_like_heads(value))
        with torch.autocast(device_type=query.device.type, enabled=False):
            for q, k, v, g, dq, dk, dv in _by_head(query, key, value, grad, *outs):
                _products_backward(q, k, v, g, (dq, dk, dv))
        return outs


def _empty_like_heads(x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


def _by_head(*tensors: Tensor) -> Iterator[Tuple[Tensor, ...]]:
    if tensors[0].device.type != "cpu":
        return iter([tuple(t.flatten(0, 1) for t in tensors)])
    return zip(*(t.unbind(1) for t in tensors), strict=True)


def causal_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal linear attention: ``o_t = sum_{s<=t} (q_t . k_s) v_s``.

    Args:
        query, key: ``[B, H, N, E]``.
        value: ``[B, H, N, F]``.

    Returns:
        ``[B, H, N, F]``.
    """
    length = query.size(2)
    # Zero keys add nothing, so a length that no chunk divides is filled up with them.
    fill = -length % _CHUNK if length > _SINGLE_PRODUCT else 0
    if fill:
        query, key, value = (F.pad(t, (0, 0, 0, fill)) for t in (query, key, value))
    return _CausalProducts.apply(query, key, value)[:, :, :length]


def _continue_products(query: Tensor, key: Tensor, value: Tensor, start: Tensor) -> Tuple[Tensor, Tensor]:
    """:func:`causal_products` after earlier positions whose ``k^T v`` is ``start``; also returns the new sum."""
    total = start + key.mT @ value
    if query.size(2) == 1:  # one step of decoding
        return query @ total, total
    return query @ start + causal_products(query, key, value), total


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
) -> Tuple[Tensor, Optional[CausalState]]:
    """Causal Luna attention over positions that follow those of ``state``.

    With ``a_s`` the pack weights of position s and t the number of real positions up to and including it::

        p_t = softmax_L( 1/t * sum_{s<=t} (q_t . k_s / sqrt(K)) a_s )
        y_t = 1/t * sum_{s<=t} (p_t . a_s) v_s

    The sums are taken in float32 (float64 for float64 input) whatever the dtype of the model: in half
    precision they overflow after some hundreds of positions.

    Args:
        query: ``[B, H, N, K]``; scaled by ``1 / sqrt(K)`` in here.
        key, value: ``[B, H, N, K]``.
        pack_weights: ``[B, H, N, L]``, positive: the activation of x against P.
        packed_mask: ``[B, 1, 1, L]`` bool, True = a row of P that belongs to the sentence, or None.
        padding_mask: ``[B, N]`` bool, True = padding: adds nothing to the sums and is not counted.
        pack_dropout: probability for the pack weights; one mask, shared by both sums.
        unpack_dropout: probability for ``p_t``.
        state: what earlier positions left (:meth:`CausalState.start` before the first), or None if no
            positions will follow.

    Returns:
        ``[B, H, N, K]`` in the dtype of ``value``, and the state after the last position, or None if none
        was given.
    """
    with torch.autocast(device_type=query.device.type, enabled=False):
        wide = torch.promote_types(query.dtype, torch.float32)
        out_dtype = value.dtype
        query, key, value, pack_weights = (t.to(wide) for t in (query, key, value, pack_weights))
        batch, _, length, head_dim = query.shape

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

        if state is None:
            scores = causal_products(query, key, pack_weights)
        else:
            scores, key_sum = _continue_products(query, key, pack_weights, state.key_sum)
        scores = scores * (mean * head_dim**-0.5)
        if packed_mask is not None:
            scores = scores.masked_fill(~packed_mask, float("-inf"))
        unpack_weights = torch.softmax(scores, dim=-1)
        if unpack_dropout > 0.0:
            unpack_weights = F.dropout(unpack_weights, unpack_dropout)
        unpack_weights = unpack_weights * mean
        if state is None:
            return causal_products(unpack_weights, pack_weights, value).to(out_dtype), None
        out, value_sum = _continue_products(unpack_weights, pack_weights, value, state.value_sum)
        return out.to(out_dtype), CausalState(key_sum, value_sum, steps[:, -1])
