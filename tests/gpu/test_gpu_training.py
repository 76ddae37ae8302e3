"""fairseq's commands on a GPU: training, going on, half precision, two processes."""

import math
import signal
import sys
from pathlib import Path
from typing import Any, Iterator, List

import pytest
import torch

from luna_fairseq.compat.signals import SIGNALS
from luna_fairseq.doctor import training
from luna_fairseq.doctor.processes import check_two_processes
from support.devices import GPU, SLOW_ON_CPU
from support.running import TINY, TRAIN, USER_DIR, Corpus, logged, run_command


@pytest.fixture(autouse=True)
def leave_this_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training changes what spawned processes import, and signals."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", getattr(sys.modules["__main__"], "__spec__", None))
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """The same order of sums in every run, where torch has such a form."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.filterwarnings("ignore:.* does not have a deterministic implementation")
@pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported")  # --amp on a CPU
@pytest.mark.parametrize("options", [[], ["--amp"], ["--bf16"]], ids=["float32", "amp", "bf16"])
@pytest.mark.parametrize("device", SLOW_ON_CPU)
def test_a_training_that_goes_on_is_one_in_one_go(
    device: str, options: List[str], tmp_path: Path, deterministic: None
) -> None:
    """With dropout, bit for bit; --bf16 nearly, as fairseq does not save its float32 weights."""
    data, device = training.make_data(tmp_path), device if device == "cpu" else f"{device}:0"
    with training.quiet(tmp_path / "log"):
        training.train(data, tmp_path / "resumed", device, 2, "--dropout", "0.1", *options)
        resumed = training.train(data, tmp_path / "resumed", device, 4, "--dropout", "0.1", *options)
        whole = training.train(data, tmp_path / "whole", device, 4, "--dropout", "0.1", *options)
    assert [state["optimizer_history"][-1]["num_updates"] for state in (resumed, whole)] == [4, 4]
    for part in ("model", "last_optimizer_state"):
        training.compare(resumed[part], whole[part], 0.02 if "--bf16" in options else 0.0)


def _train(corpus: Corpus, save_dir: Path, device: str, *options: Any) -> List[float]:
    """By the command; the loss of every update."""
    where = [option for option in TRAIN if option != "--cpu"] + (["--cpu"] if device == "cpu" else [])
    output = run_command(
        *("fairseq-train", corpus.data, "--user-dir", USER_DIR, "--arch", "luna", *TINY, *where, "--dropout", 0),
        *("--optimizer", "adam", "--lr", 0.005, "--max-update", 4, "--save-dir", save_dir, *options),
        *("--distributed-world-size", 1),
        real=device != "cpu",
    )
    return [float(loss) for loss in logged(output, "loss")]


@pytest.mark.parametrize(
    ("device", "option"),
    [
        *(pytest.param("cpu", option, marks=pytest.mark.long) for option in ("--amp", "--bf16")),
        *(pytest.param("cuda", option, marks=pytest.mark.gpu) for option in ("--amp", "--fp16", "--bf16")),
    ],
)
def test_half_precision_by_the_command_line(device: str, option: str, corpus: Corpus, tmp_path: Path) -> None:
    """The losses are those of float32, nearly; the checkpoint translates, in half precision as well."""
    want = _train(corpus, tmp_path / "float32", device)
    got = _train(corpus, tmp_path / "half", device, option)
    assert len(got) == len(want) == 4
    for one, other in zip(got, want, strict=True):
        assert math.isfinite(one) and abs(one - other) <= 0.02 * other
    where = ["--cpu"] if device == "cpu" else ["--bf16" if option == "--bf16" else "--fp16"]
    output = run_command(
        *("fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--gen-subset", "test", "--num-workers", 0),
        *("--path", tmp_path / "half" / "checkpoint_last.pt", "--max-len-b", 10, *where),
        real=device != "cpu",
    )
    assert sum(line.startswith("H-") for line in output.splitlines()) == 11


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.gpu(2)
def test_two_processes_over_nccl(device: str, tmp_path: Path) -> None:
    """The weights of one process with twice the batches; tests/commands/test_doctor.py has two CPU processes."""
    data = training.make_data(tmp_path)
    check_two_processes(data, tmp_path, [f"{device}:0", f"{device}:1"])
