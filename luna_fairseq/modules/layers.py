"""The one encoder layer and the one decoder layer of this package (paper, section 3.2), with and without an encoder.

They keep what fairseq's transformer layers build (feed-forward, norms, dropout, quantisation noise) and
replace the attention, carry P along, and so need a forward of their own. Tensors are batch x time x channel.
"""

from typing import TYPE_CHECKING, Any, List, Optional, Tuple, Union

import torch.nn.functional as F
from fairseq.modules import LayerNorm
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules.attention import CausalLunaAttention, IncrementalState, LunaAttention
from luna_fairseq.modules.dropout import Dropout
from luna_fairseq.modules.packed_input import PackedInput
from luna_fairseq.modules.weights import LunaWeights


def first_slope(cfg: Any, place: str) -> float:
    """What the slopes of a position bias start from; 0 if there is none.

    Args:
        cfg: a ``TransformerConfig`` that also holds Luna's options.
        place: ``encoder`` or ``cross``.
    """
    return cfg.packed_position_bias if getattr(cfg, "packed_position_bias_in", "both") in ("both", place) else 0.0


class _LunaLayerMixin:
    """Steps that both layers share; the modules they use are built by fairseq's layer classes."""

    if TYPE_CHECKING:  # torch.jit reads annotations, and knows no types of modules
        normalize_before: bool
        dropout_module: Dropout
        activation_fn: Any
        activation_dropout_module: Dropout
        fc1: nn.Module
        fc2: nn.Module
        final_layer_norm: nn.Module

    def _own_dropout(self) -> None:
        self.dropout_module = Dropout.like(self.dropout_module)
        self.activation_dropout_module = Dropout.like(self.activation_dropout_module)

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.normalize_before else x

    def _after(self, norm: nn.Module, residual: Tensor, x: Tensor) -> Tensor:
        x = self.dropout_module.add(residual, x)
        return x if self.normalize_before else norm(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        y = self._before(self.final_layer_norm, x)
        relu = self.activation_fn is F.relu
        y = ops.linear(self.fc1, y, relu) if relu else self.activation_fn(ops.linear(self.fc1, y))
        return self._after(self.final_layer_norm, x, ops.linear(self.fc2, self.activation_dropout_module(y)))


class LunaEncoderLayer(_LunaLayerMixin, TransformerEncoderLayerBase):
    """Luna encoder layer: Luna self-attention of x and P, then a feed-forward block on x alone.

    Args:
        cfg: a ``TransformerConfig`` that also holds Luna's options (``luna_fairseq.models._config``).
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._own_dropout()
        self.packed_attn_layer_norm = LayerNorm(self.embed_dim)

    def build_self_attention(self, embed_dim: int, cfg: Any) -> LunaAttention:
        return LunaAttention(
            embed_dim,
            cfg.encoder.attention_heads,
            cfg.encoder.projected_attention_heads,
            dropout=cfg.attention_dropout,
            tie_kv=not cfg.untie_luna_kv,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
            position_bias=first_slope(cfg, "encoder"),
        )

    def packed_parameters(self) -> List[nn.Parameter]:
        """Those that the returned P depends on."""
        pack = [parameter for name, parameter in self.self_attn.named_parameters() if name.startswith("p")]
        return pack + list(self.packed_attn_layer_norm.parameters())

    def forward(
        self,
        x: Tensor,
        packed: Tensor,
        mask: Optional[Tensor] = None,
        packed_mask: Optional[Tensor] = None,
        places: Optional[ops.RowPlaces] = None,
    ) -> Tuple[Tensor, Tensor]:
        """One layer.

        Args:
            x: ``[B, N, D]``.
            packed: P, ``[B, L, D]``.
            mask, packed_mask: from :func:`luna_fairseq.ops.key_mask`, made once per batch, or None.
            places: where P looks, for a position bias; made once per batch likewise, or None.

        Returns:
            x and P for the next layer, in the same shapes.
        """
        query = self._before(self.self_attn_layer_norm, x)
        y, y_packed, _ = self.self_attn(
            query, self._before(self.packed_attn_layer_norm, packed), query, mask, packed_mask, places=places
        )
        x = self._after(self.self_attn_layer_norm, x, y)
        packed = self._after(self.packed_attn_layer_norm, packed, y_packed)
        return self._feed_forward(x), packed


class LunaDecoderLayer(_LunaLayerMixin, TransformerDecoderLayerBase):
    """Luna decoder layer: causal Luna self-attention, Luna cross-attention, feed-forward block.

    Args:
        cfg: a ``TransformerConfig`` that also holds Luna's options (``luna_fairseq.models._config``).
        last: nothing consumes the P that the last layer would return, so it computes none; with norms after
            the blocks it has no norm for it either (a parameter that never gets a gradient stops
            DistributedDataParallel unless it is told to search for such).
        no_encoder_attn: there is no encoder, and no cross-attention that would change P.
    """

    def __init__(self, cfg: Any, last: bool = False, no_encoder_attn: bool = False) -> None:
        super().__init__(cfg, no_encoder_attn)
        self._own_dropout()
        self.last = last
        if not no_encoder_attn and (self.normalize_before or not last):
            self.packed_attn_layer_norm: Optional[nn.Module] = LayerNorm(self.embed_dim)
        else:
            self.packed_attn_layer_norm = None

    def build_self_attention(
        self, embed_dim: int, cfg: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> CausalLunaAttention:
        return CausalLunaAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            dropout=cfg.attention_dropout,
            tie_kv=not cfg.untie_luna_kv,
            activation=cfg.causal_activation,
            decay=cfg.causal_decay,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
        )

    def build_encoder_attention(self, embed_dim: int, cfg: Any) -> LunaAttention:
        return LunaAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            cfg.decoder.projected_attention_heads,
            context_dim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            tie_kv=not cfg.untie_luna_kv,
            q_noise=self.quant_noise,
            qn_block_size=self.quant_noise_block_size,
            position_bias=first_slope(cfg, "cross"),
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        # Published checkpoints hold the norm that never had a gradient, and a pruned decoder
        # (--decoder-layers-to-keep) makes an inner layer the last one.
        if self.packed_attn_layer_norm is None:
            for name in ("weight", "bias"):
                state_dict.pop(f"{prefix}packed_attn_layer_norm.{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(
        self,
        x: Tensor,
        packed: Optional[Tensor],
        encoder_out: Optional[Tensor],
        encoder_mask: Optional[Tensor] = None,
        packed_mask: Optional[Tensor] = None,
        padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[IncrementalState] = None,
        need_attn: bool = False,
        attn_later: bool = False,
        places: Optional[ops.RowPlaces] = None,
        steps: Optional[ops.Steps] = None,
    ) -> Tuple[Tensor, Optional[Tensor], Union[Tensor, LunaWeights, None]]:
        """One layer.

        Args:
            x: ``[B, N, D]``.
            packed: P, ``[S, L, D]``; may be None after the first decoding step. In a beam search S sentences
                have B / S consecutive rows each; everywhere else S = B.
            encoder_out: ``[S, M, D]``; likewise.
            encoder_mask, packed_mask: from :func:`luna_fairseq.ops.key_mask`, or None.
            padding_mask: ``[B, N]`` bool, True = padding among the targets, or None.
            incremental_state: fairseq's decoding state, or None.
            need_attn: return the attention over the source.
            attn_later: return what computes it when it is wanted; not with an ``incremental_state``.
            places: where P looks in the source, for a position bias; or None.
            steps: the positions of the target, counted for all layers; of the same ``padding_mask``. Or None.

        Returns:
            x; P for the next layer (None in the last layer and after the first decoding step); and, if asked for,
            the attention, ``[H, B, N, M]``, or what computes it.
        """
        query = self._before(self.self_attn_layer_norm, x)
        y = self.self_attn(query, packed, packed_mask, padding_mask, incremental_state, None, steps)
        x = self._after(self.self_attn_layer_norm, x, y)

        packed_in = packed
        if packed is not None and self.packed_attn_layer_norm is not None:
            packed_in = self._before(self.packed_attn_layer_norm, packed)
        y, y_packed, attn = self.encoder_attn(
            self._before(self.encoder_attn_layer_norm, x),
            packed_in,
            encoder_out,
            encoder_mask,
            packed_mask,
            incremental_state,
            need_attn,
            attn_later,
            places,
        )
        x = self._after(self.encoder_attn_layer_norm, x, y)
        if self.last or y_packed is None:
            packed = None
        else:
            assert packed is not None and self.packed_attn_layer_norm is not None
            packed = self._after(self.packed_attn_layer_norm, packed, y_packed)
        return self._feed_forward(x), packed, attn


class LunaLanguageModelLayer(LunaDecoderLayer):
    """A decoder layer without an encoder: causal Luna self-attention, feed-forward block.

    Args:
        cfg: a ``TransformerConfig`` that also holds Luna's options (``luna_fairseq.models._config``).
        packed_input: a P of its own, or None if one is given with every call.
    """

    def __init__(self, cfg: Any, packed_input: Optional[PackedInput] = None) -> None:
        super().__init__(cfg, last=True, no_encoder_attn=True)
        self.packed_input = packed_input

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        packed: Optional[Tensor] = None,
        padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[IncrementalState] = None,
        carried: Optional[ops.CausalState] = None,
        steps: Optional[ops.Steps] = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: ``[B, N, D]``.
            packed: P, ``[1, L, D]``, if the layer has none of its own; may be None after the first decoding step.
            padding_mask: ``[B, N]`` bool, True = padding, or None.
            incremental_state: fairseq's decoding state, or None.
            carried: what earlier positions have left in this layer, to begin an empty ``incremental_state`` with.
            steps: the positions, counted for all layers; of the same ``padding_mask``. Or None.

        Returns:
            ``[B, N, D]``.
        """
        if self.packed_input is not None and self.self_attn.state(incremental_state) is None:
            packed = self.packed_input.whole()
        query = self._before(self.self_attn_layer_norm, x)
        y = self.self_attn(query, packed, None, padding_mask, incremental_state, carried, steps)
        return self._feed_forward(self._after(self.self_attn_layer_norm, x, y))
