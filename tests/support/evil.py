"""A checkpoint's worst content."""

import os
import zipfile
from pathlib import Path
from typing import Any


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


class Pickled:
    """Is unpickled as a call, and what is then told to the result."""

    def __init__(self, function: Any, arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Exchange a text in the pickle of a checkpoint, whose checksums are right afterwards too."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)
