"""The folder that ``luna-fairseq export`` writes: whole or not at all, and never over somebody else's files."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from luna_fairseq.data.files import whole_folder, write_json
from luna_fairseq.errors import PreparationError

CONFIG = "config.json"
PIECES = "sentencepiece.bpe.model"  # the name under which fairseq's hub looks for it
_DICTIONARIES = ("dict*.txt", "input0/dict.txt", "label/dict.txt")


class Belongings(NamedTuple):
    """The files that a model needs beside its weights.

    Attributes:
        data: the folder of the dictionaries, or None if there are none, as of models of images.
        files: name in the exported folder -> file.
    """

    data: Optional[Path]
    files: Dict[str, Path]


def find_belongings(
    checkpoint: Path, data: str, given: Optional[str], pieces: Optional[str], has_dictionary: bool = True
) -> Belongings:
    """Dictionaries and pieces of a checkpoint.

    Args:
        checkpoint: its file.
        data: the data folders that it names, separated by colons; maybe of another machine.
        given: the folder that the user names, which must hold a dictionary, or None.
        pieces: the SentencePiece model that the user names, or None to look beside the dictionaries, one folder
            higher, in that of their ``data-bin``, and beside the checkpoint.
        has_dictionary: the task has ``dict*.txt``, as those of the Long Range Arena have not.

    Raises:
        PreparationError: if what the user names is not there, or there is no dictionary.
        DataError: if it is no SentencePiece model.
    """
    # Here, because it takes seconds.
    from luna_fairseq.models._hub import GPT2_PIECES, places_of_pieces
    from luna_fairseq.models._hub import PIECES as NAMES

    first = data.split(os.pathsep)[0]
    places = [Path(given)] if given else [*([Path(first)] if first else []), checkpoint.parent]
    for folder in places:
        found = [path for pattern in _DICTIONARIES for path in sorted(folder.glob(pattern)) if path.is_file()]
        if found:
            break
    else:
        if given:
            raise PreparationError(f"there is no dict*.txt in {given}: name the folder of the dictionaries as --data")
        if first and has_dictionary:
            raise PreparationError(
                f"there is no dict*.txt in {Path(first).absolute()}, which the checkpoint names as {first}, nor "
                "beside the checkpoint: name the folder of the dictionaries as --data"
            )
        folder, found = checkpoint.parent, []
    named = folder if found else None
    files = {path.relative_to(folder).as_posix(): path for path in found}
    if pieces is not None:
        if not Path(pieces).is_file():
            raise PreparationError(
                f"there is no file {pieces}: name the SentencePiece model as --sentencepiece-model"
            )
        from sentencepiece import SentencePieceProcessor

        files[PIECES] = Path(pieces)
        SentencePieceProcessor(model_file=pieces)  # which, as repaired, names a file that is no such model
        return Belongings(named, files)
    known = map(Path, places_of_pieces(folder))
    for place in (*known, folder.absolute().parent, checkpoint.parent):
        model = next((place / name for name in (*NAMES, "spm.model") if (place / name).is_file()), None)
        if model is not None:
            files[PIECES] = model
            break
        if all((place / name).is_file() for name in GPT2_PIECES):
            files.update({name: place / name for name in GPT2_PIECES})
            break
    return Belongings(named, files)


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
    """Refuse a folder that holds anything but what ``luna-fairseq export`` wrote there.

    Raises:
        PreparationError: with the file that is in the way.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise PreparationError(f"{out} is no folder: name another --out")
    there = _files(out)
    if not there:
        return
    try:
        own = {CONFIG, *read_config(out)["luna_fairseq"]["files"]}
    except PreparationError:
        own = set()
    others = [name for name in there if name not in own]
    if others:
        raise PreparationError(f"{out} has a {others[0]} that luna-fairseq export did not write: name another --out")


def _files(folder: Path) -> List[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


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
        config["luna_fairseq"]["files"] = _files(temporary)
        write_json(temporary / CONFIG, config)
        check_out(out)  # it may have taken long
