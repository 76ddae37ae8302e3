"""Both sums of causal Luna attention and the softmax between them, as one function with a gradient of its own.

Sum after sum, all operands would be copied twice and, where keys are values, the same running sum made twice. Here a
block is copied once and stays in the caches from the scores to the result, and back.
"""

from collections.abc import Callable
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq.ops.blocks import (
    Blocks,
    add_product,
    empty_like_heads,
    operand_type,
    product,
    whole_chunks,
    wide_type,
)
from luna_fairseq.ops.decay import ChunkDecay
from luna_fairseq.ops.products import causal_products
from luna_fairseq.ops.tracing import making_a_graph


class _Sums:
    """What both passes need to know of a call.

    Args:
        query, key, value, weights, mean, rates: as of :func:`both_sums`, but no value where it is the key.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Optional[Tensor],
        weights: Tensor,
        mean: Tensor,
        rates: Optional[Tensor] = None,
    ) -> None:
        given = (query, key, weights, mean) if value is None else (query, key, weights, mean, value)
        query, key, weights, mean, *own = whole_chunks(*given)
        self.blocks = blocks = Blocks(key, weights)
        self.whole = [query, key, *own, weights]
        self.heads = [blocks.cut(x) for x in (query, key, *own)]
        self.weights, self.mean = blocks.cut(weights), blocks.cut(mean)
        self.tied = value is None
        self.wide, self.low = wide_type(query), operand_type(query)
        self.scale = query.size(-1) ** -0.5
        self.decay = ChunkDecay(rates, blocks.chunk)

    def copies(self, *more: Tensor, start: int, chunks: range) -> Any:
        """One block: query, key, value as they are multiplied, weights with all digits and as those, and ``more``.

        Few numbers are added up in the first positions, and what rounding takes from their scores is not made up for
        by others. So within a chunk those are made of weights and products with all digits.
        """
        q, k, *others = self.blocks.copies(*self.heads, *more, start=start, chunks=chunks, dtype=self.low)
        v = k if self.tied else others.pop(0)
        (wide,) = self.blocks.copies(self.weights, start=start, chunks=chunks, dtype=self.wide)
        return (q, k, v, wide, wide.to(self.low), *others)

    def pairs(self, x: Tensor, y: Tensor, used: Tensor) -> Tensor:
        """``x y^T`` of positions that do not come before their partner, in the place of ``used`` if that is as wide.

        Of operands with all digits it is rounded last.
        """
        products = torch.bmm(x, y.mT, out=used) if used.dtype == x.dtype else torch.bmm(x, y.mT)
        if x.dtype == self.low:
            return self.decay.pairs(products)
        triangle = self.decay.triangle(products)
        return torch.mul(products, triangle, out=products.new_empty(products.shape, dtype=self.low))

    def before(
        self, key: Tensor, value: Tensor, weights: Tensor, chunks: range, totals: Tuple[Optional[Tensor], ...]
    ) -> Tuple[Tensor, Tensor, Tuple[Tensor, ...]]:
        """The sums of ``k a^T`` and ``v a^T`` before each chunk, and those after the block."""
        weights, left = self.decay.until_end(weights), self.decay.whole
        found, after = self.blocks.running([(key, weights)], chunks, totals[0], False, left)
        if value is key:
            return found, found, (after,)
        of_values, values_after = self.blocks.running([(value, weights)], chunks, totals[1], False, left)
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
        rates: Optional[Tensor],
    ) -> Tensor:
        sums, length = _Sums(query, key, value, weights, mean, rates), query.size(2)
        blocks, decay = sums.blocks, sums.decay
        out = empty_like_heads(sums.whole[1])
        target = blocks.cut(out)
        # Of every block: its probabilities, what dropout leaves of them, the sums before.
        kept: List[Optional[Tensor]] = []
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in blocks.starts:
                totals: Tuple[Optional[Tensor], ...] = (None,) if sums.tied else (None, None)
                for chunks in blocks.ranges:
                    # A view would keep the block's sums.
                    before_block = [None if total is None else total.clone() for total in totals]
                    q, k, v, wide, a = sums.copies(start=start, chunks=chunks)
                    pairs = decay.pairs(product(q, k.mT, sums.wide))
                    scores = torch.bmm(pairs, wide)
                    if blocks.chunks > 1:
                        before, values_before, totals = sums.before(k, v, a, chunks, totals)
                        add_product(scores, decay.since_start(q), before)
                    mean_of = blocks.view(sums.mean, start, chunks)
                    by_position = scores.view(len(chunks), -1, blocks.heads, *scores.shape[1:])
                    by_position.mul_(mean_of * sums.scale)
                    if packed_mask is not None:
                        own = (
                            packed_mask if packed_mask.size(0) == 1 else packed_mask[start : start + blocks.sentences]
                        )
                        by_position.masked_fill_(~own, float("-inf"))
                    probabilities = torch.softmax(by_position, dim=-1)
                    dropped = None
                    if dropout > 0.0:
                        dropped = torch.empty_like(probabilities, dtype=torch.bool).bernoulli_(1.0 - dropout)
                    wide_p = (probabilities * _passed(mean_of, dropped, dropout)).flatten(0, 2)
                    pairs = sums.pairs(wide_p, wide, pairs)
                    o = None
                    if blocks.chunks > 1:
                        o = torch.bmm(decay.since_start(wide_p).to(sums.low), values_before.mT)
                    blocks.put(target, _plus(o, pairs, v), start, chunks)
                    kept += [probabilities, dropped, *before_block]
        ctx.dropout = dropout
        ctx.save_for_backward(query, key, value, weights, mean, packed_mask, rates, *kept)
        return out[:, :, :length]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        query, key, value, weights, mean, _, rates, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_gradients(ctx, kept, grad)
        length = query.size(2)
        sums = _Sums(query, key, value, weights, mean, rates)
        blocks, decay = sums.blocks, sums.decay
        (grad,) = whole_chunks(query, key, weights, grad)[3:]
        grad = blocks.cut(grad)
        outs = [empty_like_heads(x) for x in sums.whole]
        targets = [blocks.cut(x) for x in outs]
        of_block = 3 if sums.tied else 4
        position = len(kept)
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in reversed(blocks.starts):
                later_keys: Optional[Tensor] = None
                later_values: Optional[Tensor] = None
                for chunks in reversed(blocks.ranges):
                    position -= of_block
                    probabilities, dropped, *totals = kept[position : position + of_block]
                    q, k, v, wide, a, g = sums.copies(grad, start=start, chunks=chunks)
                    mean_of = blocks.view(sums.mean, start, chunks)
                    passed = _passed(mean_of, dropped, ctx.dropout)
                    wide_p = (probabilities * passed).flatten(0, 2)
                    p = wide_p.to(sums.low)
                    if blocks.chunks > 1:
                        before, values_before, _ = sums.before(k, v, a, chunks, tuple(totals))

                    pairs = decay.pairs(product(g, v.mT, sums.wide))
                    d_a = torch.bmm(pairs.mT, wide_p)
                    d_p = torch.bmm(pairs, wide)
                    if blocks.chunks > 1:
                        add_product(d_p, decay.since_start(g), values_before)
                    d_p = d_p.view(probabilities.shape).mul_(passed)
                    d_scores = torch._softmax_backward_data(d_p, probabilities, -1, d_p.dtype)
                    wide_scores = d_scores.mul_(mean_of * sums.scale).flatten(0, 2)
                    d_scores = wide_scores.to(sums.low)

                    d_q: Optional[Tensor] = None
                    d_k: Optional[Tensor] = None
                    d_v: Optional[Tensor] = None
                    if blocks.chunks > 1:
                        of_start, of_end = decay.since_start(d_scores), decay.until_end(a)
                        d_q = torch.bmm(of_start, before.mT)
                        # What later chunks want of this one: the sums run backwards.
                        of_keys, of_values = [(q, of_start)], [(g, decay.since_start(p))]
                        if sums.tied:
                            of_keys += of_values
                        else:
                            after, later_values = blocks.running(of_values, chunks, later_values, True, decay.whole)
                            d_v = torch.bmm(of_end, after.mT)
                            add_product(d_a, decay.until_end(v), after)
                        later, later_keys = blocks.running(of_keys, chunks, later_keys, True, decay.whole)
                        d_k = torch.bmm(of_end, later.mT)
                        add_product(d_a, decay.until_end(k), later)
                    pairs = sums.pairs(wide_scores, wide, pairs)
                    d_q = _plus(d_q, pairs, k)
                    d_k = _plus(d_k, pairs.mT, q)
                    pairs = sums.pairs(q, k, pairs)
                    add_product(d_a, pairs.mT, d_scores)
                    pairs = sums.pairs(p, a, pairs)
                    if sums.tied:
                        d_k.baddbmm_(pairs.mT, g)
                    else:
                        d_v = _plus(d_v, pairs.mT, g)
                    found = (d_q, d_k, d_a) if d_v is None else (d_q, d_k, d_v, d_a)
                    for target, d in zip(targets, found, strict=True):
                        blocks.put(target, d, start, chunks)
        d_query, d_key, *d_value, d_weights = (out[:, :, :length] for out in outs)
        return d_query, d_key, d_value[0] if d_value else None, d_weights, None, None, None, None


def _plus(total: Optional[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """``total + x y``. What is small comes first: it is rounded once more than the other."""
    return torch.bmm(x, y) if total is None else total.baddbmm_(x, y)


def _passed(mean: Tensor, dropped: Optional[Tensor], dropout: float) -> Tensor:
    """What the probabilities are multiplied by."""
    return mean if dropped is None else mean * _kept_factor(dropout) * dropped


def _kept_factor(dropout: float) -> float:
    return 1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0


def _in_two_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    mean: Tensor,
    packed_mask: Optional[Tensor],
    dropped: Callable[[Tensor], Tensor],
    rates: Optional[Tensor],
) -> Tensor:
    """The same as a product, a softmax, what ``dropped`` makes of its result, and another product."""
    wide = wide_type(query)
    q, k, a = (x.to(wide) for x in (query, key, weights))
    scores = causal_products(q, k, a, mean * query.size(-1) ** -0.5, rates)
    if packed_mask is not None:
        scores = scores.masked_fill(~packed_mask, float("-inf"))
    p = dropped(torch.softmax(scores, dim=-1))
    return causal_products(p, a, k if value is key else value.to(wide), mean, rates).to(value.dtype)


def _differentiable_gradients(ctx: Any, kept: List[Optional[Tensor]], grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    """The gradients by two causal products and a softmax, which cost more and can be differentiated again."""
    query, key, value, weights, mean, packed_mask, rates = ctx.saved_tensors[:7]

    def dropped(p: Tensor) -> Tensor:
        return p * _whole_mask(ctx, kept, p) * _kept_factor(ctx.dropout) if ctx.dropout > 0.0 else p

    # Views, since an input may be made of another, or be the same.
    inputs = [None if x is None else x.view_as(x) for x in (query, key, value, weights)]
    own = [x for x in inputs if x is not None]
    q, k, a = own[0], own[1], own[-1]
    out = _in_two_products(q, k, k if value is None else own[2], a, mean, packed_mask, dropped, rates)
    wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=False) if x is not None and needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    gradients = [
        next(found) if x is not None and needed else None
        for x, needed in zip(inputs, ctx.needs_input_grad, strict=False)
    ]
    return (*gradients, None, None, None, None)


def _whole_mask(ctx: Any, kept: List[Optional[Tensor]], like: Tensor) -> Tensor:
    """What dropout has left in all blocks, in the shape of ``like``, ``[B, H, N, L]``."""
    query, key, value, weights, mean = ctx.saved_tensors[:5]
    sums = _Sums(query, key, value, weights, mean)
    mask = torch.empty_like(sums.whole[-1], dtype=torch.bool)
    target = sums.blocks.cut(mask)
    positions = iter(range(1, len(kept), 3 if sums.tied else 4))
    for start in sums.blocks.starts:
        for chunks in sums.blocks.ranges:
            dropped = kept[next(positions)]
            assert dropped is not None
            sums.blocks.put(target, dropped, start, chunks)
    return mask[:, :, : like.size(2)]


def both_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack_weights: Tensor,
    mean: Tensor,
    packed_mask: Optional[Tensor] = None,
    dropout: float = 0.0,
    rates: Optional[Tensor] = None,
) -> Tensor:
    """Causal Luna attention from the first position on (:func:`luna_fairseq.ops.causal_luna_attention`).

    Args:
        query, key, value: ``[B, H, N, K]``; a value that is the key costs less.
        pack_weights: ``[B, H, N, L]``.
        mean: 1/t of every position, ``[B, 1, N, 1]``, or 1/z_t, ``[B, H, N, 1]``; gets no gradient.
        packed_mask: ``[B, 1, 1, L]`` bool, True = a row of P that belongs to the sentence, or None.
        dropout: probability for the weights between the sums.
        rates: at which the heads forget (:mod:`luna_fairseq.ops.decay`), ``[H, 1, 1]``, or None; gets no gradient.

    Returns:
        ``[B, H, N, K]`` in the dtype of ``key``.
    """
    if making_a_graph():  # the number of blocks would be that of one length
        options = (packed_mask, lambda p: F.dropout(p, dropout), rates)
        return _in_two_products(query, key, value, pack_weights, mean, *options)
    own_value = None if value is key else value
    return _BothSums.apply(query, key, own_value, pack_weights, mean, packed_mask, dropout, rates)
