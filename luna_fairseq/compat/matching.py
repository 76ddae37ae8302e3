"""Checkpoints that belong to another model, optimizer or schedule: named, and not loaded."""

import re
from argparse import Namespace
from typing import Any, List, Optional, Tuple

from luna_fairseq.checkpoint import check_optimizer
from luna_fairseq.compat._replace import named, replaces
from luna_fairseq.errors import CheckpointMismatch

_SIZES = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[([\d, ]*)\]\) from checkpoint, the shape in "
    r"current model is torch\.Size\(\[([\d, ]*)\]\)"
)
_ROWS = ("embed_tokens.weight", "output_projection.weight")  # one for each symbol of a dictionary


def rows_that_differ(message: str) -> Optional[Tuple[str, str]]:
    """How many symbols a checkpoint's dictionary has, and the data's, if torch's message about sizes tells."""
    for name, saved, own in _SIZES.findall(message):
        (rows, *width), (own_rows, *own_width) = saved.split(", "), own.split(", ")
        if name.endswith(_ROWS) and width == own_width and rows != own_rows:
            return rows, own_rows
    return None


def _other_dictionary(filename: str, message: str) -> Optional[str]:
    """Whether torch's message about sizes comes from another dictionary; the sentence that says so."""
    found = rows_that_differ(message)
    if found is None:
        return None
    return (
        f"{filename} was trained with a dictionary of {found[0]} symbols and that of the data folder has "
        f"{found[1]}: name the data folder of its training, or one prepared with its dictionary (--srcdict "
        "and --tgtdict of fairseq-preprocess)"
    )


# Numbers that make another model, and what they are in checkpoints that do not know of them.
_NEWER = {"causal_decay": 0.0}


def _what_differs(filename: str, message: str, cfg: Any) -> Optional[str]:
    """The sentence about a checkpoint whose weights do not fit the model.

    Args:
        filename: the checkpoint.
        message: of torch, which names tensors; without one only an architecture of another package is told of.
        cfg: of the training, with the options of the model.
    """
    from fairseq import checkpoint_utils
    from fairseq.models import ARCH_MODEL_REGISTRY

    sentence = _other_dictionary(filename, message)
    if sentence is not None:
        return sentence
    saved, own = (
        vars(options) if isinstance(options, Namespace) else dict(options or {})  # fairseq's own have no dataclass
        for options in ((checkpoint_utils.load_checkpoint_to_cpu(filename).get("cfg") or {}).get("model"), cfg.model)
    )
    kinds = [ARCH_MODEL_REGISTRY.get(options.get("_name")) for options in (saved, own)]
    if None not in kinds and len({kind.__module__.split(".")[0] for kind in kinds}) == 2:
        differing = [f"--arch {saved['_name']}"]
    elif not message:
        return None
    else:
        differing = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in {**_NEWER, **saved}.items()
            # A share of dropout makes no other weights.
            if name in own and str(own[name]) != str(value) and (name in _NEWER or not isinstance(value, float))
            if name[0] != "_"
        ]
    shown = f" ({', '.join(differing[:6])}{', ...' if len(differing) > 6 else ''})" if differing else ""
    option = "--finetune-from-model" if filename == cfg.checkpoint.finetune_from_model else "--save-dir"
    return f"{filename} holds another model: give the options of its training{shown}, or name another {option}"


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq='says "please ensure that the architectures match" whatever is wrong, and "best" of another schedule',
    here="the option that differs is named, and what to give instead",
    since="fairseq 0.12.3",
)
def explain_what_does_not_match(original: Any, self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(self, filename, *args, **kwargs)
    except Exception as error:
        context = error.__context__
        if isinstance(context, CheckpointMismatch):
            sentence = _what_differs(filename, "", self.cfg)
            raise (CheckpointMismatch(sentence) if sentence else context) from None
        if isinstance(context, RuntimeError) and "architectures match" in str(error):
            raise CheckpointMismatch(_what_differs(filename, str(context), self.cfg)) from error
        if isinstance(error, KeyError) and error.args == ("best",):
            raise CheckpointMismatch(
                f"{filename} holds the state of another --lr-scheduler: give that one, or --reset-lr-scheduler"
            ) from error
        if isinstance(error, ValueError) and "parameter group" in str(error):
            raise CheckpointMismatch(
                f"{filename} holds the optimizer of a model with other parameters: add --reset-optimizer to "
                "start from its weights alone, or name another --save-dir"
            ) from error
        raise


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq="goes on from a checkpoint without the optimizer's state as if the warm-up were still to come",
    here="such a checkpoint is refused, unless --reset-optimizer is given",
    since="fairseq 0.12.3",
)
def refuse_without_an_optimizer(original: Any, self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
    """--no-save-optimizer-state writes one, and so does an average."""
    extra_state = original(self, filename, *args, **kwargs)
    asked = named(original, self, filename, *args, **kwargs)
    if extra_state is not None and not asked.get("reset_optimizer") and self.get_num_updates() == 0:
        raise CheckpointMismatch(
            f"{filename} holds no state of an optimizer, so its training cannot go on: add --reset-optimizer to "
            "start a new schedule from its weights, or name another --save-dir"
        )
    return extra_state


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq="takes an optimizer's state of other shapes, with which the first update fails",
    here="such a checkpoint is refused, with both shapes",
    since="fairseq 0.12.3",
)
def refuse_other_sizes(original: Any, self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
    extra_state = original(self, filename, *args, **kwargs)
    check_optimizer(self._optimizer, filename)
    return extra_state


@replaces(
    "fairseq.checkpoint_utils",
    "load_model_ensemble_and_task",
    fairseq="evaluates with random weights of a classification head that the checkpoint lacks or has in another size",
    here="the head is named, and nothing is evaluated",
    since="fairseq 0.12.3",
)
def refuse_random_heads(original: Any, filenames: List[str], *args: Any, **kwargs: Any) -> Any:
    models, cfg, task = original(filenames, *args, **kwargs)
    for filename, model in zip(filenames, models, strict=False):
        for reason in getattr(model, "fresh_heads", {}).values():
            raise CheckpointMismatch(f"{filename} cannot be evaluated so: {reason}")
    return models, cfg, task


@replaces(
    "fairseq.checkpoint_utils",
    "load_model_ensemble_and_task",
    fairseq="ends with torch's list of tensors if the data folder has another dictionary than the checkpoint",
    here="both numbers of symbols are named, and where to look",
    since="fairseq 0.12.3",
)
def explain_another_dictionary(original: Any, filenames: List[str], *args: Any, **kwargs: Any) -> Any:
    try:
        return original(filenames, *args, **kwargs)
    except RuntimeError as error:
        sentence = _other_dictionary(" or ".join(filenames), str(error))
        if sentence is None:
            raise
        raise CheckpointMismatch(sentence) from error
