"""The published names of parameters, and ours.

Published checkpoints (github: XuezheMax/fairseq-apollo, facebookresearch/mega) misspell a few names. This
table is the one place that knows them; modules have only the names on the right.
"""

import logging
import re
from typing import Any, Dict, List, Optional, Tuple

from luna_fairseq.errors import CheckpointMismatch

logger = logging.getLogger(__name__)

# (published, ours), matched anywhere in a name at a dot; ours None = holds nothing, dropped.
PUBLISHED_NAMES: List[Tuple[str, Optional[str]]] = [
    ("projected_embeddings", "packed_input.embeddings"),
    ("projected_positions", None),
    ("layernorm_porjected_embedding", "packed_input.layer_norm"),
    ("proj_emb_layer_norm", "packed_input.layer_norm"),
    ("emb_layer_norm", "layernorm_embedding"),
    ("encoder.encoder", "encoder"),  # of lra
    ("encoder.proj_layer_norm", "encoder.packed_layer_norm"),
    ("self_atten_proj_layer_norm", "packed_attn_layer_norm"),
    ("encoder_atten_proj_layer_norm", "packed_attn_layer_norm"),
    # The published pre-norm decoder holds a norm of the last P, which nothing reads.
    ("decoder.proj_layer_norm", None),
]

_RULES = [(re.compile(rf"(^|\.){re.escape(published)}(\.|$)"), ours) for published, ours in PUBLISHED_NAMES]


def translate_published_names(state_dict: Dict[str, Any]) -> None:
    """Rename the parameters of a published checkpoint to ours, in place; other names stay as they are.

    Args:
        state_dict: parameter name -> tensor.
    """
    for name in list(state_dict):
        new: Optional[str] = name
        for pattern, ours in _RULES:
            if new is not None and pattern.search(new):
                new = None if ours is None else pattern.sub(rf"\g<1>{ours}\g<2>", new)
        if new != name:
            value = state_dict.pop(name)
            if new is not None:
                state_dict[new] = value


def check_shapes(state_dict: Dict[str, Any], own: Dict[str, Any], options: Dict[Tuple[str, int], str]) -> None:
    """Compare sizes that follow from options, to name the option instead of a tensor.

    Args:
        state_dict: of the checkpoint.
        own: of the model.
        options: (parameter name, dimension) -> the option that decides its size.

    Raises:
        CheckpointMismatch: with the option and both sizes.
    """
    for (name, dim), option in options.items():
        if name in state_dict and name in own and state_dict[name].size(dim) != own[name].size(dim):
            raise CheckpointMismatch(
                f"{option} is {own[name].size(dim)} here and {state_dict[name].size(dim)} in the checkpoint: make "
                "them equal, or choose the checkpoint that belongs to it"
            )


def fit_for_fine_tuning(state_dict: Dict[str, Any], own: Dict[str, Any], dictionaries: Dict[str, Any]) -> None:
    """Make a pretrained checkpoint fit a model that is fine-tuned from it, in place, with a notice in the log.

    Denoising appends ``<mask>`` to the dictionary, which no translation has: its row is left out. Learned positions
    that the model lacks are left out, and those that the checkpoint lacks begin as the model has drawn them.

    Args:
        state_dict: of the checkpoint, with our names.
        own: of the model.
        dictionaries: what a parameter's name begins with -> the dictionary of its rows.
    """
    for name, value in own.items():
        saved = state_dict.get(name)
        if saved is None or saved.shape == value.shape or saved.shape[1:] != value.shape[1:]:
            continue
        if name.endswith("embed_positions.weight"):
            count = min(len(saved), len(value))
            state_dict[name] = value.to(saved).clone()
            state_dict[name][:count] = saved[:count]
            logger.warning(
                "%s has %d rows in the checkpoint, %d here: the first %d are taken",
                name,
                len(saved),
                len(value),
                count,
            )
        elif name.endswith(("embed_tokens.weight", "output_projection.weight")) and len(saved) == len(value) + 1:
            dictionary = next(found for start, found in dictionaries.items() if name.startswith(start))
            if "<mask>" not in dictionary:
                state_dict[name] = saved[:-1]
                logger.warning("%s: the last symbol of the checkpoint, <mask>, is left out", name)


def check_optimizer(optimizer: Any, filename: str) -> None:
    """Compare the shapes of an optimizer's state with its parameters.

    Args:
        optimizer: a FairseqOptimizer that has just loaded its state, or None.
        filename: the checkpoint, for the sentence.

    Raises:
        CheckpointMismatch: if a running average has another shape than its parameter.
    """
    state = getattr(getattr(optimizer, "optimizer", None), "state", {})
    for parameter, values in state.items():
        for name in ("exp_avg", "exp_avg_grad"):
            if name in values and values[name].shape != parameter.shape:
                raise CheckpointMismatch(
                    f"{filename} holds the optimizer of a model with other sizes ({tuple(values[name].shape)} where "
                    f"this one has {tuple(parameter.shape)}; another --num-classes?): add --reset-optimizer to start "
                    "from its weights alone, or name another --save-dir"
                )


def check_tied_kv(
    state_dict: Dict[str, Any],
    model: Any,
    tie: str = "leave out --untie-luna-kv, or take a tied arch",
    untie: str = "add --untie-luna-kv, or take an untied arch",
) -> None:
    """Say so if a checkpoint has one matrix for keys and values, and the model two, or the other way round.

    Args:
        state_dict: of the checkpoint, with our names.
        model: what it is loaded into.
        tie: what to change for a model with one matrix for both.
        untie: what to change for a model with two matrices.

    Raises:
        CheckpointMismatch: naming the option.
    """
    # Not the attention of a classification head, which is fairseq's.
    own, saved = (
        {name.split(".")[-2] for name in names if ".self_attn." in name}
        for names in ([name for name, _ in model.named_parameters()], state_dict)
    )
    if "c_proj" in saved and "k_proj" in own:
        raise CheckpointMismatch(f"the checkpoint has tied keys and values: {tie}")
    if "k_proj" in saved and "c_proj" in own:
        raise CheckpointMismatch(f"the checkpoint has untied keys and values: {untie}")


def check_position_bias(state_dict: Dict[str, Any], model: Any) -> None:
    """Say so if a checkpoint has a position bias where the model has none, or the other way round.

    Args:
        state_dict: of the checkpoint, with our names.
        model: what it is loaded into.

    Raises:
        CheckpointMismatch: naming the option.
    """
    names = [name for name, _ in model.named_parameters()]
    own, saved = (
        {name.split(".")[-2] for name in keys if name.endswith(".position_slope")} for keys in (names, state_dict)
    )
    if own == saved:
        return
    if not saved:
        raise CheckpointMismatch("the checkpoint has no position bias: leave out --packed-position-bias")
    where, options = "", "--packed-position-bias 1"
    if any(".encoder_attn." in name for name in names):  # there are two places
        place = "both" if len(saved) == 2 else "encoder" if "self_attn" in saved else "cross"
        where = {"both": " in its encoder and its cross-attention", "encoder": " in its encoder alone"}.get(
            place, " in its cross-attention alone"
        )
        options += f" --packed-position-bias-in {place}"
    raise CheckpointMismatch(f"the checkpoint has a position bias{where}: give {options}")
