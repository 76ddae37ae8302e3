"""fairseq on today's torch: what is loaded, what is refused, and how a run ends."""

import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import data_utils, iterators

from luna_fairseq import compat
from luna_fairseq.models.luna import LunaModel
from support.evil import Evil
from support.running import USER_DIR, Corpus, run_command, train


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    torch.save({"model": {}, "cfg": None, "args": Evil(tmp_path / "executed")}, tmp_path / "checkpoint_last.pt")
    return tmp_path


@pytest.mark.parametrize("command", ["resume", "finetune", "generate", "interactive", "validate", "average"])
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


def test_checkpoint_with_code_is_refused_by_from_pretrained(corpus: Corpus, evil: Path) -> None:
    with pytest.raises(compat.CheckpointError, match="that could run code"):
        LunaModel.from_pretrained(str(evil), "checkpoint_last.pt", data_name_or_path=str(corpus.data))
    assert not (evil / "executed").exists()


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_checkpoint_is_named(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_last.pt"
    torch.save({"model": {"weight": torch.zeros(10000)}}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(
        compat.CheckpointError, match=r"checkpoint_last.pt \(\d+ bytes\) is cut short or damaged.*take an older"
    ):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    with pytest.raises(FileNotFoundError):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "missing.pt"))


@pytest.mark.parametrize("content", [b"hello world\nthis is text\n", bytes(range(256)) * 8])
def test_garbage_is_named_and_not_called_malicious(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(compat.CheckpointError, match="is cut short or damaged"):
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
    assert not isinstance(raised.value, compat.CheckpointError)


def test_replace_unk_in_odd_cases() -> None:
    assert utils.replace_unk("a <unk>", "", [], {}, "<unk>") == "a <eos>"
    assert utils.replace_unk("a <unk>", "x y", [(0, 0), (1, 1)], {"y": "z"}, "<unk>") == "a z"
    assert (
        utils.replace_unk(
            "a <unk>", "x y", [["0.9", "0.1", "0"], ["0.2", "0.3", "0.5"], ["0", "0", "1"]], {}, "<unk>"
        )
        == "a y"
    )
    assert utils.replace_unk("a b", "x y", [], {}, "<unk>") == "a b"
    with pytest.raises(ValueError, match="add --print-alignment"):
        utils.replace_unk("<unk>", "x y", [], {}, "<unk>")
    with pytest.raises(ValueError, match="leave out --post-process"):
        utils.replace_unk("<unk>", "x y", [(0, 0), (1, 1), (3, 2)], {}, "<unk>")


def test_what_fairseq_saves_is_loaded(tmp_path: Path) -> None:
    """Validation meters of --eval-bleu hold numpy arrays and scalars."""
    state = {"model": {}, "meters": [np.arange(4), np.float64(2.5), np.ones(2, np.float32), np.int64(3)]}
    torch.save(state, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt")["meters"]
    assert loaded[0].tolist() == [0, 1, 2, 3] and loaded[1] == 2.5 and loaded[3] == 3


@pytest.mark.parametrize("count", [0, 1, 5, 8, 20, 24])
@pytest.mark.parametrize(
    "limits", [{"max_tokens": 100}, {"max_sentences": 7}, {"max_tokens": 50, "max_sentences": 9}]
)
def test_every_sentence_is_in_a_batch(count: int, limits: Any) -> None:
    """fairseq by itself loses the last batch if its size is no multiple of 8."""
    sizes = np.full(count, 10)
    batches = data_utils.batch_by_size(
        np.arange(count), lambda i: 10, num_tokens_vec=sizes, required_batch_size_multiple=8, **limits
    )
    assert [int(i) for batch in batches for i in batch] == list(range(count))
    assert all(len(batch) * 10 <= limits.get("max_tokens", 1000) for batch in batches)


def test_loader_thread_is_stopped() -> None:
    def endless() -> Any:
        for i in range(10**9):
            yield torch.ones(100).sum() * i

    class Source:
        def __iter__(self) -> Any:
            return endless()

        def __len__(self) -> int:
            return 10**9

    buffered = iterators.BufferedIterator(3, Source())
    next(buffered)
    thread = buffered._consumer
    time.sleep(0.05)
    assert thread.is_alive()
    compat._stop_background_consumers()
    assert not thread.is_alive()


def test_a_run_that_stops_in_the_middle_of_an_epoch_exits_0() -> None:
    """Without the plugin's exit handler this ends in SIGABRT about as often as not."""
    code = (
        "import torch, luna_fairseq.models\n"
        "from fairseq.data.iterators import BufferedIterator\n"
        "class Source(list):\n"
        "    def __iter__(self):\n"
        "        while True:\n"
        "            yield torch.stack([torch.randn(200, 200) for _ in range(20)]).sum()\n"
        "buffered = BufferedIterator(2, Source(range(1000)))\n"
        "next(buffered)\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_thirty_trainings_that_stop_in_an_epoch_exit_well(corpus: Corpus, tmp_path: Path) -> None:
    for run in range(30):
        said = train(corpus, tmp_path / str(run), "--max-update", 2, "--data-buffer-size", 10, "--no-save", real=True)
        assert "done training" in said


def test_only_the_noise_is_quiet() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compat._quieten_noise()
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found, then", stacklevel=1)
        warnings.warn("something that matters", stacklevel=1)
    assert [str(w.message) for w in seen] == ["something that matters"]
