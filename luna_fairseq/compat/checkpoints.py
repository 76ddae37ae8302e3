"""Checkpoints on disk: a run that was killed, or found the disk full, goes on when the command is repeated."""

import logging
import os
import tempfile
from typing import Any

from luna_fairseq.compat._replace import replaces

logger = logging.getLogger(__name__)


@replaces(
    "fairseq.checkpoint_utils",
    "torch_persistent_save",
    fairseq="tries again behind the half that was written when a write fails, and calls the file a checkpoint",
    here="the old file or the new one is there, whole, whenever the write is stopped",
    since="fairseq 0.12.3",
)
def save_whole(original: Any, obj: Any, filename: str, async_write: bool = False) -> None:
    from fairseq.file_io import PathManager

    from luna_fairseq.checkpoint_files import save_atomically

    if async_write or not PathManager.supports_rename(filename):
        original(obj, filename, async_write)
    else:
        save_atomically(obj, filename)


@replaces(
    "fairseq.file_io.PathManager",
    "copy",
    fairseq="writes over the old checkpoint_last.pt: a run that is killed then leaves half of one",
    here="the old file or the new one is there, whole, whenever the copy is stopped",
    since="fairseq 0.12.3",
)
def copy_whole(original: Any, src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    from fairseq.file_io import PathManager

    from luna_fairseq.checkpoint_files import copy_atomically

    if any(PathManager.path_requires_pathmanager(path) for path in (src_path, dst_path)):
        return bool(original(src_path, dst_path, overwrite))
    copy_atomically(src_path, dst_path)
    return True


@replaces(
    "fairseq.checkpoint_utils",
    "load_checkpoint",
    fairseq="starts from scratch if there is no checkpoint_last.pt, even if other checkpoints are there",
    here="training goes on from the newest of them, and says so",
    since="fairseq 0.12.3",
)
def load_newest(original: Any, cfg: Any, trainer: Any, **kwargs: Any) -> Any:
    """The very first save may have been interrupted between two files."""
    from omegaconf import OmegaConf

    from luna_fairseq.checkpoint_files import checkpoints_of, damaged, newest_checkpoint

    last = os.path.join(cfg.save_dir, "checkpoint_last.pt")
    if cfg.restore_file == "checkpoint_last.pt" and not trainer.checkpoint_suffix and not os.path.exists(last):
        newest, others = newest_checkpoint(cfg.save_dir), checkpoints_of(cfg.save_dir)
        if newest is None and others:
            raise damaged(others[-1])
        if newest is not None:
            logger.warning(
                "%s is missing: going on from %s; to start from scratch, name another --save-dir", last, newest
            )
            cfg = OmegaConf.merge(cfg, {"restore_file": newest, "finetune_from_model": None})
    return original(cfg, trainer, **kwargs)


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq="starts from scratch if the file that --restore-file names does not exist",
    here="the file is named, and nothing is trained",
    since="fairseq 0.12.3",
)
def refuse_a_missing_file(original: Any, self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
    from fairseq.file_io import PathManager

    default = os.path.join(self.cfg.checkpoint.save_dir, f"checkpoint_last{self.checkpoint_suffix}.pt")
    if filename != default and not PathManager.isfile(filename):
        raise FileNotFoundError(
            f"there is no checkpoint {filename}: correct --restore-file, or leave it out to go on from the "
            "newest one of --save-dir"
        )
    return original(self, filename, *args, **kwargs)


@replaces(
    "fairseq.checkpoint_utils",
    "verify_checkpoint_directory",
    fairseq="writes a file named dummy into --save-dir to see whether it can, and removes it, whosever it was",
    here="the file has a name that nobody else has, and the error names the folder",
    since="fairseq 0.12.3",
)
def try_to_write(original: Any, save_dir: str) -> None:
    try:
        os.makedirs(save_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=save_dir):
            pass
    except OSError as error:
        raise type(error)(
            error.errno,
            f"nothing can be written there ({error.strerror}): make room or name another --save-dir",
            save_dir,
        ) from error
