"""What may be loaded: plain data from whole files, and a clear sentence about anything else."""

import argparse
import collections
import errno
import os
import pickle
import re
import typing
import zipfile
from typing import Any, List

from luna_fairseq.compat._replace import Undo, acts, replaces
from luna_fairseq.errors import CheckpointError


@acts(
    fairseq="saves options, meters and place holders, which torch.load refuses unless it may run any code",
    here="torch.load reads these plain classes too, and still nothing that runs code",
    since="torch 2.6 (weights-only loading became the default)",
)
def allow_plain_classes() -> Undo:
    """None of these runs code when it is unpickled."""
    import numpy as np
    import torch
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    classes: List[Any] = [
        # The options of a fairseq-train run with a model that is not a dataclass, and of fairseq 0.9.
        argparse.Namespace,
        # Validation meters of --eval-bleu.
        np.ndarray,
        np.dtype,
        np.empty(0).__reduce__()[0],  # numpy's array constructor, whose home moved between versions
        np.float64(0).__reduce__()[0],  # the same for a scalar
        *(type(np.dtype(name)) for name in ("int64", "float64", "float32")),
        # A distributed run that resumes sends the whole state from rank 0 to the others.
        _TensorPlaceholder,
        DictConfig,
        ListConfig,
        ContainerMetadata,
        Metadata,
        AnyNode,
        typing.Any,
        collections.defaultdict,
        dict,
        list,
        int,
    ]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(classes)

    def undo() -> None:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    return undo


@replaces(
    "fairseq.checkpoint_utils",
    "load_checkpoint_to_cpu",
    fairseq="lets torch's error through, whatever the file holds",
    here="a file that is cut short, would run code, or is something else than a checkpoint is named, with what to do",
    since="torch 2.6 (weights-only loading became the default)",
)
def explain_what_was_not_loaded(original: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    from luna_fairseq.checkpoint_files import damaged

    try:
        state = original(path, *args, **kwargs)
    except Exception as error:
        # EINVAL: torch seeks before the start of a file that is cut short.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused:
            raise CheckpointError(
                f"{path} was not loaded: it holds {refused[1]} that no fairseq checkpoint holds, and loading "
                "that could run code; get the checkpoint from somebody you trust"
            ) from error
        unreadable = isinstance(error, pickle.UnpicklingError | OSError) or "PytorchStreamReader" in str(error)
        if unreadable or not zipfile.is_zipfile(path):
            raise damaged(path) from error
        # What fairseq and torch trip over when they find a tensor, a list, a state_dict or a script there.
        foreign = isinstance(error, AttributeError | IndexError | KeyError | TypeError | ValueError)
        if foreign or re.search("TorchScript|__contains__", str(error)):
            state = {}
        else:
            raise
    if "model" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of fairseq: name a file that fairseq-train has written")
    return state


@replaces(
    "fairseq.checkpoint_utils",
    "load_checkpoint_to_cpu",
    fairseq="takes a file with a changed byte for other weights, as torch.load does",
    here="the file is compared with the checksums that it holds, and named if they differ",
    since="fairseq 0.12.3",
)
def compare_checksums(original: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    from luna_fairseq.checkpoint_files import check_whole

    if os.path.isfile(path):
        check_whole(path)
    return original(path, *args, **kwargs)
