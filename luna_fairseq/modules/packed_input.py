"""The extra sequence P as it enters the first layer."""

from typing import TYPE_CHECKING, Optional, Tuple

import torch
from fairseq.modules import LayerNorm, SinusoidalPositionalEmbedding
from torch import Tensor, nn

from luna_fairseq.modules.dropout import Dropout
from luna_fairseq.ops.tracing import making_a_graph

BERT_STD = 0.02  # BERT initialises everything with N(0, 0.02)


class PackedInput(nn.Module):
    """The learned packed sequence P (paper, section 3.2), cut to what a batch needs.

    Dynamic projection, the default: a batch uses the first ``min(l, longest sentence)`` rows, and for a
    shorter sentence the rows from its own length on are masked. So the result for a sentence does not
    depend on its neighbours in the batch.

    Args:
        length: the projection length l.
        embed_dim: D.
        scale: the factor that token embeddings get too (sqrt(D), or 1).
        positions: add sinusoidal positions, counted from 0.
        layer_norm: normalise after that.
        dropout: probability, after the normalisation.
        fixed_length: use all l rows for every sentence (``--fix-projection-length``).
        module_name: what ``--retain-dropout-modules`` calls the owner of this module.

    Raises:
        ValueError: if ``length`` is below 1.
    """

    if TYPE_CHECKING:  # torch.jit reads annotations, and knows no tensor that may be None
        positions: Optional[Tensor]

    def __init__(
        self,
        length: int,
        embed_dim: int,
        *,
        scale: float = 1.0,
        positions: bool = True,
        layer_norm: bool = False,
        dropout: float = 0.0,
        fixed_length: bool = False,
        module_name: Optional[str] = None,
    ) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"--projection-length is {length}: it must be at least 1")
        self.length = length
        self.scale = scale
        self.fixed_length = fixed_length
        self.embeddings = nn.Parameter(torch.empty(length, embed_dim))
        nn.init.normal_(self.embeddings, mean=0.0, std=embed_dim**-0.5)
        table = SinusoidalPositionalEmbedding.get_embedding(length, embed_dim) if positions else None
        self.register_buffer("positions", table, persistent=False)
        self.layer_norm = LayerNorm(embed_dim) if layer_norm else None
        self.dropout_module = Dropout(dropout, module_name=module_name)

    def init_like_bert(self) -> None:
        """Draw P anew from N(0, 0.02)."""
        nn.init.normal_(self.embeddings, std=BERT_STD)

    def _rows(self, most: int) -> Tensor:
        """The first ``most`` rows, ``[L, D]``, before dropout."""
        p = self.embeddings[:most] * self.scale
        if self.positions is not None:
            p = p + self.positions[:most].to(p)
        return p if self.layer_norm is None else self.layer_norm(p)

    def whole(self) -> Tensor:
        """All rows, once for every sentence of a batch: ``[1, L, D]``.

        How many rows a sentence has must not depend on its length where the end of a text is not known yet.
        """
        return self.dropout_module(self._rows(self.length).unsqueeze(0))

    def forward(self, tokens: Tensor, padding_mask: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """Make P for a batch.

        Args:
            tokens: ``[B, N]``; only its shape is read.
            padding_mask: ``[B, N]`` bool, True = padding, or None when nothing is padded.

        Returns:
            P, ``[B, L, D]``, and its padding mask ``[B, L]`` (True = not of this sentence) or None.
        """
        batch, width = tokens.shape
        # In a graph the mask alone says which rows belong to a sentence.
        whole = self.fixed_length or (padding_mask is not None and making_a_graph())
        p = self._rows(self.length if whole else width)
        rows = p.size(0)
        p = self.dropout_module(p.expand(batch, -1, -1))

        if self.fixed_length or padding_mask is None:
            return p, None
        lengths = (~padding_mask).sum(dim=1, keepdim=True)
        return p, torch.arange(rows, device=tokens.device) >= lengths
