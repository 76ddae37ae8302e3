"""The Luna translation model: ``--arch luna``, ``luna_base``, ``luna_base_tied``, ``luna_base_untied``."""

import copy
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer import TransformerModelBase
from fairseq.modules import LayerNorm
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.checkpoint import check_position_bias, check_tied_kv, fit_for_fine_tuning, translate_published_names
from luna_fairseq.models._config import (
    LunaConfig,
    add_options,
    check_config,
    is_fine_tuned,
    namespace,
    nested_config,
    register_architectures,
)
from luna_fairseq.models._decoding_graph import GraphedSteps
from luna_fairseq.models._inference import InferenceDecoder, InferenceEncoder
from luna_fairseq.modules import (
    CausalLunaAttention,
    Dropout,
    LunaAttention,
    LunaDecoderLayer,
    LunaEncoderLayer,
    PackedInput,
    WordDropout,
)
from luna_fairseq.modules.attention import IncrementalState
from luna_fairseq.modules.layers import first_slope
from luna_fairseq.modules.padding import may_be_true
from luna_fairseq.modules.positions import check_learned, positions_from
from luna_fairseq.modules.weights import LunaWeights, SourceAttention, average


def wrap_layer(layer: nn.Module, cfg: Any) -> nn.Module:
    """Activation checkpointing and FSDP around a layer, as fairseq's transformer does."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


class LunaEncoder(InferenceEncoder):
    """fairseq's transformer encoder with Luna layers, which also carry the packed sequence P.

    Args:
        cfg: nested config (:func:`luna_fairseq.models._config.nested_config`).
        dictionary: source dictionary.
        embed_tokens: source embeddings.
    """

    if TYPE_CHECKING:  # torch.jit reads annotations, and knows no types of modules
        dropout_module: Dropout

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        self.dropout_module = Dropout.like(self.dropout_module)
        embed_dim = embed_tokens.embedding_dim
        self.word_dropout = WordDropout(cfg.word_dropout)
        self.packed_input = PackedInput(
            cfg.projection_length,
            embed_dim,
            scale=self.embed_scale,
            positions=not (cfg.no_token_positional_embeddings or cfg.encoder.learned_pos),
            layer_norm=cfg.layernorm_embedding,
            dropout=cfg.dropout,
            fixed_length=cfg.fix_projection_length,
            module_name=self.__class__.__name__,
        )
        self.packed_layer_norm = LayerNorm(embed_dim) if cfg.encoder.normalize_before else None
        self._placed_heads = cfg.encoder.projected_attention_heads if first_slope(cfg, "encoder") else 0

    def build_encoder_layer(self, cfg: Any) -> nn.Module:
        return wrap_layer(LunaEncoderLayer(cfg), cfg)

    def last_packed_norm(self) -> nn.Module:
        """The norm that P passes last; it matters only to what reads P after the last layer."""
        return self.layers[-1].packed_attn_layer_norm if self.packed_layer_norm is None else self.packed_layer_norm

    def forward_embedding(
        self, src_tokens: Tensor, token_embedding: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor]:
        if token_embedding is None:
            token_embedding = self.embed_tokens(src_tokens)
        return super().forward_embedding(src_tokens, self.word_dropout(token_embedding))

    def forward_scriptable(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
        token_embeddings: Optional[Tensor] = None,
    ) -> Dict[str, List[Tensor]]:
        """Encode a batch.

        Args:
            src_tokens: ``[B, M]`` int64, padded on either side.
            src_lengths: not read; lengths follow from the padding.
            return_all_hiddens: also return the input of the first layer and the output of each.
            token_embeddings: ``[B, M, D]`` to use instead of a look-up.

        Returns:
            fairseq's dictionary of lists, with ``packed_out`` (P, ``[B, L, D]``) and
            ``packed_padding_mask`` (``[B, L]``, True = not of this sentence; empty when nothing is known to be
            padded). What has to be masked in the source says :func:`source_padding`.
        """
        is_padding = src_tokens.eq(self.padding_idx)
        padding_mask = is_padding if may_be_true(is_padding) else None

        x, encoder_embedding = self.forward_embedding(src_tokens, token_embeddings)
        packed, packed_padding_mask = self.packed_input(src_tokens, padding_mask)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)

        mask, packed_mask = ops.key_mask(padding_mask), ops.key_mask(packed_padding_mask)
        places: Optional[ops.RowPlaces] = None
        if self._placed_heads:
            places = ops.row_places(packed.size(1), self._placed_heads, x, mask, packed_mask)
        encoder_states = [x.transpose(0, 1)] if return_all_hiddens else []
        for layer in self.layers:
            x, packed = layer(x, packed, mask, packed_mask, places)
            if return_all_hiddens:
                encoder_states.append(x.transpose(0, 1))
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.packed_layer_norm is not None:
            packed = self.packed_layer_norm(packed)

        fc_results: List[Any] = [None] * (len(encoder_states) - 1)  # of fairseq's layers, if they are asked for
        return {
            "encoder_out": [x.transpose(0, 1)],
            "encoder_padding_mask": [is_padding],
            "encoder_embedding": [encoder_embedding],
            "encoder_states": encoder_states,
            "fc_results": fc_results,
            "packed_out": [packed],
            "packed_padding_mask": [] if packed_padding_mask is None else [packed_padding_mask],
            "src_tokens": [],
            "src_lengths": [(~is_padding).sum(dim=1, keepdim=True, dtype=torch.int32)],
            "all_real": [is_padding] if padding_mask is None else [],
            "rows_per_sentence": [],
        }

    def reorder_encoder_out(self, encoder_out: Dict[str, List[Tensor]], new_order: Tensor) -> Dict[str, List[Tensor]]:
        """Make row i what row ``new_order[i]`` was (``[B']`` int64).

        In a beam search sentences are kept once for all of their rows, and ``rows_per_sentence`` holds how many
        rows each has (an integer).
        """
        before, count = _rows_per_sentence(encoder_out), encoder_out["packed_out"][0].size(0)
        sentences, rows_per_sentence = ops.row_order(new_order).sentences(count, before)
        reordered = dict(encoder_out)
        if sentences is not None:
            own = {**encoder_out, "encoder_states": [*encoder_out["encoder_states"]]}  # fairseq changes the list
            reordered = super().reorder_encoder_out(own, sentences)
            for name in ("packed_out", "packed_padding_mask"):
                reordered[name] = [t.index_select(0, sentences) for t in encoder_out[name]]
            reordered["fc_results"] = encoder_out.get("fc_results", [])
            real = source_padding(encoder_out) is None
            reordered["all_real"] = [*reordered["encoder_padding_mask"]] if real else []
        reordered["rows_per_sentence"] = [rows_per_sentence]  # type: ignore[list-item]
        return reordered


def source_padding(encoder_out: Dict[str, List[Tensor]]) -> Optional[Tensor]:
    """The padding mask of the source, ``[B, M]``, or None if nothing is known to be padded.

    fairseq's ``encoder_padding_mask`` is always there. Whether it has to be applied cannot be seen without waiting
    for a GPU; ``all_real`` holds the mask once more if the encoder has looked and found nothing in it.
    """
    mask = encoder_out["encoder_padding_mask"][0] if encoder_out["encoder_padding_mask"] else None
    return None if any(mask is known for known in encoder_out.get("all_real", [])) else mask


def _rows_per_sentence(encoder_out: Dict[str, List[Any]]) -> int:
    return encoder_out["rows_per_sentence"][0] if encoder_out.get("rows_per_sentence") else 1


class LunaDecoder(GraphedSteps, InferenceDecoder):
    """fairseq's transformer decoder with Luna layers, which go on with the encoder's packed sequence.

    Args:
        cfg: nested config (:func:`luna_fairseq.models._config.nested_config`).
        dictionary: target dictionary.
        embed_tokens: target embeddings.
        no_encoder_attn: must be False.
        output_projection: to use instead of a new or tied one.
    """

    if TYPE_CHECKING:
        dropout_module: Dropout

    def __init__(
        self,
        cfg: Any,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        no_encoder_attn: bool = False,
        output_projection: Optional[nn.Module] = None,
    ) -> None:
        self._layers_to_build = cfg.decoder.layers
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn, output_projection)
        self.dropout_module = Dropout.like(self.dropout_module)
        self.word_dropout = WordDropout(cfg.word_dropout)
        self.need_attn = False
        self._placed_heads = cfg.decoder.projected_attention_heads if first_slope(cfg, "cross") else 0

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        self._layers_to_build -= 1
        return wrap_layer(LunaDecoderLayer(cfg, last=self._layers_to_build == 0), cfg)

    def make_generation_fast_(self, need_attn: bool = False, **unused: Any) -> None:
        """Called by fairseq before generation: steps compute the attention, M numbers a head, only to be printed."""
        self.need_attn = need_attn

    def _embed(self, tokens: Tensor, new: int, start: Optional[Tensor] = None, in_table: bool = False) -> Tensor:
        """The last ``new`` of ``tokens`` as input of the first layer, ``[B, new, D]``.

        Positions are counted from all tokens, so left padding and several new tokens are right too. Where ``tokens``
        are not all, ``start``, ``[B]`` int64, says how many real ones of each row were before; ``in_table`` if the
        table of positions is known to have them.
        """
        x = self.embed_scale * self.word_dropout(self.embed_tokens(tokens[:, -new:].contiguous()))
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if self.embed_positions is not None:
            x = x + self._positions(tokens, new, start, in_table)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x)

    def _positions(self, tokens: Tensor, new: int, start: Optional[Tensor], in_table: bool) -> Tensor:
        """The position embeddings of the last ``new`` tokens, without making those of the others."""
        embed = self.embed_positions
        if start is not None:
            return positions_from(embed, tokens[:, -new:], start, self.padding_idx, in_table)
        check_learned(embed, tokens, self.padding_idx)
        if new == tokens.size(1):
            return embed(tokens)
        real = tokens.ne(self.padding_idx)  # fairseq's make_positions, in half as many passes
        index = real.cumsum(dim=1)[:, -new:] * real[:, -new:] + self.padding_idx
        if isinstance(embed, nn.Embedding):
            return nn.functional.embedding(index, embed.weight)
        if embed.weights.size(0) < self.padding_idx + 1 + tokens.size(1):
            embed(tokens[:1])  # grows the table
        return embed.weights[index]

    def extract_features_scriptable(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, List[Tensor]]],
        incremental_state: Optional[IncrementalState] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ) -> Tuple[Tensor, Dict[str, List[Optional[Tensor]]]]:
        """Features of the target positions.

        Args:
            prev_output_tokens: ``[B, N]`` int64, padded on either side. With an ``incremental_state`` all
                tokens so far; those that earlier calls have not seen are computed.
            encoder_out: from :meth:`LunaEncoder.forward`.
            incremental_state: fairseq's decoding state, or None.
            full_context_alignment: must be False: causal Luna attention has no other form.
            alignment_layer: return the attention of this layer (default: of the last one).
            alignment_heads: average the attention over the first so many heads (default: all).

        Returns:
            ``[B, N', D]`` for the new positions; and fairseq's dictionary of ``inner_states`` and ``attn``, the
            attention over the source ``[B, N', M]``. It is computed when it is read. In two cases nothing is kept to
            compute it from, in decoding and in training with ``--checkpoint-activations``; there it is None unless
            ``need_attn`` is set or an ``alignment_layer`` given.

        Raises:
            ValueError: for ``full_context_alignment``, tokens that were all seen before, or not as many targets as
                sources.
        """
        if full_context_alignment:
            raise ValueError("--full-context-alignment is not available: the Luna decoder is causal; leave it out")
        if encoder_out is None:
            raise ValueError("the Luna decoder needs encoder_out: its packed sequence comes from the encoder")
        lost = incremental_state is not None or (self.training and self.cfg.checkpoint_activations)
        need_attn = self.need_attn or (alignment_layer is not None and lost)
        if alignment_layer is None:
            alignment_layer = self.num_layers - 1

        new = self._new(prev_output_tokens, incremental_state)
        seen = prev_output_tokens.size(1) - new
        padding_mask, steps = self._count(prev_output_tokens[:, -new:], incremental_state, prev_output_tokens.size(1))
        x = self._embed(prev_output_tokens, new)

        encoder_hidden, packed, packed_padding = (
            encoder_out[name][0] if encoder_out[name] else None
            for name in ("encoder_out", "packed_out", "packed_padding_mask")
        )
        if encoder_hidden is not None:
            encoder_hidden = encoder_hidden.transpose(0, 1)
            rows = encoder_hidden.size(0) * _rows_per_sentence(encoder_out)
            if rows != x.size(0):
                raise ValueError(f"{x.size(0)} targets for {rows} sources: give every source its target")
        encoder_mask = packed_mask = None
        if not seen:  # layers keep them
            encoder_mask, packed_mask = ops.key_mask(source_padding(encoder_out)), ops.key_mask(packed_padding)
        places: Optional[ops.RowPlaces] = None
        if self._placed_heads and not seen:  # P packs the source at the first step alone
            assert packed is not None and encoder_hidden is not None
            places = ops.row_places(packed.size(1), self._placed_heads, encoder_hidden, encoder_mask, packed_mask)

        attn: List[Optional[Tensor]] = [None]
        inner_states: List[Optional[Tensor]] = [x.transpose(0, 1)]
        for index, layer in enumerate(self.layers):
            x, packed, layer_attn = layer(
                x,
                packed,
                encoder_hidden,
                encoder_mask,
                packed_mask,
                padding_mask,
                incremental_state,
                need_attn and index == alignment_layer,
                not (need_attn or lost) and index == alignment_layer,
                places,
                steps,
            )
            inner_states.append(x.transpose(0, 1))
            if isinstance(layer_attn, LunaWeights):
                attn = SourceAttention(layer_attn, alignment_heads, x.dtype)
            elif layer_attn is not None:
                attn = [average(layer_attn, alignment_heads, x.dtype)]
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.project_out_dim is not None:
            x = self.project_out_dim(x)
        return x, {"attn": attn, "inner_states": inner_states}

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Make row i of the decoding state what row ``new_order[i]`` was (``[B']`` int64); changed in place."""
        order = ops.row_order(new_order)  # looked at once for all layers, and the encoder
        selected: ops.Selected = {}  # layers share what was counted
        for module in self.modules():
            if isinstance(module, LunaAttention | CausalLunaAttention):
                module.reorder_incremental_state(incremental_state, order, selected)

    def _new(self, tokens: Tensor, incremental_state: Optional[IncrementalState]) -> int:
        """How many of ``tokens``, ``[B, N]``, a decoding state has not seen."""
        seen = 0 if incremental_state is None else self._seen(incremental_state)
        if seen and tokens.size(1) <= seen:
            raise ValueError(f"all {seen} tokens were seen before: append the new ones to them")
        return tokens.size(1) - seen

    def _count(
        self, tokens: Tensor, incremental_state: Optional[IncrementalState], now: int
    ) -> Tuple[Optional[Tensor], ops.Steps]:
        """What of the new tokens is padding that may be seen, and their count; remember that ``now`` were decoded."""
        is_padding = tokens.eq(self.padding_idx)
        if incremental_state is None:
            # In training and scoring, padding that nothing real comes after cannot be seen by anything real.
            in_the_way = may_be_true(is_padding[:, :-1] & ~is_padding[:, 1:])
        else:  # what is kept must be rid of it
            in_the_way = may_be_true(is_padding)
            self.set_incremental_state(incremental_state, "seen", {"length": now})
        padding_mask = is_padding if in_the_way else None
        return padding_mask, self._steps(tokens, padding_mask)

    def _steps(self, tokens: Tensor, padding_mask: Optional[Tensor]) -> ops.Steps:
        """The new tokens, ``[B, N]``, counted for all layers."""
        weights: Any = next(self.parameters())
        dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
        return ops.Steps(tokens.size(0), tokens.size(1), padding_mask, tokens.device, dtype)


class LunaModel(TransformerModelBase):
    """Luna for translation (paper, sections 3 and 4.2).

    ``LunaModel.from_pretrained(folder, checkpoint_file=..., bpe="sentencepiece", sentencepiece_model=...)``
    gives fairseq's hub interface with ``.translate(...)``.
    """

    is_fine_tuned = False  # from a checkpoint of another task

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_options(parser, LunaConfig)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LunaModel":
        options = namespace(cfg, task)
        check_config(options)
        model = super().build_model(nested_config(options), task)
        model.is_fine_tuned = is_fine_tuned(cfg)
        return model

    @classmethod
    def build_encoder(cls, cfg: Any, src_dict: Any, embed_tokens: nn.Embedding) -> LunaEncoder:
        return LunaEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg: Any, tgt_dict: Any, embed_tokens: nn.Embedding) -> LunaDecoder:
        return LunaDecoder(cfg, tgt_dict, embed_tokens)

    def with_attention(self, need_attn: bool) -> "LunaModel":
        """The same model, of the same weights, whose decoding steps compute the attention over the source, or do not.

        The model itself stays as it is: somebody else may use it at the same time.
        """
        if self.decoder.need_attn == need_attn:
            return self
        model, decoder = copy.copy(self), copy.copy(self.decoder)
        decoder.need_attn = need_attn
        model._modules = {**self._modules, "decoder": decoder}
        return model

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        translate_published_names(state_dict)
        check_tied_kv(state_dict, self)
        check_position_bias(state_dict, self)
        if self.is_fine_tuned:
            prefix = f"{name}." if name else ""
            sides = {f"{prefix}encoder.": self.encoder.dictionary, f"{prefix}decoder.": self.decoder.dictionary}
            fit_for_fine_tuning(state_dict, self.state_dict(prefix=prefix), sides)
        super().upgrade_state_dict_named(state_dict, name)


register_architectures(
    LunaModel,
    LunaConfig,
    {
        "luna": {},
        "luna_base": {},
        "luna_base_tied": {},
        "luna_base_untied": dict(untie_luna_kv=True),
    },
)
