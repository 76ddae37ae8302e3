"""Causal linear attention, which both sums of causal Luna attention are."""

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from luna_fairseq.ops.blocks import Blocks, empty_like_heads, product, whole_chunks, wide_type
from luna_fairseq.ops.decay import ChunkDecay, decay_triangle
from luna_fairseq.ops.tracing import making_a_graph


class _CausalProducts(torch.autograd.Function):
    """Causal linear attention of ``[B, H, N, E]`` views, with a gradient that recomputes instead of storing.

    ``scale`` is ``[B, H, N, 1]``, ``rates`` is ``[H, 1, 1]`` or None; they get no gradient. Results are views of
    ``[B, N, H, E]`` memory. The gradient has derivatives of every order.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: Tensor, rates: Optional[Tensor]
    ) -> Tensor:
        inputs, length = (query, key, value, scale), query.size(2)
        query, key, value, scale = whole_chunks(*inputs)
        blocks = Blocks(key, value)
        decay = ChunkDecay(rates, blocks.chunk)
        out = empty_like_heads(value)
        query, key, value, scale, target = (blocks.cut(x) for x in (query, key, value, scale, out))
        totals: List[Optional[Tensor]] = []  # the sum before each block
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in blocks.starts:
                total: Optional[Tensor] = None
                for chunks in blocks.ranges:
                    totals.append(None if total is None else total.clone())  # the view would keep the block's sums
                    q, k, v, c = blocks.copies(query, key, value, scale, start=start, chunks=chunks)
                    q = q * c
                    o = torch.bmm(decay.pairs(torch.bmm(q, k.mT)), v)
                    if blocks.chunks > 1:
                        of_end = decay.until_end(k)
                        before, total = blocks.running([(of_end, v)], chunks, total, False, decay.whole)
                        o.baddbmm_(decay.since_start(q), before)
                    blocks.put(target, o, start, chunks)
        ctx.save_for_backward(*inputs, rates, *totals)
        return out[:, :, :length]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, scale, rates, *before_blocks = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return *_differentiable_gradients(query, key, value, scale, rates, grad), None, None
        length = query.size(2)
        query, key, value, scale, grad = whole_chunks(query, key, value, scale, grad)
        blocks = Blocks(key, value)
        decay = ChunkDecay(rates, blocks.chunk)
        outs = (empty_like_heads(query), empty_like_heads(key), empty_like_heads(value))
        targets = [blocks.cut(x) for x in outs]
        query, key, value, scale, grad = (blocks.cut(x) for x in (query, key, value, scale, grad))
        totals = reversed(before_blocks)
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in reversed(blocks.starts):
                later_total: Optional[Tensor] = None
                for chunks in reversed(blocks.ranges):
                    q, k, v, g, c = blocks.copies(query, key, value, grad, scale, start=start, chunks=chunks)
                    q = q * c
                    pairs = decay.pairs(torch.bmm(g, v.mT))
                    d_q = torch.bmm(pairs, k)
                    d_k = torch.bmm(pairs.mT, q)
                    d_v = torch.bmm(decay.pairs(torch.bmm(q, k.mT, out=pairs)).mT, g)
                    total = next(totals)
                    if blocks.chunks > 1:
                        of_start, of_end = decay.since_start(g), decay.until_end(k)
                        before, _ = blocks.running([(of_end, v)], chunks, total, False, decay.whole)
                        d_q.baddbmm_(of_start, before.mT)
                        # What later chunks want of this one: the sums run backwards.
                        later, later_total = blocks.running([(q, of_start)], chunks, later_total, True, decay.whole)
                        d_k.baddbmm_(decay.until_end(v), later.mT)
                        d_v.baddbmm_(of_end, later)
                    for target, d in zip(targets, (d_q.mul_(c), d_k, d_v), strict=True):
                        blocks.put(target, d, start, chunks)
        d_query, d_key, d_value = (out[:, :, :length] for out in outs)
        return d_query, d_key, d_value, None, None


def _differentiable_gradients(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, rates: Optional[Tensor], grad: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """The gradients of :class:`_CausalProducts` as causal products themselves; two of them run backwards in time.

    They cost more than the gradients computed together, block by block, and can be differentiated again.
    """
    key_back, value_back, grad_back = key.flip(2), value.flip(2), grad.flip(2)
    query_back, one = (query * scale).flip(2), torch.ones_like(scale)
    return (
        _CausalProducts.apply(grad, value, key, scale, rates),
        _CausalProducts.apply(value_back, grad_back, query_back, one, rates).flip(2),
        _CausalProducts.apply(key_back, query_back, grad_back, one, rates).flip(2),
    )


def causal_products(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, rates: Optional[Tensor] = None
) -> Tensor:
    """Causal linear attention: ``o_t = c_t sum_{s<=t} (q_t . k_s) v_s``, where heads forget by ``e^(-rate (t - s))``.

    Args:
        query, key: ``[B, H, N, E]``.
        value: ``[B, H, N, F]``.
        scale: c, ``[B, 1 or H, N, 1]``; gets no gradient.
        rates: ``[H, 1, 1]``, or None; get no gradient.

    Returns:
        ``[B, H, N, F]``.
    """
    if making_a_graph():  # the number of chunks would be that of one length
        products = (query * scale) @ key.mT
        pairs = products.tril() if rates is None else products * decay_triangle(rates, query.size(2))
        return pairs @ value
    return _CausalProducts.apply(query, key, value, scale.expand_as(query[..., :1]), rates)


class _WideScores(torch.autograd.Function):
    """``x rows^T`` of ``[B, H, N, K]`` and ``[B, H, L, K]``, with all digits of its sums, without wider copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, rows)
        found = product(x.flatten(0, 1), rows.flatten(0, 1).mT, wide_type(x))
        return found.unflatten(0, x.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor]:
        x, rows = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return (grad @ rows.to(grad)).to(x), (grad.mT @ x.to(grad)).to(rows)
        low = grad.to(x.dtype).flatten(0, 1)
        d_x = torch.bmm(low, rows.flatten(0, 1))
        d_rows = product(low.mT, x.flatten(0, 1), grad.dtype).to(rows.dtype)
        return d_x.view(x.shape), d_rows.view(rows.shape)


def wide_scores(x: Tensor, rows: Tensor) -> Tensor:
    """``x rows^T`` of bfloat16 in float32, where :func:`luna_fairseq.ops.blocks.operand_type` says so.

    Args:
        x: ``[B, H, N, K]``.
        rows: ``[B, H, L, K]``.

    Returns:
        ``[B, H, N, L]``.
    """
    return _WideScores.apply(x, rows)
