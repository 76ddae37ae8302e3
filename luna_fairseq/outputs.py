"""What may be written: a regular file, old or new, behind links or not."""

import os
import stat
from pathlib import Path
from typing import Union

from luna_fairseq.errors import OutputError

_KINDS = {
    stat.S_ISDIR: "a folder", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
}  # fmt: skip


def replaceable(path: Union[str, Path]) -> Path:
    """The file that is to be written for ``path``: a link stays, and what it points to is written.

    Raises:
        OutputError: if something else than a file is there, which a new file would take the place of.
        OSError: if the system does not let one look.
    """
    target = os.path.realpath(path) if os.path.islink(path) else str(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return Path(target)
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _KINDS.items() if test(mode)), "no file")
        raise OutputError(f"{path} is {kind}, and only a file can be written over: name another one")
    return Path(target)
