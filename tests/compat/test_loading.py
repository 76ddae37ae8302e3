"""What may be loaded: code in a checkpoint is refused in every command, and a damaged file is named."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils

from luna_fairseq.errors import CheckpointError
from luna_fairseq.models.luna import LunaModel
from support.evil import Evil
from support.running import USER_DIR, Corpus, run_command, train


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    torch.save({"model": {}, "cfg": None, "args": Evil(tmp_path / "executed")}, tmp_path / "checkpoint_last.pt")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        *("resume", "generate", "average"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("finetune", "interactive", "validate")),
    ],
)
def test_checkpoint_with_code_is_refused_by_every_command(command: str, corpus: Corpus, evil: Path) -> None:
    path = evil / "checkpoint_last.pt"
    before = path.read_bytes()
    common = [corpus.data, "--user-dir", USER_DIR, "--path", path, "--cpu", "--num-workers", 0]
    if command == "resume":
        output = train(corpus, evil, "--max-update", 1, code=-1)
    elif command == "finetune":
        output = train(corpus, evil / "new", "--finetune-from-model", path, "--max-update", 1, code=-1)
    elif command == "average":
        output = run_command("luna-fairseq", "average", "--inputs", path, "--output", evil / "out.pt", code=1)
        assert "Traceback" not in output
    else:
        task = ["--task", "translation", "--max-tokens", 100] if command == "validate" else []
        output = run_command(f"fairseq-{command}", *common, *task, code=-1, stdin="the cat\n")
    assert "mkdir that no fairseq checkpoint holds" in output
    assert not (evil / "executed").exists() and not (evil / "out.pt").exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["fairseq-eval-lm", "luna-fairseq attention"])
def test_checkpoint_with_code_is_refused(command: str, corpus: Corpus, tmp_path: Path) -> None:
    """By the commands that take a path."""
    path = tmp_path / "evil.pt"
    torch.save({"model": {}, "cfg": None, "args": Evil(tmp_path / "executed")}, path)
    if command == "fairseq-eval-lm":
        shutil.copy(corpus.data / "dict.en.txt", tmp_path / "dict.txt")
        output = run_command(command, tmp_path, "--user-dir", USER_DIR, "--path", path, "--cpu", code=1)
    else:
        output = run_command(*command.split(), "--path", path, "--data", corpus.data, "cat", code=1)
        assert "Traceback" not in output
    assert "mkdir that no fairseq checkpoint holds" in output
    assert not (tmp_path / "executed").exists()


def test_checkpoint_with_code_is_refused_by_from_pretrained(corpus: Corpus, evil: Path) -> None:
    with pytest.raises(CheckpointError, match="that could run code"):
        LunaModel.from_pretrained(str(evil), "checkpoint_last.pt", data_name_or_path=str(corpus.data))
    assert not (evil / "executed").exists()


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "pickle"])
def test_code_in_any_format_is_refused(kind: str, tmp_path: Path) -> None:

    path, state = tmp_path / "evil.pt", {"model": {}, "args": Evil(tmp_path / "executed")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))  # torch warns of a later one
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    for load in (checkpoint_utils.load_checkpoint_to_cpu, checkpoint_utils.load_ema_from_checkpoint):
        with pytest.raises((CheckpointError, pickle.UnpicklingError)):
            load(str(path))
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_checkpoint_is_named(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_last.pt"
    torch.save({"model": {"weight": torch.zeros(10000)}}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(
        CheckpointError, match=r"checkpoint_last.pt \(\d+ bytes\) is cut short or damaged.*take an older"
    ):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    with pytest.raises(FileNotFoundError):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "missing.pt"))


@pytest.mark.parametrize("content", [b"hello world\nthis is text\n", bytes(range(256)) * 8])
def test_garbage_is_named_and_not_called_malicious(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is cut short or damaged"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("error", [PermissionError("no"), RuntimeError("can't allocate memory")])
def test_an_error_of_the_machine_is_not_blamed_on_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": {}}, tmp_path / "x.pt")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error), match=str(error)) as raised:
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))
    assert not isinstance(raised.value, CheckpointError)


def test_what_fairseq_saves_is_loaded(tmp_path: Path) -> None:
    """Validation meters of --eval-bleu hold numpy arrays and scalars."""
    state = {"model": {}, "meters": [np.arange(4), np.float64(2.5), np.ones(2, np.float32), np.int64(3)]}
    torch.save(state, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt")["meters"]
    assert loaded[0].tolist() == [0, 1, 2, 3] and loaded[1] == 2.5 and loaded[3] == 3
