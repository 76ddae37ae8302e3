"""from_pretrained loads what the user names; what a checkpoint asks for counts where it is safe."""

import logging
import os
import re
from pathlib import Path
from typing import Any, Collection, Dict, List

from luna_fairseq.compat._replace import named, replaces

logger = logging.getLogger(__name__)

# The options of fairseq's pieces and tokenisers that name a file. What is not here may fetch something.
_FILES: Dict[str, Dict[str, List[str]]] = {
    "bpe": {
        "bert": ["bpe_vocab_file"],
        "byte_bpe": ["sentencepiece_model_path"],
        "bytes": [],
        "characters": [],
        "fastbpe": ["bpe_codes"],
        "gpt2": ["gpt2_encoder_json", "gpt2_vocab_bpe"],
        "hf_byte_bpe": ["bpe_merges", "bpe_vocab"],
        "sentencepiece": ["sentencepiece_model"],
        "subword_nmt": ["bpe_codes"],
    },
    "tokenizer": {"moses": [], "nltk": [], "space": []},
}
# Files of a model's folder that fairseq takes by their names, and the options that they stand for.
_BESIDE = {
    "code": "bpe_codes",
    "bpecodes": "bpe_codes",
    "sentencepiece.bpe.model": "sentencepiece_model",
    "merges.txt": "bpe_merges",
    "vocab.json": "bpe_vocab",
}


def kind_by_files(options: Dict[str, Any]) -> Any:
    """What the pieces are called whose files are named, if ``bpe`` is not given; else that, or None.

    Args:
        options: of ``from_pretrained``.
    """
    if options.get("bpe") is not None:
        return options["bpe"]
    named = {option for option, value in options.items() if value is not None}
    kinds = [kind for kind, files in _FILES["bpe"].items() if named.intersection(files)]
    return kinds[0] if len(kinds) == 1 else None


def _folder(path: str) -> str:
    """The path, if it is a folder.

    Raises:
        ValueError: for an archive, or the address of one.
        FileNotFoundError: if nothing is there.
    """
    if re.match(r"[A-Za-z][\w+.-]*://", path):
        raise ValueError(f"{path} is an address: download it, look at what it is, and name the folder that it is in")
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"{path} is a file: name a folder; an archive is not unpacked here, so unpack it yourself")
    if not os.path.isdir(path):
        raise FileNotFoundError(f"the folder {path} does not exist: correct the name")
    return os.path.abspath(path)


@replaces(
    "fairseq.hub_utils",
    "from_pretrained",
    fairseq="unpacks and deletes an archive in the place of a folder, writes anywhere, and fetches addresses",
    here="folders are loaded; an archive or an address is refused, and nothing is unpacked or deleted",
    since="fairseq 0.12.3",
)
def load_from_folders(
    original: Any,
    model_name_or_path: Any,
    checkpoint_file: Any = "model.pt",
    data_name_or_path: Any = ".",
    archive_map: Any = None,
    **kwargs: Any,
) -> Any:
    model_name_or_path, checkpoint_file = os.fspath(model_name_or_path), os.fspath(checkpoint_file)
    data_name_or_path = os.fspath(data_name_or_path)
    known = (archive_map or {}).get(model_name_or_path, model_name_or_path)
    if isinstance(known, dict):  # a published model with options of its own
        own = {name: value for name, value in known.items() if name not in ("path", "checkpoint_file")}
        checkpoint_file, kwargs = known.get("checkpoint_file", checkpoint_file), {**own, **kwargs}
        known = known["path"]
    folder = _folder(str(known))
    data = (archive_map or {}).get(data_name_or_path, data_name_or_path)
    data = _folder(os.path.join(folder, data) if data.startswith(".") else data)
    return original(folder, checkpoint_file, data, **kwargs)


@replaces(
    "fairseq.hub_utils",
    "from_pretrained",
    fairseq="takes the pieces that a checkpoint asks for, wherever their files are, not those of the user",
    here="the user's count; a checkpoint's are taken if their files lie in the folders that the user has named",
    since="fairseq 0.12.3",
)
def choose_the_users_pieces(original: Any, model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
    from omegaconf import DictConfig, open_dict

    kwargs = {name: str(value) if isinstance(value, Path) else value for name, value in kwargs.items()}
    _check_names(kwargs)
    kwargs["bpe"] = kind_by_files(kwargs)
    # Without the user's pieces, which fairseq would mix with the checkpoint's.
    loaded = original(
        model_name_or_path, *args, **{name: value for name, value in kwargs.items() if name not in _FILES}
    )
    cfg = loaded["args"]
    if not isinstance(cfg, DictConfig):  # a vocoder
        return loaded
    data = str(named(original, model_name_or_path, *args, **kwargs).get("data_name_or_path", "."))
    model = str(model_name_or_path)
    folders = [model, os.path.join(model, data) if data.startswith(".") else data]
    paths = {option: os.path.join(folders[0], name) for name, option in _BESIDE.items()}
    kwargs = {**{option: path for option, path in paths.items() if os.path.exists(path)}, **kwargs}
    with open_dict(cfg):
        for kind in _FILES:
            cfg[kind] = _chosen(kind, cfg.get(kind), kwargs, folders)
        words = getattr(cfg.generation, "replace_unk", None)
        if words and "replace_unk" not in {**kwargs, **(kwargs.get("generation_args") or {})}:
            _not_taken("replace_unk", words)
            cfg.generation.replace_unk = None
    return loaded


def _name(pieces: Any) -> Any:
    """What pieces or a tokeniser are called, which may have options."""
    return pieces.get("_name") if hasattr(pieces, "keys") else pieces


def _check_names(kwargs: Dict[str, Any]) -> None:
    """Refuse pieces that nobody knows, before the checkpoint is loaded."""
    from fairseq.registry import REGISTRIES

    for kind in _FILES:
        name, known = _name(kwargs.get(kind)), REGISTRIES[kind]["registry"]
        if name is not None and name not in known:
            raise ValueError(f"{kind} is {name!r}: take one of {', '.join(sorted(known))}")


def _chosen(kind: str, saved: Any, kwargs: Dict[str, Any], folders: Collection[str]) -> Any:
    """The options of the pieces, or of the tokeniser: the user's, or a checkpoint's that are safe, or None."""
    from fairseq.dataclass.utils import overwrite_args_by_name
    from fairseq.registry import REGISTRIES
    from omegaconf import DictConfig

    name = _name(saved)
    given = kwargs.get(kind)
    if given is not None:
        own = _name(given)
        if name is not None and name != own:
            logger.warning("%s is %s, as you say, and not %r, as the checkpoint says", kind, own, name)
        options = REGISTRIES[kind]["dataclass_registry"].get(own)
        if options is None:
            return own
        chosen = DictConfig(options)
        overwrite_args_by_name(chosen, {**kwargs, **(given if isinstance(given, dict | DictConfig) else {})})
        chosen._name = own
        return chosen
    if name is None:
        return None
    files = _FILES[kind].get(name) if isinstance(name, str) else None
    paths = [saved.get(option) for option in files or [] if isinstance(saved, DictConfig)]
    if files is None or len(paths) < len(files) or not all(_named(path, kwargs, folders) for path in paths):
        _not_taken(kind, name, *paths)
        return None
    return saved


def _named(path: Any, kwargs: Dict[str, Any], folders: Collection[str]) -> bool:
    """Whether the user has named a file, or a folder that it lies in."""
    if not isinstance(path, str) or not os.path.isfile(path):
        return False
    if path in [value for value in kwargs.values() if isinstance(value, str)]:
        return True
    return any(
        os.path.commonpath([resolve(folder), resolve(path)]) == resolve(folder)
        for folder in folders
        for resolve in (os.path.realpath, os.path.abspath)
    )


def _not_taken(option: str, name: Any, *paths: Any) -> None:
    asked = ", ".join(repr(value)[:100] for value in (name, *paths))
    logger.warning(
        "the checkpoint asks for %s %s, which is not in the folders that you have named: it is not used; give %s=, "
        "and its files, to from_pretrained",
        option,
        asked,
        option,
    )
