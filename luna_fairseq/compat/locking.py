"""One training a ``--save-dir``, whoever starts it."""

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import time
from typing import Any, Dict, Set

from luna_fairseq.compat._replace import replaces

logger = logging.getLogger(__name__)

NAME = "training.lock"  # in the folder; the next training takes what a killed one leaves
_WAIT = "wait for it, end it, or name another --save-dir"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

# Folder -> descriptor. The system frees the lock when the process is gone, however it ended.
_held: Dict[str, int] = {}
_made: Set[str] = set()  # the folders that were not there before


def hold(folder: str) -> bool:
    """Take the lock of a folder, and keep it until this process is gone.

    Returns:
        False if the file system knows no locks, of which the log tells, or nothing can be written there.

    Raises:
        FolderInUse: if another process has it.
    """
    folder = os.path.realpath(folder)
    if folder in _held:
        return True
    if not os.path.isdir(folder):
        os.makedirs(folder, exist_ok=True)
        _made.add(folder)
    path = os.path.join(folder, NAME)
    while True:
        # Closed in programs that are started; see _forget for forks.
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor, own = (
                os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666),
                True,
            )  # NFS locks what may be written
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            if not os.path.lexists(path):
                return False
            descriptor, own = os.open(path, os.O_RDONLY | flags), False  # of somebody else in a shared folder
        try:
            if not _lock(descriptor, path):
                return False
            # A training that ended in this moment has taken its file with it.
            if not (os.path.lexists(path) and os.path.samestat(os.fstat(descriptor), os.lstat(path))):
                continue
            if own:
                os.ftruncate(descriptor, 0)
                since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
                holder = f"process {os.getpid()} on {socket.gethostname()} (since {since})\n"
                os.pwrite(descriptor, holder.encode(), 0)
            if not _held:
                atexit.register(_release)
            _held[folder] = descriptor
            return True
        finally:
            if _held.get(folder) != descriptor:
                os.close(descriptor)


def _lock(descriptor: int, path: str) -> bool:
    """Lock an open file; returns False if the file system knows no locks.

    Raises:
        FolderInUse: if another process has it, or it is not a lock.
    """
    from luna_fairseq.errors import FolderInUse

    folder = os.path.dirname(path)
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() if regular else "no file"
    if holder and not holder.startswith("process "):
        raise FolderInUse(f"{path} is not the lock of a training: rename it, or name another --save-dir")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            logger.warning("%s cannot be locked (%s): see to it that no other training saves there", folder, error)
            return False
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise FolderInUse(f"{holder or 'another process'} trains into {folder}: {_WAIT}") from None
    return True


def _release() -> None:
    """At the end of the process: what was a folder of checkpoints alone is one again."""
    while _held:
        folder, descriptor = _held.popitem()
        with contextlib.suppress(OSError):  # may have become read-only
            os.unlink(os.path.join(folder, NAME))
            if folder in _made:
                os.rmdir(folder)  # unless something was saved
        os.close(descriptor)


def _forget() -> None:
    """In a forked process, such as a data worker: it must not hold the lock when the training is gone."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_forget)


@replaces(
    "fairseq_cli.train",
    "add_defaults",
    fairseq="lets several trainings save into one --save-dir, and write over each other's checkpoints",
    here="the second is refused, and told which process trains there, before it reads or writes anything",
    since="fairseq 0.12.3",
)
def lock_the_save_dir(original: Any, cfg: Any) -> None:
    """What training does first with its whole config."""
    from fairseq.distributed import utils as distributed_utils
    from fairseq.file_io import PathManager

    from luna_fairseq.checkpoint_files import remove_temporary_files

    original(cfg)
    options = cfg.checkpoint
    # The first process locks for all: they save different files, if more than one of them saves.
    saves = not options.no_save and distributed_utils.is_master(cfg.distributed_training)
    if saves and not PathManager.path_requires_pathmanager(options.save_dir) and hold(options.save_dir):
        remove_temporary_files(options.save_dir, options.checkpoint_suffix)
