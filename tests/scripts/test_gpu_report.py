"""scripts/gpu_report.sh: every part in small on a CPU; what is wrong, fails or hangs is written down."""

import argparse
import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
import torch

from luna_fairseq.doctor import figures
from scripts.bench.checks import Mismatch
from scripts.gpu_report import GRACE, SECONDS, __main__, correctness, parts
from scripts.gpu_report.findings import BEGUN, DONE, OUT_OF_TIME, Findings, read
from scripts.gpu_report.sizes import ROWS, chosen
from scripts.gpu_report.tables import report
from support import gpu_counts
from support.running import ROOT, run_script

WHAT = {"machine": "a GPU", "smoke": False}


def _fail(error: Exception) -> Any:
    raise error


def test_what_is_wrong_or_fails_is_written_down_and_the_rest_goes_on(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "layers.json", WHAT, 1e9)
    assert read(tmp_path, ["layers"])["layers"]["state"] == BEGUN
    findings.add("first", lambda: _fail(Mismatch("off by 3")))
    findings.add("second", lambda: _fail(torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")))
    findings.add("third", lambda: {"seconds": 1.0})
    findings.end()
    found = read(tmp_path, ["layers", "lra"])
    assert list(found) == ["layers"] and found["layers"]["state"] == DONE
    assert found["layers"]["rows"] == [{"name": "third", "seconds": 1.0}]
    assert found["layers"]["wrong"] == ["first: off by 3"]
    assert found["layers"]["failed"] == ["second: failed: OutOfMemoryError: CUDA out of memory"]
    late = Findings(tmp_path / "lra.json", WHAT, 0.0)
    late.add("too late", lambda: _fail(AssertionError()))
    late.end()
    assert (late.found["state"], late.found["left out"]) == (OUT_OF_TIME, ["too late"])


def _done(rows: List[Dict[str, Any]], **more: Any) -> Dict[str, Any]:
    return {**WHAT, "state": DONE, "rows": rows, "wrong": [], "failed": [], "left out": [], "seconds": 1.0, **more}


def test_tables_have_the_numbers_and_what_is_missing() -> None:
    layers = [
        dict(kind=kind, kernels=kernels, d=512, l=16, length=4096, seconds=ms / 1e3, bytes=2**20 * ms, launches=10)
        | {"forward seconds": 1e-3, "kernel seconds": 2e-3}
        for kind, kernels, ms in (
            ("causal Luna", "torch", 4),
            ("causal Luna", "auto", 2),
            ("causal softmax", "auto", 3),
        )
    ]
    training = [
        {"arch": arch, "kernels": "auto", "length": 32, "words a second": speed, "seconds": 1.0, "bytes": 2**20}
        for arch, speed in (("transformer_wmt_en_de", 1000.0), ("luna_base_tied", 2500.0))
    ]
    lra = [
        {"model": model, "length": 4000, "updates a second": speed, "bytes": 2**20}
        for model, speed in (("Transformer", 2.0), ("Luna-256", 9.0))
    ]
    text = report(
        {
            "correctness": _done(
                [{"name": "training", "verdict": "ok", "text": "bit for bit"}], wrong=["x: off by 3"]
            ),
            "layers": _done(layers, state=BEGUN),
            "training": _done(training, state=OUT_OF_TIME, **{"left out": ["luna_base_untied"]}),
            "lra": _done(lra, failed=["Luna-16: failed: OutOfMemoryError"]),
        }
    )
    assert text.startswith("a GPU.\n") and "| training | ok | bit for bit |" in text
    assert "WRONG, correctness: x: off by 3.\n" in text
    assert "| 512, 16, 4,096 | 4.00 (1.00, 4) | 2.00 (1.00, 2) | 3.00 (1.00, 3) |" in text
    paper = figures.on_paper("causal Luna", 512, 16, 4096)
    assert paper is not None
    assert f"| 2.00, 10 ({paper['milliseconds']:.2f}, {paper['launches']}) | 2.00, 10 | 2.00, 10 (" in text
    assert "layers ended before it was done" in text and "No time was left for luna_base_untied." in text
    assert "| luna_base_tied | 32 | 2,500 | 1 | 2.50x, 1.00x |" in text
    assert "| Luna-256 | 4.50x, 1.00x | 4.9x, 0.16x |" in text and "| Transformer | 2.00/s, 1 MiB |  |" in text
    assert "decoding: not run." in text and "Failed, lra: Luna-16" in text


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"layers": {"wrong": ["x"]}}, 1),
        ({"correctness": {"state": BEGUN}}, 1),
        ({"lra": {"failed": ["x"]}}, 0),
    ],
)
def test_the_exit_code_is_that_of_correctness(
    changes: Dict[str, Any], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in SECONDS:
        (tmp_path / f"{part}.json").write_text(json.dumps(_done([]) | changes.get(part, {})))
    assert __main__.write_tables(argparse.Namespace(folder=tmp_path)) == code
    assert (tmp_path / "report.md").read_text() == capsys.readouterr().out
    assert list(json.loads((tmp_path / "report.json").read_text())) == list(SECONDS)


def test_its_rows_are_those_of_the_documentation_and_it_takes_eight_minutes() -> None:
    assert ROWS == gpu_counts.ROWS and list(SECONDS) == list(parts.PARTS)
    assert sum(SECONDS.values()) + len(SECONDS) * GRACE <= 480 - 10  # and the tables
    script = (ROOT / "scripts" / "gpu_report.sh").read_text()
    assert f"PARTS=({' '.join(SECONDS)})" in script


def test_a_model_that_computes_something_else_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = chosen("cpu", smoke=True)
    assert "gradients are those of the CPU" in correctness.check_model("luna_base_tied", sizes).text
    made: List[Any] = []

    def another(model: Any) -> Any:
        made.append(copy.deepcopy(model))
        if len(made) == 1:  # the one on the device
            with torch.no_grad():
                made[0].decoder.layers[0].fc1.bias.add_(0.1)
        return made[-1]

    monkeypatch.setattr(correctness, "copy", SimpleNamespace(deepcopy=another))
    with pytest.raises(Mismatch, match="is off by"):
        correctness.check_model("luna_base_tied", sizes)


@pytest.mark.long
def test_a_part_that_hangs_is_ended_and_what_it_had_found_is_kept(tmp_path: Path) -> None:
    program = (
        "import sys, time\nimport scripts.gpu_report as report\nreport.SECONDS['layers'], report.GRACE = 1, 9\n"
        "from scripts.gpu_report import __main__, parts\n"
        "def hang(sizes, findings):\n    findings.add('first', lambda: {'seconds': 1.0})\n    time.sleep(300)\n"
        "parts.PARTS['layers'] = hang\nsys.argv = 'x run --device cpu --smoke layers'.split()\n"
        f"sys.argv.append({str(tmp_path)!r})\n"
        "__main__.main()\n"
    )
    (tmp_path / "layers.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, timeout=120)
    assert done.returncode < 0
    assert read(tmp_path, ["layers"])["layers"]["state"] == BEGUN


@pytest.mark.long
def test_the_whole_script_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run keeps what is done; one without a GPU says so."""
    monkeypatch.setenv("DEVICE", "cpu")
    said = run_script(tmp_path, ROOT / "scripts" / "gpu_report.sh")
    folder = tmp_path / "smoke"
    found = json.loads((folder / "report.json").read_text())
    assert list(found) == list(SECONDS)
    for name, part in found.items():
        assert part["state"] == DONE and part["rows"] and not part["wrong"] and not part["failed"], (name, part)
    assert {row["verdict"] for row in found["correctness"]["rows"]} == {"ok", "not tried"}
    assert (folder / "report.md").read_text() in said and "SMOKE" in said
    assert re.search(r"^\| luna_base_tied \| 8 \| [\d,]+ \| \d+ \| [\d.]+x, [\d.]+x \|$", said, re.M)
    (folder / "lra.json").unlink()
    said = run_script(tmp_path, ROOT / "scripts" / "gpu_report.sh", "run")
    assert said.count("already there") == 4 and (folder / "lra.json").exists()
    monkeypatch.setenv("DEVICE", "gpu")
    assert "DEVICE is gpu: set it to cuda" in run_script(tmp_path, ROOT / "scripts" / "gpu_report.sh", code=1)
