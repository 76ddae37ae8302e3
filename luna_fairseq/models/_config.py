"""Options shared by the Luna models, and how named architectures are registered."""

import dataclasses
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, Iterable, Iterator, Optional, Tuple, Type

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import BaseFairseqModel, register_model
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_config import (
    DecoderConfig,
    EncDecBaseConfig,
    QuantNoiseConfig,
)
from omegaconf import II, OmegaConf

from luna_fairseq.ops import CAUSAL_ACTIVATIONS, check_decay

# What tasks and models have in common.
_OF_TASKS = ("max_source_positions", "max_target_positions", "tokens_per_sample", "add_bos_token")


def _in_config(task: Any, name: str) -> Any:
    """An option of a task's config, whatever kind that is; None if it has none."""
    if OmegaConf.is_config(task):
        return None if name not in task or OmegaConf.is_missing(task, name) else task[name]
    return getattr(task, name, None)


def _said_by_task(name: str, default: Any, _root_: Any) -> Any:
    value = _in_config(OmegaConf.select(_root_, "task"), name)
    return default if value is None else value


OmegaConf.register_new_resolver("option_of_task", _said_by_task, replace=True)


def task_option(name: str, default: str) -> Any:
    """A default: what the task says, or another value where its config has no such option, or is none.

    One option then serves the task and the model, on the command line and in YAML. fairseq's own ``${task.NAME}``
    ends the run where a task has no dataclass (its options are argparse's), or one without this option.

    Args:
        name: of the option.
        default: the other value, as YAML writes it.
    """
    return f"${{option_of_task:{name},{default}}}"


_NESTED = {"encoder": EncDecBaseConfig, "decoder": DecoderConfig, "quant_noise": QuantNoiseConfig}

# Where fairseq's own nested field cannot be used flat, with the reason.
_CHANGED: Dict[str, Tuple[Any, Any]] = {
    "max_source_positions": (int, task_option("max_source_positions", "1024")),
    "max_target_positions": (int, task_option("max_target_positions", "1024")),
    # Follow the width of the decoder; the nested names do not exist here.
    "decoder_input_dim": (int, II("model.decoder_embed_dim")),
    "decoder_output_dim": (int, II("model.decoder_embed_dim")),
    # fairseq splits this at commas when it prunes, so it must stay a string: "0,2,4".
    "encoder_layers_to_keep": (Optional[str], None),
    "decoder_layers_to_keep": (Optional[str], None),
    # The trainer compares it with a number when it saves.
    "base_layers": (int, 0),
}


# What an encoder without a decoder reads; the rest of its options are Luna's or fixed.
_ENCODER_FIELDS = (
    "encoder_embed_dim encoder_ffn_embed_dim encoder_layers encoder_attention_heads encoder_normalize_before "
    "encoder_layerdrop encoder_layers_to_keep activation_fn dropout attention_dropout activation_dropout "
    "checkpoint_activations offload_activations min_params_to_wrap quant_noise_pq quant_noise_pq_block_size "
    "quant_noise_scalar"
).split()


def _flat_fields() -> Iterator[Tuple[str, Any, Any]]:
    """The fields of fairseq's TransformerConfig under their command-line names."""
    for outer in dataclasses.fields(TransformerConfig):
        nested = _NESTED.get(outer.name)
        prefix = f"{outer.name}_" if nested else ""
        for inner in dataclasses.fields(nested) if nested else (outer,):
            if inner.name == "_name":
                continue
            name = prefix + inner.name
            annotation, default = _CHANGED.get(name, (inner.type, inner.default))
            yield name, annotation, field(default=default, metadata=dict(inner.metadata))


def _flat_dataclass(name: str, fields: Iterable[Tuple[str, Any, Any]]) -> Any:
    return dataclasses.make_dataclass(name, fields, bases=(FairseqDataclass,), namespace={"__module__": __name__})


# fairseq's own config is nested, and a nested one cannot be given on the fairseq-train command line by a
# plugin. This is the same set of options, flat.
_FlatTransformerConfig: Any = _flat_dataclass("_FlatTransformerConfig", _flat_fields())


def flat_encoder_config(without: Collection[str] = (), **defaults: Any) -> Any:
    """A dataclass with fairseq's options of an encoder without a decoder, flat.

    Args:
        without: options to leave out.
        defaults: option -> default, where it is not fairseq's.
    """
    kept = []
    for name, annotation, option in _flat_fields():
        if name in _ENCODER_FIELDS and name not in without:
            default = defaults.get(name, option.default)
            kept.append((name, annotation, field(default=default, metadata=dict(option.metadata))))
    return _flat_dataclass("FlatEncoderConfig", kept)


POSITION_BIAS = (
    "every row of P begins with a part of the sentence of its own: what the learned slopes of that bias on the pack "
    "step's scores start from, one slope a head; 1 is a good start (default: 0, no bias, as published)"
)


@dataclass
class PackedOptions(FairseqDataclass):
    """What every Luna model has beyond fairseq's options (published names)."""

    projection_length: int = field(
        default=32, metadata={"help": "length l of the packed sequence P (projection length), at least 1"}
    )
    untie_luna_kv: bool = field(
        default=False,
        metadata={"help": "separate key and value matrices in pack and unpack (default: one for both)"},
    )


@dataclass
class CausalOptions(FairseqDataclass):
    """What every model with causal Luna attention has."""

    causal_activation: ChoiceEnum(list(CAUSAL_ACTIVATIONS)) = field(  # type: ignore[valid-type]
        default="softplus",
        metadata={"help": "what keeps the pack weights of causal attention positive; elu is the paper's ablation"},
    )
    causal_decay: float = field(
        default=0.0,
        metadata={
            "help": "causal attention forgets: what lies n positions back counts exp(-rate n), with this rate in the "
            "first head and slower ones in the others; 5 is a good start (default: 0, plain means, as published)"
        },
    )


@dataclass
class CarryOptions(FairseqDataclass):
    """Of the language model and of its task: blocks that hand on their state."""

    carry_state: bool = field(
        default=False,
        metadata={
            "help": "each block begins with the state at the end of the block before it (luna_lm): training over "
            "consecutive blocks by truncated backpropagation, evaluation with all of the text before"
        },
    )
    carry_positions: ChoiceEnum(["continue", "restart"]) = field(  # type: ignore[valid-type]
        default="continue",
        metadata={"help": "with --carry-state, count positions on from block to block, or from 0 in each (restart)"},
    )
    carry_at_most: int = field(
        default=0,
        metadata={
            "help": "with --carry-state, all that came before a block counts as at most this many tokens, so that it "
            "fades (0: as many as they were)"
        },
    )


@dataclass
class LunaOptions(PackedOptions):
    """What every model has whose P packs whole sentences."""

    fix_projection_length: bool = field(
        default=False,
        metadata={"help": "use all l rows of P for every sentence, however short (default: at most its length)"},
    )
    packed_position_bias: float = field(default=0.0, metadata={"help": POSITION_BIAS})


@dataclass
class LunaConfig(CausalOptions, LunaOptions, _FlatTransformerConfig):
    """Every option of fairseq's transformer, flat, and Luna's own (published names and defaults).

    The defaults are those of ``luna_base``: the sizes of Transformer-base, projection length 32, tied kv.
    """

    encoder_projected_attention_heads: int = field(
        default=II("model.encoder_attention_heads"),
        metadata={"help": "heads of the pack step in the encoder (default: its attention heads)"},
    )
    decoder_projected_attention_heads: int = field(
        default=II("model.decoder_attention_heads"),
        metadata={"help": "heads of the pack step in the decoder (default: its attention heads)"},
    )
    packed_position_bias_in: ChoiceEnum(["both", "encoder", "cross"]) = field(  # type: ignore[valid-type]
        default="both",
        metadata={"help": "where the position bias is: in the encoder, in the cross-attention (cross), or in both"},
    )
    word_dropout: float = field(default=0.0, metadata={"help": "probability of dropping a whole word from the input"})


# Options of fairseq's transformer that have no meaning here: field -> why. Giving one is an error.
REFUSED: Dict[str, str] = {
    "adaptive_input": "the embeddings are plain tables",
    "tie_adaptive_weights": "it needs adaptive input embeddings, which a translation model does not have",
    "tie_adaptive_proj": "it needs adaptive input embeddings, which a translation model does not have",
    "no_cross_attention": "the decoder gets its packed sequence P from the encoder and updates it by cross-attention",
    "cross_self_attention": "causal Luna attention attends to the target alone",
    "char_inputs": "the model reads token indices",
    "base_layers": "BASE layers have no packed sequence",
    "encoder_xformers_att_config": "Luna brings its own attention",
    "decoder_xformers_att_config": "Luna brings its own attention",
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_config(cfg: Any) -> None:
    """Refuse what cannot work, before anything is built.

    Args:
        cfg: a flat config (a :class:`LunaConfig`, or the same as DictConfig or Namespace).

    Raises:
        ValueError: with the option, its value, and what to change.
    """
    check_refused(cfg, REFUSED)
    check_stack(cfg, "encoder")
    check_stack(cfg, "decoder")
    if cfg.decoder_embed_dim != cfg.encoder_embed_dim:
        raise ValueError(
            f"--decoder-embed-dim is {cfg.decoder_embed_dim} and --encoder-embed-dim {cfg.encoder_embed_dim}: "
            "make them equal, since the decoder goes on with the encoder's packed sequence"
        )
    if cfg.decoder_input_dim != cfg.decoder_embed_dim:
        raise ValueError(
            f"--decoder-input-dim is {cfg.decoder_input_dim}: fairseq's translation models embed at "
            f"--decoder-embed-dim {cfg.decoder_embed_dim}; leave it out"
        )
    shared = cfg.share_all_embeddings or cfg.share_decoder_input_output_embed or cfg.merge_src_tgt_embed
    if shared and cfg.decoder_output_dim != cfg.decoder_embed_dim:
        raise ValueError(
            f"--decoder-output-dim is {cfg.decoder_output_dim}: with shared embeddings it must equal "
            f"--decoder-embed-dim {cfg.decoder_embed_dim}"
        )
    check_probabilities(cfg, "word_dropout")
    check_position_bias_options(cfg)
    check_decay(cfg.causal_decay)


def check_refused(cfg: Any, refused: Dict[str, str]) -> None:
    """Refuse options that have no meaning.

    Args:
        cfg: a flat config.
        refused: option -> why.

    Raises:
        ValueError: with the option and the reason.
    """
    for name, reason in refused.items():
        value = getattr(cfg, name, None)
        if value and value != -1:  # which is none, for fairseq
            raise ValueError(f"{_flag(name)} is not available for Luna: {reason}; leave it out")


def check_position_bias_options(cfg: Any) -> None:
    """Refuse slopes that no bias can start from, and a place without a bias.

    Raises:
        ValueError: with the option, its value, and what to change.
    """
    slope = cfg.packed_position_bias
    if not 0.0 <= slope < float("inf"):
        raise ValueError(f"--packed-position-bias is {slope}: it must be at least 0, and finite")
    place = getattr(cfg, "packed_position_bias_in", "both")
    if slope == 0.0 and place != "both":
        raise ValueError(f"--packed-position-bias-in is {place} and there is no bias: add --packed-position-bias 1")


def check_at_least(least: int, cfg: Any, *names: str) -> None:
    """Refuse numbers that are too small.

    Raises:
        ValueError: with the option and its value.
    """
    for name in names:
        if getattr(cfg, name) < least:
            raise ValueError(f"{_flag(name)} is {getattr(cfg, name)}: it must be at least {least}")


def check_stack(cfg: Any, side: str, length: str = "projection_length") -> None:
    """Refuse sizes that do not fit together.

    Args:
        cfg: a flat config.
        side: ``encoder`` or ``decoder``.
        length: what the model calls the projection length.

    Raises:
        ValueError: with the option, its value, and what to change.
    """
    check_at_least(1, cfg, length, f"{side}_layers")
    width = getattr(cfg, f"{side}_embed_dim")
    sizes = (width, getattr(cfg, f"{side}_ffn_embed_dim"))
    if cfg.quant_noise_pq > 0 and any(size % cfg.quant_noise_pq_block_size for size in sizes):
        raise ValueError(
            f"--quant-noise-pq-block-size is {cfg.quant_noise_pq_block_size}: it must divide the {side}'s widths "
            f"{sizes[0]} and {sizes[1]}"
        )
    for name in (f"{side}_attention_heads", f"{side}_projected_attention_heads"):
        heads = getattr(cfg, name, None)
        if heads is not None and (heads < 1 or width % heads != 0):
            raise ValueError(
                f"{_flag(name)} is {heads}: it must be at least 1 and divide {_flag(side + '_embed_dim')} {width}"
            )
    check_probabilities(cfg, "dropout", "attention_dropout", "activation_dropout", f"{side}_layerdrop")


def check_probabilities(cfg: Any, *names: str) -> None:
    """Refuse what is not a probability.

    Raises:
        ValueError: with the option and its value.
    """
    for name in names:
        if not 0.0 <= getattr(cfg, name) <= 1.0:
            raise ValueError(f"{_flag(name)} is {getattr(cfg, name)}: a probability lies between 0 and 1")


def nested_config(cfg: Any) -> TransformerConfig:
    """The nested form that fairseq's encoder, decoder and layer classes read.

    Luna's options come along: ``cfg.projection_length``, ``cfg.encoder.projected_attention_heads``, and so on.

    Args:
        cfg: a flat config (a :class:`LunaConfig`, or the same as DictConfig or Namespace).
    """
    if isinstance(cfg, TransformerConfig):
        return cfg
    return TransformerConfig.from_namespace(namespace(cfg))


def namespace(cfg: Any, task: Any = None) -> Namespace:
    """A flat config as a plain Namespace of its own, every ``${...}`` filled in.

    Args:
        cfg: a dataclass, a DictConfig or a Namespace of options.
        task: whose options count where the model's config is no part of a whole one (such as a dataclass, which
            fairseq also makes of a Namespace); read nowhere else, may be None.
    """
    if OmegaConf.is_config(cfg):
        whole = cfg._get_parent() is not None
        values: Any = OmegaConf.to_container(cfg, resolve=whole, enum_to_str=True)
    else:
        values = dataclasses.asdict(cfg) if isinstance(cfg, FairseqDataclass) else dict(vars(cfg))
    open_values = {name for name, value in values.items() if isinstance(value, str) and value.startswith("${")}
    if open_values:
        said = getattr(task, "cfg", None) or getattr(task, "args", None)
        known = {name: value for name, value in values.items() if isinstance(value, str | int | float | None)}
        root = OmegaConf.create({"model": known, "task": {name: _in_config(said, name) for name in _OF_TASKS}})
        values.update({name: root.model[name] for name in open_values})
    return Namespace(**values)


def is_fine_tuned(cfg: Any) -> bool:
    """Whether a model's config is part of a whole one with ``--finetune-from-model``."""
    return OmegaConf.is_config(cfg) and bool(OmegaConf.select(cfg._get_root(), "checkpoint.finetune_from_model"))


def add_options(parser: Any, config: type) -> None:
    """Add a model's options to a parser, without defaults: those are the architecture's, filled in afterwards.

    Args:
        parser: an argparse parser or group.
        config: the base config, not the architecture's: an on/off option that is on by default would become a flag
            that turns it off.
    """
    for option in dataclasses.fields(config):
        # fairseq forgets the type of what follows another option, and text would come of the number.
        follows = isinstance(option.default, str) and option.default.startswith("${")
        if follows and option.type is int and "help" in option.metadata:
            parser.add_argument(_flag(option.name), type=int, help=option.metadata["help"])
    gen_parser_from_dataclass(parser, config(), delete_default=True)


def register_architectures(model: Type[BaseFairseqModel], config: type, sizes: Dict[str, Dict[str, Any]]) -> None:
    """Make ``--arch NAME`` and ``model._name: NAME`` mean the same for every named architecture.

    An architecture is a config class with other defaults, and a model class of its own. Both have names of their own
    in the modules of their bases, ``LunaModel_luna_base``, so that models and configs can be pickled. Functions that
    change defaults (``register_model_architecture``) are not used: ``fairseq-hydra-train`` fills in the
    defaults before it calls them, so they would silently do nothing there.

    Args:
        model: the model class.
        config: dataclass of its options.
        sizes: architecture name -> the options that have another default there.
    """
    for name, defaults in sizes.items():
        options = {option.name: option for option in dataclasses.fields(config)}
        changed = [
            (option, options[option].type, field(default=value, metadata=dict(options[option].metadata)))
            for option, value in defaults.items()
        ]
        own_config: Any = dataclasses.make_dataclass(config.__name__, changed, bases=(config,))
        own_model: Any = type(model.__name__, (model,), {})
        for own, base in ((own_config, config), (own_model, model)):
            own.__module__, own.__qualname__ = base.__module__, f"{base.__name__}_{name}"
            setattr(sys.modules[own.__module__], own.__qualname__, own)
        register_model(name, dataclass=own_config)(own_model)
