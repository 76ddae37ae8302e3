"""Two commands that prepare one folder at the same time, and what commands leave behind."""

import functools
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from luna_fairseq import cli
from luna_fairseq.checkpoint_files import remove_temporary_files
from luna_fairseq.data import files
from luna_fairseq.data.files import alone_in
from luna_fairseq.errors import OutputError, PreparationError
from luna_fairseq.outputs import HOST, whole_file, whole_folder
from support.forks import commands
from support.running import Corpus
from support.runs import in_a_child

LRA = "--train 8 --valid 4 --test 4 --workers 1".split()


@pytest.mark.parametrize(
    ("kind", "smoke"),
    [
        *((kind, False) for kind in ("demo", "pieces", "corpus", "translation", "listops", "fetch")),
        *((kind, True) for kind in ("corpus", "translation", "listops")),
    ],
)
def test_a_second_command_is_told_of_the_first(
    kind: str, smoke: bool, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is; a smoke run writes inside of the same folder."""
    out, text = tmp_path / "out", corpus.text
    to, one = ["--out", str(out)], ["--workers", "1", "--vocab-size", "60"]
    corpora = [f"--{split}={text}/{split}" for split in ("train", "valid", "test")]
    arguments = {
        "demo": ["prepare", "demo", str(out), "--train", "20", "--valid", "2", "--test", "2"],
        "pieces": ["prepare", "pieces", *corpora, *to, "--vocab-size", "60"],
        "corpus": ["prepare", "corpus", *(f"{option}.en" for option in corpora), *to, *one],
        "translation": ["prepare", "translation", *corpora, *to, *one],
        "listops": ["prepare", "listops", *to, "--max-length", "40", "--min-length", "10", *LRA],
        "fetch": ["fetch", "wmt14", *to, "--source", str(text)],
    }[kind]
    arguments += ["--smoke"] * smoke
    with alone_in(out):
        assert cli.main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        f"luna-fairseq {' '.join(arguments[:2])}: another command is preparing {out} at this moment: wait for its "
        "end, or name another folder"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["listops", "corpus"])
def test_two_commands_at_once_end_well_or_with_a_sentence(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = corpus.text
    arguments = {
        "listops": ["--max-length", "40", "--min-length", "10", *LRA],
        "corpus": ["--train", f"{text}/train.en", "--valid", f"{text}/valid.en", "--vocab-size", "60"],
    }[kind]
    command = [str(commands() / "luna-fairseq"), "prepare", kind, "--out", str(out), *arguments]
    done = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in done]
    assert [process.returncode for process in done].count(0) >= 1, outputs
    for process, output in zip(done, outputs, strict=True):
        assert "Traceback" not in output
        assert ("prepared: " if process.returncode == 0 else "another command is preparing") in output
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_free_when_its_command_is_over(tmp_path: Path) -> None:
    """Killed, too; a folder that was there stays, and one that was not goes if nothing came into it."""
    mine, new = tmp_path / "mine", tmp_path / "more" / "new"
    mine.mkdir()
    for folder in (mine, new):
        lock = alone_in(folder)

        def killed(lock=lock) -> None:  # type: ignore[no-untyped-def]
            lock.__enter__()
            os.kill(os.getpid(), 9)

        assert in_a_child(killed) == -9
        new.rmdir() if new.exists() else None
        with alone_in(folder), pytest.raises(PreparationError, match="another command is preparing"):
            alone_in(folder).__enter__()
    assert mine.exists() and not new.exists()
    with alone_in(new), whole_folder(new) as temporary:
        (temporary / "file").touch()
    assert (new / "file").exists()


def test_a_folder_is_replaced_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays as it is when the new one is not finished, or does not get its name."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(KeyError), whole_folder(folder, replace=True) as temporary:
        raise KeyError
    rename = os.rename

    def fails(source: Path, target: Path) -> None:
        if ".tmp-" in Path(source).name:
            raise PermissionError
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        with pytest.raises(PermissionError), whole_folder(folder, replace=True):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]
    with whole_folder(folder, replace=True) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


@pytest.mark.parametrize("moment", ["between", "after"])
def test_a_folder_whose_replacement_was_killed_is_found_again(moment: str, tmp_path: Path) -> None:
    """For a moment it has no name that anybody would look for."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    rename = os.rename

    def killed() -> None:
        def kills(source: Path, target: Path) -> None:
            if ".tmp-" in Path(source).name:
                if moment == "after":
                    rename(source, target)
                os.kill(os.getpid(), 9)
            rename(source, target)

        pytest.MonkeyPatch().setattr(os, "rename", kills)
        with whole_folder(folder, replace=True) as temporary:
            (temporary / "new").touch()

    assert in_a_child(killed) == -9
    assert folder.exists() == (moment == "after") and len(list(tmp_path.glob(".folder.earlier-*"))) == 1
    with pytest.raises(KeyError), whole_folder(folder, replace=True):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old" if moment == "between" else "new"]


def test_a_folder_of_somebody_else_with_a_like_name_stays(tmp_path: Path) -> None:
    theirs = [".folder.earlier-2023", ".folder.earlier-mine", ".folder.earlier-run-3"]
    for name in theirs:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    for _ in range(2):  # the second one finds a folder that has its name
        with whole_folder(tmp_path / "folder", replace=True):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == [*theirs, "folder"]


def test_a_folder_that_one_may_not_read_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuses)
    (tmp_path / "folder").mkdir()
    with whole_folder(tmp_path / "folder", replace=True) as temporary:
        (temporary / "new").touch()
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    remove_temporary_files(str(tmp_path))
    assert (tmp_path / "folder" / "new").exists() and (tmp_path / "file").read_text() == "whole"


def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path: Path) -> None:
    """There is no room for what is added to it; what a killed run has left is known for all that."""

    def killed(write: Any, path: Path) -> None:
        with write(path):
            os.kill(os.getpid(), 9)

    for name in ("x" * 255, "\u732b" * 85):
        for write, path in ((whole_file, tmp_path / name), (whole_folder, tmp_path / "sub" / name)):
            assert in_a_child(functools.partial(killed, write, path)) == -9
            assert not path.exists() and len(list(path.parent.glob(".*.tmp-*"))) == 1
            for _ in range(2):
                with write(path, **({"replace": True} if write is whole_folder else {})) as temporary:
                    assert temporary.exists()
                assert path.exists() and not list(path.parent.glob(".*"))


def test_an_interrupt_leaves_a_folder_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        if ".earlier-" in Path(target).name:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder, replace=True):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


def test_nobody_is_left_in_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "folder" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for folder in (Path(".."), Path("../inside"), tmp_path / "folder"):
        with pytest.raises(OutputError, match="is where you are: go elsewhere"):
            whole_folder(folder, replace=True).__enter__()
    with whole_folder(tmp_path / "folder" / "other"):
        pass
    assert inside.samefile(".")


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, and all files of a folder: a name may get there first, and the power fail."""
    flushed, fsync = [], os.fsync

    def watched(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with whole_file(tmp_path / "x") as temporary:
        temporary.write_text("x")
    assert flushed == [temporary.name]
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "a").touch()
        (temporary / "deep").mkdir()
        (temporary / "deep" / "b").touch()
    assert sorted(flushed[1:]) == ["a", "b"]


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this machine a process is known; of others the time."""
    sleeps = subprocess.Popen(["sleep", "60"])
    host = HOST
    alive = tmp_path / f".x.tmp-{host}-{sleeps.pid}-0123abcd"
    elsewhere, long_ago = tmp_path / ".x.tmp-an-other-1-0123abcd", tmp_path / ".x.tmp-other.one-2"
    theirs = [tmp_path / f".x.tmp-{host}-me", tmp_path / ".x.tmp-notes"]  # no name of ours
    dead = [tmp_path / f".x.tmp-{host}-{2**22 + 5}", tmp_path / ".x.tmp-1", long_ago]
    for path in (alive, elsewhere, *theirs, *dead):
        path.mkdir()
        (path / "half").touch()
    os.utime(long_ago, (0, time.time() - 48 * 3600))
    try:
        with whole_file(tmp_path / "x") as temporary:
            temporary.write_text("whole")
        assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere, *theirs, tmp_path / "x"])
    finally:
        sleeps.kill()
        sleeps.wait()
    with whole_file(tmp_path / "x") as temporary:
        temporary.write_text("again")
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, *theirs, tmp_path / "x"])


@pytest.mark.parametrize("size", [0, 1, 70 << 10, (3 << 10) + 1])
def test_a_fingerprint_is_that_of_the_content(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of 1 KiB: to 64 of them every byte counts, and of more those of the beginning and of the end."""
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 10)
    path = tmp_path / "x"
    path.write_bytes(bytes(size))
    before = files.fingerprint(path)
    assert files.fingerprint(path) == before
    for place in {0, size // 2 if size <= 64 << 10 else size - 1, size - 1} if size else ():
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        assert files.fingerprint(path) != before
    path.write_bytes(bytes(size + 1))
    assert files.fingerprint(path) != before
