"""A training that is killed, finds its disk full or its checkpoint damaged goes on as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

from luna_fairseq import checkpoint_files, cli
from luna_fairseq.compat.signals import SIGNALS
from support.disturbed import train_here
from support.forks import REAL
from support.running import (
    ADAM,
    APOLLO,
    MASKED_LM,
    TINY,
    TINY_BERT,
    TRAIN,
    USER_DIR,
    Corpus,
    LMCorpus,
    logged,
    run_command,
    train,
)
from support.runs import assert_same_run

TRANSLATION: List[Any] = ["--arch", "luna", *TINY, *TRAIN, "--batch-size", 4]  # 23 updates an epoch


LONG: Dict[str, List[Any]] = {
    "adam": [*TRANSLATION, *ADAM, "--warmup-updates", 40],
    "apollo": [*TRANSLATION, *APOLLO, "--milestones", 150, 300],
    "masked_lm": [
        *("--arch", "luna_base_512", *TINY_BERT, *MASKED_LM, *ADAM, "--batch-size", 3, "--cpu", "--seed", 3),
        *("--update-freq", 2, "--log-format", "simple", "--log-interval", 1),
    ],
}


OFTEN: List[Any] = ["--save-interval-updates", 10, "--keep-interval-updates", 2, "--keep-last-epochs", 2]


def _wait_for(sign: str, count: int, log: Path, process: "subprocess.Popen[bytes]") -> None:
    while log.read_text().count(sign) < count:
        assert process.poll() is None, f"ended before it could be killed:\n{log.read_text()[-3000:]}"
        time.sleep(0.004)


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_kills_change_nothing(name: str, corpus: Corpus, lm_corpus: LMCorpus, tmp_path: Path) -> None:
    """While it starts, between updates and while it saves; the data workers are left to themselves."""
    often, updates = (2, 250) if name == "adam" else (1, 150)  # 10 kills, or 5
    data = lm_corpus.shards if name == "masked_lm" else corpus.data
    command = ["fairseq-train", data, "--user-dir", USER_DIR, *LONG[name], "--dropout", 0.1, "--max-update", updates]
    command += [*OFTEN, "--num-workers", 2, "--data-buffer-size", 10, "--save-dir"]
    want = run_command(*command, tmp_path / "whole")
    losses = dict(zip(logged(want, "num_updates"), logged(want, "loss"), strict=True))
    assert len(losses) == updates

    choose = random.Random(20)
    moments = ["start"] * often + ["update"] * 2 * often + ["save"] * 2 * often
    choose.shuffle(moments)
    in_a_save, seen, groups = 0, set(), []
    for number, moment in enumerate(moments):  # which grows below
        log = tmp_path / f"{number}.log"
        path = REAL / command[0]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [str(path), *map(str, command[1:]), str(tmp_path / "killed")],
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        groups.append(process.pid)
        if moment == "start":
            time.sleep(choose.uniform(0, 3))
        elif moment == "update":
            _wait_for("| train_inner |", choose.randint(1, 20), log, process)
            time.sleep(choose.uniform(0, 0.05))
        else:
            _wait_for("Preparing to save checkpoint", choose.randint(1, 2), log, process)
            # How long a save takes is the machine's affair: some kills come as early in it as they can.
            time.sleep(choose.choice([0, choose.uniform(0, 0.03)]))
        process.kill()
        assert process.wait() == -signal.SIGKILL, log.read_text()[-3000:]
        said = log.read_text()
        saving = said.rfind("Preparing to save checkpoint") > said.rfind("Saved checkpoint")
        in_a_save += saving
        if moment == "save" and not saving and len(moments) < 30:
            moments.append("save")
        for update, loss in zip(logged(said, "num_updates"), logged(said, "loss"), strict=True):
            assert loss == losses[update], f"update {update} after {number} kills"
            seen.add(update)
    assert in_a_save >= often, f"only {in_a_save} of {len(moments)} kills while a checkpoint was saved"
    assert 10 * often < len(seen) < updates

    said = run_command(*command, tmp_path / "killed")
    assert all(losses[k] == loss for k, loss in zip(logged(said, "num_updates"), logged(said, "loss"), strict=True))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("killed", "whole")]
    assert files[0] == files[1]
    # Workers look after their parent every five seconds.
    deadline = time.monotonic() + 60
    while groups and time.monotonic() < deadline:
        groups = [group for group in groups if _is_alive(group)]
        time.sleep(0.2)
    assert not groups, "a data worker outlived its training"


@pytest.mark.long
def test_each_signal_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    """To the training alone, or, as from a terminal, to its data workers as well."""
    command = ["fairseq-train", corpus.data, "--user-dir", USER_DIR, *LONG["apollo"], "--dropout", 0.1]
    command += [*OFTEN, "--max-update", 150, "--num-workers", 2, "--data-buffer-size", 10, "--save-dir"]
    want = run_command(*command, tmp_path / "whole")
    losses = dict(zip(logged(want, "num_updates"), logged(want, "loss"), strict=True))

    choose, done = random.Random(5), 0
    for number, to in zip(SIGNALS, [os.kill, os.killpg] * 3, strict=False):
        log = tmp_path / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [str(REAL / command[0]), *map(str, command[1:]), str(tmp_path / "stopped")],
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        _wait_for("| train_inner |", choose.randint(1, 8), log, process)
        time.sleep(choose.uniform(0, 0.05))
        to(process.pid, number)
        assert process.wait() == 128 + number, log.read_text()[-3000:]
        said = log.read_text()
        assert "Traceback" not in said and f"ended by {signal.Signals(number).name} after update" in said
        updates = logged(said, "num_updates")
        assert [losses[update] for update in updates] == logged(said, "loss")
        assert updates[0] == str(done + 1)  # nothing is done twice
        done = int(updates[-1])

    said = run_command(*command, tmp_path / "stopped")
    assert logged(said, "num_updates") == [str(update) for update in range(done + 1, 151)]
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("stopped", "whole")]
    assert files[0] == files[1]


SHORT: List[Any] = ["--save-interval-updates", 2, "--dropout", 0.1, "--max-update", 9]


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine updates at once, five an epoch, with everything that was saved on the way."""
    folder = tmp_path_factory.mktemp("whole")
    train(corpus, folder, *SHORT)
    return folder


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """What the same run has saved after its eighth update, in its second epoch."""
    folder = tmp_path / "half"
    folder.mkdir()
    for name in ("checkpoint_1_2.pt", "checkpoint_1_4.pt", "checkpoint1.pt", "checkpoint_2_6.pt"):
        shutil.copy(whole / name, folder)
    for name in ("checkpoint_2_8.pt", "checkpoint_last.pt", "checkpoint_best.pt"):
        shutil.copy(whole / "checkpoint_2_8.pt", folder / name)
    return folder


def test_killed_between_the_files_of_the_first_save(corpus: Corpus, whole: Path, tmp_path: Path) -> None:
    """There are checkpoints, and no checkpoint_last.pt: fairseq would start from scratch."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "replace = os.replace\n"
        "def replace_or_die(source, path):\n"
        "    if path.endswith('checkpoint_last.pt'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, path)\n"
        "os.replace = replace_or_die\n"
    )
    save = tmp_path / "save"
    train(corpus, save, *SHORT, code=-signal.SIGKILL, PYTHONPATH=str(tmp_path))
    (half,) = save.glob(".checkpoint_last.pt.tmp-*")
    left = {path.name for path in save.iterdir()} - {half.name}
    assert left == {"checkpoint_1_2.pt", "checkpoint_best.pt", "training.lock"}
    said = train(corpus, save, *SHORT)
    assert f"{save}/checkpoint_last.pt is missing: going on from {save}/checkpoint_best.pt" in said
    assert logged(said, "num_updates") == [str(update) for update in range(3, 10)]
    assert_same_run(save, whole)
    assert not list(save.glob(".*.tmp-*"))


def test_flipped_byte_is_named_and_the_one_before_it_is_gone_on_from(corpus: Corpus, whole: Path, half: Path) -> None:
    """torch.load would take it for other weights."""
    path = half / "checkpoint_last.pt"
    content = bytearray(path.read_bytes())
    weights = torch.load(path)["model"]["encoder.layers.0.fc1.weight"].numpy().tobytes()
    content[content.find(weights) + 5] ^= 1
    path.write_bytes(content)
    assert torch.load(path)["model"].keys()

    said = train(corpus, half, *SHORT, code=1)
    assert f"{path} ({len(content)} bytes) is cut short or damaged" in said.splitlines()[-1]
    assert f"move it away, and the same training goes on from {half}/checkpoint_best.pt" in said.splitlines()[-1]
    assert path.read_bytes() == content and not list(half.glob(".*.tmp-*"))

    path.rename(half / "damaged")
    for options, updates in (([], ["9"]), (["--restore-file", half / "checkpoint_2_6.pt"], ["7", "8", "9"])):
        said = train(corpus, half, *SHORT, *options)
        assert logged(said, "num_updates") == updates
        assert_same_run(half, whole)


def test_restore_file_that_is_not_there(corpus: Corpus, half: Path) -> None:
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    said = train(corpus, half, *SHORT, "--restore-file", half / "checkpoint_1_3.pt", code=1)
    assert f"there is no checkpoint {half}/checkpoint_1_3.pt: correct --restore-file" in said.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in half.iterdir()} == before


def _full_disk(name: str) -> Any:
    """What opens files, for a disk that is full when a file of that name is to be written."""

    def opens(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = open(path, mode, *args, **kwargs)  # noqa: SIM115 (as the built-in one)
        if "w" not in mode or not os.path.basename(path).startswith(f".{name}.tmp-"):
            return file
        file.close()
        return open("/dev/full", "wb")  # what is written there meets a full disk

    return opens


@pytest.mark.parametrize("name", ["checkpoint_best.pt", "checkpoint_last.pt"])
def test_full_disk(name: str, corpus: Corpus, whole: Path, half: Path) -> None:
    """The first file of a save, and its last."""
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    code, said = train_here(
        corpus,
        half,
        SHORT,
        lambda: setattr(checkpoint_files, "open", _full_disk(name)),  # over the built-in one
    )
    assert code == 1
    assert f"{half}/{name} was not written (No space left on device): make room" in said.splitlines()[-1]
    assert logged(said, "num_updates") == ["9"]
    now = {path.name: path.read_bytes() for path in half.iterdir()}
    assert not [file for file in now if ".tmp-" in file]
    assert now["checkpoint_last.pt"] == before["checkpoint_last.pt"]

    if name == "checkpoint_last.pt":
        said = train(corpus, half, *SHORT)
        assert logged(said, "num_updates") == ["9"]
        assert_same_run(half, whole)


def test_average_on_a_full_disk(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "average.pt"
    average = ["average", "--inputs", str(whole / "checkpoint_1_2.pt"), "--output", str(output)]
    assert cli.main(average) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoint_files, "open", _full_disk("average.pt"), raising=False)
    assert cli.main(average) == 1
    assert f"luna-fairseq average: {output} was not written (No space left on device)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
