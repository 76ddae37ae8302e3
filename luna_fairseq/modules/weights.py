"""Attention weights that are computed where somebody reads them: they are N x M numbers a head."""

from typing import Any, Callable, Iterator, List, Optional

import torch
from torch import Tensor


def luna_weights(unpack: Tensor, pack: Tensor, batch: int) -> Tensor:
    """The effective attention map: the unpack weights times the pack weights.

    With different numbers of heads the pack weights are averaged over theirs first.

    Args:
        unpack: ``[S, H, B / S * N, L]``.
        pack: ``[S, H', L, M]``.
        batch: B.

    Returns:
        ``[H, B, N, M]`` float32, each row a distribution over the context.
    """
    if pack.size(1) != unpack.size(1):
        pack = pack.mean(dim=1, keepdim=True)
    weights = (unpack @ pack).transpose(0, 1)
    length = unpack.size(0) * unpack.size(2) // max(1, batch)
    return weights.reshape(unpack.size(1), batch, length, pack.size(-1))


class LunaWeights:
    """The weights that one call of Luna attention applied, before dropout.

    Args:
        unpack: computes the unpack weights.
        pack: computes the pack weights.
        batch: B.
    """

    def __init__(self, unpack: Callable[[], Tensor], pack: Callable[[], Tensor], batch: int) -> None:
        self._unpack = unpack
        self._pack = pack
        self._batch = batch

    def packed(self) -> Tensor:
        """The pack weights, ``[S, H', L, M]`` float32, each row a distribution over the context."""
        return self._pack()

    def heads(self) -> Tensor:
        """The effective attention map: :func:`luna_weights`."""
        return luna_weights(self._unpack(), self._pack(), self._batch)


class SourceAttention(List[Optional[Tensor]]):
    """The list ``[attn]`` that fairseq's decoders return; ``attn``, ``[B, N, M]``, is computed when it is read.

    A loss or a validation does not read it. Copied or pickled it is a plain list.

    Args:
        weights: of one layer.
        heads: average over the first so many; None for all.
        dtype: of ``attn``.
    """

    def __init__(self, weights: LunaWeights, heads: Optional[int], dtype: torch.dtype) -> None:
        super().__init__([None])
        self.weights = weights
        self._heads = heads
        self._dtype = dtype

    def __getitem__(self, index: Any) -> Any:
        if len(self) == 1 and super().__getitem__(0) is None:
            self[0] = average(self.weights.heads(), self._heads, self._dtype)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Optional[Tensor]]:
        return iter((self[0],))

    def __reduce__(self) -> Any:
        return list, ((self[0],),)


def average(weights: Tensor, heads: Optional[int], dtype: torch.dtype) -> Tensor:
    """``[H, B, N, M]`` averaged over the first ``heads`` heads, or all of them."""
    return weights[:heads].mean(dim=0).to(dtype)
