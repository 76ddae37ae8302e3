"""Both sums of causal Luna attention and the softmax between them, as one function with a gradient of its own.

Sum after sum, all operands would be copied twice and, where keys are values, the same running sum made twice. Here a
block is copied once and stays in the caches from the scores to the result, and back.
"""

from collections.abc import Callable
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq.ops.blocks import Blocks, empty_like_heads, whole_chunks
from luna_fairseq.ops.products import causal_products
from luna_fairseq.ops.tracing import making_a_graph


class _Sums:
    """What both passes need to know of a call.

    Args:
        query, key, value, weights: as of :func:`both_sums`, in whole chunks; no value where it is the key.
        mean: ``[B, H, N, 1]``.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Optional[Tensor], weights: Tensor, mean: Tensor) -> None:
        self.tensors = query, key, value, weights, mean
        self.blocks = Blocks(key, weights)
        self.wide = torch.promote_types(query.dtype, torch.float32)
        self.scale = query.size(-1) ** -0.5

    def copies(self, *more: Tensor, start: int, chunks: range) -> Any:
        """Of one block: query, key, value, weights and ``more`` in float32 or wider; the mean."""
        query, key, value, weights, mean = self.tensors
        tied = value is None
        given = (query, key, weights, *more) if value is None else (query, key, value, weights, *more)
        found = list(self.blocks.copies(*given, start=start, chunks=chunks, dtype=self.wide))
        if tied:
            found.insert(2, found[1])
        (own_mean,) = self.blocks.copies(mean, start=start, chunks=chunks)
        return (*found, own_mean)

    def before(
        self, key: Tensor, value: Tensor, weights: Tensor, chunks: range, totals: Tuple[Optional[Tensor], ...]
    ) -> Tuple[Tensor, Tensor, Tuple[Tensor, ...]]:
        """The sums of ``k a^T`` and ``v a^T`` before each chunk, and those after the block."""
        found, after = self.blocks.running([(key, weights)], chunks, totals[0], backwards=False)
        if value is key:
            return found, found, (after,)
        of_values, values_after = self.blocks.running([(value, weights)], chunks, totals[1], backwards=False)
        return found, of_values, (after, values_after)


class _BothSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Optional[Tensor],
        weights: Tensor,
        mean: Tensor,
        packed_mask: Optional[Tensor],
        dropout: float,
    ) -> Tensor:
        sums, length = _sums(query, key, value, weights, mean), query.size(2)
        blocks = sums.blocks
        out = empty_like_heads(sums.tensors[1])
        kept: List[
            Optional[Tensor]
        ] = []  # of every block: its probabilities, what dropout leaves of them, sums before
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in blocks.starts:
                totals: Tuple[Optional[Tensor], ...] = (None,) if value is None else (None, None)
                for chunks in blocks.ranges:
                    # A view would keep the block's sums.
                    before_block = [None if total is None else total.clone() for total in totals]
                    q, k, v, a, c = sums.copies(start=start, chunks=chunks)
                    pairs = torch.bmm(q, k.mT).tril_()
                    scores = torch.bmm(pairs, a)
                    if blocks.chunks > 1:
                        before, values_before, totals = sums.before(k, v, a, chunks, totals)
                        scores.baddbmm_(q, before)
                    scores.mul_(c * sums.scale)
                    if packed_mask is not None:
                        _close(scores, packed_mask, blocks, start, chunks)
                    probabilities = torch.softmax(scores, dim=-1)
                    dropped = None
                    p = probabilities
                    if dropout > 0.0:
                        dropped = torch.empty_like(p, dtype=torch.bool).bernoulli_(1.0 - dropout)
                        p = p * dropped * _kept_factor(dropout)
                    p = p * c
                    torch.bmm(p, a.mT, out=pairs).tril_()
                    o = torch.bmm(pairs, v)
                    if blocks.chunks > 1:
                        o.baddbmm_(p, values_before.mT)
                    blocks.put(out, o, start, chunks)
                    kept += [probabilities, dropped, *before_block]
        ctx.dropout = dropout
        ctx.save_for_backward(query, key, value, weights, mean, packed_mask, *kept)
        return out[:, :, :length]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        query, key, value, weights, mean, _, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_gradients(ctx, kept, grad)
        length = query.size(2)
        sums = _sums(query, key, value, weights, mean)
        blocks = sums.blocks
        (grad,) = whole_chunks(query, key, weights, grad)[3:]
        given = [x for x in sums.tensors[:4] if x is not None]
        outs = [empty_like_heads(x) for x in given]
        of_block = 3 if value is None else 4
        position = len(kept)
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in reversed(blocks.starts):
                later_keys: Optional[Tensor] = None
                later_values: Optional[Tensor] = None
                for chunks in reversed(blocks.ranges):
                    position -= of_block
                    probabilities, dropped, *totals = kept[position : position + of_block]
                    q, k, v, a, g, c = sums.copies(grad, start=start, chunks=chunks)
                    passed = c if dropped is None else c * _kept_factor(ctx.dropout) * dropped
                    p = probabilities * passed
                    if blocks.chunks > 1:
                        before, values_before, _ = sums.before(k, v, a, chunks, tuple(totals))

                    pairs = torch.bmm(g, v.mT).tril_()
                    d_a = torch.bmm(pairs.mT, p)
                    d_p = torch.bmm(pairs, a)
                    if blocks.chunks > 1:
                        d_p.baddbmm_(g, values_before)
                    d_p.mul_(passed)
                    d_scores = torch._softmax_backward_data(d_p, probabilities, -1, d_p.dtype)
                    d_scores = d_scores.mul_(c * sums.scale)

                    torch.bmm(p, a.mT, out=pairs).tril_()
                    d_v = torch.bmm(pairs.mT, g)
                    torch.bmm(q, k.mT, out=pairs).tril_()
                    d_a.baddbmm_(pairs.mT, d_scores)
                    torch.bmm(d_scores, a.mT, out=pairs).tril_()
                    d_q = torch.bmm(pairs, k)
                    d_k = d_v.baddbmm_(pairs.mT, q) if value is None else torch.bmm(pairs.mT, q)
                    if blocks.chunks > 1:
                        d_q.baddbmm_(d_scores, before.mT)
                        # What later chunks want of this one: the sums run backwards.
                        of_keys, of_values = [(q, d_scores)], [(g, p)]
                        if value is None:
                            later, later_keys = blocks.running(
                                of_keys + of_values, chunks, later_keys, backwards=True
                            )
                        else:
                            later, later_keys = blocks.running(of_keys, chunks, later_keys, backwards=True)
                            after, later_values = blocks.running(of_values, chunks, later_values, backwards=True)
                            d_v.baddbmm_(a, after.mT)
                            d_a.baddbmm_(v, after)
                        d_k.baddbmm_(a, later.mT)
                        d_a.baddbmm_(k, later)
                    found = (d_q, d_k, d_a) if value is None else (d_q, d_k, d_v, d_a)
                    for out, d in zip(outs, found, strict=True):
                        blocks.put(out, d, start, chunks)
        d_query, d_key, *d_value, d_weights = (out[:, :, :length] for out in outs)
        return d_query, d_key, d_value[0] if d_value else None, d_weights, None, None, None


def _sums(query: Tensor, key: Tensor, value: Optional[Tensor], weights: Tensor, mean: Tensor) -> _Sums:
    query, key, weights, mean, *values = whole_chunks(query, key, weights, mean, *([] if value is None else [value]))
    return _Sums(query, key, values[0] if values else None, weights, mean)


def _close(scores: Tensor, packed_mask: Tensor, blocks: Blocks, start: int, chunks: range) -> None:
    """Take rows of P that do not belong to the sentence out of one block of scores, in place."""
    own = ~packed_mask[start : start + blocks.sentences]
    shape = (len(chunks), -1, blocks.heads, *scores.shape[1:])
    scores.view(shape).masked_fill_(own, float("-inf"))


def _in_two_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    mean: Tensor,
    packed_mask: Optional[Tensor],
    dropped: Callable[[Tensor], Tensor],
) -> Tensor:
    """The same as a product, a softmax, what ``dropped`` makes of its result, and another product."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, a = (x.to(wide) for x in (query, key, weights))
    scores = causal_products(q, k, a, mean * query.size(-1) ** -0.5)
    if packed_mask is not None:
        scores = scores.masked_fill(~packed_mask, float("-inf"))
    p = dropped(torch.softmax(scores, dim=-1))
    return causal_products(p, a, k if value is key else value.to(wide), mean).to(value.dtype)


def _differentiable_gradients(ctx: Any, kept: List[Optional[Tensor]], grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    """The gradients by two causal products and a softmax, which cost more and can be differentiated again."""
    query, key, value, weights, mean, packed_mask = ctx.saved_tensors[:6]

    def dropped(p: Tensor) -> Tensor:
        return p * _whole_mask(ctx, kept, p) * _kept_factor(ctx.dropout) if ctx.dropout > 0.0 else p

    own_value = key if value is None else value
    out = _in_two_products(query, key, own_value, weights, mean, packed_mask, dropped)
    inputs = (query, key, value, weights)
    wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=False) if x is not None and needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    gradients = [
        next(found) if x is not None and needed else None
        for x, needed in zip(inputs, ctx.needs_input_grad, strict=False)
    ]
    return (*gradients, None, None, None)


def _kept_factor(dropout: float) -> float:
    return 1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0


def _whole_mask(ctx: Any, kept: List[Optional[Tensor]], like: Tensor) -> Tensor:
    """What dropout has left in all blocks, in the shape of ``like``, ``[B, H, N, L]``."""
    query, key, value, weights, mean = ctx.saved_tensors[:5]
    blocks = _sums(query, key, value, weights, mean).blocks
    (mask,) = whole_chunks(query, key, weights, like.detach())[3:]
    mask, of_block = torch.empty_like(mask, dtype=torch.bool), 3 if value is None else 4
    positions = iter(range(1, len(kept), of_block))
    for start in blocks.starts:
        for chunks in blocks.ranges:
            dropped = kept[next(positions)]
            assert dropped is not None
            blocks.put(mask, dropped, start, chunks)
    return mask[:, :, : like.size(2)]


def both_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack_weights: Tensor,
    mean: Tensor,
    packed_mask: Optional[Tensor] = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal Luna attention from the first position on (:func:`luna_fairseq.ops.causal_luna_attention`).

    Args:
        query, key, value: ``[B, H, N, K]``; a value that is the key costs less.
        pack_weights: ``[B, H, N, L]``.
        mean: 1/t of every position, ``[B, 1, N, 1]``; gets no gradient.
        packed_mask: ``[B, 1, 1, L]`` bool, True = a row of P that belongs to the sentence, or None.
        dropout: probability for the weights between the sums.

    Returns:
        ``[B, H, N, K]`` in the dtype of ``key``.
    """
    if making_a_graph():  # the number of blocks would be that of one length
        return _in_two_products(query, key, value, pack_weights, mean, packed_mask, lambda p: F.dropout(p, dropout))
    own_value = None if value is key else value
    return _BothSums.apply(query, key, own_value, pack_weights, mean.expand_as(query[..., :1]), packed_mask, dropout)
