"""Checkpoint files: written whole or not at all, looked through before they are read, found again."""

import contextlib
import errno
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Iterator, List, Optional, Tuple, Union

import torch

from luna_fairseq.errors import CheckpointError
from luna_fairseq.outputs import content, is_at_work, left_over, replaceable, whole_file

_ZIP = b"PK\x03\x04"  # how torch tells its own format from the one of before 1.6, which holds no checksums
_NAME = re.compile(r"checkpoint(?:\d+|_\d+_\d+|[._]best\S*)\.pt")
_EARLIER = re.compile(r"(?P<name>.+\.pt)(?:\.(?P<owner>[\w.-]+-\d+-[0-9a-f]{8}))?\.tmp")  # of versions before
logger = logging.getLogger(__name__)


def _other_name(path: str) -> bool:
    """Whether a link is but another name for a checkpoint of its folder, which stays what it is."""
    target = os.path.realpath(path)
    beside = os.path.dirname(target) == os.path.realpath(os.path.dirname(path) or ".")
    return os.path.islink(path) and beside and _NAME.fullmatch(os.path.basename(target)) is not None


@contextlib.contextmanager
def open_whole(path: Union[str, Path]) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` at the end, and never if anything goes wrong.

    A link is followed, except for one to a checkpoint beside it.

    Raises:
        CheckpointError: if the system refuses to write, as on a full disk.
        OutputError: if something else than a file is there.
    """
    follow = not _other_name(str(path))
    if follow:
        replaceable(path)  # says itself what is in the way
    try:
        with whole_file(path, follow) as temporary, open(temporary, "wb") as file:
            yield file
    except BaseException as error:
        # Of a full disk torch.save says that a position is not what it expected, before or after the real error.
        reason = error if isinstance(error, Exception) else None
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__  # type: ignore[assignment]
        if reason is None:
            raise
        raise CheckpointError(
            f"{path} was not written ({reason.strerror}): make room or correct the folder, and run the same command "
            "again; everything saved before is whole"
        ) from error


def save_atomically(checkpoint: Any, path: Union[str, Path]) -> None:
    """``torch.save`` that leaves the old file or the new one at ``path``, whenever it is stopped.

    Raises:
        CheckpointError: if the system refuses to write, as on a full disk.
    """
    with open_whole(path) as file:
        torch.save(checkpoint, file)


def copy_atomically(source: str, path: str) -> None:
    """``shutil.copyfile`` that leaves the old file or the new one at ``path``, whenever it is stopped.

    Raises:
        CheckpointError: if the system refuses to write, as on a full disk.
    """
    with open(source, "rb") as whole, open_whole(path) as file:
        shutil.copyfileobj(whole, file, 1 << 20)


def remove_temporary_files(folder: str, suffix: str = "") -> None:
    """Remove what trainings that were killed while they saved have left in a ``--save-dir``.

    Only its owner may: see :mod:`luna_fairseq.compat.locking`. Files that other commands write there stay.

    Args:
        folder: the ``--save-dir``.
        suffix: its ``--checkpoint-suffix``.
    """
    written = re.compile(
        rf"crash\.pt|checkpoint(\d+|_\d+_\d+|_best|_last|\.best_\S+?)({re.escape(suffix)})?(-\S+)?\.pt", re.ASCII
    )
    found = [*left_over(Path(folder), alone=True), *_left_before(Path(folder))]
    for name, path in found:
        if written.fullmatch(name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def _left_before(folder: Path) -> Iterator[Tuple[str, Path]]:
    """As ``left_over``, of the temporary names that were in use before."""
    for path in content(folder):
        match = _EARLIER.fullmatch(path.name)
        if match and not path.is_symlink() and not is_at_work(path, match["owner"] or "", alone=True):
            yield match["name"], path


def check_whole(path: str) -> None:
    """Compare a checkpoint with the checksums that it holds, which ``torch.load`` does not do.

    It takes about as long as reading the file. A file in torch's format of before 1.6 passes.

    Raises:
        CheckpointError: if it is cut short, or a byte is not what was written.
    """
    with open(path, "rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    if not is_zip:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except Exception as error:
        # EINVAL: zipfile seeks before the start of a file that is cut short.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise damaged(path) from error
    if wrong is not None:
        raise damaged(path)


def damaged(path: str) -> CheckpointError:
    """What to say of a file that cannot be read."""
    older = newest_checkpoint(os.path.dirname(path), but=os.path.basename(path))
    if older is None:
        advice = "take an older one, or copy it again"
    elif os.path.basename(path) == "checkpoint_last.pt":
        advice = f"move it away, and the same training goes on from {older}"
    else:
        advice = f"take another one, such as {older}"
    return CheckpointError(
        f"{path} ({os.path.getsize(path)} bytes) is cut short or damaged and cannot be loaded: {advice}"
    )


def checkpoints_of(folder: str) -> List[str]:
    """The files of a ``--save-dir`` that training may go on from: ``checkpoint_last.pt`` is not among them."""
    return sorted(
        str(path) for path in Path(folder).glob("checkpoint*.pt") if _NAME.fullmatch(path.name) and path.is_file()
    )


def _look(path: Union[str, Path]) -> Any:
    """What a checkpoint holds; its tensors stay on the disk."""
    with open(path, "rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP  # torch's format of before 1.6 cannot be
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def is_average(path: Union[str, Path]) -> bool:
    """Whether ``luna-fairseq average`` has made a file."""
    try:
        return "averaged" in _look(path)["extra_state"]
    except Exception:  # whatever another file makes torch raise
        return False


def _progress(path: str) -> Tuple[int, int, int, bool]:
    """How far a checkpoint is: updates, epoch, batches of the epoch, and whether it holds the optimizer's state."""
    state = _look(path)
    history, place = state.get("optimizer_history"), (state.get("extra_state") or {}).get("train_iterator") or {}
    updates = history[-1].get("num_updates", 0) if history else 0
    return updates, place.get("epoch", 0), place.get("iterations_in_epoch", 0), "last_optimizer_state" in state


def newest_checkpoint(folder: str, but: Optional[str] = None) -> Optional[str]:
    """The checkpoint of a ``--save-dir`` that is farthest in the training.

    What the files hold decides: names may be changed, and the times of files are lost in a copy.

    Args:
        folder: may be missing.
        but: the name of a file to leave out.

    Returns:
        a ``checkpointEPOCH.pt``, ``checkpoint_EPOCH_UPDATE.pt``, ``checkpoint_best.pt`` or ``checkpoint.best_...pt``;
        never ``checkpoint_last.pt``. None if there is nothing that can be read.
    """
    found = []
    for path in checkpoints_of(folder):
        name = os.path.basename(path)
        if name == but:
            continue
        try:
            # Of several that are as far, one that fairseq does not delete.
            found.append((*_progress(path), "best" in name, path))
        except Exception as error:  # whatever a damaged file makes torch raise
            logger.warning("%s cannot be read, and was passed over (%s)", path, type(error).__name__)
    return max(found)[-1] if found else None
