"""The folder that ``luna-fairseq export`` writes: whole or not at all, and never over somebody else's files."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional

from luna_fairseq.data.files import write_json
from luna_fairseq.data.pieces import SENTENCEPIECE, Pieces, read_sentencepiece
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import check_not_inside, whole_folder

CONFIG = "config.json"
PIECES = "sentencepiece.bpe.model"  # the name under which fairseq's hub looks for it
# Of a corpus, of fine-tuning, of the Long Range Arena.
_DICTIONARIES = (
    "dict.txt", "dict.*.txt", "input0/dict.txt", "label/dict.txt", "src-bin/dict.txt", "label-bin/dict.txt",
)  # fmt: skip
_WITHOUT_DICTIONARY = ("lra-image",)  # tasks


class Belongings(NamedTuple):
    """The files that a model needs beside its weights.

    Attributes:
        data: the folder of the dictionaries, or None if there are none, as of models of images.
        files: name in the exported folder -> file.
    """

    data: Optional[Path]
    files: Dict[str, Path]


def given_pieces(path: str) -> Path:
    """The SentencePiece model that the user names.

    Raises:
        PreparationError: if it is not there, or is not one.
    """
    if not Path(path).is_file():
        raise PreparationError(f"there is no file {path}: name the SentencePiece model as --sentencepiece-model")
    read_sentencepiece(Path(path))
    return Path(path)


def find_belongings(
    checkpoint: Path, task: Dict[str, Any], given: Optional[str], pieces: Optional[Path]
) -> Belongings:
    """Dictionaries and pieces of a checkpoint.

    Args:
        checkpoint: its file.
        task: the options of its task; the data folders that they name may be of another machine, or were named from
            another folder.
        given: the data folders that the user names, or None.
        pieces: the SentencePiece model that the user names, or None to look where
            :meth:`luna_fairseq.data.pieces.Pieces.of_model` does, and beside the checkpoint.

    Raises:
        PreparationError: if what the user names is not there, or there are no dictionaries where they were.
    """
    named = [Path(name) for name in (given or str(task.get("data") or "")).split(os.pathsep) if name]
    for folder in [*named, *([] if given else [checkpoint.parent])]:
        found = [path for pattern in _DICTIONARIES for path in sorted(folder.glob(pattern)) if path.is_file()]
        if found:
            break
    else:
        folder = checkpoint.parent
        if named and task.get("_name") not in _WITHOUT_DICTIONARY:
            who, also = ("you name", "") if given else ("the checkpoint names", ", nor beside the checkpoint")
            raise PreparationError(
                f"there is no dict*.txt in {named[0].absolute()}, which {who} as {named[0]}{also}: name the folder "
                "of the dictionaries as --data"
            )
    files = {path.relative_to(folder).as_posix(): path for path in found}
    data = folder if found or task.get("_name") in _WITHOUT_DICTIONARY else None
    if pieces is not None:
        return Belongings(data, {**files, PIECES: pieces})
    near = Pieces.of_model(folder, checkpoint.parent)
    files.update(near.files if near else {})
    if SENTENCEPIECE in files:
        files[PIECES] = given_pieces(str(files.pop(SENTENCEPIECE)))
    return Belongings(data, files)


def read_config(folder: Path) -> Dict[str, Any]:
    """The ``config.json`` of an exported folder.

    Raises:
        PreparationError: if the folder is not one.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config["luna_fairseq"]["files"], list):
            return config
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise PreparationError(f"{folder} is not a folder that luna-fairseq export wrote: name one, with its {CONFIG}")


def check_out(out: Path) -> None:
    """Refuse a folder that holds anything but what ``luna-fairseq export`` wrote there, or that cannot be made.

    Raises:
        PreparationError: with what is in the way.
        OutputError: if one is inside of it.
    """
    above = next((folder for folder in out.absolute().parents if os.path.lexists(folder)), out)
    if not above.is_dir():
        raise PreparationError(f"{above} is no folder: name another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PreparationError(f"nothing can be written to {above}: name another --out")
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise PreparationError(f"{out} is no folder: name another --out")
    try:
        own = {CONFIG, *read_config(out)["luna_fairseq"]["files"]}
    except PreparationError:
        own = set()
    other = next((name for name in _content(out) if name not in own), None)
    if other is not None:
        raise PreparationError(f"{out} has a {other} that luna-fairseq export did not write: name another --out")
    check_not_inside(out)


def _content(folder: Path, above: str = "") -> Iterator[str]:
    """What is in a folder, and in those in it: files, links, and folders that are empty."""
    for path in sorted(folder.iterdir()):
        name = f"{above}{path.name}"
        if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
            yield from _content(path, f"{name}/")
        else:
            yield name


@contextmanager
def exported_folder(out: Path, config: Dict[str, Any], belongings: Belongings) -> Iterator[Path]:
    """A temporary folder to write to, which becomes OUT with the dictionaries, the pieces and ``config.json``.

    Args:
        out: the folder; one of an earlier export is replaced.
        config: for ``config.json``; may be filled while the folder is.
        belongings: to copy.

    Raises:
        PreparationError: if OUT holds other files.
    """
    check_out(out)
    with whole_folder(out, replace=True) as temporary:
        for name, source in belongings.files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, temporary / name)
        yield temporary
        config["luna_fairseq"]["files"] = sorted(_content(temporary))
        write_json(temporary / CONFIG, config)
        check_out(out)  # it may have taken long
