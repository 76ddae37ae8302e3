"""What may be loaded: plain data from whole files, and a clear sentence about anything else."""

import argparse
import contextvars
import errno
import os
import pickle
import re
import struct
import types
import typing
import zipfile
from pathlib import Path
from typing import Any, List

from luna_fairseq.compat._replace import Undo, acts, replaces, replaces_value
from luna_fairseq.console import one_line
from luna_fairseq.errors import CheckpointError, DataError

_building = contextvars.ContextVar("_building", default=False)  # whether a model is built with a checkpoint's options


@acts(
    fairseq="saves options, meters and place holders, which torch.load refuses unless it may run any code",
    here="torch.load reads these plain classes too, numpy's by stand-ins, and still nothing that runs code",
    since="torch 2.6 (weights-only loading became the default)",
)
def allow_plain_classes() -> Undo:
    """None of these runs code, or follows a pointer of the file's, when it is unpickled."""
    import torch
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    from luna_fairseq.stand_ins import NUMPY, default_dictionary, no_bytes

    classes: List[Any] = [
        # The options of a fairseq-train run with a model that is not a dataclass, and of fairseq 0.9.
        argparse.Namespace,
        # Validation meters of --eval-bleu.
        *((stand_in, name) for name, stand_in in NUMPY.items()),
        (no_bytes, "builtins.bytes"),
        # A distributed run that resumes sends the whole state from rank 0 to the others.
        _TensorPlaceholder,
        DictConfig,
        ListConfig,
        ContainerMetadata,
        Metadata,
        AnyNode,
        typing.Any,
        (default_dictionary, "collections.defaultdict"),
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


# What the reader of a pickle trips over when somebody else wrote it.
_NOT_READ = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RecursionError, TypeError, ValueError),
    *(struct.error, SyntaxError),
)


def _not_loaded(path: str, error: Exception) -> Exception:
    """What to raise in the place of an error that torch.load ended with."""
    from luna_fairseq.checkpoint_files import damaged
    from luna_fairseq.stand_ins import RefusedError

    # EINVAL: torch seeks before the start of a file that is cut short.
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return error
    refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if refused or isinstance(error, RefusedError):
        return CheckpointError(
            f"{path} was not loaded: it holds {refused[1] if refused else error} that no fairseq checkpoint holds, "
            "and loading that could run code; get the checkpoint from somebody you trust"
        )
    unreadable = isinstance(error, pickle.UnpicklingError | OSError) or "PytorchStreamReader" in str(error)
    if unreadable or not zipfile.is_zipfile(path):
        return damaged(path)
    # torch says so of a tensor that does not fit its storage, too.
    if isinstance(error, _NOT_READ) or (isinstance(error, RuntimeError) and "memory" not in str(error)):
        return _foreign(path, f"reading it ends with {_said(error)}")
    return error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"


def _foreign(path: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a checkpoint of fairseq ({why}): name a file that fairseq-train has written"
    )


def _load(torch: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
    from luna_fairseq.compat._contents import check_options, forget_files, make_plain

    path = str(getattr(file, "name", "the checkpoint"))
    try:
        state = make_plain(torch.load(file, *args, **kwargs), {})
    except Exception as error:
        explained = _not_loaded(path, error)
        if explained is error:
            raise
        raise explained from error
    if not isinstance(state, dict) or "model" not in state:
        raise _foreign(path, "it holds no model")
    for name, kind in (("cfg", dict), ("args", argparse.Namespace)):
        options = state.get(name)
        if not isinstance(options, kind | None):
            raise _foreign(path, f"its {name} is of the type {type(options).__name__}")
        check_options(path, options)
        if options and _building.get():
            forget_files(path, options)
    return state


@replaces_value(
    "fairseq.checkpoint_utils",
    "torch",
    fairseq="lets torch's error through, whatever the file holds",
    here="a file that is cut short, would run code, or is something else than a checkpoint is named, with what to do",
    since="torch 2.6 (weights-only loading became the default)",
)
def explain_what_was_not_loaded(original: Any) -> Any:
    """The module sees a torch whose ``load`` looks through what it has read."""

    class Torch(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def load(self, file: Any, *args: Any, **kwargs: Any) -> Any:
            return _load(original, file, *args, **kwargs)

    return Torch("torch")


@replaces(
    "fairseq.checkpoint_utils",
    "load_checkpoint_to_cpu",
    fairseq="ends deep inside if a field is missing, or an option is not of the kind that it expects",
    here="the file and the cause are named",
    since="fairseq 0.12.3",
)
def name_the_cause(original: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return original(path, *args, **kwargs)
    except (*_NOT_READ, HydraException, OmegaConfBaseException) as error:
        if isinstance(error, KeyError) and not isinstance(error, OmegaConfBaseException):
            raise _foreign(path, f"it has no {error}") from error
        raise CheckpointError(
            f"{path} was not loaded: its options or its history are not as fairseq-train writes them ({_said(error)})"
        ) from error


@replaces(
    "fairseq.checkpoint_utils",
    "load_model_ensemble_and_task",
    fairseq="opens the files that a checkpoint's options name, such as the embeddings that training began with",
    here="none is opened unless the user names it: the weights are in the checkpoint",
    since="fairseq 0.12.3",
)
def build_without_files(original: Any, *args: Any, **kwargs: Any) -> Any:
    token = _building.set(True)
    try:
        return original(*args, **kwargs)
    finally:
        _building.reset(token)


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


@replaces(
    "sentencepiece.SentencePieceProcessor",
    "LoadFromFile",
    fairseq="lets SentencePiece open its model, which refuses names outside of the system's encoding by a TypeError",
    here="the file is read whatever its name is, and named if it is no model",
    since="sentencepiece 0.2",
)
def read_pieces(original: Any, self: Any, filename: Any) -> Any:
    try:
        return self.LoadFromSerializedProto(Path(filename).read_bytes())
    except RuntimeError as error:
        raise DataError(
            f"{filename} is not a SentencePiece model: name the one that the text of the training was cut with"
        ) from error
