"""How the causal sums are cut: into chunks of positions, and these into blocks that stay in the caches of a CPU."""

import itertools
from typing import Any, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Operations a position: N (K + L) for one product, c (K + L) + 2 K L in chunks of c. They take equally long near 128.
SINGLE_PRODUCT = 128
# A longer chunk keeps fewer sums, so it is taken where they are large.
_CHUNK, _LONG_CHUNK = 32, 64
_CPU_BLOCK = 2**17  # numbers of keys and values whose copies, products and gradients stay in the caches of a core
_LEAST_CHUNKS = 8  # of a block, where there are as many: between blocks a sum is kept for the backward pass
_GROUP, _LOW_GROUP = 32, 128  # chunks whose sums are added up by one product, elsewhere than on a CPU
# Where products of bfloat16 may have results in float32.
WIDE_PRODUCTS = {"cuda"} if hasattr(torch.ops.aten.bmm, "dtype") and torch.version.hip is None else set()


def on_cpu(x: Tensor) -> bool:
    """Whether a tensor is on a CPU."""
    return x.device.type == "cpu"


def wide_type(x: Tensor) -> torch.dtype:
    """Of sums: float32 or wider."""
    return torch.promote_types(x.dtype, torch.float32)


def operand_type(x: Tensor) -> torch.dtype:
    """Of what is multiplied: the wide type, but bfloat16 for bfloat16 where products have their sums in float32.

    Not for float16, in which products of queries and keys overflow, nor for a compiler, which has casts of its own.
    """
    low = x.dtype == torch.bfloat16 and x.device.type in WIDE_PRODUCTS and not torch.compiler.is_compiling()
    return x.dtype if low else wide_type(x)


def product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """``x @ y`` of ``[n, a, b]`` and ``[n, b, c]``, with its sums in ``dtype``, theirs or a wider one."""
    return torch.bmm(x, y) if x.dtype == dtype else torch.bmm(x, y, out_dtype=dtype)


def add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """Add ``x @ y`` to ``total``, whose type is theirs or a wider one."""
    if x.dtype == total.dtype:
        total.baddbmm_(x, y)
    else:
        torch.baddbmm(total, x, y, out_dtype=total.dtype, out=total)


def chunk_length(head_dim: int, rows: int) -> int:
    """c, the positions of a chunk, for K and L; sequences of up to 128 are not cut."""
    # The sum of a chunk, K x L numbers, should hardly be more than its keys and values.
    return _CHUNK if head_dim * rows <= _CHUNK * (head_dim + rows) else _LONG_CHUNK


def empty_like_heads(x: Tensor) -> Tensor:
    """In the shape of ``x``, ``[B, H, N, E]``, and in memory as ``[B, N, H, E]``."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


def whole_chunks(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> Tuple[Tensor, ...]:
    """All of them filled up with zeros, which add nothing, to a length that the chunk divides."""
    length, tensors = query.size(2), (query, key, value, *others)
    fill = -length % chunk_length(key.size(-1), value.size(-1)) if length > SINGLE_PRODUCT else 0
    return tuple(F.pad(x, (0, 0, 0, fill)) for x in tensors) if fill else tensors


class Blocks:
    """Cuts ``[B, H, N, E]`` views into blocks of chunks, each copied to ``[chunks * sentences * H, c, E]``.

    A block holds a few whole sentences or a few chunks of one: on a CPU as much as stays in its caches, elsewhere
    everything at once.

    Args:
        key, value: two of them.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.batch, self.heads, length, _ = key.shape
        small = length <= SINGLE_PRODUCT
        self.chunk = max(1, length) if small else chunk_length(key.size(-1), value.size(-1))
        self.chunks = length // self.chunk
        self.on_cpu = on_cpu(key)
        size = _CPU_BLOCK // (key.size(-1) + value.size(-1)) if self.on_cpu else self.batch * self.heads * length
        self.sentences = max(1, size // (self.chunks * self.chunk * self.heads)) if self.chunks else 1
        block = max(_LEAST_CHUNKS, size // (self.chunk * self.heads))
        self.starts = range(0, self.batch, self.sentences)
        self.ranges = [range(i, min(i + block, self.chunks)) for i in range(0, self.chunks, block)]

    def cut(self, x: Tensor) -> Tensor:
        """``[B, H or 1, N, E]`` as ``[chunks, B, H or 1, c, E]``, a view: what the others take blocks of."""
        return x.unflatten(2, (self.chunks, self.chunk)).permute(2, 0, 1, 3, 4)

    def view(self, cut: Tensor, start: int, chunks: range) -> Tensor:
        """One block: ``[chunks, sentences, H or 1, c, E]``, a view."""
        part = cut if len(chunks) == self.chunks else cut[chunks.start : chunks.stop]
        return part if self.sentences >= self.batch else part[:, start : start + self.sentences]

    def copies(
        self, *cut: Tensor, start: int, chunks: range, dtype: Optional[torch.dtype] = None
    ) -> Iterator[Tensor]:
        """One block of each, ``[chunks * sentences * H, c, E]``, in ``dtype`` (default: its own)."""
        for x in cut:
            part = self.view(x, start, chunks)
            yield part.to(dtype or x.dtype, memory_format=torch.contiguous_format).flatten(0, 2)

    def put(self, cut: Tensor, x: Tensor, start: int, chunks: range) -> None:
        """Make ``x``, ``[chunks * sentences * H, c, E]``, one block."""
        target = self.view(cut, start, chunks)
        target.copy_(x.view(target.shape))

    def running(
        self,
        pairs: Any,
        chunks: range,
        total: Optional[Tensor],
        backwards: bool,
        left: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        """Sums of ``x^T y``: of all before each chunk (after it, if ``backwards``), and up to the block's end.

        Args:
            pairs: one or several of ``(x, y)``, ``[chunks * sentences * H, c, E]`` and ``[..., c, F]``, which
                are added up.
            chunks: which they are.
            total: ``[sentences * H, E, F]``, the sum before the block; None for 0.
            backwards: the last chunk comes first.
            left: how much is left of a sum behind one more chunk, ``[H, 1, 1]``; None for all of it.

        Returns:
            ``[chunks * sentences * H, E, F]`` and ``[sentences * H, E, F]``, views of one tensor where they are sums.
        """
        x, y = pairs[0]
        count, rows = len(chunks), x.size(0) // len(chunks)
        shape = (rows, x.size(2), y.size(2))
        if not self.on_cpu:
            return self._running_at_once(pairs, count, shape, backwards, left)
        sums = x.new_empty((count + 1, *shape))  # each product goes where what is summed behind it belongs
        own = (sums[:-1] if backwards else sums[1:]).flatten(0, 1)
        torch.bmm(x.mT, y, out=own)
        for x, y in pairs[1:]:
            own.baddbmm_(x.mT, y)
        first = sums[-1 if backwards else 0]
        first.zero_() if total is None else first.copy_(total)
        each = sums.unbind()
        left = None if left is None else left.to(sums.dtype)
        for one, following in itertools.pairwise(each[::-1] if backwards else each):
            if left is None:
                following.add_(one)
            else:
                by_head = -1, left.size(0), *shape[1:]
                following.view(by_head).addcmul_(one.view(by_head), left)
        return (sums[1:] if backwards else sums[:-1]).flatten(0, 1), sums[0 if backwards else -1]

    def _running_at_once(
        self, pairs: Any, count: int, shape: Tuple[int, ...], backwards: bool, left: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """The same of all chunks there are, by products with a triangle of ones: ``cumsum`` is not deterministic."""
        x, y = pairs[0]
        size = min(count, _LOW_GROUP if x.dtype == torch.bfloat16 else _GROUP)
        groups = -(-count // size)
        sums = x.new_empty((groups * size, *shape))
        own = sums[:count].flatten(0, 1)
        torch.bmm(x.mT, y, out=own)
        for x, y in pairs[1:]:
            own.baddbmm_(x.mT, y)
        if groups * size > count:
            sums[count:].zero_()
        if left is not None:
            found = _decayed(sums.view(groups, size, *shape), left, backwards).flatten(0, 1)[:count].flatten(0, 1)
            return found, found[: shape[0]]
        each = sums.view(groups, size, -1)
        found = torch.bmm(_triangle(size, each, backwards).expand(groups, -1, -1), each)
        if groups > 1:
            whole = each.sum(dim=1, dtype=wide_type(each))
            found.add_((_triangle(groups, whole, backwards) @ whole).unsqueeze(1))
        found = found.view(groups * size, *shape)[:count].flatten(0, 1)
        return found, found[: shape[0]]  # nothing follows that would need the total


def _decayed(sums: Tensor, left: Tensor, backwards: bool) -> Tensor:
    """Decayed sums of what comes before each (after it, if ``backwards``).

    Args:
        sums: ``[groups, size, n * H, E, F]``.
        left: how much is left of a sum behind one more, ``[H, 1, 1]``.
    """
    groups, size = sums.shape[:2]
    each = sums.unflatten(2, (-1, left.size(0)))
    powers, wide = left.view(-1, 1, 1), wide_type(sums)

    def triangle(count: int, of_one: Tensor) -> Tensor:
        """``of_one^(i - 1 - j)`` where j comes before i, ``[H, count, count]``."""
        at = torch.arange(count, device=sums.device)
        ahead = (at - at[:, None] if backwards else at[:, None] - at) - 1
        return of_one ** ahead.clamp(min=0) * (ahead >= 0)

    found = torch.einsum("hij,gjnhef->ginhef", triangle(size, powers).to(sums.dtype), each)
    if groups > 1:
        at = torch.arange(size, device=sums.device)
        to_end, from_start = (at, size - 1 - at) if backwards else (size - 1 - at, at)
        whole = torch.einsum("hj,gjnhef->gnhef", powers.view(-1, 1) ** to_end, each.to(wide))
        before = torch.einsum("hij,jnhef->inhef", triangle(groups, powers**size), whole)
        found = found + torch.einsum("hj,gnhef->gjnhef", powers.view(-1, 1) ** from_start, before).to(found.dtype)
    return found.flatten(2, 3)


def _triangle(size: int, like: Tensor, upper: bool) -> Tensor:
    """Ones where a sum takes what is before it, ``[size, size]``."""
    ones = like.new_ones(size, size)
    return ones.triu_(1) if upper else ones.tril_(-1)
