"""When training ends: what is finished stays as it is, byte for byte, and no run ends well that has saved nothing."""

from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch

from support.hydra_runs import train_by_hydra
from support.running import Corpus, logged, train
from support.runs import assert_same

DECAY = "--lr-scheduler polynomial_decay --warmup-updates 0 --total-num-update 20".split()
# Five updates an epoch. A limit, what a second run says of it, and the same limit raised.
FINISHED: Dict[str, Tuple[List[Any], str, List[Any]]] = {
    "updates": (["--max-update", 5], "5 updates are done and --max-update is 5", ["--max-update", 6]),
    "epochs": (["--max-epoch", 1], "1 epochs are done and --max-epoch is 1", ["--max-epoch", 2]),
    "epochs, not all of them saved": (
        ["--max-epoch", 3, "--save-interval", 2], "3 epochs are done and --max-epoch is 3", ["--max-epoch", 4]
    ),
    "hours": (
        ["--stop-time-hours", 1e-7], "hours were spent and --stop-time-hours is 1e-07", ["--max-update", 3]
    ),
    "patience": (
        ["--maximize-best-checkpoint-metric", "--patience", 1],
        "early stop since the last 1 validations were no better and --patience is 1",
        ["--maximize-best-checkpoint-metric", "--max-update", 11],
    ),
    "learning rate": (
        [*DECAY, "--stop-min-lr", 0.006, "--save-interval", 3], "and --stop-min-lr is 0.006",
        [*DECAY, "--max-update", 11],
    ),
}  # fmt: skip


def _content(folder: Path) -> Dict[str, Tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


QUICK = ("updates", "epochs, not all of them saved")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FINISHED]
)
def test_what_is_finished_stays_as_it_is(name: str, corpus: Corpus, tmp_path: Path) -> None:
    """The command of a finished training may be repeated, as scripts do; fairseq makes another update each time."""
    limit, reason, raised = FINISHED[name]
    assert "stays as it is" not in train(corpus, tmp_path, *limit)
    before = _content(tmp_path)
    said = train(corpus, tmp_path, *limit)
    assert said.count("training is finished, and stays as it is: ") == said.count(reason) == 1, said[-2000:]
    assert not logged(said, "num_updates") and _content(tmp_path) == before
    assert logged(train(corpus, tmp_path, *raised), "num_updates")


def test_with_hydra_too(corpus: Corpus, tmp_path: Path) -> None:
    """The plugin is loaded late there."""
    save = tmp_path / "save"
    train_by_hydra(corpus, save, "optimization.max_update=2")
    before = _content(save)
    assert "stays as it is: 2 updates are done" in train_by_hydra(corpus, save, "optimization.max_update=2")
    assert _content(save) == before
    for override, message in {
        "++checkpoint.write_checkpoints_asynchronously=true": "needs the package iopath",
        "++dataset.num_shards=2": "--num-shards is 2 and fairseq-train reads everything",
    }.items():
        assert message in train_by_hydra(corpus, tmp_path / "other", override, code=1)


def test_the_last_epoch_is_saved(corpus: Corpus, tmp_path: Path) -> None:
    """Whatever --save-interval is; a run that goes on from there is the same as one without a break."""
    train(corpus, tmp_path / "parts", "--max-epoch", 1, "--save-interval", 2)
    train(corpus, tmp_path / "parts", "--max-epoch", 2, "--save-interval", 2)
    train(corpus, tmp_path / "whole", "--max-epoch", 2)
    states = [torch.load(tmp_path / name / "checkpoint_last.pt") for name in ("parts", "whole")]
    for part in ("model", "last_optimizer_state"):
        assert_same(*(state[part] for state in states), part)
    assert_same(*(state["optimizer_history"][-1] for state in states), "schedule")


NOTHING = ["--no-epoch-checkpoints", "--no-last-checkpoints"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write-checkpoints-asynchronously", "--max-update", 1], "needs the package iopath"),
        ([*NOTHING, "--disable-validation", "--max-update", 1], "leave no checkpoint to save"),
        (["--save-interval", 0, "--max-update", 1], "--save-interval is 0: it must be at least 1"),
        (["--max-epoch", -1], "nothing would be trained, and nothing saved: 0 epochs are done and --max-epoch is -1"),
        pytest.param(
            ["--max-update", -1], "nothing would be trained, and nothing saved: 0 updates are done",
            marks=pytest.mark.long,
        ),
        (["--stop-min-lr", 1, "--max-update", 1], "and nothing saved: the learning rate is"),
        (["--num-shards", 2, "--max-update", 1], "--num-shards is 2 and fairseq-train reads everything"),
    ],
)  # fmt: skip
def test_a_run_that_would_save_nothing_is_refused(
    options: List[Any], message: str, corpus: Corpus, tmp_path: Path
) -> None:
    said = train(corpus, tmp_path, *options, code=1)
    assert message in said.splitlines()[-1] and not logged(said, "num_updates")
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_saved_nothing_saves_its_end(corpus: Corpus, tmp_path: Path) -> None:
    options = [*NOTHING, "--disable-validation", "--save-interval-updates", 50, "--max-update", 3]
    assert "its last state becomes checkpoint_last.pt" in train(corpus, tmp_path, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_last.pt"]
    said = train(corpus, tmp_path, "--no-save", "--restore-file", tmp_path / "checkpoint_last.pt", "--max-update", 4)
    assert logged(said, "num_updates") == ["4"]


def test_a_file_that_was_not_written_before_the_end_is_written_again(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--max-update", 2)
    last = tmp_path / "checkpoint_last.pt"
    content = last.read_bytes()
    last.unlink()
    assert "2 updates are done" in train(corpus, tmp_path, "--max-update", 2)
    assert last.read_bytes() == content
