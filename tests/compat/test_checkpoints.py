"""Checkpoints on disk: the old file or the new one is there, whole; the newest is found."""

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from luna_fairseq.checkpoint_files import copy_atomically, newest_checkpoint, save_atomically
from luna_fairseq.errors import CheckpointError
from support.running import Corpus, logged, train
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
    assert len(list(tmp_path.glob(".checkpoint_last.pt.tmp-*"))) == 1  # which the next training removes
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
    assert not list(tmp_path.glob(".*.tmp-*"))


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


def _write(path: Path, updates: int, epoch: int = 1, batches: int = 0, optimizer: bool = True) -> None:
    """A checkpoint, as far as its place in the training goes."""
    state: Dict[str, Any] = {
        "model": {"weight": torch.zeros(3)},
        "optimizer_history": [{"num_updates": 1}, {"num_updates": updates}],
        "extra_state": {"train_iterator": {"epoch": epoch, "iterations_in_epoch": batches}},
    }
    torch.save({**state, "last_optimizer_state": {}} if optimizer else state, path)


def test_the_newest_checkpoint_is_the_farthest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Times are those of a copy, the farthest file being the oldest; names may say nothing."""

    def newest(but: Any = None, **files: Any) -> Any:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        for name, place in files.items():
            path = tmp_path / f"checkpoint{name}.pt"
            if isinstance(place, bytes):
                path.write_bytes(place)
            else:
                _write(path, *(place if isinstance(place, tuple) else (place,)))
        for number, path in enumerate(sorted(tmp_path.iterdir(), reverse=True)):
            os.utime(path, (number, number))
        found = newest_checkpoint(str(tmp_path), but)
        return None if found is None else Path(found).name.removeprefix("checkpoint").removesuffix(".pt")

    assert newest_checkpoint(str(tmp_path / "nowhere")) is None
    assert newest(_last=9, x=9, average=9) is None
    assert newest(**{"_best": 100, "10": 1000, "9": 900}) == "10"
    assert newest(**{"_best": 100, "10": 20, "9": 90}) == "_best"
    assert newest(**{"_3_120": 120, "_3_40": 40, "2": 30}) == "_3_120"
    assert newest(**{"3": (120, 4, 0), "_3_120": (120, 3, 40)}) == "3"
    assert newest(**{"3": (120, 4, 0), "_3_120": (120, 3, 40)}, but="checkpoint3.pt") == "_3_120"
    assert newest(**{"3": (120, 4, 0), "_best": (120, 4, 0)}) == "_best"
    assert newest(**{"3": (120, 4, 0), "_best": (120, 4, 0, False)}) == "3"
    assert newest(**{".best_loss_3.120": 8, "_best": 7}) == ".best_loss_3.120"
    assert not caplog.records
    damaged = {"cut": b"PK\x03\x04 and no more", "text": b"text", "empty": b""}
    assert newest(**{"1": 10, **{f"_best{name}": content for name, content in damaged.items()}}) == "1"
    assert len(caplog.records) == len(damaged)
    assert "checkpoint_bestcut.pt cannot be read, and was passed over" in caplog.text
    assert newest(**{"2": b"", "1": b""}) is None


def test_only_what_says_how_far_it_is_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may have gigabytes, and there may be many."""
    for updates in (1, 2):
        _write(tmp_path / f"checkpoint{updates}.pt", updates)
        state = torch.load(tmp_path / f"checkpoint{updates}.pt")
        torch.save({**state, "model": {"weight": torch.zeros(5_000_000)}}, tmp_path / f"checkpoint{updates}.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert newest_checkpoint(str(tmp_path)) == f"{tmp_path}/checkpoint2.pt"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000, "KiB, of 40,000"


def test_a_folder_of_damaged_checkpoints_is_not_begun_again(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "checkpoint1.pt").write_bytes(b"PK\x03\x04 and no more")
    said = train(corpus, tmp_path, "--max-update", 1, code=1)
    assert f"{tmp_path}/checkpoint1.pt (16 bytes) is cut short or damaged" in said.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint1.pt"]


def test_a_copy_without_times_goes_on_from_the_last_epoch(corpus: Corpus, tmp_path: Path) -> None:
    # Wanted is a higher loss, so that the best epoch is the first.
    options = ["--maximize-best-checkpoint-metric", "--save-interval", 1, "--max-epoch"]
    train(corpus, tmp_path, *options, 2)
    (tmp_path / "checkpoint_last.pt").unlink()
    for number, name in enumerate(("checkpoint2.pt", "checkpoint1.pt", "checkpoint_best.pt")):
        os.utime(tmp_path / name, (number, number))
    said = train(corpus, tmp_path, *options, 3)
    assert f"going on from {tmp_path}/checkpoint2.pt" in said and logged(said, "num_updates")[0] == "11"
