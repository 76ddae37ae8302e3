"""The decoder-only language model: ``--arch luna_lm``, ``luna_lm_small``, ``luna_lm_gpt``.

The paper's causal attention (section 3.3) in a decoder without an encoder. There P comes from the encoder; here it is
learned, one for each layer or one for all.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from fairseq import options
from fairseq.models import FairseqLanguageModel
from fairseq.models.transformer import Embedding
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from fairseq.modules import AdaptiveInput, CharacterTokenEmbedder
from omegaconf import II
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.checkpoint import check_shapes, check_tied_kv
from luna_fairseq.errors import CheckpointMismatch
from luna_fairseq.models._config import (
    CarryOptions,
    CausalOptions,
    PackedOptions,
    add_options,
    check_at_least,
    check_refused,
    check_stack,
    namespace,
    nested_config,
    register_architectures,
    task_option,
)
from luna_fairseq.models._hub import StrPath, load_for_hub
from luna_fairseq.models._lm_hub import LunaLanguageModelHub
from luna_fairseq.models.luna import LunaDecoder, wrap_layer
from luna_fairseq.modules import CausalLunaAttention, LunaLanguageModelLayer, PackedInput
from luna_fairseq.modules.attention import IncrementalState
from luna_fairseq.modules.carried import CARRY_OPTIONS, Carry, check_carried, faded


@dataclass
class LunaLanguageModelConfig(CarryOptions, CausalOptions, PackedOptions, TransformerLanguageModelConfig):
    """Every option of fairseq's ``transformer_lm``, and Luna's own; the defaults are those of ``luna_lm``."""

    share_packed_embeddings: bool = field(
        default=False, metadata={"help": "one learned packed sequence P for all layers (default: each its own)"}
    )
    # Follow the width of the decoder.
    decoder_input_dim: int = field(
        default=II("model.decoder_embed_dim"), metadata={"help": "decoder input dimension (default: its width)"}
    )
    decoder_output_dim: int = field(
        default=II("model.decoder_embed_dim"), metadata={"help": "decoder output dimension (default: its width)"}
    )
    # One option serves the task and the model.
    tokens_per_sample: int = task_option("tokens_per_sample", "1024")
    max_target_positions: Optional[int] = task_option("max_target_positions", "null")
    add_bos_token: bool = task_option("add_bos_token", "false")
    tpu: bool = False


# Options of transformer_lm that have no meaning here: field -> why. Giving one is an error.
REFUSED: Dict[str, str] = {
    "base_layers": "BASE layers have no packed sequence",
    "decoder_xformers_att_config": "Luna brings its own attention",
    **dict.fromkeys(
        ("scale_fc", "scale_attn", "scale_heads", "scale_resids"), "NormFormer's scales belong to softmax attention"
    ),
}


class LunaLanguageModelDecoder(LunaDecoder):
    """fairseq's transformer decoder without an encoder, with causal Luna layers.

    Args:
        cfg: nested config (:func:`luna_fairseq.models._config.nested_config`).
        dictionary: of the output.
        embed_tokens: embeddings of the input.
    """

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Module) -> None:
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn=True)  # type: ignore[arg-type]
        self.packed_input = self._packed_input(cfg) if cfg.share_packed_embeddings else None
        self.causal_decay = cfg.causal_decay

    def _packed_input(self, cfg: Any) -> PackedInput:
        return PackedInput(
            cfg.projection_length,
            cfg.decoder.embed_dim,
            scale=self.embed_scale,
            positions=not (cfg.no_token_positional_embeddings or cfg.decoder.learned_pos),
            layer_norm=cfg.layernorm_embedding,
            dropout=cfg.dropout,
            module_name=self.__class__.__name__,
        )

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = True) -> nn.Module:
        own = None if cfg.share_packed_embeddings else self._packed_input(cfg)
        return wrap_layer(LunaLanguageModelLayer(cfg, own), cfg)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[IncrementalState] = None,
        features_only: bool = False,
        src_lengths: Optional[Tensor] = None,
        carry: Optional[Carry] = None,
        **unused: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Logits of what follows each token.

        Args:
            prev_output_tokens: ``[B, N]`` int64, padded on either side. With an ``incremental_state`` all tokens so
                far, as everywhere in fairseq; with a ``carry`` those that follow what it holds.
            encoder_out: not read.
            incremental_state: fairseq's decoding state, or None.
            features_only: return features instead of logits.
            src_lengths: not read; lengths follow from the padding.
            carry: what the texts so far have left; what they leave after these tokens is put into it.
            unused: what fairseq gives to other decoders.

        Returns:
            ``[B, N', V]`` (with adaptive softmax or ``features_only`` the features, ``[B, N', D]``) for the new
            positions; and fairseq's dictionary of ``inner_states`` and ``attn``.

        Raises:
            ValueError: for tokens that were all seen before, or positions that a learned table does not have.
        """
        x, extra = self.extract_features(prev_output_tokens, None, incremental_state, carry=carry)
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[IncrementalState] = None,
        *unused: Any,
        carry: Optional[Carry] = None,
        **also_unused: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Features of the new positions, ``[B, N', D]``; see :meth:`forward`."""
        if carry is not None:
            return self._carry_on(prev_output_tokens, carry)
        new = self._new(prev_output_tokens, incremental_state)
        padding_mask, steps = self._count(prev_output_tokens[:, -new:], incremental_state, prev_output_tokens.size(1))
        x = self._embed(prev_output_tokens, new)
        return self._layers(x, padding_mask, incremental_state, {}, steps)

    def extend(self, tokens: Tensor, incremental_state: IncrementalState) -> Tensor:
        """Logits of what follows each of some more tokens, at a cost that does not depend on how many were before.

        Args:
            tokens: ``[B, N]`` int64, the new ones alone, padded on either side.
            incremental_state: empty at the beginning of a text; goes with no other way of decoding.

        Returns:
            ``[B, N, V]``, or the features where there is an adaptive softmax.
        """
        saved = self.get_incremental_state(incremental_state, "extended")
        start = tokens.new_zeros(tokens.size(0)) if saved is None else saved["real"]
        assert start is not None
        is_padding = tokens.eq(self.padding_idx)
        x = self._embed(tokens, tokens.size(1), start)
        x, _ = self._layers(x, is_padding, incremental_state, {}, self._steps(tokens, is_padding))
        self.set_incremental_state(incremental_state, "extended", {"real": start + (~is_padding).sum(dim=1)})
        return self.output_layer(x)

    def begin_block(self, incremental_state: IncrementalState, restart: bool = False, at_most: int = 0) -> None:
        """The tokens that :meth:`extend` is given next are a new block; of a text without tokens nothing changes.

        Args:
            incremental_state: of :meth:`extend`.
            restart, at_most: see :class:`luna_fairseq.modules.carried.Carry`.
        """
        saved = self.get_incremental_state(incremental_state, "extended")
        if saved is None:
            return
        real = saved["real"]
        assert real is not None
        self.set_incremental_state(incremental_state, "extended", {"real": real * (not restart)})
        states = [(a, state) for a in self._attentions() if (state := a.state(incremental_state)) is not None]
        left = faded([state for _, state in states], at_most, self.causal_decay)
        for (attention, _), state in zip(states, left, strict=True):
            attention.replace_state(incremental_state, state)

    def _carry_on(self, tokens: Tensor, carry: Carry) -> Tuple[Tensor, Dict[str, Any]]:
        """Features of tokens that follow what is carried, and what they leave."""
        had = carry.before_on(tokens.device)
        start = had.get("real", tokens.new_zeros(tokens.size(0)))
        known: Dict[nn.Module, ops.CausalState] = {}
        for index, attention in enumerate(self._attentions()):
            if f"{index}.steps" in had:
                key_sum, steps = had[f"{index}.key_sum"], had[f"{index}.steps"]
                known[attention] = ops.CausalState(key_sum, had.get(f"{index}.value_sum", key_sum), steps)
        left = faded(list(known.values()), carry.at_most, self.causal_decay)
        before = dict(zip(known, left, strict=True))
        is_padding = tokens.eq(self.padding_idx)
        state: IncrementalState = {}
        x = self._embed(tokens, tokens.size(1), None if carry.restart else start)
        result = self._layers(x, is_padding, state, before, self._steps(tokens, is_padding))
        carry.after = {"real": start + (~is_padding).sum(dim=1)}
        for index, attention in enumerate(self._attentions()):
            own = attention.state(state) or before.get(attention)  # LayerDrop leaves layers out
            if own is not None:
                carry.after[f"{index}.key_sum"], carry.after[f"{index}.steps"] = own.key_sum.detach(), own.steps
                if own.value_sum is not own.key_sum:
                    carry.after[f"{index}.value_sum"] = own.value_sum.detach()
        state.clear()  # layers whose activations are checkpointed begin once more
        return result

    def _attentions(self) -> List[CausalLunaAttention]:
        """Of all layers, those that LayerDrop leaves out too, in order."""
        return [module for module in self.layers.modules() if isinstance(module, CausalLunaAttention)]

    def _layers(
        self,
        x: Tensor,
        padding_mask: Optional[Tensor],
        incremental_state: Optional[IncrementalState],
        before: Dict[nn.Module, ops.CausalState],
        steps: ops.Steps,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """All layers and the last norm.

        Args:
            x: ``[B, N, D]``.
            padding_mask: ``[B, N]`` bool, True = padding, or None.
            incremental_state: fairseq's decoding state, or None.
            before: attention -> what it begins an empty ``incremental_state`` with.
            steps: the positions, counted for all layers.
        """
        packed: Optional[Tensor] = None
        if self.packed_input is not None and not any(a.state(incremental_state) for a in self._attentions()):
            packed = self.packed_input.whole()
        inner_states: List[Optional[Tensor]] = [x.transpose(0, 1)]
        for layer in self.layers:
            x = layer(x, packed, padding_mask, incremental_state, before.get(layer.self_attn), steps)
            inner_states.append(x.transpose(0, 1))
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.project_out_dim is not None:
            x = self.project_out_dim(x)
        return x, {"attn": [None], "inner_states": inner_states}

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        super().reorder_incremental_state_scripting(incremental_state, new_order)
        saved = self.get_incremental_state(incremental_state, "extended")
        if saved is not None:
            self.set_incremental_state(incremental_state, "extended", ops.select_rows(saved, new_order))


class LunaLanguageModel(FairseqLanguageModel):
    """A causal language model, for ``--task language_modeling`` and others that take fairseq's ``transformer_lm``.

    ``LunaLanguageModel.from_pretrained(folder, checkpoint_file, data_name_or_path)`` gives fairseq's hub interface
    with ``sample`` and ``score``, and ``stream`` for texts without end.
    """

    carry_state: bool  # what its task does while it is trained, and how
    carry_positions: str
    carry_at_most: int

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_options(parser, LunaLanguageModelConfig)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LunaLanguageModel":
        args = namespace(cfg, task)
        if args.max_target_positions is None:
            args.max_target_positions = args.tokens_per_sample
        args.decoder_layers_to_keep = args.decoder_layers_to_keep or None
        if args.decoder_layers_to_keep:
            args.decoder_layers = len(args.decoder_layers_to_keep.split(","))
        _check_lm_config(args)
        args.decoder_projected_attention_heads = args.decoder_attention_heads
        args.packed_position_bias = args.word_dropout = 0.0
        embed_tokens = cls.build_embedding(args, task.source_dictionary)
        model = cls(LunaLanguageModelDecoder(nested_config(args), task.target_dictionary, embed_tokens))
        model.carry_on(**{name: getattr(args, name) for name in CARRY_OPTIONS})
        return model

    def carry_on(self, carry_state: bool = False, carry_positions: str = "continue", carry_at_most: int = 0) -> None:
        """Note what is carried from block to block, and how; the options of these names.

        Raises:
            ValueError: for positions or a number that cannot be.
        """
        carry_positions = str(carry_positions)  # it may be one of an enumeration
        if carry_positions not in ("continue", "restart"):
            raise ValueError(f"--carry-positions is {carry_positions!r}: choose continue or restart")
        check_carried(carry_state, carry_at_most)
        self.carry_state, self.carry_positions, self.carry_at_most = carry_state, carry_positions, carry_at_most

    @classmethod
    def build_embedding(cls, args: Any, dictionary: Any) -> nn.Module:
        """The embeddings of the input: a plain table, one whose rare words are narrower, or made of characters."""
        noise = (args.quant_noise_pq, args.quant_noise_pq_block_size)
        if args.character_embeddings:
            filters = options.eval_str_list(args.character_filters, type=tuple)
            sizes = (args.character_embedding_dim, args.decoder_embed_dim, args.char_embedder_highway_layers)
            return CharacterTokenEmbedder(dictionary, filters, *sizes)
        if args.adaptive_input:
            cutoff = options.eval_str_list(args.adaptive_input_cutoff, type=int)
            sizes = (args.decoder_input_dim, args.adaptive_input_factor, args.decoder_embed_dim)
            return AdaptiveInput(len(dictionary), dictionary.pad(), *sizes, cutoff, *noise)
        return Embedding(len(dictionary), args.decoder_input_dim, dictionary.pad())

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        check_tied_kv(state_dict, self)
        prefix = f"{name}." if name else ""
        decoder = f"{prefix}decoder."
        shared, own = f"{decoder}packed_input.embeddings", f"{decoder}layers.0.packed_input.embeddings"
        if (shared in state_dict) != (self.decoder.packed_input is not None):
            change = "add" if shared in state_dict else "leave out"
            raise CheckpointMismatch(
                f"the checkpoint has {'one P for all layers' if shared in state_dict else 'a P for each layer'}: "
                f"{change} --share-packed-embeddings"
            )
        check_shapes(
            state_dict,
            self.state_dict(prefix=prefix),
            {
                (f"{decoder}embed_tokens.weight", 0): "the dictionary's number of symbols",
                (f"{decoder}embed_tokens.weight", 1): "--decoder-input-dim",
                (f"{decoder}embed_positions.weight", 0): "--max-target-positions (and the padding rows: 2)",
                (shared, 0): "--projection-length",
                (own, 0): "--projection-length",
            },
        )
        super().upgrade_state_dict_named(state_dict, name)

    @classmethod
    def hub_models(cls) -> Dict[str, Any]:
        return {}  # none are published

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: StrPath,
        checkpoint_file: StrPath = "model.pt",
        data_name_or_path: StrPath = ".",
        **kwargs: Any,
    ) -> LunaLanguageModelHub:
        """Load a checkpoint for use from Python; in evaluation mode.

        Args:
            model_name_or_path: folder of the checkpoint.
            checkpoint_file: its name there.
            data_name_or_path: folder of ``dict.txt``; one that starts with a dot is looked for from the
                checkpoint's folder. ``sentencepiece.model`` or GPT-2's files beside it, or up to two folders
                higher, are the pieces.
            kwargs: other options to override, such as ``bpe`` and ``sentencepiece_model``; of ``carry_state``,
                ``carry_positions`` and ``carry_at_most`` (which ``stream`` goes by) all, if one is given.

        Raises:
            FileNotFoundError: if the checkpoint or the dictionary does not exist.
            ValueError: for an option that cannot be.
        """
        how = {name: kwargs.pop(name) for name in CARRY_OPTIONS if name in kwargs}
        loaded = load_for_hub(model_name_or_path, checkpoint_file, data_name_or_path, **kwargs)
        for model in loaded["models"]:  # fairseq overrides only what a checkpoint has, and older ones lack these
            if how:
                model.carry_on(**how)
        return LunaLanguageModelHub(loaded["args"], loaded["task"], loaded["models"]).eval()


def _check_lm_config(args: Any) -> None:
    """Refuse what cannot work, before anything is built.

    Raises:
        ValueError: with the option, its value, and what to change.
    """
    check_refused(args, REFUSED)
    check_stack(args, "decoder")
    check_at_least(1, args, "max_target_positions")
    ops.check_decay(args.causal_decay)
    widths = (args.decoder_input_dim, args.decoder_output_dim)
    if args.share_decoder_input_output_embed and (args.adaptive_input or args.character_embeddings):
        raise ValueError(
            "--share-decoder-input-output-embed needs a plain table of embeddings: leave it out, or take "
            "--tie-adaptive-weights with adaptive input"
        )
    if args.share_decoder_input_output_embed and widths[0] != widths[1]:
        raise ValueError(
            f"--decoder-output-dim is {widths[1]}: with shared embeddings it must equal --decoder-input-dim "
            f"{widths[0]}"
        )
    if args.adaptive_input and not args.adaptive_input_cutoff:
        raise ValueError("--adaptive-input needs --adaptive-input-cutoff N,N,...: where the rarer words begin")
    if args.adaptive_input and args.quant_noise_pq > 0:
        bands = range(1 + len(options.eval_str_list(args.adaptive_input_cutoff, type=int)))
        narrow = [int(widths[0] // args.adaptive_input_factor**band) for band in bands]
        if any(width % args.quant_noise_pq_block_size for width in narrow):
            raise ValueError(
                f"--quant-noise-pq-block-size is {args.quant_noise_pq_block_size}: it must divide the widths "
                f"{', '.join(map(str, narrow))} of adaptive input"
            )
    if not args.tie_adaptive_weights:
        return
    if not (args.adaptive_input and args.adaptive_softmax_cutoff):
        raise ValueError("--tie-adaptive-weights needs --adaptive-input and --adaptive-softmax-cutoff: add them")
    for what in ("cutoff", "factor"):
        one, other = getattr(args, f"adaptive_input_{what}"), getattr(args, f"adaptive_softmax_{what}")
        if one != other:
            raise ValueError(
                f"--adaptive-input-{what} is {one} and --adaptive-softmax-{what} {other}: --tie-adaptive-weights "
                "needs them equal"
            )
    if widths[0] != widths[1]:
        raise ValueError(
            f"--decoder-output-dim is {widths[1]}: with --tie-adaptive-weights it must equal --decoder-input-dim "
            f"{widths[0]}"
        )


register_architectures(
    LunaLanguageModel,
    LunaLanguageModelConfig,
    {
        "luna_lm": {},  # transformer_lm
        "luna_lm_small": dict(
            decoder_embed_dim=256, decoder_ffn_embed_dim=1024, decoder_layers=4, decoder_attention_heads=4
        ),
        "luna_lm_gpt": dict(  # GPT-2 small, transformer_lm_gpt
            decoder_embed_dim=768,
            decoder_ffn_embed_dim=3072,
            decoder_layers=12,
            decoder_attention_heads=12,
            decoder_normalize_before=True,
            activation_fn="gelu",
            attention_dropout=0.1,
        ),
    },
)
