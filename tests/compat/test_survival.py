"""A training that is killed, finds its disk full or its checkpoint damaged goes on as if nothing had happened."""

import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.file_io import PathManager
from fairseq.tasks.masked_lm import MaskedLMConfig
from omegaconf import OmegaConf

from luna_fairseq import cli, compat
from luna_fairseq.checkpoint_files import copy_atomically, newest_checkpoint, save_atomically
from support.evil import Evil
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


def _assert_same(got: Any, want: Any, where: str) -> None:
    """Bit for bit, tensors in dictionaries and lists included."""
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            _assert_same(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for i, pair in enumerate(zip(got, want, strict=True)):
            _assert_same(*pair, f"{where}[{i}]")
    else:
        assert torch.equal(got, want) if torch.is_tensor(want) else got == want, where


def _assert_same_run(got: Path, want: Path) -> None:
    """Weights, the optimizer's and the schedule's state, the place in the data and the best loss so far."""
    states = [torch.load(folder / "checkpoint_last.pt") for folder in (got, want)]
    for part in ("model", "last_optimizer_state"):
        _assert_same(*(state[part] for state in states), part)
    _assert_same(*(state["optimizer_history"][-1] for state in states), "schedule")
    for part in ("train_iterator", "best", "val_loss"):
        _assert_same(*(state["extra_state"][part] for state in states), part)
    _assert_same(*(torch.load(folder / "checkpoint_best.pt")["model"] for folder in (got, want)), "best model")


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
def test_20_kills_change_nothing(name: str, corpus: Corpus, lm_corpus: LMCorpus, tmp_path: Path) -> None:
    """While it starts, between updates and while it saves; the data workers are left to themselves."""
    data = lm_corpus.shards if name == "masked_lm" else corpus.data
    command = ["fairseq-train", data, "--user-dir", USER_DIR, *LONG[name], "--dropout", 0.1, "--max-update", 400]
    command += [*OFTEN, "--num-workers", 2, "--data-buffer-size", 10, "--save-dir"]
    want = run_command(*command, tmp_path / "whole")
    losses = dict(zip(logged(want, "num_updates"), logged(want, "loss"), strict=True))
    assert len(losses) == 400

    choose = random.Random(20)
    moments = ["start"] * 4 + ["update"] * 8 + ["save"] * 8
    choose.shuffle(moments)
    in_a_save, seen, groups = 0, set(), []
    for number, moment in enumerate(moments):  # which grows below
        log = tmp_path / f"{number}.log"
        path = Path(sys.executable).parent / command[0]
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
    assert in_a_save >= 4, f"only {in_a_save} of {len(moments)} kills while a checkpoint was saved"
    assert 50 < len(seen) < 400

    said = run_command(*command, tmp_path / "killed")
    assert all(losses[k] == loss for k, loss in zip(logged(said, "num_updates"), logged(said, "loss"), strict=True))
    _assert_same_run(tmp_path / "killed", tmp_path / "whole")
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("killed", "whole")]
    assert files[0] == files[1]
    # Workers look after their parent every five seconds.
    deadline = time.monotonic() + 60
    while groups and time.monotonic() < deadline:
        groups = [group for group in groups if _is_alive(group)]
        time.sleep(0.2)
    assert not groups, "a data worker outlived its training"


def test_the_schedule_hears_of_the_last_epoch_before_a_restart(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "whole", "--max-epoch", 2)
    for epochs in (1, 2):
        train(corpus, tmp_path / "restarted", "--max-epoch", epochs)
    _assert_same_run(tmp_path / "restarted", tmp_path / "whole")
    state = torch.load(tmp_path / "restarted" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["lr_scheduler_state"]["best"] > 0


def test_patience_counts_over_restarts(corpus: Corpus, tmp_path: Path) -> None:
    # Wanted is a higher loss, so that no epoch is better than the first.
    options = ["--maximize-best-checkpoint-metric", "--patience", 3, "--max-epoch"]
    for epochs in (2, 9, 9):
        said = train(corpus, tmp_path, *options, epochs)
        if epochs == 9:
            assert "early stop" in said
    assert not logged(said, "num_updates")
    assert sorted(path.name for path in tmp_path.glob("checkpoint?.pt")) == [
        f"checkpoint{n}.pt" for n in (1, 2, 3, 4)
    ]
    assert logged(
        train(corpus, tmp_path, "--maximize-best-checkpoint-metric", "--patience", 4, "--max-epoch", 9), "num_updates"
    )


def test_an_orphan_knows_that_it_is_one(tmp_path: Path) -> None:
    """A data worker whose training was killed before the worker could look who its parent is."""
    from torch.utils.data._utils import worker

    def work(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.01)
        (tmp_path / "answer").write_text(str(worker.ManagerWatchdog().is_alive()))

    def killed() -> None:
        multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(),)).start()
        os.kill(os.getpid(), signal.SIGKILL)

    assert _in_a_child(killed) == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while not (tmp_path / "answer").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.05)
    assert (tmp_path / "answer").read_text() == "False"
    assert worker.ManagerWatchdog().is_alive()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_the_same_after_a_restart(shuffle: bool, workers: int, lm_corpus: LMCorpus) -> None:
    """Its batches, their order and the masks, which are others in each epoch.

    Not shuffled, an epoch begins with the items that fairseq has kept.
    """
    options = {"data": f"{lm_corpus.folder}/shard0", "tokens_per_sample": 40, "sample_break_mode": "eos", "seed": 3}
    task = tasks.setup_task(OmegaConf.structured(MaskedLMConfig(_name="masked_lm", **options)))

    def run(start: int, end: int) -> Dict[int, List[Any]]:
        task.load_dataset("train", epoch=start)
        epochs = {}
        for epoch in range(start, end + 1):
            batches = task.get_batch_iterator(
                task.dataset("train"), max_sentences=2, seed=3, epoch=epoch, num_workers=workers, data_buffer_size=2
            )
            assert batches.first_batch is not None  # fairseq's trainer asks for it
            epochs[epoch] = [
                (batch["id"].tolist(), batch["net_input"]["src_tokens"].tolist(), batch["target"].tolist())
                for batch in batches.next_epoch_itr(shuffle=shuffle)
            ]
        task.dataset_to_epoch_iter.clear()  # as in a new process
        return epochs

    whole = run(1, 3)
    assert run(2, 3) == {epoch: whole[epoch] for epoch in (2, 3)} and run(3, 3)[3] == whole[3]
    masks = [
        {i: target for ids, _, targets in whole[k] for i, target in zip(ids, targets, strict=True)} for k in whole
    ]
    assert len(masks[0]) > 20
    for earlier, later in itertools.pairwise(masks):
        assert earlier.keys() == later.keys()
        assert sum(earlier[i] == later[i] for i in later) < len(later) / 3, "the masks of the epoch before"


def test_the_workers_of_a_shard_end_with_it(lm_corpus: LMCorpus) -> None:
    """Left to the garbage collector each would hold up the training for five seconds."""
    options = {"data": lm_corpus.shards, "tokens_per_sample": 40, "seed": 3}
    task = tasks.setup_task(OmegaConf.structured(MaskedLMConfig(_name="masked_lm", **options)))
    task.load_dataset("train", epoch=1)
    before = {child.pid for child in multiprocessing.active_children()}
    batches = task.get_batch_iterator(
        task.dataset("train"), max_sentences=2, num_workers=1, data_buffer_size=2, disable_iterator_cache=True
    )
    for batch in batches.next_epoch_itr():
        assert batch["id"].numel()
    deadline = time.monotonic() + 20
    while {child.pid for child in multiprocessing.active_children()} - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {child.pid for child in multiprocessing.active_children()} <= before


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
    left = {path.name for path in save.iterdir()}
    assert left == {"checkpoint_1_2.pt", "checkpoint_best.pt", "checkpoint_last.pt.tmp"}
    said = train(corpus, save, *SHORT)
    assert f"{save}/checkpoint_last.pt is missing: going on from {save}/checkpoint_best.pt" in said
    assert logged(said, "num_updates") == [str(update) for update in range(3, 10)]
    _assert_same_run(save, whole)
    assert not list(save.glob("*.tmp"))


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
    assert path.read_bytes() == content and not list(half.glob("*.tmp"))

    path.rename(half / "damaged")
    for options, updates in (([], ["9"]), (["--restore-file", half / "checkpoint_2_6.pt"], ["7", "8", "9"])):
        said = train(corpus, half, *SHORT, *options)
        assert logged(said, "num_updates") == updates
        _assert_same_run(half, whole)


def test_restore_file_that_is_not_there(corpus: Corpus, half: Path) -> None:
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    said = train(corpus, half, *SHORT, "--restore-file", half / "checkpoint_1_3.pt", code=1)
    assert f"there is no checkpoint {half}/checkpoint_1_3.pt: correct --restore-file" in said.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in half.iterdir()} == before


@pytest.mark.parametrize("name", ["checkpoint_best.pt", "checkpoint_last.pt"])
def test_full_disk(name: str, corpus: Corpus, whole: Path, half: Path) -> None:
    """The first file of a save, and its last; everything that is written to /dev/full meets a full disk."""
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    (half / f"{name}.tmp").symlink_to("/dev/full")
    said = train(corpus, half, *SHORT, code=1)
    assert f"{half}/{name} was not written (No space left on device): make room" in said.splitlines()[-1]
    assert logged(said, "num_updates") == ["9"]
    now = {path.name: path.read_bytes() for path in half.iterdir()}
    assert not [file for file in now if file.endswith(".tmp")]
    assert now["checkpoint_last.pt"] == before["checkpoint_last.pt"]

    if name == "checkpoint_last.pt":
        said = train(corpus, half, *SHORT)
        assert logged(said, "num_updates") == ["9"]
        _assert_same_run(half, whole)


def test_average_on_a_full_disk(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "average.pt"
    output.write_bytes(b"the old one")
    (tmp_path / "average.pt.tmp").symlink_to("/dev/full")
    assert cli.main(["average", "--inputs", str(whole / "checkpoint_1_2.pt"), "--output", str(output)]) == 1
    assert f"luna-fairseq: {output} was not written (No space left on device)" in capsys.readouterr().err
    assert output.read_bytes() == b"the old one" and [path.name for path in tmp_path.iterdir()] == ["average.pt"]


def _in_a_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its exit code, 1 for an error, which is printed."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            code = 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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

    assert _in_a_child(killed) == -signal.SIGKILL
    assert (tmp_path / "checkpoint_last.pt.tmp").exists()
    _assert_same(torch.load(path), old, "after the kill")
    write(path, new)
    _assert_same(torch.load(path), new, "after the next save")
    assert not (tmp_path / "checkpoint_last.pt.tmp").exists()


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
    assert _in_a_child(limited) == 1
    assert time.monotonic() - started < 2
    assert f"{path} was not written (File too large): make room" in capfd.readouterr().err
    _assert_same(torch.load(path), old, "after the failure")
    assert not (tmp_path / "checkpoint_last.pt.tmp").exists()


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
            with pytest.raises(compat.CheckpointError, match=r"was not written \(No space left on device\)"):
                write()
            _assert_same(torch.load(path), old, "after the failure")
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


@pytest.mark.parametrize("command", ["fairseq-eval-lm", "luna-fairseq attention"])
def test_checkpoint_with_code_is_refused(command: str, corpus: Corpus, tmp_path: Path) -> None:
    """By the commands that are not in test_compat.py."""
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


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "pickle"])
def test_code_in_any_format_is_refused(kind: str, tmp_path: Path) -> None:
    import pickle

    path, state = tmp_path / "evil.pt", {"model": {}, "args": Evil(tmp_path / "executed")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    for load in (checkpoint_utils.load_checkpoint_to_cpu, checkpoint_utils.load_ema_from_checkpoint):
        with pytest.raises((compat.CheckpointError, pickle.UnpicklingError)):
            load(str(path))
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["cfg", "args"])
def test_options_in_a_checkpoint_run_no_code(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    """fairseq evaluates some of them: plain strings that today's torch.load lets through."""
    folder = tmp_path / "executed"
    code = f"__import__('os').mkdir({str(folder)!r})"
    task = {"task": "translation", "data": str(corpus.data), "source_lang": "en", "target_lang": "de"}
    model = {"arch": "fconv", "encoder_layers": code, "decoder_layers": code, "decoder_attention": code}
    state = {"model": {}, "args": Namespace(**task, **model), "cfg": None, "optimizer_history": []}
    if kind == "cfg":
        state["args"] = None
        state["cfg"] = {"task": {"_name": "translation", **task}, "model": {"_name": "fconv", **model}}
    state.update(optimizer_history=[{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}])
    state["extra_state"] = {"train_iterator": {"epoch": 1}}
    torch.save(state, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"the option .*mkdir.* was not evaluated"):
        checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "evil.pt")])
    assert not folder.exists()


def test_options_that_are_data_are_evaluated() -> None:
    from fairseq import utils
    from fairseq.models import fconv

    assert fconv.eval("[(512, 3)] * 2 + [(1024, -1)]") == [(512, 3), (512, 3), (1024, -1)]
    assert utils.eval_bool(" True") is True and utils.eval_bool(True, default=True) is True
    assert utils.eval_str_list("[0.5, 1]") == [0.5, 1.0]
    for text in ("open('x')", "().__class__", "[x for x in (1,)]", "lambda: 1", "exit"):
        with pytest.raises(ValueError, match="was not evaluated"):
            fconv.eval(text)
