"""The formulas of the paper as they are written, which Luna is held to and compared with."""

import math
from typing import Any, Optional

import torch
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from luna_fairseq.modules.attention import _join_heads as _join
from luna_fairseq.modules.attention import _split_heads as _heads


def transcribed_causal(layer: CausalLunaAttention, x: Tensor, packed: Tensor, block: Optional[int] = None) -> Tensor:
    """Causal Luna attention (paper, section 3.3) with the sums of every position side by side, as published.

    Args:
        layer: whose projections to take.
        x: ``[B, N, D]``.
        packed: P, ``[B, L, D]``.
        block: take so many positions at a time; None for all, as the published code does.
    """
    heads = layer.num_heads
    scale = layer.head_dim**-0.5
    query = _heads(layer.q_proj(x), heads) * scale
    key = value = _heads(layer.c_proj(x), heads) if layer.tie_kv else _heads(layer.k_proj(x), heads)
    if not layer.tie_kv:
        value = _heads(layer.v_proj(x), heads)
    scores = _heads(layer.pc_proj(x), heads) @ (_heads(layer.pq_proj(packed), heads) * scale).mT
    weights = ops.CAUSAL_ACTIVATIONS[layer.activation](scores)
    steps = torch.arange(1, x.size(1) + 1, device=x.device, dtype=x.dtype)[:, None]
    key_sum: Any = 0.0
    value_sum: Any = 0.0
    outs = []
    for part in torch.arange(x.size(1), device=x.device).split(block or x.size(1)):
        key_sums = key_sum + (key[:, :, part, :, None] * weights[:, :, part, None, :]).cumsum(dim=2)
        unpack = torch.softmax(torch.einsum("bhnk,bhnkl->bhnl", query[:, :, part], key_sums) / steps[part], dim=-1)
        value_sums = value_sum + (weights[:, :, part, :, None] * value[:, :, part, None, :]).cumsum(dim=2)
        outs.append(torch.einsum("bhnl,bhnlk->bhnk", unpack, value_sums) / steps[part])
        if block:
            key_sum, value_sum = key_sums[:, :, -1:], value_sums[:, :, -1:]
    return layer.out_proj(_join(torch.cat(outs, dim=2)))


def position_bias(slope: Tensor, rows: int, words: int) -> Tensor:
    """The bias of a pack step as its formula is written (luna_fairseq/ops/position_bias.py), ``[H, L, M]``."""
    heads = slope.numel()
    head, row, word = (torch.arange(n, device=slope.device, dtype=slope.dtype) for n in (heads, rows, words))
    centre = (row[:, None] + (head[:, None, None] + 0.5) / heads) * (words / rows) - 0.5
    return -slope[:, None, None] * ((word - centre) / max(1.0, words / rows / heads)) ** 2


def transcribed(layer: LunaAttention, x: Tensor, packed: Tensor, context: Tensor) -> Tensor:
    """Luna attention (paper, section 3.1) of sentences without padding, with its weights as they are written."""

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Any = 0.0) -> Tensor:
        return torch.softmax(query @ key.mT / math.sqrt(query.size(-1)) + bias, dim=-1) @ value

    heads, packed_heads, slope = layer.num_heads, layer.num_packed_heads, layer.position_slope
    pk, pv, k, v = (
        (layer.pc_proj, layer.pc_proj, layer.c_proj, layer.c_proj)
        if layer.tie_kv
        else (layer.pk_proj, layer.pv_proj, layer.k_proj, layer.v_proj)
    )
    y = _join(
        attend(
            _heads(layer.pq_proj(packed), packed_heads),
            _heads(pk(context), packed_heads),
            _heads(pv(context), packed_heads),
            0.0 if slope is None else position_bias(slope, packed.size(1), context.size(1)),
        )
    )
    return layer.out_proj(_join(attend(_heads(layer.q_proj(x), heads), _heads(k(y), heads), _heads(v(y), heads))))


class Transcription(CausalLunaAttention):
    """Causal Luna attention computed as the published code does."""

    def forward(self, query: Tensor, packed: Tensor) -> Tensor:  # type: ignore[override]
        """``[B, N, D]`` and ``[B, L, D]`` -> ``[B, N, D]``."""
        return transcribed_causal(self, query, packed)
