"""Classification heads of the masked-LM model (paper, section 4.3): what each reads the sentence from.

All are fairseq's RoBERTa head (dropout, hidden layer, activation, dropout, projection) behind a summary of
their own. The published names choose among them.
"""

from typing import Any, Dict, Optional, Type

import torch
from fairseq.models.roberta.model import RobertaClassificationHead
from fairseq.modules import LayerNorm, MultiheadAttention
from torch import Tensor, nn


def first_state(features: Tensor, padding_mask: Optional[Tensor]) -> Tensor:
    """The state of each sentence's first token (``<s>``), ``[B, D]``, padded on either side or not at all."""
    if padding_mask is None:
        return features[:, 0]
    first = (~padding_mask).int().argmax(dim=1)
    return features[torch.arange(features.size(0), device=features.device), first]


class FirstTokenHead(RobertaClassificationHead):
    """Classify by the first token's state; the head under every name that is not in :data:`HEADS`.

    Args:
        input_dim: D.
        inner_dim: width of the hidden layer.
        num_classes: number of classes, or of regression targets.
        num_heads: attention heads; read by the attention head alone.
        options: of fairseq's ``RobertaClassificationHead``: activation_fn, pooler_dropout, q_noise,
            qn_block_size, do_spectral_norm.
    """

    reads_packed = False

    def __init__(self, input_dim: int, inner_dim: int, num_classes: int, *, num_heads: int, **options: Any) -> None:
        super().__init__(input_dim, inner_dim, num_classes, **options)

    def summary(
        self, features: Tensor, packed: Tensor, padding_mask: Optional[Tensor], packed_mask: Optional[Tensor]
    ) -> Tensor:
        """One vector a sentence, ``[B, D]``; the arguments are those of :meth:`forward`."""
        return first_state(features, padding_mask)

    def forward(
        self,
        features: Tensor,
        packed: Tensor,
        padding_mask: Optional[Tensor] = None,
        packed_mask: Optional[Tensor] = None,
    ) -> Tensor:
        """Scores of the classes.

        Args:
            features: ``[B, N, D]``.
            packed: P after the last layer, ``[B, L, D]``.
            padding_mask: ``[B, N]`` bool, True = padding, or None when nothing is padded.
            packed_mask: ``[B, L]`` bool, True = not of this sentence, or None.

        Returns:
            ``[B, num_classes]``.
        """
        return super().forward(self.summary(features, packed, padding_mask, packed_mask).unsqueeze(1))


class PoolingHead(FirstTokenHead):
    """Classify by the maximum, channel by channel, over a projection of the packed sequence."""

    reads_packed = True

    def __init__(self, input_dim: int, inner_dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(input_dim, inner_dim, num_classes, **options)
        self.in_proj = nn.Linear(input_dim, input_dim)

    def summary(
        self, features: Tensor, packed: Tensor, padding_mask: Optional[Tensor], packed_mask: Optional[Tensor]
    ) -> Tensor:
        packed = self.in_proj(packed)
        if packed_mask is not None:
            # A sentence without a single row (all padding) keeps all of them, which is finite and read by nobody.
            closed = packed_mask & ~packed_mask.all(dim=1, keepdim=True)
            packed = packed.masked_fill(closed.unsqueeze(-1), float("-inf"))
        return packed.amax(dim=1)


class AttentionHead(FirstTokenHead):
    """Classify by what the first token reads from the packed sequence by attention."""

    reads_packed = True

    def __init__(
        self, input_dim: int, inner_dim: int, num_classes: int, *, num_heads: int, q_noise: float, qn_block_size: int,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            input_dim, inner_dim, num_classes, num_heads=num_heads, q_noise=q_noise, qn_block_size=qn_block_size,
            **options,
        )  # fmt: skip
        self.attn = MultiheadAttention(input_dim, num_heads, q_noise=q_noise, qn_block_size=qn_block_size)
        self.layernorm = LayerNorm(input_dim)

    def summary(
        self, features: Tensor, packed: Tensor, padding_mask: Optional[Tensor], packed_mask: Optional[Tensor]
    ) -> Tensor:
        if packed_mask is not None:  # as in PoolingHead
            packed_mask = packed_mask & ~packed_mask.all(dim=1, keepdim=True)
        packed = packed.transpose(0, 1)
        query = first_state(features, padding_mask).unsqueeze(0)
        x, _ = self.attn(query, packed, packed, key_padding_mask=packed_mask, need_weights=False)
        return self.layernorm(x.squeeze(0))


# Published names; under any other name stands FirstTokenHead.
HEADS: Dict[str, Type[FirstTokenHead]] = {
    "pooling_classification_head": PoolingHead,
    "attention_classification_head": AttentionHead,
}
