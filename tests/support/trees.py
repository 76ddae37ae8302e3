"""A folder and all that is in it, to see that nothing was touched."""

import os
from pathlib import Path
from typing import Dict, Tuple


def snapshot(folder: Path) -> Dict[str, Tuple[int, str, bytes]]:
    """Every file, folder and link below, with its kind, its target and its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        target = os.readlink(path) if path.is_symlink() else ""
        content = path.read_bytes() if path.is_file() and not target else b""
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, target, content)
    return found
