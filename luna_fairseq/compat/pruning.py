"""Pruned training: ``--encoder-layers-to-keep`` and ``--decoder-layers-to-keep``, whose checkpoints load again."""

import re
from typing import Any, List

from luna_fairseq.compat._replace import replaces
from luna_fairseq.errors import CheckpointMismatch

_SIDES = ("encoder", "decoder")


def _layers_to_keep(cfg: Any, side: str) -> List[int]:
    """The numbers of layers that an option asks for; empty if it is not given.

    Raises:
        ValueError: if they are no numbers, or one comes twice.
    """
    option = getattr(cfg, f"{side}_layers_to_keep", None)
    if not option or not isinstance(option, str):
        return []
    numbers = option.replace(" ", "").split(",")
    if not all(number.isdecimal() for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise ValueError(f"--{side}-layers-to-keep is {option!r}: give the numbers of layers, such as 0,2,4")
    return sorted(map(int, numbers))


def _set(cfg: Any, name: str, value: Any) -> None:
    """Set an option of a DictConfig or a Namespace, also one that it does not have."""
    from omegaconf import OmegaConf, open_dict

    if OmegaConf.is_config(cfg):
        with open_dict(cfg):
            cfg[name] = value
    else:
        setattr(cfg, name, value)


@replaces(
    "fairseq.models",
    "build_model",
    fairseq="counts the layers that are kept in a copy of the options: the checkpoint says that it has all layers",
    here="the options that are saved have the number of layers that the model has",
    since="fairseq 0.12.3",
)
def count_the_layers(original: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
    kept = {side: len(_layers_to_keep(cfg, side)) for side in _SIDES}
    model = original(cfg, *args, **kwargs)
    for side, count in kept.items():
        if count and hasattr(cfg, f"{side}_layers"):
            _set(cfg, f"{side}_layers", count)
    return model


@replaces(
    "fairseq.checkpoint_utils",
    "prune_state_dict",
    fairseq="prunes a pruned model again when its training goes on, and drops a side whose layers all stay",
    here="each side loses its layers once; a layer that is not there is named",
    since="fairseq 0.12.3",
)
def prune_once(original: Any, state_dict: Any, model_cfg: Any) -> Any:
    wanted = {side: _layers_to_keep(model_cfg, side) for side in _SIDES}
    if any(wanted.values()):
        for side, keep in wanted.items():
            found = [re.match(rf"{side}\b.*\.layers\.(\d+)\.", name) for name in state_dict]
            there = sorted({int(match[1]) for match in found if match})
            if keep and len(keep) != len(there) and not set(keep) <= set(there):
                raise CheckpointMismatch(
                    f"--{side}-layers-to-keep is {','.join(map(str, keep))} and the checkpoint has {len(there)} "
                    "layers, counted from 0: name some of those"
                )
            # As many as are wanted: they are what a run with the same options has kept.
            if there and (not keep or len(keep) == len(there)):
                _set(model_cfg, f"{side}_layers_to_keep", ",".join(map(str, there)))
    return original(state_dict, model_cfg)


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq="saves the numbers of layers to keep with a model that was built without the others, if it loads nothing",
    here="they are not saved: nothing is left to prune",
    since="fairseq 0.12.3",
)
def forget_the_other_layers(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    extra_state = original(self, *args, **kwargs)
    for side in _SIDES:
        if _layers_to_keep(self.cfg.model, side):
            _set(self.cfg.model, f"{side}_layers_to_keep", None)
    return extra_state
