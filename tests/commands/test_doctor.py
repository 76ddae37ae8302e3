"""``luna-fairseq doctor``: every check passes here, sees what it is for, and spoils nothing."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch

from luna_fairseq import ops
from luna_fairseq.commands import doctor
from luna_fairseq.compat import switched_off
from luna_fairseq.compat.signals import SIGNALS
from luna_fairseq.doctor import attention, cost, examination, figures, machine, processes, repairs, training
from luna_fairseq.doctor.verdicts import FAILED, NOT_TRIED, OK, Finding, Verdict, attempt
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from support import gpu_counts
from support.forks import REAL
from support.models import load_golden
from support.running import ROOT, run_command

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module", autouse=True)
def leave_signals_as_they_were() -> Any:
    """A training in this process listens to them until it ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def leave_this_process_as_it_was(monkeypatch: Patch, tmp_path: Path) -> Any:
    """The command changes what spawned processes import, and signals; temporary folders are seen here."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", getattr(sys.modules["__main__"], "__spec__", None))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small(monkeypatch: Patch) -> None:
    """All checks, in a few seconds."""
    monkeypatch.setattr(machine, "DTYPES", ("float32",))
    monkeypatch.setattr(cost, "LENGTHS", {"cpu": (16, 32, 64, 128)})
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    monkeypatch.setattr(attention, "LENGTH", 20)


def _doctor(capsys: pytest.CaptureFixture, *options: str) -> Any:
    """The exit code of the command, and what it prints."""
    code = doctor.main("luna-fairseq doctor", ["--device", "cpu", *options])
    said = capsys.readouterr()
    assert said.err == ""
    return code, said.out


def test_everything_passes_here(small: None, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    code, said = _doctor(capsys)
    lines = [line for line in said.splitlines() if not line.startswith("  ")]
    assert code == 0 and lines[-1] == "nothing failed" and not os.listdir(tmp_path)
    names = [
        *("versions", "devices", "repairs of fairseq", "attention, cpu, float32", "data", "training, cpu"),
        *("generation, cpu", "two processes", "time and memory, cpu"),
    ]
    assert [line[10:].split(":")[0] for line in lines[:-1]] == names
    assert all(line.startswith("ok  ") != line.startswith("not tried two processes: no GPU") for line in lines[:-1])
    assert torch.__version__ in lines[0] and "bit for bit" in said and "causal Luna-16" in said


@pytest.mark.parametrize("name", ["attend", "causal_luna_attention", "folded_pack"])
def test_an_attention_that_is_wrong_by_a_thousandth_is_seen(
    name: str, small: None, capsys: pytest.CaptureFixture, monkeypatch: Patch
) -> None:
    """One JSON document, exit code 1, and the other checks are done all the same."""
    function = getattr(ops, name)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        return (found[0] + 1e-3, found[1]) if isinstance(found, tuple) else found + 1e-3

    monkeypatch.setattr(ops, name, wrong)
    monkeypatch.setattr(attention, "LENGTH", 150)  # so that it pays to fold
    monkeypatch.setattr(training, "check_training", lambda *_: Finding("left out"))
    code, said = _doctor(capsys, "--json")
    document = json.loads(said)
    assert code == 1 and document["ok"] is False
    verdicts = {check["name"]: check for check in document["checks"]}
    assert verdicts["attention, cpu, float32"]["verdict"] == FAILED
    assert "is off by 0.00" in verdicts["attention, cpu, float32"]["text"]
    assert verdicts["time and memory, cpu"]["verdict"] == OK
    assert verdicts["versions"]["details"]["versions"]["torch"] == torch.__version__
    assert verdicts["repairs of fairseq"]["details"]["repairs"]["want_no_tpu"] is True


def test_a_wrong_gradient_is_seen(monkeypatch: Patch) -> None:
    """The value is right."""
    function = ops.causal_luna_attention

    def wrong(*args: Any, **kwargs: Any) -> Any:
        y, state = function(*args, **kwargs)
        return y + 1e-3 * (y - y.detach()), state

    assert attempt("right", lambda: attention.check_attention("cpu", "float64")).verdict == OK
    monkeypatch.setattr(ops, "causal_luna_attention", wrong)
    verdict = attempt("wrong", lambda: attention.check_attention("cpu", "float64"))
    assert verdict.verdict == FAILED and "the gradient of " in verdict.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_has_tolerances_of_its_own(dtype: str, monkeypatch: Patch) -> None:
    assert attempt("right", lambda: attention.check_attention("cpu", dtype)).verdict == OK
    activation = ops.CAUSAL_ACTIVATIONS["softplus"]
    monkeypatch.setitem(ops.CAUSAL_ACTIVATIONS, "softplus", lambda x: activation(x) * 1.1)
    monkeypatch.setattr(attention, "_naive", lambda *_: pytest.fail("the golden numbers see it"))
    assert "is off by" in attempt("wrong", lambda: attention.check_attention("cpu", dtype)).text


def _break_resuming(patch: Patch) -> None:
    train = training.train

    def other_numbers(data: Path, save_dir: Path, device: str, updates: int, *more: str) -> Dict[str, Any]:
        seed = ["--seed", "4"] if updates == 3 and save_dir.name == "resumed" else []
        return train(data, save_dir, device, updates, *more, *seed)

    patch.setattr(training, "train", other_numbers)


def _break_an_update(patch: Patch) -> None:
    patch.setattr("fairseq.trainer.Trainer.train_step", lambda *_, **__: 1 / 0)


def _break_decoding(patch: Patch) -> None:
    """Rows of a beam keep the sums of others."""
    reorder = CausalLunaAttention.reorder_incremental_state

    def keep(self: Any, state: Any, order: Any, *told: Any) -> None:
        reorder(self, state, torch.arange(len(getattr(order, "rows", order))), *told)

    patch.setattr(CausalLunaAttention, "reorder_incremental_state", keep)


def _lose_a_translation(patch: Patch) -> None:
    lines = training._lines
    patch.setattr(training, "_lines", lambda output, prefix: lines(output.replace("H-3\t", "", 1), prefix))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, Path, Any]:
    """The data, the folder of a training where all is right, and the verdict on it."""
    folder = tmp_path_factory.mktemp("trained")
    data = training.make_data(folder)
    return data, folder, attempt("training", lambda: training.check_training(data, folder, "cpu"))


@pytest.mark.parametrize(
    ("break_it", "verdicts", "said"),
    [
        (lambda patch: None, [OK, OK], ["bit for bit", "36 translations"]),
        (_break_resuming, [FAILED, OK], ["differs by ", "36 translations"]),
        (_break_an_update, [FAILED, NOT_TRIED], ["ZeroDivisionError: division by zero", "has left no checkpoint"]),
        (_break_decoding, [OK, FAILED], ["bit for bit", "beam search gives a word another score"]),
        (_lose_a_translation, [OK, FAILED], ["bit for bit", "there are 35 translations"]),
    ],
    ids=["right", "resuming", "update", "decoding", "translation"],
)
def test_training_and_generation(
    break_it: Callable[[Patch], None],
    verdicts: List[str],
    said: List[str],
    trained: Tuple[Path, Path, Any],
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    data, folder, right = trained
    break_it(monkeypatch)
    if verdicts[0] == OK:  # what is wrong comes after the training
        found = [right]
    else:
        folder = tmp_path
        found = [attempt("training", lambda: training.check_training(data, folder, "cpu"))]
    found.append(attempt("generation", lambda: training.check_generation(data, folder, "cpu")))
    assert [verdict.verdict for verdict in found] == verdicts, found
    assert all(text in verdict.text for text, verdict in zip(said, found, strict=True)), found


def test_memory_that_grows_faster_than_the_length_is_seen(small: None, monkeypatch: Patch) -> None:
    assert attempt("right", lambda: cost.check_cost("cpu")).verdict == OK
    forward = LunaAttention.forward

    def with_all_pairs(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        torch.zeros(query.size(1), query.size(1), 64)
        return forward(self, query, *args, **kwargs)

    monkeypatch.setattr(LunaAttention, "forward", with_all_pairs)
    verdict = attempt("wrong", lambda: cost.check_cost("cpu"))
    assert verdict.verdict == FAILED and "the memory of Luna attention grows" in verdict.text


def test_figures_on_paper(monkeypatch: Patch) -> None:
    """Measured here in small; what does not hold is named, and is no failure."""
    monkeypatch.setattr(figures, "WIDTH", 64)
    monkeypatch.setattr(figures, "LENGTHS", (16,))
    monkeypatch.setattr(figures, "TOKENS", 32)
    monkeypatch.setattr(figures, "SECONDS", 0.0)
    monkeypatch.setattr(figures, "on_paper", lambda *_: {"milliseconds": 2.0})
    verdict = attempt("figures", lambda: figures.check_figures("cpu"))
    assert (
        verdict.verdict == OK
        and " of 2 ratios of Luna's time " in verdict.text
        and "; with kernels " in verdict.table[0]
    )
    monkeypatch.setattr(figures, "_measured", lambda *_: dict(zip(cost.KINDS, (2.0, 2.5, 2.0, 4.0), strict=True)))
    verdict = attempt("figures", lambda: figures.check_figures("cpu"))
    assert verdict.text.startswith("1 of 2 ratios") and verdict.text.endswith(
        "; not causal Luna at 16: 1.00 on paper, 2.00 here"
    )
    assert list(verdict.details["milliseconds"][16]) == ["torch", "auto"]


def test_figures_on_paper_are_those_of_the_documentation() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text().split("## Counted")[1]
    for dim, rows, length in gpu_counts.ROWS:
        cells = []
        for kind in ("causal Luna", "causal softmax", "Luna", "softmax"):
            found = figures.on_paper(kind, dim, rows, length)
            assert found is not None
            cells.append(f"{found['milliseconds']:.2f} ({found['gigabytes']:.1f}, {found['launches']})")
        row = f"| {dim:,}, {rows}, {length:,} | {' | '.join(cells)} |"
        assert row in page, f"{row}: run python -m support.gpu_counts --json {figures.COUNTED.relative_to(ROOT)}"


def test_a_gpu_is_asked_for_its_figures(small: None, monkeypatch: Patch) -> None:
    """The names of what is checked where there is one."""
    checks = [
        *((machine, "check_devices"), (attention, "check_attention"), (repairs, "check_repairs")),
        *((training, name) for name in ("make_data", "check_training", "check_generation")),
        *((cost, "check_cost"), (processes, "check_two_processes"), (figures, "check_figures")),
    ]
    for where, name in checks:
        monkeypatch.setattr(where, name, lambda *_: Finding("looked at"))
    monkeypatch.setattr(machine, "devices", lambda: ["cpu", "cuda:0"])
    names = [verdict.name for verdict in examination.examine([])]
    assert names[-4:] == [
        "two processes",
        "time and memory, cpu",
        "time and memory, cuda:0",
        "figures on paper, cuda:0",
    ]


def test_what_is_missing_or_switched_off_is_named(monkeypatch: Patch) -> None:
    with switched_off("want_no_tpu"):
        verdict = attempt("repairs", repairs.check_repairs)
    assert verdict.verdict == FAILED and "repairs of fairseq are not active: want_no_tpu" in verdict.text
    monkeypatch.setattr(machine, "NEEDED", ("torch", "no-such-package"))
    assert attempt("versions", machine.check_versions).text.startswith("no-such-package is not installed")

    def no_torch() -> List[str]:
        raise ImportError("libcudart.so: cannot open\nshared object file")

    monkeypatch.setattr(machine, "devices", no_torch)
    checks = examination.examine([])
    assert [next(checks).verdict for _ in range(3)] == [FAILED, FAILED, OK]


def test_a_check_that_raises_is_one_verdict() -> None:
    def leave() -> Finding:
        raise SystemExit(2)

    def fail() -> Finding:
        raise RuntimeError("two\nlines")

    assert attempt("x", leave).text == "SystemExit: 2" and attempt("x", fail).text == "RuntimeError: two lines"
    assert Verdict("name", FAILED, "why", 0.1, {}, ["row"]).lines() == ["failed    name: why", f"{'':<12}row"]


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_named(device: str, capsys: pytest.CaptureFixture) -> None:
    assert doctor.main("luna-fairseq doctor", ["--json", "--device", device]) == 1
    said = capsys.readouterr()
    assert (
        f"luna-fairseq doctor: there is no device {device} here: leave out --device, or take one of cpu" in said.err
    )
    assert said.out == ""


@pytest.mark.parametrize("where", [training, pytest.param(cost, marks=pytest.mark.long)])
def test_interrupted_it_leaves_nothing(
    where: Any, small: None, monkeypatch: Patch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    seen: List[str] = []

    def interrupt(*_: Any) -> None:
        seen.extend(os.listdir(tmp_path))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(where, "check_training" if where is training else "check_cost", interrupt)
    assert doctor.main("luna-fairseq doctor", ["--device", "cpu", "--json"]) == 130
    assert len(seen) == 1 and not os.listdir(tmp_path)
    assert capsys.readouterr().err == "luna-fairseq doctor: interrupted: run the same command again\n"


def test_the_golden_numbers_are_those_of_the_tests() -> None:
    assert attention.GOLDEN.stat().st_size < 100_000
    with np.load(attention.GOLDEN) as stored:
        assert {key.split("/")[0] for key in stored.files} == set(attention.CASES)
        for key in stored.files:
            case, part, name = key.split("/")
            want = load_golden(case)[part][name]
            want = want[::8] if part == "grads" and name.endswith(".weight") else want
            assert np.array_equal(stored[key], want.numpy()), key


def test_two_processes(tmp_path: Path, monkeypatch: Patch) -> None:
    assert attempt("two", lambda: processes.check_two_processes(tmp_path, tmp_path, [])).text == "no GPU"
    verdict = attempt("two", lambda: processes.check_two_processes(tmp_path, tmp_path, ["cuda:0"]))
    assert (verdict.verdict, verdict.text) == (NOT_TRIED, "one device")
    program = "import sys\nprint('noise')\nraise ValueError('a sentence')"
    monkeypatch.setattr(processes, "two_processes_command", lambda *_: [sys.executable, "-c", program])
    verdict = attempt("two", lambda: processes.check_two_processes(tmp_path, tmp_path, ["cuda:0", "cuda:1"]))
    assert verdict.verdict == FAILED
    assert verdict.text == "the two processes ended with exit code 1: ValueError: a sentence"
    monkeypatch.setattr(processes, "WITHIN", 0.2)
    program = "import time\ntime.sleep(60)"
    verdict = attempt("two", lambda: processes.check_two_processes(tmp_path, tmp_path, ["cuda:0", "cuda:1"]))
    assert verdict.text == "the two processes were not done after 0.2 seconds"


@pytest.mark.long
def test_two_processes_of_a_cpu(tmp_path: Path, monkeypatch: Patch) -> None:
    """As on two GPUs, but with gloo."""
    data = training.make_data(tmp_path)
    verdict = attempt("two", lambda: processes.check_two_processes(data, tmp_path, ["cpu", "cpu"]))
    assert verdict.verdict == OK, verdict.text
    for name in ("one", "two"):
        (tmp_path / name / "checkpoint_last.pt").unlink()
    train = processes.train
    monkeypatch.setattr(processes, "train", lambda *args: train(*args[:-1], "1"))  # half the batches
    verdict = attempt("two", lambda: processes.check_two_processes(data, tmp_path, ["cpu", "cpu"]))
    assert verdict.verdict == FAILED and "differs by" in verdict.text


def test_an_interruption_that_a_destructor_has_lost(monkeypatch: Patch, capsys: pytest.CaptureFixture) -> None:
    def examine(devices: List[str]) -> Any:
        class Lost:
            def __del__(self) -> None:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)

        for number in range(3):
            if number == 1:
                Lost()
            yield Verdict(f"check {number}", OK, "", 0.0)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(examination, "examine", examine)
    assert doctor.main("luna-fairseq doctor", []) == 130
    said = capsys.readouterr()
    assert "check 0" in said.out and "check 1" not in said.out
    assert said.err.endswith("luna-fairseq doctor: interrupted: run the same command again\n")


@pytest.mark.long
def test_the_whole_command(tmp_path: Path) -> None:
    """In a process of its own: all precisions, the usual lengths; a signal at any moment leaves nothing."""
    document = json.loads(run_command("luna-fairseq", "doctor", "--json", real=True, TMPDIR=str(tmp_path)))
    assert document["ok"] is True and not os.listdir(tmp_path)
    assert {check["verdict"] for check in document["checks"]} <= {OK, NOT_TRIED}
    for sent in (signal.SIGINT, signal.SIGHUP):
        process = subprocess.Popen(
            [str(REAL / "luna-fairseq"), "doctor", "--device", "cpu"],
            env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("luna-doctor-*/cpu/resumed")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and said.endswith("interrupted: run the same command again\n")
        assert not os.listdir(tmp_path)


def test_what_is_not_installed_is_named() -> None:
    verdict = attempt("import", lambda: importlib.import_module("no_such_package"))
    assert (verdict.verdict, verdict.text) == (FAILED, "no_such_package is not installed here: see docs/install.md")
