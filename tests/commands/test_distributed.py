"""Training in several processes, for real (gloo, on the CPU); precision and optimizers; what is refused."""

import fcntl
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.optim import AMPOptimizer, FP16Optimizer
from omegaconf import OmegaConf
from torch import Tensor

from luna_fairseq.compat.commands import check_device, check_optimizer_modes, check_processes
from luna_fairseq.optim.apollo import FairseqApollo, FairseqApolloConfig
from support.forks import REAL
from support.models import make_bert, make_lm, make_model
from support.running import APOLLO, ROOT, USER_DIR, Corpus, LMCorpus, logged, run_command, train
from support.runs import assert_same

# Options of a tiny run that saves after every update. No dropout: its random numbers are those of a process.
SIZES = "layers=2 embed_dim=16 ffn_embed_dim=32 attention_heads=2".split()
COMMON = [
    *"common.log_interval=1 common.seed=3 checkpoint.save_interval_updates=1".split(),
    *"checkpoint.keep_interval_updates=-1 checkpoint.no_epoch_checkpoints=false".split(),
    *"model.projection_length=4 ++model.dropout=0 ++model.attention_dropout=0".split(),
    *(f"++model.encoder_{size}" for size in SIZES),
]
# With the paper's optimizer for translation, which clips each gradient.
TRANSLATION = [
    *("translation/multi30k_luna_tied_16_apollo", *COMMON, *(f"++model.decoder_{size}" for size in SIZES)),
    *"dataset.max_tokens=100 optimization.lr=[0.1] lr_scheduler.warmup_updates=2 lr_scheduler.milestones=[4]".split(),
]
MASKED_LM = [
    *("masked_lm/wikitext2_luna_tied_32", *COMMON, "task.tokens_per_sample=40", "dataset.batch_size=3"),
    *"optimization.lr=[0.01] lr_scheduler.warmup_updates=2 dataset.validate_interval_updates=0".split(),
]

LANGUAGE_MODEL = [
    *("language_model/wikitext2_luna_tied_32_carry", *COMMON[: -len(SIZES)], "task.tokens_per_sample=12"),
    *(f"++model.decoder_{size}" for size in [*SIZES, "input_dim=16", "output_dim=16"]),
    *"optimization.lr=[0.01] lr_scheduler.warmup_updates=2 dataset.validate_interval_updates=0".split(),
]

# In which every process of a job must be gone, in seconds.
WITHIN = 60.0
# Enough to be stopped several times.
MANY_UPDATES = "++dataset.batch_size=1 optimization.max_update=20".split()


Job = subprocess.Popen  # of text
Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a script of ``scripts/`` that takes its variables from the environment; ends what a test leaves."""
    jobs: List[Job] = []

    def start_script(script: str, out: Path, data: Any, config: str, *options: str, **variables: Any) -> Job:
        values = {"CONFIG": config, "DATA": data, "OUT": out, "CPU": 1, **variables}
        env = {**os.environ, "PATH": f"{REAL}:{os.environ['PATH']}"}
        env.update({name: str(value) for name, value in values.items()})
        command = [str(ROOT / "scripts" / script), *options]
        jobs.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return jobs[-1]

    yield start_script
    for job in jobs:
        job.terminate()
        job.communicate()
    for process in _processes(tmp_path):
        os.kill(process, signal.SIGKILL)


def _finish(job: Job, code: int = 0, timeout: float = 300.0) -> str:
    output = job.communicate(timeout=timeout)[0]
    assert job.returncode == code, output[-6000:]
    return output


def _alone(out: Path, data: Any, config: str, *options: str, code: int = 0, **environment: str) -> str:
    """The same training by one process that knows nothing of others."""
    folder, name = config.split("/")
    return run_command(
        *("fairseq-hydra-train", "--config-dir", ROOT / "configs" / folder, "--config-name", name),
        *(f"common.user_dir={USER_DIR}", f"task.data='{data}'", f"checkpoint.save_dir={out}/checkpoints"),
        *(f"hydra.run.dir={out}/hydra", "common.cpu=true", "dataset.num_workers=0", "dataset.data_buffer_size=0"),
        *options,
        code=code,
        **environment,
    )


def _states(out: Path) -> Dict[int, Tuple[float, Dict[str, Tensor]]]:
    """Update -> its loss in full precision, and the weights after it."""
    states = {}
    for path in (out / "checkpoints").glob("checkpoint*[0-9].pt"):
        state = torch.load(path, weights_only=True)
        meters = {name: meter for _, name, _, meter in state["extra_state"]["metrics"]["train"]}
        states[state["optimizer_history"][-1]["num_updates"]] = float(meters["loss"]["val"]), state["model"]
    return states


def _assert_same_training(ours: Path, theirs: Path, updates: int, tolerance: float = 1e-5) -> None:
    """Losses and weights after every update, in training that moves the weights."""
    left, right = _states(ours), _states(theirs)
    assert sorted(left) == sorted(right) == list(range(1, updates + 1))
    for update, (loss, weights) in left.items():
        assert abs(loss - right[update][0]) <= tolerance, f"the loss of update {update}"
        for name, weight in weights.items():
            difference = (weight - right[update][1][name]).abs().max()
            assert difference <= tolerance, f"{name} after update {update} is off by {difference}"
    first, last = left[1][1], left[updates][1]
    assert max((last[name] - first[name]).abs().max() for name in first) > 0.01


def _validation(output: str) -> List[float]:
    return [
        float(line.split(" loss ")[1].split(" |")[0]) for line in output.splitlines() if "valid on 'valid'" in line
    ]


def _processes(out: Path) -> Dict[int, Tuple[List[str], Dict[str, str]]]:
    """Every process of a job that writes into a folder, or below it: its command and its environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((folder / name).read_text().split("\0") for name in ("cmdline", "environ"))
        except (OSError, UnicodeDecodeError):  # ended meanwhile, or not ours
            continue
        values = dict(entry.split("=", 1) for entry in environment if "=" in entry)
        if values.get("OUT", "").startswith(str(out)):
            found[int(folder.name)] = command, values
    return found


def _process(out: Path, rank: int) -> int:
    """The process that trains as number ``rank``."""
    return next(
        process
        for process, (command, values) in _processes(out).items()
        if values.get("RANK") == str(rank) and command[1].endswith("/fairseq-hydra-train")
    )


def _wait_for_update(job: Job, out: Path) -> None:
    """Until there is one more checkpoint than before."""
    folder = out / "checkpoints"
    before = len(list(folder.glob("checkpoint_1_*.pt")))
    deadline = time.monotonic() + 240
    while len(list(folder.glob("checkpoint_1_*.pt"))) <= before:
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0][-6000:]
        time.sleep(0.01)


def _free_port() -> int:
    """One that slurm.sh can make of the number of a job."""
    for port in range(20000 + os.getpid() % 10000, 40000):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) != 0:
                return port
    raise AssertionError("no free port")


@pytest.mark.long
@pytest.mark.parametrize("task", ["translation", "masked_lm"])
def test_two_processes_train_as_one_with_two_batches(
    task: str, corpus: Corpus, lm_corpus: LMCorpus, start: Start, tmp_path: Path
) -> None:
    """Without --find-unused-parameters; masked LM with two shards, one an epoch."""
    data, options = (corpus.data, TRANSLATION) if task == "translation" else (lm_corpus.shards, MASKED_LM)
    options = [*options, "optimization.max_update=9"]
    two = start("torchrun.sh", tmp_path / "two", data, *options, PROCESSES=2)
    alone = _alone(tmp_path / "one", data, *options, "optimization.update_freq=[2]")
    together = _finish(two)
    assert "training on 2 devices" in together and "training on 1 devices" in alone
    assert "begin training epoch 2" in together
    _assert_same_training(tmp_path / "two", tmp_path / "one", updates=9)
    losses = [_validation(output) for output in (together, alone)]
    assert losses[0] and losses[0] == pytest.approx(losses[1], abs=1.1e-3)  # printed with three digits


@pytest.mark.long
def test_two_processes_carry_the_state_of_one_with_all_rows(
    lm_corpus: LMCorpus, start: Start, tmp_path: Path
) -> None:
    """The rows of both read the parts of the text that those of one process would; parameters all have a gradient."""
    data, options = f"{lm_corpus.folder}/shard0", [*LANGUAGE_MODEL, "optimization.max_update=9"]
    two = start("torchrun.sh", tmp_path / "two", data, *options, "dataset.batch_size=3", PROCESSES=2)
    alone = _alone(tmp_path / "one", data, *options, "dataset.batch_size=6")
    together = _finish(two)
    assert "training on 2 devices" in together and "training on 1 devices" in alone
    assert "no state is known" not in together + alone
    _assert_same_training(tmp_path / "two", tmp_path / "one", updates=9)

    # Stopped in the middle of an epoch and gone on with, each process with its own rows.
    job = start("torchrun.sh", tmp_path / "parts", data, *options, "dataset.batch_size=3", PROCESSES=2)
    _wait_for_update(job, tmp_path / "parts")
    job.terminate()
    job.communicate(timeout=WITHIN)
    said = _finish(start("torchrun.sh", tmp_path / "parts", data, *options, "dataset.batch_size=3", PROCESSES=2))
    assert 0 < len(logged(said, "num_updates")) < 9 and "no state is known" not in said
    _assert_same_training(tmp_path / "parts", tmp_path / "two", updates=9)


@pytest.mark.long
def test_four_processes_with_uneven_last_batches(corpus: Corpus, start: Start, tmp_path: Path) -> None:
    options = [*TRANSLATION, "optimization.max_epoch=2"]
    four = start("torchrun.sh", tmp_path / "four", corpus.data, *options, PROCESSES=4)
    alone = _alone(tmp_path / "one", corpus.data, *options, "optimization.update_freq=[4]")
    together = _finish(four)
    assert "training on 4 devices" in together and "begin training epoch 2" in together
    # Every sentence once an epoch, and fewer batches than processes in the last update.
    sizes = [[int(size) for size in logged(output, "bsz")] for output in (together, alone)]
    updates = len(sizes[0])
    assert sizes[0] == sizes[1] and sum(sizes[0]) == 2 * 90
    single = logged(_alone(tmp_path / "batches", corpus.data, *options, "optimization.max_epoch=1"), "bsz")
    assert len(single) % 4 != 0 and updates == 2 * -(-len(single) // 4)
    _assert_same_training(tmp_path / "four", tmp_path / "one", updates)


@pytest.mark.long
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    corpus: Corpus, start: Start, tmp_path: Path
) -> None:
    """kill -9 of either process, and an interrupt of the script; then as if nothing had been."""
    out, options = tmp_path / "killed", [*TRANSLATION, *MANY_UPDATES]
    for victim in (1, 0, None):
        job = start("torchrun.sh", out, corpus.data, *options, PROCESSES=2)
        _wait_for_update(job, out)
        if victim is None:
            job.terminate()
        else:
            os.kill(_process(out, victim), signal.SIGKILL)
        output = _finish(job, code=143 if victim is None else 1, timeout=WITHIN)
        if victim is None:
            assert "torchrun.sh: interrupted by SIGTERM: the same command goes on" in output.splitlines()[-1]
        else:
            assert f"torchrun.sh: training stopped: process {victim} (exit code 137)" in output
        assert not _processes(out)
    with open(out / "lock") as lock:  # as if a process of an earlier job were still there
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = _finish(start("torchrun.sh", out, corpus.data, *options, PROCESSES=2), code=1, timeout=WITHIN)
    assert "another job trains into this folder: wait for it, or end it" in output.splitlines()[-1]
    output = _finish(start("torchrun.sh", out, corpus.data, *options, PROCESSES=2))
    assert "Loaded checkpoint" in output
    _alone(tmp_path / "one", corpus.data, *options, "optimization.update_freq=[2]")
    _assert_same_training(out, tmp_path / "one", updates=20)

    again = _finish(start("torchrun.sh", out, corpus.data, *options, PROCESSES=2))
    assert f"already trained: {out}" in again and "Loaded checkpoint" not in again
    for changed, processes in ((["common.seed=4"], 2), ([], 1)):
        other = [out, corpus.data, *options, *changed]
        said = _finish(start("torchrun.sh", *other, PROCESSES=processes), code=1)
        assert "2 processes" in said and "holds another run" in said and "set CHANGED=1" in said
        said = _finish(start("torchrun.sh", *other, PROCESSES=processes, CHANGED=1))
        assert f"already trained: {out}" in said


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adam", "apollo"])
def test_zero_sharding_trains_the_same_and_goes_on(
    optimizer: str, corpus: Corpus, lm_corpus: LMCorpus, start: Start, tmp_path: Path
) -> None:
    """Each process keeps the optimizer's state of its own share of the weights; stopped once."""
    pytest.importorskip("fairscale", reason="--zero-sharding needs fairscale")
    options, data = (TRANSLATION, corpus.data) if optimizer == "apollo" else (MASKED_LM, lm_corpus.shards)
    options = [*options, *MANY_UPDATES]
    out, sharding = tmp_path / "two", "distributed_training.zero_sharding=os"
    job = start("torchrun.sh", out, data, *options, sharding, PROCESSES=2)
    _wait_for_update(job, out)
    job.terminate()
    _finish(job, code=143, timeout=WITHIN)
    assert "Loaded checkpoint" in _finish(start("torchrun.sh", out, data, *options, sharding, PROCESSES=2))
    _alone(tmp_path / "one", data, *options, "optimization.update_freq=[2]")
    _assert_same_training(out, tmp_path / "one", updates=20)


def _wait_for_line(job: Job, log: Path, sign: str, count: int) -> None:
    deadline = time.monotonic() + 240
    while not log.exists() or log.read_text().count(sign) < count:
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0][-6000:]
        time.sleep(0.01)


@pytest.mark.long
def test_a_signal_ends_all_processes_after_the_same_update(corpus: Corpus, start: Start, tmp_path: Path) -> None:
    """To the script, to one of the trainings, or to torchrun; bit for bit as if nothing had been."""
    options = [*TRANSLATION, *MANY_UPDATES, "checkpoint.save_interval_updates=0"]
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    updates = 0
    for victim, number in (("script", signal.SIGUSR1), (0, signal.SIGTERM), (1, signal.SIGINT), ("torchrun", 15)):
        job = start("torchrun.sh", out, corpus.data, *options, PROCESSES=2)
        _wait_for_line(job, out / "train.log", "train_inner", updates + 2)
        if victim == "script":
            process = job.pid
        elif victim == "torchrun":
            found = _processes(out).items()
            process = next(pid for pid, (command, _) in found if command[1:2] == [str(REAL / "torchrun")])
        else:
            process = _process(out, int(victim))
        os.kill(process, number)
        output = _finish(job, code=138 if victim == "script" else 1, timeout=WITHIN)
        assert not _processes(out)
        log = (out / "train.log").read_text()
        updates = log.count("train_inner")
        sentence = (
            f"ended by {signal.Signals(number).name} after update {updates}, with a checkpoint in {out}/checkpoints"
        )
        assert sentence in log and sentence in output and sentence in log.strip().splitlines()[-1]
        last = torch.load(out / "checkpoints" / "checkpoint_last.pt")
        assert last["optimizer_history"][-1]["num_updates"] == updates < 20
    _finish(start("torchrun.sh", out, corpus.data, *options, PROCESSES=2))
    _finish(start("torchrun.sh", whole, corpus.data, *options, PROCESSES=2))
    states = [torch.load(folder / "checkpoints" / "checkpoint_last.pt") for folder in (out, whole)]
    for part in ("model", "last_optimizer_state"):
        assert_same(*(state[part] for state in states), part)
    assert (out / "train.log").read_text().count("train_inner") == 20


SLURM = {
    # Runs a copy of the script, as Slurm does.
    "sbatch": """
printf '%s\\n' "$@" > "$RECORD"
while [[ $1 != */slurm.sh ]]; do
  [ "$1" != --nodes ] || export SLURM_JOB_NUM_NODES=$2
  [ "$1" != --chdir ] || cd "$2"
  shift
done
cp "$1" "$RECORD.script"
shift
export SLURM_JOB_ID=$JOB SLURM_JOB_NODELIST=node[1-2]
exec bash "$RECORD.script" "$@"
""",
    "scontrol": """
case "$*" in
  'show hostnames node[1-2]') printf 'localhost\\nother\\n' ;;
  "requeue $JOB") touch "$RECORD.requeued" ;;
  *) exit 1 ;;
esac
""",
    # It passes SIGUSR1 on.
    "srun": """
while [[ $1 != */torchrun.sh ]]; do shift; done
tasks=() code=0
trap 'kill -s USR1 "${tasks[@]}"' USR1
for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do
  wait "$task" || code=$?
  while kill -0 "$task" 2> /dev/null; do wait "$task" || code=$?; done
done
exit "$code"
""",
}


@pytest.mark.long
def test_two_machines(corpus: Corpus, start: Start, tmp_path: Path) -> None:
    """One process on each; a killed one ends both. Then as a Slurm job, on programs that stand for Slurm's."""
    out, options, port = tmp_path / "two", [*TRANSLATION, *MANY_UPDATES], _free_port()
    machines = [start("torchrun.sh", out, corpus.data, *options, NODES=2, HEAD=f"localhost:{port}") for _ in range(2)]
    _wait_for_update(machines[0], out)
    os.kill(_process(out, 1), signal.SIGKILL)
    deadline = time.monotonic() + WITHIN
    for machine in machines:
        _finish(machine, code=1, timeout=deadline - time.monotonic())
    assert not _processes(out)

    programs = tmp_path / "slurm"
    programs.mkdir()
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{text}")
        (programs / name).chmod(0o755)
    record, number = tmp_path / "record", _free_port() - 20000

    def submit() -> Job:
        return start(
            "slurm.sh", out, corpus.data, *options, NODES=2, GPUS=1, CPUS=1, TIME="1:00:00", SMOKE="", WARNING=90,
            SBATCH="--partition long", PATH=f"{programs}:{REAL}:{os.environ['PATH']}", RECORD=record, JOB=number,
        )  # fmt: skip

    job = submit()
    _wait_for_update(job, out)
    job.send_signal(signal.SIGUSR1)  # as Slurm does before the time is over
    output = _finish(job, code=138, timeout=WITHIN)
    assert "training on 2 devices" in output and "Loaded checkpoint" in output
    assert f"slurm.sh: job {number} is queued again" in output and record.with_suffix(".requeued").exists()
    assert "ended by SIGUSR1 after update" in output and not _processes(out)
    asked = record.read_text().split("\n")
    for name, value in (
        ("--nodes", "2"), ("--gpus-per-node", "1"), ("--time", "1:00:00"), ("--signal", "B:USR1@90"),
        ("--partition", "long"),
    ):  # fmt: skip
        assert asked[asked.index(name) + 1] == value
    record.with_suffix(".requeued").unlink()
    assert "Loaded checkpoint" in _finish(submit())
    assert not record.with_suffix(".requeued").exists()
    _alone(tmp_path / "one", corpus.data, *options, "optimization.update_freq=[2]")
    _assert_same_training(out, tmp_path / "one", updates=20)


def test_the_scripts_say_what_to_set(corpus: Corpus, start: Start, tmp_path: Path) -> None:
    config = "translation/translation"
    cases = [
        (("torchrun.sh", corpus.data, "translation/nothing"), {}, "there is no configs/translation/nothing.yaml"),
        (("torchrun.sh", "", config), {}, "DATA is not set: name the data folder"),
        (("torchrun.sh", corpus.data, config), {"NODES": 2}, "NODES is 2: set HEAD to HOST:PORT of one"),
        (("torchrun.sh", corpus.data, config), {"PROCESSES": 0}, "is 0: give a number from 1 on"),
        (("torchrun.sh", corpus.data, config), {"CPU": "", "CUDA_VISIBLE_DEVICES": ""}, "has 0 GPUs: lower"),
        (("slurm.sh", "/nowhere", config), {}, "/nowhere does not exist"),
    ]  # fmt: skip
    jobs = [start(script, tmp_path / "out", data, name, **variables) for (script, data, name), variables, _ in cases]
    for job, (_, _, message) in zip(jobs, cases, strict=True):
        assert message in _finish(job, code=1).splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("config", ["translation/wmt14_transformer_adam", "masked_lm/pretrain_luna_untied_128_16gb"])
def test_smoke(config: str, corpus: Corpus, lm_corpus: LMCorpus, start: Start, tmp_path: Path) -> None:
    data = corpus.data if config.startswith("translation") else lm_corpus.shards
    output = _finish(start("torchrun.sh", tmp_path, data, config, PROCESSES=2, SMOKE=1))
    assert "num_updates 2" in output and "training on 2 devices" in output
    assert (tmp_path / "smoke" / "checkpoints" / "checkpoint_last.pt").exists()


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
TCP = ["--distributed-init-method", "tcp://localhost:1"]
SHARDED = ["--ddp-backend", "fully_sharded"]


@pytest.mark.parametrize(
    ("options", "variables", "message"),
    [
        ([], TORCHRUN, "2 processes were started and --distributed-world-size is 1, so that each would train alone"),
        (["--distributed-world-size", 2, *TCP], {}, "--distributed-world-size is 2 and there is no GPU, so that"),
        (["--fp16"], {}, "--fp16 needs a GPU: leave it out, or take --bf16"),
        ([*APOLLO, *SHARDED], {}, "--ddp-backend fully_sharded cuts tensors into pieces and --optimizer apollo"),
    ],
)
def test_what_cannot_train_is_refused(
    options: List[Any], variables: Dict[str, str], message: str, corpus: Corpus, tmp_path: Path
) -> None:
    output = train(corpus, tmp_path, *options, "--max-update", 1, code=1, CUDA_VISIBLE_DEVICES="", **variables)
    assert output.strip().splitlines()[-1].startswith(f"fairseq-train: {message}")
    assert not list(tmp_path.glob("*.pt"))


def test_torchrun_without_a_world_size_is_refused_by_hydra_too(corpus: Corpus, tmp_path: Path) -> None:
    output = _alone(tmp_path, corpus.data, *TRANSLATION, code=1, **TORCHRUN)
    assert ": 2 processes were started and --distributed-world-size is 1, so that each would" in output
    assert not list(tmp_path.glob("checkpoints/*.pt"))


def _config(**options: Any) -> Any:
    """What the checks read of fairseq's config; options as GROUP_NAME=value."""
    cfg: Any = OmegaConf.create(
        {
            "common": dict.fromkeys("cpu fp16 bf16 tpu memory_efficient_fp16 memory_efficient_bf16".split(), False),
            "distributed_training": {
                "distributed_world_size": 1, "distributed_no_spawn": False, "ddp_backend": "pytorch_ddp",
            },
            "optimizer": {"_name": "apollo"},
        }
    )  # fmt: skip
    for name, value in options.items():
        group = next(group for group in cfg if name in cfg[group])
        cfg[group][name] = value
    return cfg


def test_what_can_train_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(_config())
    check_optimizer_modes(_config(fp16=True, bf16=True))
    check_optimizer_modes(_config(_name="adam", ddp_backend="fully_sharded", memory_efficient_bf16=True))
    check_optimizer_modes(OmegaConf.create({"data": "of a task alone"}))
    check_device(_config(cpu=True, bf16=True))
    check_processes(_config(distributed_world_size=2, distributed_no_spawn=True))
    for name in ("memory_efficient_fp16", "memory_efficient_bf16"):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} keeps no float32 weights and"):
            check_optimizer_modes(_config(**{name: True}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_processes(_config(distributed_world_size=16))
    check_device(_config(fp16=True))
    with pytest.raises(ValueError, match="needs a GPU"):
        check_device(_config(fp16=True, cpu=True))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    check_processes(_config(distributed_world_size=8))
    with pytest.raises(ValueError, match="2 processes were started"):
        check_processes(_config())
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_processes(_config())


def test_bf16_is_no_tpu_where_processes_are_started() -> None:
    cfg = _config(bf16=True, tpu=True)
    cfg.distributed_training.update({"distributed_init_method": None, "pipeline_model_parallel": False, "tpu": True})
    cfg.update({"criterion": {"tpu": True}, "bpe": None, "job_logging_cfg": "a string"})
    seen: List[bool] = []
    distributed_utils.call_main(
        cfg, lambda cfg: seen.extend([cfg.common.tpu, cfg.criterion.tpu, cfg.distributed_training.tpu])
    )
    assert seen == [False, False, False]


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "optimizer", "exact"),
    [
        ("--amp", APOLLO, True),
        ("--bf16", [*APOLLO, "--clip-mode", "total"], False),  # fairseq saves no float32 weights
        ("--bf16", [], False),
        ("--memory-efficient-bf16", [], True),
    ],
)
def test_a_precision_trains_and_goes_on(
    mode: str, optimizer: List[str], exact: bool, corpus: Corpus, tmp_path: Path
) -> None:
    """Close to float32, and the same if stopped in between. (--amp is float32 on a CPU.)"""
    options = [*optimizer, "--dropout", 0, "--save-interval-updates", 2]
    wanted = logged(train(corpus, tmp_path / "float32", *options, "--max-update", 4), "loss")
    output = train(corpus, tmp_path / "whole", *options, mode, "--max-update", 4)
    assert [float(loss) for loss in logged(output, "loss")] == pytest.approx([float(x) for x in wanted], rel=0.01)
    train(corpus, tmp_path / "parts", *options, mode, "--max-update", 2)
    assert "Loaded checkpoint" in train(corpus, tmp_path / "parts", *options, mode, "--max-update", 4)
    whole, parts = (torch.load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "parts"))
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 0.02, "atol": 0.02}
    for name, weight in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], weight, **tolerance)
    states = [checkpoint["last_optimizer_state"] for checkpoint in (whole, parts)]
    for name in [key for key, value in states[0]["state"][0].items() if torch.is_tensor(value) and value.dim()]:
        averages = [torch.cat([values[name].flatten() for values in state["state"].values()]) for state in states]
        assert averages[0].dtype == torch.float32
        assert torch.cosine_similarity(*averages, dim=0) > 0.99, name


def _apollo(params: List[Tensor], **options: Any) -> FairseqApollo:
    return FairseqApollo(FairseqApolloConfig(**{"lr": [0.1], "fp16": False, "bf16": False, **options}), params)


GRADS = [[torch.randn(3, 4, generator=torch.Generator().manual_seed(i)), torch.ones(5) * i] for i in range(4)]


def _parameters() -> List[Tensor]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)), torch.nn.Parameter(torch.ones(5))]


def _loss(params: List[Tensor], grads: List[Tensor]) -> Tensor:
    return sum((p.float() * g).sum() for p, g in zip(params, grads, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("clip_mode", ["total", "each"])
def test_amp_trains_as_float32(clip_mode: str) -> None:
    """With the loss scaled, as on a GPU; fairseq by itself divides the gradients by the scale twice."""
    plain, scaled = _parameters(), _parameters()
    wanted = _apollo(plain, clip_mode=clip_mode)
    cfg = OmegaConf.create({"common": {"fp16_init_scale": 128, "min_loss_scale": 1e-4}, "optimizer": {}})
    ours = AMPOptimizer(cfg, scaled, _apollo(scaled, clip_mode=clip_mode))
    ours._grad_scaler = torch.amp.GradScaler("cpu", init_scale=128.0, growth_interval=2)
    for grads in GRADS:
        for optimizer, params in ((wanted, plain), (ours, scaled)):
            optimizer.zero_grad()
            optimizer.backward(_loss(params, grads))
            optimizer.clip_grad_norm(0.5)
            optimizer.step()
    assert ours.scaler.get_scale() == 512.0
    for ours_, wanted_ in zip(scaled, plain, strict=True):
        torch.testing.assert_close(ours_, wanted_)


def test_fp16_with_apollo_keeps_its_state_in_float32() -> None:
    """--fp16 --fp16-no-flatten-grads, as on a GPU; and through a checkpoint."""
    cfg = OmegaConf.create(
        {
            "common": {
                "fp16_no_flatten_grads": True, "fp16_scale_window": 100, "fp16_init_scale": 128, "bf16": False,
                "fp16_scale_tolerance": 0.0, "threshold_loss_scale": None, "min_loss_scale": 1e-4,
            },
            "optimizer": {"_name": "apollo", "lr": [0.1], "fp16": True, "bf16": False},
            "optimization": {},
        }
    )  # fmt: skip
    plain = _parameters()
    half = [torch.nn.Parameter(p.detach().half()) for p in plain]
    wanted, ours = _apollo(plain), FP16Optimizer.build_optimizer(cfg, half)
    for i, grads in enumerate(GRADS):
        if i == 2:  # as if the training had been resumed
            resumed = FP16Optimizer.build_optimizer(cfg, half)
            for new, old in zip(resumed.fp32_params, ours.fp32_params, strict=True):
                new.data.copy_(old.data)
            resumed.load_state_dict(ours.state_dict())
            ours = resumed
        for optimizer, params in ((wanted, plain), (ours, half)):
            optimizer.zero_grad()
            optimizer.backward(_loss(params, grads))
            optimizer.clip_grad_norm(0.5)
            optimizer.step()
    assert all(x.dtype == torch.float32 for state in ours.optimizer.state.values() for x in state.values())
    for got, want in zip(half, plain, strict=True):
        torch.testing.assert_close(got.float(), want, rtol=2e-3, atol=2e-3)


def test_apollo_is_rebuilt_from_its_config_alone() -> None:
    """As --zero-sharding os does, tensor by tensor; its own warm-up stays off."""
    ours, theirs = _parameters(), _parameters()
    apollo = _apollo(ours)
    rebuilt = type(apollo.optimizer)(theirs, **apollo.optimizer_config)
    for optimizer, params in ((apollo, ours), (rebuilt, theirs)):
        _loss(params, GRADS[1]).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["luna", "luna_bert", "luna_lm"])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """What --amp does on a GPU: matrix products in half precision."""
    model: Any = {"luna": make_model, "luna_bert": make_bert, "luna_lm": make_lm}[name]()
    tokens = torch.randint(4, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    tokens[1, 6:] = 1
    arguments = (tokens, torch.tensor([9, 6]), tokens) if name == "luna" else (tokens,)
    losses, grads = [], []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            logits = model(*arguments)[0]
        loss = -logits.float().log_softmax(dim=-1)[..., 5][tokens != 1].mean()
        loss.backward()
        losses.append(loss.item())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], rel=0.01)
    assert torch.cosine_similarity(grads[0], grads[1], dim=0) > 0.99
