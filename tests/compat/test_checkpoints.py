"""Checkpoints on disk: the old file or the new one is there, whole; the newest is found."""

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from luna_fairseq.checkpoint_files import copy_atomically, newest_checkpoint, save_atomically
from luna_fairseq.errors import CheckpointError
from support.runs import assert_same, in_a_child


def _save(path: Path, state: Any) -> None:
    checkpoint_utils.torch_persistent_save(state, str(path))


def _copy(path: Path, state: Any) -> None:
    torch.save(state, path.parent / "source.pt")
    PathManager.copy(str(path.parent / "source.pt"), str(path), overwrite=True)


@pytest.mark.parametrize("write", [_save, _copy])
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_kill_leaves_the_old_file_or_the_new_one(write: Any, name: str, tmp_path: Path) -> None:
    """fairseq's own commands, with a process that ends when everything, or almost everything, is written."""
    path = tmp_path / "checkpoint_last.pt"
    old, new = ({"model": {"weight": torch.full((1000,), value)}} for value in (1.0, 2.0))
    write(path, old)

    def killed() -> None:
        setattr(os, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        write(path, new)

    assert in_a_child(killed) == -signal.SIGKILL
    assert len(list(tmp_path.glob("checkpoint_last.pt.*.tmp"))) == 1  # which the next training removes
    assert_same(torch.load(path), old, "after the kill")
    write(path, new)
    assert_same(torch.load(path), new, "after the next save")


@pytest.mark.parametrize("write", [_save, _copy])
def test_a_file_that_may_not_grow(write: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As under a quota: the write fails in the middle of the file."""
    path = tmp_path / "checkpoint_last.pt"
    old, new = ({"model": {"weight": torch.zeros(size)}} for size in (1000, 100_000))
    write(path, old)
    torch.save(new, tmp_path / "source.pt")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        if write is _copy:
            PathManager.copy(str(tmp_path / "source.pt"), str(path), overwrite=True)
        else:
            write(path, new)

    started = time.monotonic()
    assert in_a_child(limited) == 1
    assert time.monotonic() - started < 2
    assert f"{path} was not written (File too large): make room" in capfd.readouterr().err
    assert_same(torch.load(path), old, "after the failure")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_in_fact(tmp_path: Path) -> None:
    """A file system of 1 MiB, where one may be made."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        path = tmp_path / "checkpoint_last.pt"
        old, new = ({"model": {"weight": torch.full((150_000,), value)}} for value in (1.0, 2.0))
        save_atomically(old, path)
        for write in (lambda: save_atomically(new, path), lambda: copy_atomically(str(path), f"{path}2")):
            with pytest.raises(CheckpointError, match=r"was not written \(No space left on device\)"):
                write()
            assert_same(torch.load(path), old, "after the failure")
            assert list(tmp_path.iterdir()) == [path]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_interrupt_while_saving_is_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({}, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def test_newest_checkpoint(tmp_path: Path) -> None:
    def newest(*names: str, but: Any = None) -> Any:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        for i, name in enumerate(names):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (i, i))
        found = newest_checkpoint(str(tmp_path), but)
        return None if found is None else Path(found).name

    assert newest_checkpoint(str(tmp_path / "nowhere")) is None
    assert newest("crash.pt", "average.pt", "checkpoint_last.pt", "checkpoint2.pt.tmp") is None
    assert newest("checkpoint_best.pt", "checkpoint10.pt", "checkpoint9.pt") == "checkpoint10.pt"
    assert newest("checkpoint10.pt", "checkpoint_best.pt", "checkpoint9.pt") == "checkpoint_best.pt"
    assert newest("checkpoint_3_120.pt", "checkpoint_3_40.pt", "checkpoint2.pt") == "checkpoint_3_120.pt"
    assert newest("checkpoint3.pt", "checkpoint_3_120.pt") == "checkpoint3.pt"
    assert newest("checkpoint3.pt", "checkpoint_3_120.pt", but="checkpoint3.pt") == "checkpoint_3_120.pt"
    assert newest("checkpoint_best.pt", "checkpoint.best_loss_3.120.pt") == "checkpoint.best_loss_3.120.pt"
