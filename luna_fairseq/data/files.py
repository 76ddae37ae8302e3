"""Files of data: what they hold, and the one command that may be at work in a folder."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_file

BYTE_ORDER_MARK = "\ufeff"
BLOCK_BYTES = 1 << 20  # how much of a large file is read at once
_PARTS = 64  # of a file, a block each, that tell it from others
_FEW = 1000  # files that are looked into: the Long Range Arena's are up to a million
CONTENT = "content"  # the key of settings that earlier folders lack


def need_file(path: Path) -> Path:
    """The path, if a file is there."""
    if not path.is_file():
        raise PreparationError(f"the file {path} does not exist: name one that does")
    return path


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of text, each with the number of its bytes in the file."""
    with open(path, "rb") as source:
        for number, line in enumerate(source):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise PreparationError(f"{path}, line {number + 1} is not UTF-8: convert the file") from error
            yield len(line), text if number else text.removeprefix(BYTE_ORDER_MARK)


def count_lines(path: Path) -> int:
    """How many line breaks a file has."""
    with open(path, "rb") as source:
        return sum(block.count(b"\n") for block in iter(lambda: source.read(BLOCK_BYTES), b""))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuse a second command that prepares the same folder at the same time.

    The folder itself is locked, and the system frees it when this process ends, however that is. Some file systems
    lock no folders; there temporary names keep two commands apart.

    Raises:
        PreparationError: if another command is at work.
    """
    made = False
    while True:
        made |= not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise PreparationError(
                f"another command is preparing {folder} at this moment: wait for its end, or name another folder"
            ) from error
        except OSError:  # of a file system without locks
            pass
        # A folder that was finished in this moment has taken the place of the one that is locked now.
        if folder.is_dir() and os.path.samestat(os.fstat(lock), folder.stat()):
            break
        os.close(lock)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        os.close(lock)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PreparationError(f"{path} is damaged: remove the folder {path.parent} and prepare it again") from error


def digest(path: Path) -> str:
    """What tells one small file from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(path: Path) -> str:
    """What tells one text from another of the same size; of a long file it reads parts, so that it takes no time."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as source:
        for part in range(_PARTS):
            source.seek(max(part * BLOCK_BYTES, part * (size - BLOCK_BYTES) // (_PARTS - 1)))
            found.update(source.read(BLOCK_BYTES))
    return found.hexdigest()


def inputs(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """Settings that notice other data: a digest of names and sizes and, unless files are many, one of content."""
    files = list(files)
    names = "".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n" for path in files)
    found = {"files": hashlib.sha256(names.encode()).hexdigest()}
    if len(files) <= _FEW:
        found[CONTENT] = hashlib.sha256("".join(map(fingerprint, files)).encode()).hexdigest()
    return found
