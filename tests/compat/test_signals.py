"""A training that is told to end saves after the update at hand, and goes on from there bit for bit."""

import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

from luna_fairseq.compat import signals
from support.disturbed import at, kill, train_here
from support.forks import REAL
from support.running import ROOT, USER_DIR, Corpus, logged
from support.runs import assert_same_run
from support.trainers import make_trainer

SHORT: List[Any] = ["--save-interval-updates", 2, "--dropout", 0.1, "--max-update", 9]  # five updates an epoch
PLATEAU = "--optimizer adam --lr 0.01 --lr-scheduler reduce_lr_on_plateau --lr-threshold 0.9 --lr-shrink 0.5".split()


def _files(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir())


def _updates(path: Path) -> int:
    return int(torch.load(path)["optimizer_history"][-1]["num_updates"])


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tuple[Path, str]]:
    """A run that nobody disturbs, by its options, and what it says."""

    @functools.cache
    def run(*options: Any) -> Tuple[Path, str]:
        folder = tmp_path_factory.mktemp("whole") / "save"
        code, said = train_here(corpus, folder, list(options))
        assert code == 0, said[-3000:]
        return folder, said

    return run


STEP, VALID, SAVE = (Trainer, "train_step"), (Trainer, "valid_step"), (checkpoint_utils, "torch_persistent_save")
EPOCHS: List[Any] = ["--max-epoch", 3, "--dropout", 0.1]
CASES: Dict[str, Tuple[List[Any], Any, int, int]] = {
    # options, where the signal comes, after which update, after which one the training ends
    "nothing is due": (SHORT, STEP, 3, 3),
    "a save is due": (SHORT, STEP, 4, 4),
    "in a validation": (SHORT, VALID, 4, 4),
    "in a save": (SHORT, SAVE, 4, 4),
    "the epoch ends": (SHORT, STEP, 5, 5),
    "in the validation of an epoch": (SHORT, VALID, 5, 5),
    "the epoch ends unsaved": ([*EPOCHS, *PLATEAU, "--save-interval", 2], STEP, 5, 5),
    "the epoch ends unsaved and not validated": (
        [*EPOCHS, "--save-interval", 2, "--validate-interval", 2],
        STEP,
        5,
        5,
    ),
    "a validation without a save": ([*EPOCHS, "--validate-interval-updates", 1, "--patience", 9], VALID, 3, 3),
    "saves begin later": ([*SHORT, "--validate-after-updates", 5], STEP, 4, 4),
    "nothing is validated": ([*SHORT, "--disable-validation", "--no-epoch-checkpoints"], STEP, 3, 3),
    "several batches": ([*EPOCHS, "--update-freq", 2, "--max-tokens", 60], STEP, 4, 4),
}


QUICK = ("in a validation", "the epoch ends unsaved")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_it_goes_on_as_if_nothing_had_been(
    name: str, corpus: Corpus, whole: Callable[..., Tuple[Path, str]], tmp_path: Path
) -> None:
    options, (owner, function), comes, ends = CASES[name]
    save = tmp_path / "save"
    code, said = train_here(corpus, save, options, lambda: at(owner, function, comes, kill()))
    assert code == 128 + signal.SIGTERM, said[-3000:]
    sentence = (
        f"ended by SIGTERM after update {ends}, with a checkpoint in {save}: the same command goes on from there"
    )
    assert said.strip().splitlines()[-1].endswith(sentence)
    assert "Traceback" not in said and said.count("SIGTERM") == 1
    assert _updates(save / "checkpoint_last.pt") == ends
    assert not [path for path in save.iterdir() if ".tmp-" in path.name]

    if name in ("a save is due", "in a validation", "in a save"):
        assert said.count("Saved checkpoint") == 2  # and not once more for the signal

    want, undisturbed = whole(*options)
    code, after = train_here(corpus, save, options)
    assert code == 0, after[-3000:]
    for key in ("num_updates", "loss", "ppl"):
        assert logged(said, key) + logged(after, key) == logged(undisturbed, key)
    valid = re.compile(r"valid on 'valid' subset \| loss (\S+)")
    assert valid.findall(said) + valid.findall(after) == valid.findall(undisturbed)
    averages = re.compile(r"^train \| (epoch \d+ \| loss \S+)", re.MULTILINE)
    assert averages.findall(said) + averages.findall(after) == averages.findall(undisturbed)
    assert _files(save) == _files(want)
    if (want / "checkpoint_best.pt").exists():
        assert_same_run(save, want)
    else:
        last = [torch.load(folder / "checkpoint_last.pt")["model"] for folder in (save, want)]
        assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])


@pytest.mark.parametrize(
    "number",
    [
        number if number == signal.SIGHUP else pytest.param(number, marks=pytest.mark.long)
        for number in signals.SIGNALS
    ],
)
def test_each_signal(number: int, corpus: Corpus, tmp_path: Path) -> None:
    code, said = train_here(corpus, tmp_path / "save", SHORT, lambda: at(*STEP, 2, kill(number)))
    assert code == 128 + number
    name = signal.Signals(number).name
    assert f"ended by {name} after update 2, with a checkpoint in" in said.strip().splitlines()[-1]
    assert "Traceback" not in said and _updates(tmp_path / "save" / "checkpoint_last.pt") == 2


def test_before_the_first_update_it_ends_at_once(corpus: Corpus, tmp_path: Path) -> None:
    save = tmp_path / "save"
    code, said = train_here(corpus, save, SHORT, lambda: at(Trainer, "get_train_iterator", 0, kill(signal.SIGINT)))
    assert code == 130 and "Traceback" not in said and "train_inner" not in said
    assert said.strip().splitlines()[-1] == "ended by SIGINT before its first update: the same command starts again"
    assert not list(save.glob("*.pt"))


def test_the_second_signal_ends_it_at_once(corpus: Corpus, tmp_path: Path) -> None:
    """Unless both are one wish that came by two ways."""

    def twice(pause: float) -> Callable[[], None]:
        def act() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGTERM)

        return act

    code, said = train_here(corpus, tmp_path / "save", SHORT, lambda: at(*STEP, 2, twice(2 * signals._SAME)))
    assert code == -signal.SIGTERM and "Traceback" not in said
    assert not list((tmp_path / "save").glob("*.pt"))  # not even the save that is due
    code, said = train_here(corpus, tmp_path / "save", SHORT, lambda: at(*STEP, 2, twice(0)))
    assert code == 130 and _updates(tmp_path / "save" / "checkpoint_last.pt") == 2


@pytest.mark.parametrize("update", [9, 10])
def test_a_training_at_its_end_ends_well(update: int, corpus: Corpus, tmp_path: Path) -> None:
    """With its last update, or its last epoch."""
    options = SHORT if update == 9 else ["--max-epoch", 2, "--save-interval", 9]
    code, said = train_here(corpus, tmp_path / "save", options, lambda: at(*STEP, update, kill()))
    assert code == 0 and "done training" in said and "ended by" not in said
    assert _updates(tmp_path / "save" / "checkpoint_last.pt") == update


def test_no_last_checkpoints(corpus: Corpus, whole: Callable[..., Tuple[Path, str]], tmp_path: Path) -> None:
    save, options = tmp_path / "save", [*SHORT, "--no-last-checkpoints"]
    code, _ = train_here(corpus, save, options, lambda: at(*STEP, 3, kill()))
    assert code == 143 and _files(save) == [
        "checkpoint_1_2.pt",
        "checkpoint_1_3.pt",
        "checkpoint_best.pt",
    ]
    code, said = train_here(corpus, save, options)
    assert code == 0 and logged(said, "num_updates") == [str(update) for update in range(4, 10)]
    want, _ = whole(*options)
    last = [torch.load(folder / "checkpoint_2_8.pt")["model"] for folder in (save, want)]
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])
    assert set(_files(save)) == {*_files(want), "checkpoint_1_3.pt"}


def test_no_last_checkpoints_at_the_end_of_an_epoch(corpus: Corpus, tmp_path: Path) -> None:
    options = ["--max-epoch", 3, "--no-last-checkpoints", "--no-epoch-checkpoints", "--save-interval", 2]
    code, _ = train_here(corpus, tmp_path / "save", options, lambda: at(*STEP, 5, kill()))
    assert code == 143 and _files(tmp_path / "save") == ["checkpoint1.pt"]


def test_no_save(corpus: Corpus, tmp_path: Path) -> None:
    code, said = train_here(corpus, tmp_path / "save", [*SHORT, "--no-save"], lambda: at(*STEP, 3, kill()))
    assert code == 143 and _files(tmp_path / "save") == []
    assert "ended by SIGTERM after update 3, and nothing is saved, because of --no-save" in said.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_data_workers_leave_it_to_the_training(number: int, corpus: Corpus, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to all of them."""
    options = ["--max-epoch", 20, "--num-workers", 2, "--data-buffer-size", 0, "--batch-size", 2]

    def to_all() -> None:
        time.sleep(0.3)  # until the workers are at work
        # From outside: workers obey their parent.
        kill_all = ["kill", "-s", signal.Signals(number).name[3:], "--", f"-{os.getpgrp()}"]
        subprocess.run(kill_all, check=True, start_new_session=True)
        time.sleep(1)  # in which the training would hear of the death of a worker

    code, said = train_here(corpus, tmp_path / "save", options, lambda: at(*STEP, 3, to_all))
    assert code == 128 + number and "Traceback" not in said, said[-3000:]
    assert _updates(tmp_path / "save" / "checkpoint_last.pt") == 3


def test_what_is_ignored_stays_ignored(corpus: Corpus, tmp_path: Path) -> None:
    """As under nohup; and what somebody listens to is theirs."""

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda number, frame: os.write(2, b"submitit's own\n"))
        at(*STEP, 2, kill(signal.SIGHUP))
        at(*STEP, 3, kill(signal.SIGUSR1))

    code, said = train_here(corpus, tmp_path / "save", SHORT, prepare)
    assert code == 0 and "submitit's own" in said


def test_after_the_training_signals_do_what_they_did(corpus: Corpus, tmp_path: Path) -> None:
    """In a program that goes on with something else."""
    code, said = train_here(corpus, tmp_path / "save", ["--max-update", 1], after=kill())
    assert code == -signal.SIGTERM and "done training" in said


def test_no_signal_is_listened_to_without_a_training() -> None:
    if signals._watch is not None:
        signals._watch.end()  # of a training in this process
    watch = signals.Watch()
    watch.begin()
    try:
        assert signal.getsignal(signal.SIGUSR1) == watch.hear
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL and watch.heard == 0
    finally:
        watch.end()


def test_who_listens_keeps_the_signal() -> None:
    """Before a training and after it, as the commands of the plugin do."""
    if signals._watch is not None:
        signals._watch.end()
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        watch = signals.Watch()
        watch.begin()
        assert signal.getsignal(signal.SIGTERM) == watch.hear
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        watch.end()
        watch.begin()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        watch.end()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_processes_agree() -> None:
    """Each tells what it has heard; they know the sum of it."""
    watch = signals.Watch()
    watch.heard = signal.SIGUSR1
    assert watch.wish(1) == signal.SIGUSR1
    assert watch.wish(2) == 0  # nobody has heard of it
    for votes, wish in (
        ([0, 0], 0), ([10.0, 1.0], 10), ([torch.tensor(30.0), torch.tensor(3.0)], 10), ([25, 2], 15), ([24, 2], 12),
        ([17, 2], 15),
    ):  # fmt: skip
        watch.votes = votes
        assert watch.wish(2) == wish


def test_a_task_whose_figures_are_not_sums(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both of fairseq's ways to exchange them carry the wish."""
    monkeypatch.setattr(signals, "_watch", signals.Watch())
    assert signals._watch is not None
    for summed in (True, False):
        trainer = make_trainer(tmp_path)
        can = functools.partial(lambda can, criterion: can, summed)
        trainer.task = type("Task", (FairseqTask,), {"logging_outputs_can_be_summed": can})(None)
        name = "_fast_stat_sync_sum" if summed else "_all_gather_list_sync"
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, name, lambda self, logs, *sums, ignore: (logs, [2 * x for x in sums]))
            signals._watch.heard = signal.SIGTERM
            assert trainer._aggregate_logging_outputs([{"loss": 1}], 3, 4, ignore=False) == ([{"loss": 1}], [6, 8])
        assert signals._watch.wish(2) == signal.SIGTERM


def test_a_process_knows_who_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SimpleNamespace(distributed_world_size=2, distributed_no_spawn=False)
    for name in ("fairseq_cli.hydra_train", "__mp_main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for module, main in (("fairseq_cli.hydra_train", "bin/x"), ("__mp_main__", "fairseq_cli/hydra_train.py")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, SimpleNamespace(__file__=f"/{main}"))
            assert not signals._is_left_alone(options)  # it is the one that starts others
            patch.setattr(multiprocessing, "parent_process", lambda: "somebody")
            assert signals._is_left_alone(options)
            assert not signals._is_left_alone(SimpleNamespace(distributed_world_size=1, distributed_no_spawn=False))
            assert not signals._is_left_alone(SimpleNamespace(distributed_world_size=2, distributed_no_spawn=True))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "somebody")
    assert not signals._is_left_alone(options)


@pytest.mark.long
@pytest.mark.parametrize("waits", [False, True], ids=["fairseq-hydra-train", "luna-fairseq run"])
def test_a_process_for_each_gpu_by_hydra(waits: bool, corpus: Corpus, tmp_path: Path) -> None:
    """Both save; what has started them waits if it has loaded the plugin. All believe that there are two GPUs."""
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.cuda.device_count = lambda: 2\n")
    save = tmp_path / "save"
    sizes = "embed_dim=16 ffn_embed_dim=32 layers=2 attention_heads=2".split()
    command = [str(REAL / "luna-fairseq"), "run"] if waits else []
    command += ["fairseq-hydra-train" if waits else str(REAL / "fairseq-hydra-train")]
    command += ["--config-dir", str(ROOT / "configs" / "translation"), "--config-name", "translation"]
    command += [f"common.user_dir={USER_DIR}", f"task.data={corpus.data}", f"checkpoint.save_dir={save}"]
    command += [f"hydra.run.dir={tmp_path}/hydra", "common.cpu=true", "dataset.max_tokens=200"]
    command += ["dataset.data_buffer_size=0", "dataset.num_workers=0", "model.share_all_embeddings=true"]
    command += [f"++model.{side}_{size}" for side in ("encoder", "decoder") for size in sizes]
    command += ["++model.projection_length=4", "++checkpoint.save_interval_updates=2", "optimization.max_update=9999"]
    command += ["++checkpoint.keep_interval_updates=2", "distributed_training.distributed_world_size=2"]
    command += ["distributed_training.distributed_backend=gloo"]
    path = os.pathsep.join([str(tmp_path), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        )
        try:
            deadline = time.monotonic() + 120
            while not list(save.glob("checkpoint_*_*.pt")):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
        finally:
            process.kill()
    ended = f"after update [0-9]+, with a checkpoint in {save}: the same command goes on from there"
    told = "told to end, fairseq-hydra-train ends at once, and this training saves behind it: start it by `luna-fa"
    if waits:
        said = (tmp_path / "log").read_text()
        assert code == 128 + signal.SIGTERM and re.search(f"ended by SIGTERM {ended}", said), said[-3000:]
        assert told not in said and (save / "checkpoint_last.pt").exists() and "Traceback" not in said
        return
    assert code == -signal.SIGTERM
    while not re.search(f"ended by SIGINT {ended}", said := (tmp_path / "log").read_text()):
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.05)
    assert said.count(told) == 1 and (save / "checkpoint_last.pt").exists()
