"""What a checkpoint holds beside its weights: made plain and looked through before anybody uses it.

Options are data. None of them is filled in from this machine, and a model is built without the files that another
machine had: its weights are in the checkpoint.
"""

import logging
import re
from argparse import Namespace
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch
from fairseq.registry import REGISTRIES
from omegaconf import DictConfig, ListConfig
from omegaconf.nodes import AnyNode

from luna_fairseq.errors import CheckpointError
from luna_fairseq.stand_ins import RefusedError

logger = logging.getLogger(__name__)

# ${model.dropout}: the value of another option. Anything else may ask the environment, or be made into what does.
_OTHER_OPTION = re.compile(r"\$\{\.*\w+(\.\w+)*\}")
_MOST_OPTIONS = 100_000
_ABSOLUTE = re.compile(r"\s*([/\\~]|[A-Za-z]:[/\\]|[A-Za-z][\w+.-]*://)")
# Such as --encoder-embed-path, --load-pretrained-encoder-from, --pretrained-mlm-checkpoint; the last one is written.
_FILE_OPTION = re.compile(r"(embed|model|w2v)_path$|pretrained|^save_predictions$")
_MACHINE = {"plasma_path"}  # where a service of this machine is, which must be a text


def make_plain(value: Any, seen: Dict[int, Any]) -> Any:
    """The value with numpy's own arrays, and dictionaries and lists in the place of configs.

    Args:
        value: of a checkpoint; what it holds is changed in place.
        seen: what has been gone through: it may be there twice, or hold itself.

    Raises:
        RefusedError: for a sparse tensor.
    """
    if isinstance(value, torch.Tensor):
        # torch does not look whether the places in it are inside of it.
        if value.layout is not torch.strided or value.is_nested:
            raise RefusedError("a sparse tensor")
        return value
    if isinstance(value, np.ndarray):
        return np.array(value)  # the class of the stand-in goes
    if isinstance(value, DictConfig | ListConfig):
        value = vars(value).get("_content")
    elif isinstance(value, AnyNode):
        value = vars(value).get("_val")
    if id(value) in seen:
        return value
    if isinstance(value, tuple):
        parts = [make_plain(part, seen) for part in value]
        same = all(part is before for part, before in zip(parts, value, strict=True))
        return value if same else tuple(parts)
    if isinstance(value, dict | list | Namespace | DictConfig | ListConfig | AnyNode):
        seen[id(value)] = value
        if isinstance(value, DictConfig | ListConfig | AnyNode):
            return make_plain(value, seen)
        inside: Any = vars(value) if isinstance(value, Namespace) else value
        for key, part in list(inside.items() if isinstance(inside, dict) else enumerate(inside)):
            plain = make_plain(part, seen)
            if plain is not part:
                inside[key] = plain
    return value


def _visible(name: str) -> str:
    """The name of an option, which may have been made to be printed."""
    return name[:60].encode("unicode_escape").decode()


def check_options(path: str, options: Any) -> None:
    """Refuse options that ask for something of this machine.

    Args:
        path: of the checkpoint.
        options: plain, or a Namespace.

    Raises:
        CheckpointError: with the option.
    """
    if isinstance(options, Namespace):
        for choice in REGISTRIES:  # fairseq has Hydra look for a file of that name
            name = getattr(options, choice, None)
            if name is not None and not (isinstance(name, str) and re.fullmatch(r"[\w-]*", name)):
                raise CheckpointError(f"{path} was not loaded: its option {choice} is {name!r:.60}, which is no name")
    left = _MOST_OPTIONS
    todo: List[Tuple[str, Any]] = [("", options)]
    while todo:
        where, value = todo.pop()
        left -= 1
        if left < 0:
            raise CheckpointError(f"{path} was not loaded: it has more than {_MOST_OPTIONS:,} options; name another")
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, dict):
            for key, part in value.items():
                todo += [(f"{where}.{key}".lstrip("."), part), (where, key)]
        elif isinstance(value, list | tuple | set):
            todo += [(where, part) for part in value]
        elif isinstance(value, str | bytes):
            text = value if isinstance(value, str) else value.decode("latin1")
            if "${" in text and not _OTHER_OPTION.fullmatch(text):
                raise CheckpointError(
                    f"{path} was not loaded: its option {_visible(where)} is {text[:60]!r}, which would be filled in "
                    "from this machine; get a checkpoint whose options are plain values"
                )


def forget_files(path: str, options: Any) -> None:
    """Take out what names a file that building the model, task or criterion would open or write, and say so.

    Args:
        path: of the checkpoint.
        options: plain, or a Namespace; changed in place.
    """
    if isinstance(options, Namespace):
        found = list(_files(options, ""))
    else:
        found = [file for name in ("model", "task", "criterion") for file in _files(options.get(name), name)]
    for inside, key, where in found:
        logger.warning(
            "%s: its option %s is %r, of the machine that it comes from: it is not opened; give your own if it is "
            "needed",
            path,
            _visible(where),
            inside[key],
        )
        inside[key] = None


def _files(options: Any, where: str) -> Iterator[Tuple[Dict[str, Any], str, str]]:
    """The options that name a file: the dictionary, the key, and how to call it."""
    together = isinstance(options, Namespace)  # of all kinds: --save-dir is among them
    if together:
        options = vars(options)
    if not isinstance(options, dict):
        return
    for key, value in options.items():
        place = f"{where}.{key}".lstrip(".")
        if isinstance(value, dict | Namespace):
            yield from _files(value, place)
        elif isinstance(value, str) and value:
            if key in _MACHINE:
                continue
            if key == "data":  # a folder of this machine may be right, and what the user names takes its place
                names_file = "://" in value
            else:
                names_file = bool(_FILE_OPTION.search(str(key)) or (not together and _ABSOLUTE.match(value)))
            if names_file:
                yield options, key, place
