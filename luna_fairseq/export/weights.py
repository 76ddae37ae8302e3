"""Weights as safetensors, options as JSON, and back to a checkpoint bit for bit.

Neither file can run code. What is shared by several parameters is written once; ``config.json`` says who shares it.
The optimizer's state and the random numbers are left out: no training goes on from it; fine-tuning does.
"""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, Tuple

import fairseq
import torch

from luna_fairseq._version import __version__
from luna_fairseq.compat._contents import check_options
from luna_fairseq.errors import CheckpointError, PreparationError
from luna_fairseq.export.folder import read_config
from luna_fairseq.model_card import plain
from luna_fairseq.outputs import whole_file

WEIGHTS = "model.safetensors"
# Of the history: what the model card and fine-tuning read.
_HISTORY = ("averaged", "val_loss", "best", "previous_training_time")


def need_safetensors() -> Any:
    """The module ``safetensors.torch``.

    Raises:
        PreparationError: if it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise PreparationError(
            "safetensors is not installed: pip install safetensors, or luna-fairseq with its extra export"
        ) from error
    return safetensors.torch


def description(checkpoint: Dict[str, Any], kind: str) -> Dict[str, Any]:
    """What ``config.json`` says of a checkpoint.

    Args:
        checkpoint: as fairseq loads it.
        kind: the format of the folder.

    Raises:
        CheckpointError: if it has no options.
    """
    if not checkpoint.get("cfg"):
        raise CheckpointError("the checkpoint does not say what it is of: name one that fairseq-train has written")
    cfg = plain(checkpoint["cfg"])
    extra = checkpoint.get("extra_state") or {}
    history = {name: plain(extra[name]) for name in _HISTORY if name in extra}
    iterator = extra.get("train_iterator") or {}
    history["train_iterator"] = {key: iterator[key] for key in ("epoch", "iterations_in_epoch") if key in iterator}
    own = {
        "version": __version__,
        "fairseq": fairseq.__version__,
        "torch": torch.__version__,
        "format": kind,
        "cfg": cfg,
        "extra_state": history,
        "optimizer_history": plain((checkpoint.get("optimizer_history") or [])[-1:]),
    }
    architecture = (cfg.get("model") or {}).get("_name")
    return {"model_type": "luna-fairseq", "architectures": [architecture], "luna_fairseq": own}


def _distinct(state: Dict[str, Any]) -> Tuple[Dict[str, torch.Tensor], Dict[str, str]]:
    """Each tensor once, by the first of its names; and the other names, with that one."""
    once: Dict[Any, str] = {}
    tensors, tied = {}, {}
    for name, x in state.items():
        key = (x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride(), x.dtype)
        first = once.setdefault(key, name) if x.numel() else name
        if first != name:
            tied[name] = first
        else:
            tensors[name] = x.detach().contiguous().clone()  # some may overlap, which the format has no room for
    return tensors, tied


def write_weights(folder: Path, checkpoint: Dict[str, Any], config: Dict[str, Any]) -> None:
    """Write ``model.safetensors``, and into ``config`` what it cannot hold."""
    state = checkpoint["model"]
    tensors, tied = _distinct(state)
    own = config["luna_fairseq"]
    own["tied"], own["names"] = tied, list(state)
    own["modules"] = plain(getattr(state, "_metadata", None))
    with whole_file(folder / WEIGHTS) as temporary:  # its own file would be for the owner alone
        need_safetensors().save_file(tensors, temporary, metadata={"format": "pt"})


def read_checkpoint(folder: Path) -> Dict[str, Any]:
    """A checkpoint from an exported folder: every parameter bit for bit, shared ones shared.

    Raises:
        PreparationError: if the folder was not written by ``luna-fairseq export --format safetensors``.
        CheckpointError: if its files do not belong together, or its options ask for something of this machine.
    """
    own = read_config(folder)["luna_fairseq"]
    if own.get("format") != "safetensors":
        raise PreparationError(f"{folder} holds {own.get('format')}: export the checkpoint with --format safetensors")
    try:
        tensors = need_safetensors().load_file(folder / WEIGHTS)
    except PreparationError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read ({error}): export the checkpoint again") from error
    except Exception as error:  # safetensors' own
        raise CheckpointError(f"{folder / WEIGHTS} is damaged ({error}): export the checkpoint again") from error
    try:
        names, tied = own["names"], own["tied"]
        model = OrderedDict((name, tensors[tied.get(name, name)]) for name in names)
        modules = own["modules"]
        cfg, extra, history = own["cfg"], own["extra_state"], own["optimizer_history"]
        if not isinstance(cfg, dict) or {tied.get(name, name) for name in names} != set(tensors):
            raise ValueError("other parameters")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} and the config.json beside it do not belong together: export the checkpoint again"
        ) from error
    if modules is not None:  # numbers of heads and the like, which are checked when the weights are loaded
        model._metadata = OrderedDict(modules)  # type: ignore[attr-defined]
    check_options(str(folder), json.loads(json.dumps(cfg)))
    return {
        "args": None,
        "cfg": cfg,
        "model": model,
        "criterion": None,
        "optimizer_history": history,
        "task_state": {},
        "extra_state": extra,
    }
