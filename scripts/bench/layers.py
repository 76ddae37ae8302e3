"""The attention layers that are compared: softmax attention, Luna, and the transcription of its formulas."""

import argparse
from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from luna_fairseq.modules.attention import _join_heads as _join
from luna_fairseq.modules.attention import _split_heads as _heads
from scripts.bench.sizes import DTYPES
from scripts.bench.transcriptions import Transcription


class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention by ``scaled_dot_product_attention``.

    Args:
        causal: each position sees itself and the earlier ones.
        dim: D.
        heads: H.
    """

    def __init__(self, causal: bool, dim: int, heads: int) -> None:
        super().__init__()
        self.causal, self.heads = causal, heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        q, k, v = (_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(_join(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)))


class SelfAttention(nn.Module):
    """Luna self-attention of x and P.

    Args:
        dim: D.
        heads: H.
        position_bias: what the slopes of a position bias start from; 0 for none.
    """

    def __init__(self, dim: int, heads: int, position_bias: float = 0.0) -> None:
        super().__init__()
        self.attention = LunaAttention(dim, heads, position_bias=position_bias)

    def forward(self, x: Tensor, packed: Tensor) -> Tensor:
        """``[B, N, D]`` and ``[B, L, D]`` -> ``[B, N, D]``."""
        return self.attention(x, packed, x)[0]


# Luna with a position bias in the pack step, which is compared with Luna alone.
BIASED = "Luna with bias"


def layers(args: argparse.Namespace, length: int) -> List[Tuple[str, int]]:
    """The layers to compare at one length, with their projection lengths; 0 for softmax attention."""
    found = [("softmax", 0), ("causal softmax", 0)]
    found += [(kind, size) for kind in ("Luna", "causal Luna") for size in args.projection_lengths]
    if length <= args.transcription_up_to:
        found += [("transcription", size) for size in args.projection_lengths if size <= 32]
    return found


def build_layer(kind: str, args: argparse.Namespace) -> nn.Module:
    """One attention layer."""
    torch.manual_seed(1)
    layer: nn.Module
    if kind.endswith("softmax"):
        layer = SoftmaxAttention(kind.startswith("causal"), args.dim, args.heads)
    elif kind in ("Luna", BIASED):
        layer = SelfAttention(args.dim, args.heads, position_bias=1.0 if kind == BIASED else 0.0)
    else:
        layer = (CausalLunaAttention if kind == "causal Luna" else Transcription)(args.dim, args.heads)
    return layer.to(args.device, DTYPES[args.dtype])
