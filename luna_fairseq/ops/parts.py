"""Softmax attention on a GPU where sentences and heads are few: in parts, so that there are enough programs.

A forward kernel of CUDA's has a program for each sentence, head and block of queries, a backward kernel for each
sentence, head and block of keys. So the pack step over one long document has 8 programs forward, on 132
multiprocessors, each of which goes through all words; and the unpack step has 8 backward.

Pack: every part of the keys has programs of its own, and what they find is weighed with the sums of their softmax
(Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023); backward it is torch's own call. Unpack: the queries are cut
into more and shorter sentences of the same keys.
"""

from functools import partial
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq.ops.proving import TOLERANCE, Proofs, mode, off
from luna_fairseq.ops.tracing import being_traced

aten: Any = torch.ops.aten

# Where the kernels are whose sums can be asked for; not AMD's, whose are others'.
DEVICES = {"cuda"} if torch.version.hip is None else set()
_BLOCK = 64  # queries of a program forward, keys backward
_PROGRAMS = 256  # two for each multiprocessor of the largest GPUs
_ALIGNED = 16  # numbers: where rows of a mask may begin
# How far a program gets in the time of a launch, 5 us, where 64 queries and 64 keys take 0.4 us, backward 1 us. On
# paper, and with room. What it is spared must be worth the launches: of a pack step these, and one or two for each
# group of sentences; of an unpack step these, backward and forward, and two for what is filled up.
_KEYS_A_LAUNCH, _PACK_LAUNCHES = 1024, 6
_QUERIES_A_LAUNCH, _UNPACK_LAUNCHES = 512, 6
# A score that is nothing beside any other, and finite: a part may be padding from end to end.
_LEAST = -1e30

_proofs = Proofs("the parts of softmax attention")


class Cut(NamedTuple):
    """How the keys are cut.

    Attributes:
        parts: of as many keys each.
        length: their number; what is left over is a part of its own.
        together: whether the parts of all sentences are one call, as there is nothing left over; else each sentence
            is one.
    """

    parts: int
    length: int
    together: bool


def best_cut(batch: int, heads: int, queries: int, keys: int) -> Optional[Cut]:
    """The cut that pays for its launches, if there is one.

    Args:
        batch, heads: sentences and heads.
        queries, keys: of each.
    """
    blocks = heads * -(-queries // _BLOCK)
    most = _PROGRAMS // max(1, batch * blocks)
    even = next((n for n in range(most, most // 2, -1) if keys % (n * _ALIGNED) == 0), 0)
    if even > 1:
        cut, calls = Cut(even, keys // even, True), 1
    else:
        parts = _PROGRAMS // max(1, blocks)
        if parts < 2:
            return None
        cut, calls = Cut(parts, keys // (parts * _ALIGNED) * _ALIGNED, False), batch
    launches = _PACK_LAUNCHES + calls * (1 if cut.together else 2)
    return cut if keys - calls * cut.length >= _KEYS_A_LAUNCH * launches else None


def best_number(batch: int, heads: int, queries: int, keys: int) -> int:
    """Into how many parts of queries each sentence is best cut for the backward pass; 1 for none.

    Args:
        batch, heads, queries, keys: as of :func:`best_cut`.
    """
    most = _PROGRAMS // max(1, batch * heads * -(-keys // _BLOCK))
    even = next((n for n in range(most, most // 2, -1) if queries % n == 0), 0)
    number = max(1, even or most)
    launches = _UNPACK_LAUNCHES + (0 if even else 2)
    return number if queries - -(-queries // number) >= _QUERIES_A_LAUNCH * launches else 1


def _may_be_cut(query: Tensor) -> bool:
    """Whether this is a GPU that it is for, and nothing speaks against it."""
    return query.device.type in DEVICES and not being_traced() and mode() != "torch"


def cut(query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor]) -> Optional[Cut]:
    """How to cut the keys of a call, or None if it is better left to torch, or is not known to be right in parts.

    Args:
        query: ``[B, H, N, K]``.
        key, value: ``[B, H, M, K]``.
        mask: bool or what is added to scores, ``[1 or B, 1 or H, 1 or N, M]``, or None.
    """
    if not _may_be_cut(query) or not torch.backends.cuda.mem_efficient_sdp_enabled():
        return None
    (batch, heads, queries, dim), dtype = query.shape, query.dtype
    found = best_cut(batch, heads, queries, key.size(2)) if key.size(0) == batch else None
    if found is None or (mask is not None and mask.size(-1) != key.size(2)):
        return None
    if not dtype == key.dtype == value.dtype or dtype not in TOLERANCE or dim % 8:
        return None
    if dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):  # torch's own would be cast
        return None
    compared = partial(compare, query.device, dtype, dim)
    return None if query.is_cuda and _proofs.wrong(query.device, (dtype, dim), compared) else found


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, and finite, for a mask that is True where something may be read, or for such a sum."""
    least = max(_LEAST, torch.finfo(dtype).min)
    if mask.is_floating_point():
        return mask.to(dtype).clamp(min=least)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, least)


def _aligned(added: Tensor) -> Tensor:
    """The same, with rows that begin where the kernels want them."""
    length = added.size(-1)
    return F.pad(added, (0, -length % _ALIGNED))[..., :length] if length % _ALIGNED else added


def _side_by_side(x: Tensor, cut: Cut, dim: int) -> Tensor:
    """The parts of a dimension beside each other in the first one."""
    x = x.narrow(dim, 0, cut.parts * cut.length).unflatten(dim, (cut.parts, cut.length))
    return x.movedim(dim, 1).flatten(0, 1)


def _heads_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, H, N, K]`` in memory as ``[B, N, H, K]``."""
    return x.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, added: Optional[Tensor]) -> Tuple[Tensor, ...]:
    """Output, logarithms of the sums, and two numbers that the backward pass asks for, by CUDA's kernel."""
    if added is not None:
        added = added.expand(-1, query.size(1), query.size(2), -1)
    found: Tuple[Tensor, ...] = aten._scaled_dot_product_efficient_attention(query, key, value, added, True)
    return found


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, added: Optional[Tensor], cut: Cut) -> Tensor:
        batch, _, queries, _ = query.shape
        outs: List[Tensor] = []
        sums: List[Tensor] = []
        for first in (0,) if cut.together else range(batch):
            own = slice(None) if cut.together else slice(first, first + 1)
            q, k = query[own], key[own]
            v = k if value is key else value[own]
            a = None if added is None else added if added.size(0) == 1 else added[own]
            many = q.unsqueeze(1).expand(-1, cut.parts, -1, -1, -1).flatten(0, 1)
            a_parts = None if a is None else _side_by_side(a.expand(q.size(0), -1, -1, -1), cut, 3)
            k_parts = _side_by_side(k, cut, 2)
            v_parts = k_parts if v is k else _side_by_side(v, cut, 2)
            out, total, *random = _attend(many, k_parts, v_parts, a_parts)
            outs.append(out)
            sums.append(total)
            done = cut.parts * cut.length
            if done < key.size(2):
                k_rest = k[:, :, done:]
                v_rest = k_rest if v is k else v[:, :, done:]
                out, total, *random = _attend(q, k_rest, v_rest, None if a is None else a[..., done:])
                outs.append(out)
                sums.append(total)
        found, logs = (x[0] if len(x) == 1 else torch.cat(x) for x in (outs, sums))
        logs = logs[..., :queries].unflatten(0, (batch, -1))
        weights = torch.softmax(logs, dim=1).unsqueeze(-1)
        result = _heads_last((found.unflatten(0, (batch, -1)) * weights).sum(dim=1), query.dtype)
        if any(ctx.needs_input_grad):
            # The kernel wants the sums of 32 queries at a time; those of none are infinite.
            logsumexp = F.pad(logs.logsumexp(dim=1), (0, -queries % 32), value=float("inf"))
            ctx.save_for_backward(query, key, value, added, result, logsumexp, *random)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "attention in parts has no second derivative: run the forward pass in "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
            )
        query, key, value, added, result, logsumexp, *random = ctx.saved_tensors
        shape = (*query.shape[:3], key.size(2))
        whole = None if added is None else added.expand(shape)
        mask = [True, True, True, ctx.needs_input_grad[3]]
        *found, d_added = aten._scaled_dot_product_efficient_attention_backward(
            grad, query, key, value, whole, result, logsumexp, *random, 0.0, mask
        )
        return (*found, d_added.sum_to_size(added.shape) if ctx.needs_input_grad[3] else None, None)


def attention_in_parts(query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor], cut: Cut) -> Tensor:
    """Softmax attention, scaled by ``1 / sqrt(K)``.

    Args:
        query: ``[B, H, N, K]``, float32, bfloat16 or float16.
        key, value: ``[B, H, M, K]``, likewise.
        mask: bool, True = may be attended to, or what is added to scores, in the dtype of ``query``; any shape that
            expands to ``[B, H, N, M]``, and of M keys; or None.
        cut: from :func:`cut`.

    Returns:
        ``[B, H, N, K]``.

    Raises:
        RuntimeError: in the backward pass, for ``create_graph=True``.
    """
    added = None if mask is None else _aligned(_added(mask, query.dtype))
    out: Tensor = _InParts.apply(query, key, value, added, cut)
    return out


def number_of_parts(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Into how many parts of queries a call is best cut: 1, but where a backward pass may follow on a GPU.

    Args:
        query: ``[B, H, N, K]``.
        key, value: ``[B, H, M, K]``.
    """
    if not _may_be_cut(query) or not torch.is_grad_enabled() or key.size(0) != query.size(0):
        return 1
    learned = query.requires_grad or key.requires_grad or value.requires_grad
    batch, heads, queries, _ = query.shape
    return best_number(batch, heads, queries, key.size(2)) if learned else 1


def attention_of_parts(
    query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor], dropout_p: float, number: int
) -> Tensor:
    """Softmax attention of queries that are cut into shorter sentences of the same keys.

    Args:
        query: ``[B, H, N, K]``.
        key, value: ``[B, H, M, K]``.
        mask: as of ``scaled_dot_product_attention``, the same for all queries: ``[1 or B, 1 or H, 1, M]``; or None.
        dropout_p: probability of dropping an attention weight.
        number: of parts of a sentence; what is missing in the last one is filled up.

    Returns:
        ``[B, H, N, K]``.
    """
    batch, _, length, _ = query.shape
    rows = (
        F.pad(query.transpose(1, 2), (0, 0, 0, 0, 0, -length % number)) if length % number else query.transpose(1, 2)
    )
    rows = rows.unflatten(1, (number, -1)).flatten(0, 1).transpose(1, 2)
    key, value = (x.unsqueeze(1).expand(-1, number, -1, -1, -1).flatten(0, 1) for x in (key, value))
    if mask is not None and mask.size(0) > 1:
        mask = mask.repeat_interleave(number, dim=0, output_size=batch * number)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, dropout_p=dropout_p)
    return out.transpose(1, 2).unflatten(0, (batch, number)).flatten(1, 2)[:, :length].transpose(1, 2)


def compare(device: torch.device, dtype: torch.dtype, head_dim: int) -> Optional[str]:
    """Hold the parts to the formula on small random cases: output and every gradient.

    Args:
        device, dtype: of the inputs.
        head_dim: K.

    Returns:
        None if they agree, or what is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    # A sentence at a time, with keys left over, padding and a wholly padded part; at once, with a learned sum.
    for cut, keys in ((Cut(3, 32, False), 103), (Cut(4, 32, True), 128)):
        shapes = [(2, size, 2, head_dim) for size in (5, keys, keys, 5)]
        drawn = [torch.randn(shape, generator=generator).transpose(1, 2).to(device, dtype) for shape in shapes]
        slope = drawn.pop()
        if cut.together:
            drawn.append(torch.randn(2, 2, 5, keys, generator=generator).to(device, dtype))
        mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
        mask[1, ..., 40:] = False
        mask = mask.to(device)
        results: List[List[Tensor]] = []
        for kind in (dtype, torch.float32):
            query, key, value, *learned = inputs = [x.to(kind, copy=True).requires_grad_() for x in drawn]
            if kind is dtype and not results:
                out = attention_in_parts(query, key, value, learned[0] if learned else mask, cut)
            else:
                scores = query @ key.mT * head_dim**-0.5
                scores = scores + learned[0] if learned else scores.masked_fill(~mask, float("-inf"))
                out = torch.softmax(scores, dim=-1) @ value
            results.append([out, *torch.autograd.grad(out, inputs, slope.to(kind))])
        if (error := off(*results)) is not None:
            return f"{dtype}, heads of {head_dim}: off by {error:.1g}"
    return None
