"""Causal Luna attention in linear time and memory (paper, section 3.3).

Both sums of the method are causal linear attention, ``o_t = sum_{s<=t} (q_t . k_s) v_s``, so one function
serves them. It works chunk by chunk: inside a chunk a masked product, between chunks a running ``k v^T``.
Nothing of size ``N * K * L`` is ever built, and on a CPU nothing that leaves its caches but inputs and results.
"""

import itertools
import math
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq.ops import fused
from luna_fairseq.ops.tracing import making_a_graph

# Operations a position: N (K + L) for one product, c (K + L) + 2 K L in chunks of c. They take equally long near 128.
_SINGLE_PRODUCT = 128
_CPU_CHUNK, _GPU_CHUNK = 32, 64  # a longer one keeps fewer sums, so a CPU takes it where they are large
_CPU_BLOCK = 2**19  # numbers of keys and values whose copies and products stay in the caches of two cores
_LEAST_CHUNKS = 8  # of a block, where there are as many: between blocks a sum is kept for the backward pass


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def chunk_length(head_dim: int, rows: int, on_cpu: bool) -> int:
    """c, the positions of a chunk, for K and L; sequences of up to 128 are not cut."""
    # The sum of a chunk, K x L numbers, should hardly be more than its keys and values.
    few = head_dim * rows <= _CPU_CHUNK * (head_dim + rows)
    return _CPU_CHUNK if on_cpu and few else _GPU_CHUNK


def _chunk_length(key: Tensor, value: Tensor) -> int:
    return chunk_length(key.size(-1), value.size(-1), _on_cpu(key))


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
    if kernels := fused.kernels(context, packed_query, packed_query, packed_query.size(2)):
        return kernels.causal_pack_weights(context, packed_query, activation)
    with torch.autocast(device_type=context.device.type, enabled=False):
        wide = torch.promote_types(context.dtype, torch.float32)
        return CAUSAL_ACTIVATIONS[activation](context.to(wide) @ packed_query.to(wide).mT)


class CausalState(NamedTuple):
    """What decoding has to remember of all earlier positions, whatever their number.

    Attributes:
        key_sum: ``[B, H, L, K]``, the sum of ``a_s k_s^T``, in float32 or wider.
        value_sum: ``[B, H, L, K]``, the sum of ``a_s v_s^T``, likewise; where keys are values, the same tensor.
        steps: ``[B]`` int64, how many real positions the sums hold.
    """

    key_sum: Tensor
    value_sum: Tensor
    steps: Tensor

    @classmethod
    def start(cls, packed_query: Tensor, batch: int, tie_kv: bool) -> "CausalState":
        """The state of ``batch`` rows before the first position, for a packed query ``[S, H, L, K]``."""
        dtype = torch.promote_types(packed_query.dtype, torch.float32)
        shape = (batch, *packed_query.shape[1:])
        key_sum = packed_query.new_zeros(shape, dtype=dtype)
        value_sum = key_sum if tie_kv else packed_query.new_zeros(shape, dtype=dtype)
        return cls(key_sum, value_sum, torch.zeros(batch, dtype=torch.long, device=packed_query.device))


class _Blocks:
    """Cuts ``[B, H, N, E]`` views into blocks of chunks, each copied to ``[chunks * sentences * H, c, E]``.

    A block holds a few whole sentences or a few chunks of one: on a CPU as much as stays in its caches, elsewhere
    everything at once.

    Args:
        key, value: two of them.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        batch, self.heads, length, _ = key.shape
        self.chunk = max(1, length) if length <= _SINGLE_PRODUCT else _chunk_length(key, value)
        self.chunks = length // self.chunk
        self.on_cpu = _on_cpu(key)
        size = _CPU_BLOCK // (key.size(-1) + value.size(-1)) if self.on_cpu else batch * self.heads * length
        self.sentences = max(1, size // (self.chunks * self.chunk * self.heads)) if self.chunks else 1
        block = max(_LEAST_CHUNKS, size // (self.chunk * self.heads))
        self.starts = range(0, batch, self.sentences)
        self.ranges = [range(i, min(i + block, self.chunks)) for i in range(0, self.chunks, block)]

    def view(self, x: Tensor, start: int, chunks: range) -> Tensor:
        """One block of ``x``: ``[chunks, sentences, H, c, E]``, a view."""
        part = x[start : start + self.sentences, :, chunks.start * self.chunk : chunks.stop * self.chunk]
        return part.unflatten(2, (-1, self.chunk)).permute(2, 0, 1, 3, 4)

    def copies(self, *tensors: Tensor, start: int, chunks: range) -> Iterator[Tensor]:
        """One block of each, ``[chunks * sentences * H, c, E]``."""
        return (self.view(x, start, chunks).reshape(-1, self.chunk, x.size(-1)) for x in tensors)

    def running(
        self, left: Tensor, right: Tensor, chunks: range, total: Optional[Tensor], backwards: bool
    ) -> Tuple[Tensor, Tensor]:
        """Sums of ``left^T right``: of all before each chunk (after it, if ``backwards``), and up to the block's end.

        Args:
            left, right: ``[chunks * sentences * H, c, E]`` and ``[..., c, F]``.
            chunks: which they are.
            total: ``[sentences * H, E, F]``, the sum before the block; None for 0.
            backwards: the last chunk comes first.

        Returns:
            ``[chunks * sentences * H, E, F]`` and ``[sentences * H, E, F]``, views of one tensor.
        """
        shape = (len(chunks) + 1, left.size(0) // len(chunks), left.size(2), right.size(2))
        sums = left.new_empty(shape)  # each product goes where what is summed behind it belongs
        torch.bmm(left.mT, right, out=(sums[:-1] if backwards else sums[1:]).flatten(0, 1))
        first = sums[-1 if backwards else 0]
        first.zero_() if total is None else first.copy_(total)
        if self.on_cpu:  # cumsum takes ten times as long there
            each = sums.unbind()
            for one, following in itertools.pairwise(each[::-1] if backwards else each):
                following.add_(one)
        else:
            sums = sums.flip(0).cumsum(dim=0).flip(0) if backwards else sums.cumsum(dim=0)
        return (sums[1:] if backwards else sums[:-1]).flatten(0, 1), sums[0 if backwards else -1]


class _CausalProducts(torch.autograd.Function):
    """Causal linear attention of ``[B, H, N, E]`` views, with a gradient that recomputes instead of storing.

    ``scale`` is ``[B, H, N, 1]`` and gets no gradient. Results are views of ``[B, N, H, E]`` memory. The gradient has
    derivatives of every order.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: Tensor) -> Tensor:
        inputs, length = (query, key, value, scale), query.size(2)
        query, key, value, scale = _whole_chunks(*inputs)
        blocks = _Blocks(key, value)
        out = _empty_like_heads(value)
        totals: List[Optional[Tensor]] = []  # the sum before each block
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in blocks.starts:
                total: Optional[Tensor] = None
                for chunks in blocks.ranges:
                    totals.append(None if total is None else total.clone())  # the view would keep the block's sums
                    q, k, v, c = blocks.copies(query, key, value, scale, start=start, chunks=chunks)
                    q = q * c
                    o = torch.bmm(torch.bmm(q, k.mT).tril_(), v)
                    if blocks.chunks > 1:
                        before, total = blocks.running(k, v, chunks, total, backwards=False)
                        o.baddbmm_(q, before)
                    target = blocks.view(out, start, chunks)
                    target.copy_(o.view(target.shape))
        ctx.save_for_backward(*inputs, *totals)
        return out[:, :, :length]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, scale, *before_blocks = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return *_differentiable_gradients(query, key, value, scale, grad), None
        length = query.size(2)
        query, key, value, scale, grad = _whole_chunks(query, key, value, scale, grad)
        blocks = _Blocks(key, value)
        outs = (_empty_like_heads(query), _empty_like_heads(key), _empty_like_heads(value))
        totals = reversed(before_blocks)
        with torch.autocast(device_type=query.device.type, enabled=False):
            for start in reversed(blocks.starts):
                later_total: Optional[Tensor] = None
                for chunks in reversed(blocks.ranges):
                    q, k, v, g, c = blocks.copies(query, key, value, grad, scale, start=start, chunks=chunks)
                    q = q * c
                    pairs = torch.bmm(g, v.mT).tril_()
                    d_q = torch.bmm(pairs, k)
                    d_k = torch.bmm(pairs.mT, q)
                    d_v = torch.bmm(torch.bmm(q, k.mT, out=pairs).tril_().mT, g)
                    total = next(totals)
                    if blocks.chunks > 1:
                        before, _ = blocks.running(k, v, chunks, total, backwards=False)
                        d_q.baddbmm_(g, before.mT)
                        # What later chunks want of this one: the sums run backwards.
                        later, later_total = blocks.running(q, g, chunks, later_total, backwards=True)
                        d_k.baddbmm_(v, later.mT)
                        d_v.baddbmm_(k, later)
                    for out, d in zip(outs, (d_q.mul_(c), d_k, d_v), strict=True):
                        target = blocks.view(out, start, chunks)
                        target.copy_(d.view(target.shape))
        d_query, d_key, d_value = (out[:, :, :length] for out in outs)
        return d_query, d_key, d_value, None


def _whole_chunks(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> Tuple[Tensor, ...]:
    """All of them filled up with zeros, which add nothing, to a length that the chunk divides."""
    length, tensors = query.size(2), (query, key, value, *others)
    fill = -length % _chunk_length(key, value) if length > _SINGLE_PRODUCT else 0
    return tuple(F.pad(x, (0, 0, 0, fill)) for x in tensors) if fill else tensors


def _differentiable_gradients(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, grad: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """The gradients of :class:`_CausalProducts` as causal products themselves; two of them run backwards in time.

    They cost more than the gradients computed together, block by block, and can be differentiated again.
    """
    key_back, value_back, grad_back = key.flip(2), value.flip(2), grad.flip(2)
    query_back, one = (query * scale).flip(2), torch.ones_like(scale)
    return (
        _CausalProducts.apply(grad, value, key, scale),
        _CausalProducts.apply(value_back, grad_back, query_back, one).flip(2),
        _CausalProducts.apply(key_back, query_back, grad_back, one).flip(2),
    )


def _empty_like_heads(x: Tensor) -> Tensor:
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


def causal_products(query: Tensor, key: Tensor, value: Tensor, scale: Tensor) -> Tensor:
    """Causal linear attention: ``o_t = c_t sum_{s<=t} (q_t . k_s) v_s``.

    Args:
        query, key: ``[B, H, N, E]``.
        value: ``[B, H, N, F]``.
        scale: c, ``[B, 1, N, 1]``; gets no gradient.

    Returns:
        ``[B, H, N, F]``.
    """
    if making_a_graph():  # the number of chunks would be that of one length
        return ((query * scale) @ key.mT).tril() @ value
    return _CausalProducts.apply(query, key, value, scale.expand_as(query[..., :1]))


def _add(total: Tensor, pack_weights: Tensor, x: Tensor) -> Tensor:
    """``total + sum_s a_s x_s^T``; in one pass for one position."""
    return torch.addcmul(total, pack_weights.mT, x) if x.size(2) == 1 else total + pack_weights.mT @ x


def _continued_products(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, before: Tensor, after: Tensor
) -> Tensor:
    """:func:`causal_products` behind earlier positions, whose ``k^T v`` is ``before``; with these it is ``after``."""
    if query.size(2) == 1:  # one step of decoding
        return query @ after * scale
    return query @ before * scale + causal_products(query, key, value, scale)


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

    Raises:
        ValueError: if ``state`` was started for keys that are values, and these are not.
    """
    with torch.autocast(device_type=query.device.type, enabled=False):
        wide = torch.promote_types(query.dtype, torch.float32)
        out_dtype = value.dtype
        tie_kv = key is value
        if state is not None and state.key_sum is state.value_sum and not tie_kv:
            raise ValueError("the state holds one sum for keys and values: start it with tie_kv=False")
        if kernels := fused.kernels(query, key, value, pack_weights.size(-1)):
            options = (packed_mask, padding_mask, pack_dropout, unpack_dropout, state)
            return kernels.causal_luna_attention(query, key, value, pack_weights, *options)
        query, key, pack_weights = (t.to(wide) for t in (query, key, pack_weights))
        value = key if tie_kv else value.to(wide)
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

        scale = mean * head_dim**-0.5
        if state is None:
            scores = causal_products(query, key, pack_weights, scale)
        else:
            key_sum = _add(state.key_sum, pack_weights, key)
            scores = _continued_products(query, key, pack_weights, scale, state.key_sum.mT, key_sum.mT)
        if packed_mask is not None:
            scores = scores.masked_fill(~packed_mask, float("-inf"))
        unpack_weights = torch.softmax(scores, dim=-1)
        if unpack_dropout > 0.0:
            unpack_weights = F.dropout(unpack_weights, unpack_dropout)
        if state is None:
            return causal_products(unpack_weights, pack_weights, value, mean).to(out_dtype), None
        value_sum = key_sum if tie_kv else _add(state.value_sum, pack_weights, value)
        out = _continued_products(unpack_weights, pack_weights, value, mean, state.value_sum, value_sum)
        return out.to(out_dtype), CausalState(key_sum, value_sum, steps[:, -1])
