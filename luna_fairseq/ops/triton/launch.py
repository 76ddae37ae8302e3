"""Launches the kernels: what :func:`causal_luna_attention` and :func:`causal_pack_weights` do, for autograd.

Forward: the sums of each chunk, their running sums, the outputs. Backward: the sums once more, then the same three
steps backwards in time. Nothing is kept for the backward pass but inputs; nothing is added atomically, so that
results and gradients are the same in every run.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from luna_fairseq.ops import causal
from luna_fairseq.ops.triton import kernels

LARGEST_ROWS, LARGEST_HEAD = 256, 128
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SCAN_TILE = 16, 64  # places and numbers of a running sum at a time
_CHUNKS_A_PART = 8  # of a sum for the gradient of P


class Config(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        chunk: C, positions of a program.
        rows: BL, rows of P at a time.
        columns: BK, of a head at a time.
        bf16: whether the tensor cores multiply bfloat16.
        precision: Triton's word for how they multiply float32.
        warps: of 32 threads each.
    """

    chunk: int
    rows: int
    columns: int
    bf16: bool
    precision: str
    warps: int

    def launch(self, *without: str) -> Dict[str, Any]:
        """What a launch names: the constants (but for those that a kernel does not take), and how it is compiled."""
        op = kernels.tl.bfloat16 if self.bf16 else kernels.tl.float32
        constants = {"C": self.chunk, "BL": self.rows, "BK": self.columns, "OP": op, "PREC": self.precision}
        chosen = {name: value for name, value in constants.items() if name not in without}
        return {**chosen, "num_warps": self.warps, "num_stages": 1}

    def launch_sums(self) -> Dict[str, Any]:
        """Likewise for ``chunk_sums``: with four warps the compiler spills registers of float16."""
        return {**self.launch(), "num_warps": 2 * self.warps}


@cache
def config(dtype: torch.dtype) -> Config:
    """That of inputs of this type; the same for every L and K."""
    bf16, precision = dtype == torch.bfloat16, "tf32x3" if dtype == torch.float32 else "tf32"
    return Config(32 if dtype == torch.float32 else 64, 16, 32, bf16, precision, 4)


def fits(query: Tensor, key: Tensor, value: Tensor, rows: int) -> bool:
    """Whether there is a kernel for these ``[B, H, N, K]`` and L."""
    same = query.dtype == key.dtype == value.dtype and query.dtype in DTYPES
    return same and query.numel() > 0 and rows <= LARGEST_ROWS and query.size(-1) <= LARGEST_HEAD


def _on_device(x: Tensor) -> "AbstractContextManager[Any]":
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _rows(x: Tensor) -> Tensor:
    """``x`` with numbers of a row side by side, as the kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty_like_heads(x: Tensor) -> Tensor:
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


class _Call:
    """One call: its inputs, sizes, and what both passes launch."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Optional[Tensor],
        weights: Tensor,
        counts: Optional[Tensor],
        mask: Optional[Tensor],
        start: Optional[Tensor],
        dropout: Tuple[float, int, float, int],
        rates: Optional[Tensor],
    ) -> None:
        self.untied = value is not None
        self.query, self.key, self.weights = _rows(query), _rows(key), _rows(weights)
        self.value = self.key if value is None else _rows(value)
        self.batch, self.heads, self.length, self.dim = query.shape
        self.rows = weights.size(-1)
        self.config = config(query.dtype)
        self.chunks = -(-self.length // self.config.chunk)
        self.start = start
        self.has_sums = self.chunks > 1 or start is not None
        # A kernel is the same whether there are counts and masks or not: it gets a pointer of the type anyway.
        self.has_counts, self.has_mask = counts is not None, mask is not None
        self.has_decay = int(rates is not None)
        self.rates = query.new_empty(0, dtype=torch.float32) if rates is None else rates
        self.counts = query.new_empty(0, dtype=torch.int32) if counts is None else counts
        self.mask = query.new_empty(0, dtype=torch.uint8) if mask is None else mask
        self.pack_dropout, self.unpack_dropout = dropout[:2], dropout[2:]
        self.grid = (self.batch * self.heads * self.chunks,)
        self.sizes = (self.heads, self.length, self.rows, self.dim, self.chunks)
        self.scale = self.dim**-0.5

    def strides(self, *others: Tensor) -> Tuple[int, ...]:
        return tuple(s for x in (self.query, self.key, self.value, *others) for s in x.stride()[:3])

    def empty_sums(self) -> Tensor:
        """``[1 or 2, B * H, chunks + 1, L, K]``, or nothing where there are no chunks before."""
        places = self.chunks + 1 if self.has_sums else 0
        shape = (1 + self.untied, self.batch * self.heads, places, self.rows, self.dim)
        return self.query.new_empty(shape, dtype=torch.float32)

    def empty_rows(self) -> Tensor:
        """``[B * H, N, L]`` in the type that the tensor cores multiply."""
        dtype = torch.bfloat16 if self.config.bf16 else torch.float32
        return self.query.new_empty(self.batch * self.heads, self.length, self.rows, dtype=dtype)

    def run(self, sums: Tensor, start: Optional[Tensor], backwards: bool) -> None:
        """Make the sums of each chunk running sums, in place."""
        if not self.has_sums:
            return
        size, (places, numbers) = self.rows * self.dim, SCAN_TILE
        grid = (sums.size(0) * sums.size(1) * -(-size // numbers),)
        first, step = (self.chunks, -1) if backwards else (0, 1)
        begin = sums if start is None else start
        kernels.running_sums[grid](
            sums, begin, self.rates, self.chunks, size, int(start is not None), first, step,
            self.heads, self.length, self.has_decay, T=places, E=numbers, C=self.config.chunk, num_warps=4,
        )  # fmt: skip

    def sums(self) -> Tuple[Tensor, Tensor]:
        """The pack weights after dropout, ``[B * H, N, L]``, and the running sums of keys and values."""
        dropped, sums, c = self.empty_rows(), self.empty_sums(), self.config
        strides = (*self.strides()[3:], *self.weights.stride()[:3])
        kernels.chunk_sums[self.grid](
            self.key, self.value, self.weights, dropped, sums[0], sums[-1], self.rates, *strides, *self.sizes,
            int(self.has_sums), int(self.untied), self.has_decay, *self.pack_dropout, **c.launch_sums(),
        )  # fmt: skip
        self.run(sums, self.start, backwards=False)
        return dropped, sums

    def forward(self) -> Tuple[Tensor, Tensor]:
        dropped, sums = self.sums()
        out, c = _empty_like_heads(self.value), self.config
        flags = (int(self.has_sums), int(self.has_counts), int(self.has_mask), self.has_decay)
        kernels.unpack[self.grid](
            self.query, self.key, self.value, dropped, sums[0], sums[-1], self.counts, self.mask, self.rates,
            self.empty_rows(), out, *self.strides(out), *self.sizes, *flags, self.scale, *self.unpack_dropout,
            **c.launch(),
        )  # fmt: skip
        return out, sums

    def backward(self, grad: Tensor, grad_sums: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The gradients of query, key, value (of no use if tied), pack weights; and what all positions left."""
        dropped, sums = self.sums()
        grad, later, c = _rows(grad), self.empty_sums(), self.config
        unpacked, d_scores = self.empty_rows(), self.empty_rows()
        d_query, d_key = _empty_like_heads(self.query), _empty_like_heads(self.key)
        d_value = _empty_like_heads(self.value) if self.untied else d_key
        flags = (int(self.has_sums), int(self.has_counts))
        strides = self.strides(grad, d_query)
        kernels.query_gradient[self.grid](
            self.query, self.key, self.value, dropped, sums[0], sums[-1], self.counts, self.mask, self.rates, grad,
            d_query, unpacked, d_scores, later[0], later[-1], *strides, *self.sizes, *flags, int(self.has_mask),
            int(self.untied), self.has_decay, self.scale, *self.unpack_dropout, **c.launch(),
        )  # fmt: skip
        self.run(later, grad_sums, backwards=True)
        d_weights = self.weights.new_empty(self.batch, self.heads, self.length, self.rows)
        kernels.key_gradient[self.grid](
            self.query, self.key, self.value, dropped, self.counts, self.rates, grad, unpacked, d_scores,
            later[0], later[-1], d_key, d_value, d_weights, *strides, *self.sizes, *flags, int(self.untied),
            self.has_decay, *self.pack_dropout, **c.launch(),
        )  # fmt: skip
        return d_query, d_key, d_value, d_weights, later


class _CausalLuna(torch.autograd.Function):
    """The positions of a call, and (with a start) the sums behind them, ``[1 or 2, B, H, L, K]``."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Optional[Tensor],
        weights: Tensor,
        start: Optional[Tensor],
        counts: Optional[Tensor],
        mask: Optional[Tensor],
        dropout: Tuple[float, int, float, int],
        rates: Optional[Tensor],
    ) -> Tuple[Tensor, Optional[Tensor]]:
        ctx.save_for_backward(query, key, value, weights, start, counts, mask, rates)
        ctx.dropout = dropout
        with _on_device(query):
            out, sums = _Call(query, key, value, weights, counts, mask, start, dropout, rates).forward()
        return out, None if start is None else sums[:, :, -1].reshape(start.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_sums: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        query, key, value, weights, start, counts, mask, rates = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "second derivatives of the causal attention need its torch form: set LUNA_KERNELS=torch"
            )
        call = _Call(query, key, value, weights, counts, mask, start, ctx.dropout, rates)
        with _on_device(query):
            grad_sums = None if grad_sums is None else grad_sums.contiguous()
            d_query, d_key, d_value, d_weights, later = call.backward(grad, grad_sums)
        d_start = None if start is None else later[:, :, 0].reshape(start.shape)
        return d_query, d_key, None if value is None else d_value, d_weights, d_start, None, None, None, None


def causal_luna_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack_weights: Tensor,
    packed_mask: Optional[Tensor],
    padding_mask: Optional[Tensor],
    pack_dropout: float,
    unpack_dropout: float,
    state: Optional["causal.CausalState"],
    steps: Optional["causal.Steps"] = None,
    decay: float = 0.0,
) -> Tuple[Tensor, Optional["causal.CausalState"]]:
    """:func:`luna_fairseq.ops.causal_luna_attention`, with its arguments, for what :func:`fits`."""
    tied = key is value
    batch, _, length, _ = query.shape
    weights = pack_weights.float()
    counted = start = None
    if padding_mask is not None:
        weights = weights.masked_fill(padding_mask[:, None, :, None], 0.0)
    if steps is None:
        steps = causal.Steps(batch, length, padding_mask, query.device, torch.float32)
    rates = steps.rates(decay, query.size(1)) if decay else None
    if padding_mask is not None or state is not None:
        counted = steps.after(None if state is None else state.steps)
    if state is not None:
        start = state.key_sum[None] if tied else torch.stack((state.key_sum, state.value_sum))
        start = start.float().contiguous()
    mask = None if packed_mask is None else packed_mask.expand(batch, 1, 1, -1).to(torch.uint8).contiguous()
    # Drawn on the CPU: a GPU's generator would have to be waited for.
    seeds = torch.randint(2**31 - 1, (2,)).tolist() if pack_dropout > 0 or unpack_dropout > 0 else (0, 0)
    dropout = (float(pack_dropout), seeds[0], float(unpack_dropout), seeds[1])
    counts = None if counted is None else counted.steps.to(torch.int32).contiguous()
    out, sums = _CausalLuna.apply(query, key, None if tied else value, weights, start, counts, mask, dropout, rates)
    if state is None or counted is None:
        return out, None
    key_sum = sums[0]
    return out, causal.CausalState(key_sum, key_sum if tied else sums[1], counted.last)


class _PackWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, context: Tensor, packed: Tensor, softplus: bool) -> Tensor:
        ctx.context_shape, ctx.softplus = context.shape, softplus
        batch, heads, length, dim = context.shape
        rows, c = packed.size(2), config(context.dtype)
        context, packed = _rows(context), _rows(packed)
        weights = context.new_empty(batch, heads, length, rows, dtype=torch.float32)
        chunks = -(-length // c.chunk)
        with _on_device(context):
            kernels.pack_weights[(batch * heads * chunks,)](
                context, packed, weights, *context.stride()[:3], *packed.stride()[:3],
                heads, length, rows, dim, chunks, int(softplus), **c.launch("OP"),
            )  # fmt: skip
        ctx.save_for_backward(context, packed, weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("second derivatives of the pack weights need their torch form: set LUNA_KERNELS=torch")
        context, packed, weights = ctx.saved_tensors
        batch, heads, length, dim = context.shape
        rows, c = packed.size(2), config(context.dtype)
        grad, d_context = _rows(grad), _empty_like_heads(context)
        chunks = -(-length // c.chunk)
        groups = -(-chunks // _CHUNKS_A_PART)
        parts = context.new_empty(batch, heads, groups, rows, dim, dtype=torch.float32)
        strides = (s for x in (context, packed, grad, d_context) for s in x.stride()[:3])
        with _on_device(context):
            kernels.pack_gradient[(batch * heads * groups,)](
                context, packed, weights, grad, d_context, parts, *strides,
                heads, length, rows, dim, groups, _CHUNKS_A_PART, int(ctx.softplus), **c.launch(),
            )  # fmt: skip
        return d_context, parts.sum(dim=2).to(packed.dtype), None


def causal_pack_weights(context: Tensor, packed_query: Tensor, activation: str) -> Tensor:
    """:func:`luna_fairseq.ops.causal_pack_weights`, for what :func:`fits`."""
    return _PackWeights.apply(context, packed_query, activation == "softplus")
