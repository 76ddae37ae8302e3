"""Average the weights of the last checkpoints, as fairseq's own script does (the package ships none)."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from fairseq import checkpoint_utils

from luna_fairseq.model_card import history


def last_checkpoints(folder: Path, count: int, by_update: bool, upper_bound: Optional[int] = None) -> List[Path]:
    """The last checkpoints of a run, the newest first.

    Args:
        folder: a ``--save-dir``.
        count: how many.
        by_update: count ``checkpoint_EPOCH_UPDATE.pt`` files, not ``checkpointEPOCH.pt`` ones.
        upper_bound: leave out what is later than this epoch or update.

    Raises:
        ValueError: if ``count`` is below 1, or there are fewer.
    """
    if count < 1:
        raise ValueError(f"cannot average the last {count} checkpoints: ask for at least 1")
    pattern = re.compile(r"checkpoint_\d+_(\d+)\.pt" if by_update else r"checkpoint(\d+)\.pt")
    found = []
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and (upper_bound is None or int(match[1]) <= upper_bound):
            found.append((int(match[1]), path))
    if len(found) < count:
        kind = "update" if by_update else "epoch"
        raise ValueError(f"{folder} holds {len(found)} {kind} checkpoints, not {count}: ask for fewer, or keep more")
    return [path for _, path in sorted(found, reverse=True)[:count]]


def average_checkpoints(paths: List[Path]) -> Dict[str, Any]:
    """Load checkpoints and average their weights.

    Sums are taken in float64; integer entries must be equal and are kept, and tied weights stay tied. Everything
    else (options, history) comes from the first file, and ``extra_state`` says which files they were
    (``averaged``); the optimizer state is left out, since it is of no single run.

    Args:
        paths: checkpoint files; the first is the newest.

    Returns:
        a checkpoint that every fairseq command loads.

    Raises:
        ValueError: if there is no file, or the files do not hold the same parameters.
        CheckpointError: if a file cannot be read.
    """
    if not paths:
        raise ValueError("no checkpoints to average: name at least one")
    result: Dict[str, Any] = {}
    sums: Dict[str, Any] = {}
    averaged_files = []
    for path in paths:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        model = state["model"]
        averaged_files.append(history(state, path.name))
        if not result:
            result = {key: value for key, value in state.items() if key != "last_optimizer_state"}
            sums = {k: v.double() if torch.is_floating_point(v) else v for k, v in model.items()}
            dtypes = {k: v.dtype for k, v in model.items()}
            metadata = getattr(model, "_metadata", None)
            first: Dict[Any, str] = {}
            tied = {k: first.setdefault((v.data_ptr(), v.shape), k) for k, v in model.items()}
            continue
        if {k: v.shape for k, v in model.items()} != {k: v.shape for k, v in sums.items()}:
            raise ValueError(f"{path} holds other parameters than {paths[0]}: average checkpoints of one run")
        for key, value in model.items():
            if torch.is_floating_point(value):
                sums[key] = sums[key] + value
            elif not torch.equal(sums[key], value):
                raise ValueError(f"{key} differs between {path} and {paths[0]} and cannot be averaged")
    averaged = OrderedDict(
        (k, (v / len(paths)).to(dtypes[k]) if torch.is_floating_point(v) else v) for k, v in sums.items()
    )
    for key, other in tied.items():
        if torch.equal(averaged[key], averaged[other]):
            averaged[key] = averaged[other]
    if metadata is not None:  # numbers of heads and the like, which are checked when the weights are loaded
        averaged._metadata = metadata  # type: ignore[attr-defined]
    result["model"] = averaged
    result["extra_state"] = {**(result.get("extra_state") or {}), "averaged": averaged_files}
    return result
