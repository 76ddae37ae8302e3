"""A prepared folder: made once, and kept apart from one with other settings."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luna_fairseq.data.files import alone_in, read_json, whole_folder, write_json
from luna_fairseq.errors import PreparationError

SETTINGS, SMOKE = "settings.json", "smoke"


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on in a folder that was begun with other settings or other input."""
    before = read_json(path)
    for key in {**before, **settings}:
        if before.get(key) != settings.get(key):
            raise PreparationError(
                f"{path.parent} was begun with {key} {json.dumps(before.get(key))}, "
                f"not {json.dumps(settings.get(key))}: repeat it, or name another --out"
            )


def begun(out: Path, settings: dict[str, Any]) -> bool:
    """Whether OUT was begun, with these settings; False if nothing is there.

    Raises:
        PreparationError: if it was begun with others, or holds something else.
    """
    # A smoke run is inside OUT, and may be there before it.
    there = [path for path in (out.iterdir() if out.is_dir() else ()) if not _is_smoke(path)]
    if out / SETTINGS in there:
        check_settings(out / SETTINGS, settings)
    elif there:
        raise PreparationError(
            f"{out} has a {there[0].name} that luna-fairseq prepare did not make: name another --out"
        )
    return bool(there)


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


def _is_smoke(path: Path) -> bool:
    return path.name == SMOKE or path.name.startswith(f".{SMOKE}.tmp-")
