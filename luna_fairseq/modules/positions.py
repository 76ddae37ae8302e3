"""Positions of tokens that others came before, however many: none of a table that grows."""

import math
from typing import Any, Optional

import torch
from fairseq.utils import make_positions
from torch import Tensor, nn

from luna_fairseq.ops.tracing import making_a_graph


def sinusoids(index: Tensor, embed_dim: int) -> Tensor:
    """Sinusoidal embeddings, as fairseq's, of any positions, without its table of all up to the last.

    Args:
        index: of the positions, any shape, int64.
        embed_dim: D.

    Returns:
        the shape of ``index`` and D, float32.
    """
    half = embed_dim // 2
    rate = math.log(10000.0) / max(1, half - 1)
    rates = torch.exp(torch.arange(half, dtype=torch.float, device=index.device) * -rate)
    angles = index.float().unsqueeze(-1) * rates
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, embed_dim % 2))


def learned_positions(embed: Any) -> Optional[int]:
    """How many positions a table of learned ones has; None for positions that are computed, or of none at all."""
    return embed.num_embeddings - (embed.padding_idx or 0) - 1 if isinstance(embed, nn.Embedding) else None


def check_learned(embed: Any, tokens: Tensor, padding_idx: int) -> None:
    """Raise ValueError for texts that are longer than a table of learned positions, where there is one.

    Args:
        embed: fairseq's learned or sinusoidal positions.
        tokens: ``[B, N]`` int64, whole texts.
        padding_idx: of the dictionary; padding has no position.
    """
    known = None if making_a_graph() else learned_positions(embed)
    if known is None or tokens.size(1) <= known:
        return
    longest = int(tokens.ne(padding_idx).sum(dim=1).max())
    if longest > known:
        raise ValueError(
            f"a text has {longest} tokens and the model {known} learned positions: give shorter ones (to a model of "
            "--lm-path by --max-len-b), or take a model without --decoder-learned-pos"
        )


def positions_from(embed: Any, tokens: Tensor, start: Tensor, padding_idx: int, in_table: bool = False) -> Tensor:
    """The position embeddings of tokens that follow others.

    Args:
        embed: fairseq's learned or sinusoidal positions.
        tokens: ``[B, N]`` int64, the new ones.
        start: ``[B]`` int64, how many real tokens each row has had before.
        padding_idx: of the dictionary; padding has no position.
        in_table: the table has them all, which nobody has to look for.

    Returns:
        ``[B, N, D]``.

    Raises:
        ValueError: for a position behind the last of a learned table.
    """
    index = make_positions(tokens, padding_idx)
    real = index.ne(padding_idx)
    index = torch.where(real, index + start.unsqueeze(1), index)
    if in_table:
        return nn.functional.embedding(index, embed.weight if isinstance(embed, nn.Embedding) else embed.weights)
    if isinstance(embed, nn.Embedding):
        last = -1 if making_a_graph() else int(index.max()) - padding_idx
        if last > (learned_positions(embed) or 0):
            raise ValueError(
                f"the text has {last} tokens and the model {learned_positions(embed)} learned "
                "positions: take a model without --decoder-learned-pos, or --carry-state --carry-positions restart "
                '(from Python, from_pretrained(..., carry_state=True, carry_positions="restart"))'
            )
        return nn.functional.embedding(index, embed.weight)
    return sinusoids(index, embed.embedding_dim).masked_fill(~real.unsqueeze(-1), 0.0).to(embed.weights)
