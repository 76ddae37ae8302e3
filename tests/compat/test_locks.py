"""One training a --save-dir; what is written is a file that may be written over; nobody meets another's half file."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch

from luna_fairseq import cli
from luna_fairseq.checkpoint_files import copy_atomically, newest_checkpoint, remove_temporary_files, save_atomically
from luna_fairseq.compat import locking
from luna_fairseq.errors import FolderInUse, OutputError
from luna_fairseq.outputs import HOST, left_over, replaceable, whole_file
from support.forks import REAL, commands
from support.running import ADAM, ROOT, TINY, TRAIN, USER_DIR, Corpus, run_command, train
from support.runs import in_a_child

HERE = f"process {os.getpid()} on {socket.gethostname()} (since "


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    """This process holds no lock between tests."""
    yield
    locking._forget()


def _refused(folder: Path) -> None:
    with pytest.raises(FolderInUse, match="wait for it, end it, or name another --save-dir"):
        locking.hold(str(folder))


def test_a_folder_is_held_until_the_process_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "save"
    ready, go = os.pipe(), os.pipe()

    def holds() -> None:
        assert locking.hold(str(folder)) and locking.hold(f"{folder}/../save")
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        holds()
    try:
        os.read(ready[0], 1)
        for path in (folder, tmp_path / "link"):
            if path != folder:
                path.symlink_to(folder)
            with pytest.raises(FolderInUse) as seen:
                locking.hold(str(path))
            assert str(seen.value).startswith(f"process {child} on {socket.gethostname()} (since 20")
            assert f"trains into {folder}: wait for it, end it, or name another --save-dir" in str(seen.value)
    finally:
        os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (folder / locking.NAME).read_text().startswith(f"process {child} ")  # it was killed
    assert locking.hold(str(folder))
    assert (folder / locking.NAME).read_text().startswith(HERE)
    assert in_a_child(lambda: _refused(folder)) == 0
    locking._release()
    assert not list(folder.iterdir())


def test_a_lock_that_is_taken_away_while_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a training that ends at this moment: two others would hold two files of one name."""
    lock, flock, seen = tmp_path / locking.NAME, fcntl.flock, []

    def and_remove(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        seen.append(descriptor)
        if len(seen) < 3:
            lock.unlink()
        if len(seen) == 2:
            lock.write_text("process 7 on elsewhere\n")

    monkeypatch.setattr(fcntl, "flock", and_remove)
    assert locking.hold(str(tmp_path))
    assert len(seen) == 3 and os.path.samestat(os.fstat(locking._held[str(tmp_path)]), lock.stat())


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished training may lie there."""
    opened = os.open

    def refuse(path: str, flags: int, *args: Any) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    assert not locking.hold(str(tmp_path)) and not list(tmp_path.iterdir())
    (tmp_path / locking.NAME).write_text("process 7 on elsewhere\n")
    assert locking.hold(str(tmp_path))
    assert (tmp_path / locking.NAME).read_text() == "process 7 on elsewhere\n"


def test_a_process_that_is_forked_or_started_does_not_hold_it(tmp_path: Path) -> None:
    """A data worker outlives a training that was killed by some seconds."""
    go = os.pipe()
    training = os.fork()
    if training == 0:
        locking.hold(str(tmp_path))
        if os.fork() == 0:
            os.read(go[0], 1)
            os._exit(0)
        subprocess.Popen(["sleep", "20"], close_fds=False)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(training, 0)
    try:
        assert locking.hold(str(tmp_path))
    finally:
        os.write(go[1], b"x")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not locking.hold(str(tmp_path))
    assert f"{tmp_path} cannot be locked" in caplog.text and "no other training saves there" in caplog.text


def test_what_is_not_our_lock_stays(tmp_path: Path) -> None:
    lock = tmp_path / locking.NAME
    lock.write_text("my own notes")
    with pytest.raises(FolderInUse, match=f"{lock} is not the lock of a training: rename it"):
        locking.hold(str(tmp_path))
    assert lock.read_text() == "my own notes"
    lock.unlink()
    lock.symlink_to("elsewhere")
    with pytest.raises(OSError, match=locking.NAME):
        locking.hold(str(tmp_path))
    assert not (tmp_path / "elsewhere").exists()
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(FolderInUse, match="is not the lock of a training"):
        locking.hold(str(tmp_path))


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """As if another process trained there."""
    folder.mkdir(exist_ok=True)
    with open(folder / locking.NAME, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on elsewhere (since today)\n")
        lock.flush()
        yield


@pytest.mark.parametrize("command", ["fairseq-train", pytest.param("fairseq-hydra-train", marks=pytest.mark.long)])
def test_a_second_training_is_refused(command: str, corpus: Corpus, tmp_path: Path) -> None:
    save = tmp_path / "save"
    options = ["--max-update", 1]
    with _held(save):
        before = {path.name: path.read_bytes() for path in save.iterdir()}
        if command == "fairseq-train":
            said = train(corpus, save, *options, "--log-file", tmp_path / "log", code=1)
            last = said.strip().splitlines()[-1]
        else:
            said = run_command(
                *(
                    command,
                    "--config-dir",
                    ROOT / "configs/translation",
                    "--config-name",
                    "multi30k_luna_tied_16_apollo",
                ),
                *(f"common.user_dir={USER_DIR}", f"task.data={corpus.data}", f"checkpoint.save_dir={save}"),
                *(f"hydra.run.dir={tmp_path}/hydra", "common.cpu=true"),
                code=1,
            )
            last = next(line for line in reversed(said.splitlines()) if "process 7" in line)
        assert f"{command}: process 7 on elsewhere (since today) trains into {save}: wait for it" in last
        assert "loading train data" not in said and not (tmp_path / "log").exists()
        assert {path.name: path.read_bytes() for path in save.iterdir()} == before
        if command == "fairseq-train":
            train(corpus, save, *options, "--no-save")
            assert {path.name: path.read_bytes() for path in save.iterdir()} == before
    train(corpus, save, *options)
    assert (save / "checkpoint_last.pt").exists()


def test_temporary_files_of_killed_trainings_are_removed(tmp_path: Path) -> None:
    """Under the names of today, and under those of versions before."""
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    dead, own, alive, other = (
        f"{name}-{process}-0123abcd"
        for name, process in ((HOST, gone), (HOST, os.getpid()), (HOST, 1), ("node7.a-b", 1))
    )
    stale = [f".checkpoint_last.pt.tmp-{dead}", f".checkpoint_1_20.pt.tmp-{other}", f".crash.pt.tmp-{dead}"]
    stale += [f".checkpoint.best_loss_3.1230.pt.tmp-{other}", f".checkpoint7-shard0.pt.tmp-{dead}"]
    stale += [f".checkpoint_lastmine.pt.tmp-{dead}", f".checkpoint2.pt.tmp-{own}"]
    stale += [f"checkpoint_last.pt.{dead}.tmp", f"checkpoint2.pt.{other}.tmp", "checkpoint_best.pt.tmp"]
    others = [f".checkpoint_last.pt.tmp-{alive}", f".average.pt.tmp-{other}", f".checkpoint_avg.pt.tmp-{other}"]
    others += [f"checkpoint_last.pt.{alive}.tmp", f"average.pt.{other}.tmp", "average.pt.tmp", "notes.tmp"]
    others += ["checkpoint_last.pt.mine.tmp", "checkpoint_last.pt", "train.pt.tmp"]
    for name in (*stale, *others):
        (tmp_path / name).touch()
    links = ["checkpoint3.pt.tmp", f".checkpoint9.pt.tmp-{dead}"]
    folders = ["checkpoint4.pt.tmp", f".crash.pt.tmp-{gone}"]
    for link, folder in zip(links, folders, strict=True):
        (tmp_path / link).symlink_to("notes.tmp")
        (tmp_path / folder).mkdir()
        others += [link, folder]
    assert newest_checkpoint(str(tmp_path)) is None
    remove_temporary_files(str(tmp_path), "mine")
    assert {path.name for path in tmp_path.iterdir()} == {*others}


def test_a_training_removes_them(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / ".checkpoint_last.pt.tmp-elsewhere-1-0123abcd").touch()
    train(corpus, tmp_path, "--max-update", 1)
    assert not list(tmp_path.glob(".*.tmp-*"))


def test_two_writers_of_a_file_have_different_temporary_names(tmp_path: Path) -> None:
    """In one process, too; the second one does not take the first one's file for a killed run's."""
    path = tmp_path / "x.pt"
    with whole_file(path) as one, whole_file(path) as other:
        assert one.name != other.name
        one.write_bytes(b"one")
        other.write_bytes(b"other")
        assert not list(left_over(tmp_path)) and len(list(left_over(tmp_path, alone=True))) == 0
    assert path.read_bytes() == b"one" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_a_file_has_the_mode_that_the_umask_gives(umask: int, tmp_path: Path) -> None:
    """Whoever writes it: some libraries put a file of their own in its place, which nobody else may read."""
    path = tmp_path / "x"
    path.touch(0o600)
    old = os.umask(umask)
    try:
        save_atomically({}, tmp_path / "mode.pt")
        with whole_file(path) as temporary:
            descriptor, name = tempfile.mkstemp(dir=tmp_path)
            os.close(descriptor)
            os.replace(name, temporary)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o666 & ~umask}


def test_what_the_system_refuses_is_said_of_the_name_that_was_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "x") as temporary:
        temporary.unlink()
    assert caught.value.filename == str(tmp_path / "x") and not [*tmp_path.iterdir()]


def _save(path: Path) -> None:
    save_atomically({"new": 1}, path)


def _copy(path: Path) -> None:
    source = path.parent / "source"
    torch.save({"new": 1}, source)
    copy_atomically(str(source), str(path))


def _prepare(path: Path) -> None:
    with whole_file(path) as temporary:
        torch.save({"new": 1}, temporary)


@pytest.mark.parametrize("write", [_save, _copy, _prepare])
def test_only_a_file_is_written_over(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Links are followed; what is no file stays."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to_a_fifo").symlink_to("fifo")
    for name, kind in (
        ("folder", "a folder"),
        ("fifo", "a pipe"),
        ("to_a_fifo", "a pipe"),
        ("/dev/null", "a device"),
    ):
        with pytest.raises(OutputError, match=f"{tmp_path / name} is {kind}, and only a file can be written over"):
            write(tmp_path / name)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)

    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target.pt"
    (tmp_path / "link.pt").symlink_to("elsewhere/target.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    for _ in range(2):  # a new file, and one that is there
        write(tmp_path / "link.pt")
        assert (tmp_path / "link.pt").is_symlink() and torch.load(target) == {"new": 1}
        torch.save({"old": 1}, target)
    with pytest.raises(OSError, match=r"loop\.pt"):
        write(tmp_path / "loop.pt")
    assert (tmp_path / "loop.pt").is_symlink()
    assert not list(tmp_path.rglob("*tmp*"))
    assert replaceable("not_there.pt") == Path("not_there.pt")


def test_a_checkpoint_behind_a_link_beside_it_stays(tmp_path: Path) -> None:
    """As of somebody who has made checkpoint_last.pt a link to go on from there."""
    torch.save({"epoch": 5}, tmp_path / "checkpoint5.pt")
    (tmp_path / "checkpoint_last.pt").symlink_to("checkpoint5.pt")
    _copy(tmp_path / "checkpoint_last.pt")
    assert torch.load(tmp_path / "checkpoint5.pt") == {"epoch": 5}
    assert torch.load(tmp_path / "checkpoint_last.pt") == {"new": 1}


@pytest.mark.parametrize("what", ["average.pt", "average.md"])
def test_average_refuses_what_is_no_file(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before it reads anything."""
    os.mkfifo(tmp_path / what)
    assert cli.main(["average", "--inputs", str(tmp_path / "none.pt"), "--output", str(tmp_path / "average.pt")]) == 1
    said = capsys.readouterr().err
    assert said == f"luna-fairseq average: {tmp_path / what} is a pipe, and only a file can be written over: name " \
        "another one\n"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder.svg", "is a folder, and only a file can be written over"),
        ("/dev/null", "does not say what kind of picture it is: name a file that ends in .png or .svg"),
        ("picture", "does not say what kind of picture it is"),
    ],
)
def test_plot_refuses_what_is_no_picture(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "train.log").write_text("| train_inner | epoch 001:  1 / 9 loss=3, ups=2, num_updates=1, lr=1\n")
    assert cli.main(["plot", str(tmp_path), "--panels", "loss", "--output", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.svg", "train.log"]


@pytest.mark.long
def test_two_trainings_of_one_folder(corpus: Corpus, tmp_path: Path) -> None:
    """For 20 seconds, both started again and again: one trains, the other is refused, every read is whole."""
    save = tmp_path / "save"
    command = [
        *(REAL / "fairseq-train", corpus.data, "--user-dir", USER_DIR, "--arch", "luna", *TINY, *TRAIN, *ADAM),
        *("--save-dir", save, "--save-interval-updates", 1, "--keep-interval-updates", 1, "--no-epoch-checkpoints"),
        *("--max-update", 100_000, "--disable-validation"),
    ]
    first = commands() / "fairseq-train"  # both really start, the second one from a fork: in less than a second

    def start(program: Path, log: Path) -> "subprocess.Popen[bytes]":
        with open(log, "ab") as output:
            return subprocess.Popen(
                [str(program), *map(str, command[1:])],
                stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    holder, refused, reads = start(command[0], tmp_path / "0.log"), 0, 0
    second = None
    try:
        while not (save / "checkpoint_last.pt").exists():
            assert holder.poll() is None, (tmp_path / "0.log").read_text()[-3000:]
            time.sleep(0.05)
        until = time.monotonic() + 20
        updates = []
        while time.monotonic() < until:
            if second is None or second.poll() is not None:
                if second is not None:
                    assert second.returncode == 1, (tmp_path / "1.log").read_text()[-3000:]
                    refused += 1
                second = start(first, tmp_path / "1.log")
            state = torch.load(save / "checkpoint_last.pt")
            updates.append(state["optimizer_history"][-1]["num_updates"])
            reads += 1
    finally:
        for process in (holder, second):
            if process is not None:
                process.kill()
                process.wait()
    said = (tmp_path / "1.log").read_text()
    assert f"process {holder.pid} on {socket.gethostname()}" in said and "trains into" in said
    assert refused >= 2 and reads > 50 and updates == sorted(updates) and updates[-1] > updates[0]
    assert "train_inner" not in said
