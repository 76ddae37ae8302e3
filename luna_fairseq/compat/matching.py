"""Checkpoints that belong to another model, optimizer or schedule: named, and not loaded."""

from typing import Any, List

from luna_fairseq.checkpoint import check_optimizer
from luna_fairseq.compat._replace import named, replaces
from luna_fairseq.errors import CheckpointMismatch


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
        if isinstance(error.__context__, CheckpointMismatch):
            raise error.__context__ from None
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
