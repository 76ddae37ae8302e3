"""What is written: a regular file, old or new, behind links or not, and folders; whole or not at all.

Files and folders are made under temporary names beside their own: ``.NAME.tmp-HOST-PROCESS-RANDOM``. By that name is
known what a killed run has left. Of a name that is too long for that a digest stands in its place.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from pathlib import Path
from typing import Iterator, List, Optional, Set, Tuple, Union

from luna_fairseq.errors import OutputError

HOST = re.sub(r"[^\w.-]", "_", socket.gethostname()) or "localhost"
# Earlier versions had no random part, and before that no host.
_OWNER = re.compile(r"(?:(?P<host>[\w.-]+?)-)?(?P<process>\d{1,7})(?:-(?P<random>[0-9a-f]{8}))?")
_TEMPORARY = re.compile(rf"\.(?P<name>.+)\.tmp-(?P<owner>{_OWNER.pattern})", re.S)
_LONG_AGO = 24 * 3600
_KINDS = {
    stat.S_ISDIR: "a folder", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
}  # fmt: skip

_own: Set[str] = set()  # temporary names that this process writes to


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


def check_not_inside(folder: Path) -> None:
    """Refuse to put a new folder in the place of one that somebody works in, who would then be nowhere.

    Raises:
        OutputError: if this process does.
    """
    with contextlib.suppress(FileNotFoundError):
        here, there = Path.cwd(), Path(os.path.realpath(folder))
        if there in (here, *here.parents):
            raise OutputError(
                f"{there} would be replaced, and is where you are: go elsewhere, or name another folder"
            )


def is_at_work(path: Path, owner: str, alone: bool = False) -> bool:
    """Whether the process that a temporary name bears may still write there.

    Args:
        path: the file or folder.
        owner: ``HOST-PROCESS-RANDOM``; one without a host is of a version that is long gone.
        alone: nobody else may write there, whatever the machine: the caller holds a lock. Without that, of another
            machine only the time is known.
    """
    match = _OWNER.fullmatch(owner)
    if match is None or match["host"] is None:
        return False
    if match["host"] != HOST:
        try:
            return not alone and time.time() - path.lstat().st_mtime < _LONG_AGO
        except OSError:
            return False
    process = int(match["process"])
    if process == os.getpid():  # in a container the one that was killed may have had the same number
        return path.name in _own
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def left_over(folder: Path, alone: bool = False) -> Iterator[Tuple[str, Path]]:
    """What is in a folder under temporary names, and nobody writes any more: its own name, and the path.

    Args:
        folder: to look into.
        alone: see :func:`is_at_work`.
    """
    for path in content(folder):
        match = _TEMPORARY.fullmatch(path.name) if path.name.startswith(".") else None
        if match and not path.is_symlink() and not is_at_work(path, match["owner"], alone):
            yield match["name"], path


def content(folder: Path) -> List[Path]:
    """What is in a folder; nothing is known of one that one may write to, and not read."""
    try:
        return list(folder.iterdir())
    except PermissionError:
        return []


def _stem(path: Path) -> str:
    """The name of a file or a folder, or a digest of one that leaves no room for what is added to it."""
    name = os.fsencode(path.name)
    room = 255 - len(f"..earlier-{HOST}-1234567-01234567".encode())
    return path.name if len(name) <= room else hashlib.sha256(name).hexdigest()[:16]


def _remove(path: Path) -> None:
    """A file or a folder, if it is there and the system lets one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path`` that nobody else takes; what is there at the end goes, and what killed runs left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, stale in left_over(path.parent):
        if name == _stem(path):
            _remove(stale)
    temporary = path.with_name(f".{_stem(path)}.tmp-{HOST}-{os.getpid()}-{secrets.token_hex(4)}")
    _own.add(temporary.name)
    try:
        yield temporary
    except OSError as error:
        if error.filename in (temporary, str(temporary)):  # nobody has given it that name
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)
        _own.discard(temporary.name)


def _flush(path: Path, mode: Optional[int] = None) -> None:
    """Wait until a file is on the disk: a name may get there before what it names.

    Args:
        path: the file.
        mode: that it is to have.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if mode is not None and stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # of a file system that cannot
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Union[str, Path], follow: bool = True) -> Iterator[Path]:
    """A temporary name to write to, which becomes ``path`` at the end, on the disk, or is removed after an error.

    The file has the mode that the umask gives, whoever writes it: some libraries make files of their own, for their
    owner alone.

    Args:
        path: the file; its folder is made.
        follow: whether a link stays, and the file that it points to is written; else the link is replaced.

    Raises:
        OutputError: if something else than a file is there.
    """
    target = replaceable(path) if follow else Path(path)
    with _temporary(target) as temporary:
        with open(temporary, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        _flush(temporary, mode)
        os.replace(str(temporary), str(target))


@contextlib.contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``path`` at the end, on the disk, or is removed after an error.

    Args:
        path: the folder; an empty one may be there.
        replace: take the place of a folder that is there, which goes when this one has its name.

    Raises:
        OutputError: if this process works in the folder that is there.
    """
    check_not_inside(path)
    if replace:
        _restore(path)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _flush(file)
        # Not a temporary name, which a later run would remove: for a moment nothing else is left of the folder.
        earlier = path.with_name(f"{_earlier(path)}{HOST}-{os.getpid()}-{secrets.token_hex(4)}")
        _own.add(earlier.name)
        try:
            if replace and path.exists():
                os.rename(path, earlier)
            os.rename(temporary, path)
        finally:
            if earlier.exists() and not path.exists():
                os.rename(earlier, path)
            _remove(earlier)
            _own.discard(earlier.name)


def _earlier(path: Path) -> str:
    """How the names begin that a folder has while another one takes its place."""
    return f".{_stem(path)}.earlier-"


def _restore(path: Path) -> None:
    """Give a folder its name again, if a run was killed when it had none; or remove it, if another one has that."""
    if not path.parent.is_dir():
        return
    for earlier in content(path.parent):
        start = _earlier(path)
        owner = earlier.name.removeprefix(start)
        match = None if owner == earlier.name else _OWNER.fullmatch(owner)
        # Earlier versions had no random part: of this host it is known what else a name like theirs is.
        ours = match is not None and (match["random"] is not None or match["host"] == HOST)
        if not ours or is_at_work(earlier, owner):
            continue
        if path.exists():
            _remove(earlier)
        else:
            os.rename(earlier, path)
