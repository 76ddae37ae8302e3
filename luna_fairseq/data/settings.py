"""A prepared folder: made once, and kept apart from one with other settings."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luna_fairseq.data.files import CONTENT, alone_in, write_json
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_folder

SETTINGS, SMOKE = "settings.json", "smoke"


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on in a folder that was begun with other settings or other input."""
    before = read_settings(path)
    for key in {**before, **settings}:
        if before.get(key) == settings.get(key):
            continue
        if key != CONTENT:
            raise PreparationError(
                f"{path.parent} was begun with {key} {json.dumps(before.get(key))}, "
                f"not {json.dumps(settings.get(key))}: repeat it, or name another folder"
            )
        if key in before:
            raise PreparationError(
                f"{path.parent} was begun with another text in files of the same name and size: name another folder"
            )


def read_settings(path: Path) -> dict[str, Any]:
    """What a folder was begun with.

    Raises:
        PreparationError: if the file is another program's, or damaged; nobody is told to remove what may be his own.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise PreparationError(f"{path} is damaged, or not of luna-fairseq prepare: name another folder")
    return settings


def begun(out: Path, settings: dict[str, Any]) -> bool:
    """Whether OUT was begun, with these settings; False if nothing is there.

    Raises:
        PreparationError: if it was begun with others, or holds something else.
    """
    there = _content(out)
    if out / SETTINGS in there:
        check_settings(out / SETTINGS, settings)
    elif there:
        raise _not_ours(there[0])
    return bool(there)


def take(out: Path, settings: dict[str, Any]) -> None:
    """Take OUT for files that are made anew each time, and leave the settings there.

    Args:
        out: the folder.
        settings: with the name of the command as "script".

    Raises:
        PreparationError: if it holds anything, and this command did not make it.
    """
    there = _content(out)
    before = read_settings(out / SETTINGS) if out / SETTINGS in there else {}
    if there and before.get("script") != settings["script"]:
        raise _not_ours(there[0])
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, settings)


def fill_folder(out: Path, smoke: bool, settings: dict[str, Any], fill: Callable[[Path], str]) -> None:
    """Make OUT, or see that it is there.

    Args:
        out: the folder.
        smoke: write to a folder inside it.
        settings: all that decides the result; OUT keeps them.
        fill: writes everything to the folder that it gets; returns options of fairseq-train.
    """
    with alone_in(out.resolve()):
        out = (out / SMOKE if smoke else out).resolve()
        if begun(out, settings):
            print(f"already prepared: {out}")
            return
        with whole_folder(out) as temporary:
            options = fill(temporary)
            write_json(temporary / SETTINGS, settings)
            for path in out.iterdir() if out.is_dir() else ():
                os.rename(path, temporary / path.name)
    print(f"prepared: {out}")
    print(f"data for {options}: {out}")


def _content(out: Path) -> list[Path]:
    """What is in a folder, but for a smoke run, which may be there first, and what a killed run leaves of a name."""
    names = (f".{SMOKE}.tmp-", f".{SETTINGS}.tmp-")
    there = sorted(out.iterdir()) if out.is_dir() else []
    return [path for path in there if path.name != SMOKE and not path.name.startswith(names)]


def _not_ours(path: Path) -> PreparationError:
    return PreparationError(
        f"{path.parent} has a {path.name} that luna-fairseq prepare did not make: name another folder"
    )
