"""A file that a command was told to write is replaced only if it is what that command writes."""

import argparse
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luna_fairseq.criterions.lra_cross_entropy import LRACrossEntropyCriterion
from luna_fairseq.errors import OutputError
from luna_fairseq.pictures import load_pyplot, save
from scripts.bench import __main__ as bench
from scripts.gpu_report import __main__ as gpu_report


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures(ending: str, tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib") and load_pyplot()
    figure, _ = pyplot.subplots()
    path = tmp_path / f"a.{ending}"
    path.touch()
    for _ in range(2):  # over an empty file, then over itself
        save(figure, path)
        assert path.stat().st_size > 100
    for content in (b"\x89PNG\r\n\x1a\n of a camera", b"<svg>mine</svg>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no picture that matplotlib made: name another file, or remove it"):
            save(figure, path)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    pyplot.close(figure)


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ("", False),
        ("0\t1\t0\n7\tpos\tneg\n", False),
        ("id\tpredicted\tclass\n", True),
        ("mine", True),
        ("0\t1\n", True),
    ],
)
def test_predictions(content: str, refused: bool, tmp_path: Path) -> None:
    path = tmp_path / "predictions.tsv"
    path.write_text(content)
    task: Any = SimpleNamespace()
    if refused:
        with pytest.raises(ValueError, match=f"--save-predictions is {path}, which holds something else: name an"):
            LRACrossEntropyCriterion(task, str(path), True)
    else:
        LRACrossEntropyCriterion(task, str(path), True)
    assert path.read_text() == content


def test_predictions_are_written_at_the_end(tmp_path: Path) -> None:
    """Whole, in the place of those before; until then these stay as they are."""
    path = tmp_path / "predictions.tsv"
    task: Any = SimpleNamespace(class_name=str)
    criterion = LRACrossEntropyCriterion(task, str(path), True)
    model = torch.nn.Identity().eval()
    model.forward = lambda logits: (logits,)

    def batch(*ids: int) -> None:
        logits = torch.eye(3)[[i % 3 for i in ids]]
        target = torch.zeros(len(ids), dtype=torch.int64)
        criterion(model, {"id": torch.tensor(ids), "net_input": {"logits": logits}, "target": target, "ntokens": 9})

    criterion.end_evaluation()  # of another criterion's options, or of nothing
    batch(0, 1)
    batch(2)
    assert not list(tmp_path.iterdir())
    criterion.end_evaluation()
    assert path.read_text() == "0\t0\t0\n1\t1\t0\n2\t2\t0\n"
    with pytest.raises(ValueError, match="writes one split: name one --valid-subset"):
        batch(0)
    model.train()
    batch(0)
    model.eval()
    batch(4)
    assert path.read_text().count("\n") == 3
    criterion.end_evaluation()
    assert path.read_text() == "4\t1\t0\n" and list(tmp_path.iterdir()) == [path]


def test_predictions_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is said before anything is evaluated."""
    task: Any = SimpleNamespace()
    with pytest.raises(OutputError, match="is a folder, and only a file can be written over: name another one"):
        LRACrossEntropyCriterion(task, str(tmp_path), True)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OutputError, match=rf"and nothing can be written to {tmp_path}: name another file"):
        LRACrossEntropyCriterion(task, str(tmp_path / "new" / "a.tsv"), True)


@pytest.mark.parametrize("content", ["mine", "[1]", '{"a": 1}', ""])
def test_benchmarks(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(content)
    monkeypatch.setattr(sys, "argv", ["scripts.bench", "--smoke", "--output", str(tmp_path)])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with pytest.raises(SystemExit, match=r"benchmark\.json is not of a benchmark: name another --output"):
        bench.main()
    assert path.read_text() == content


@pytest.mark.parametrize("program", ["bench", "gpu_report"])
def test_figures_are_written_whole(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file takes the place of the one before."""
    inodes = []
    for _ in range(2):
        if program == "bench":
            monkeypatch.setattr(sys, "argv", ["scripts.bench", "--smoke", "--output", str(tmp_path), "attention"])
            monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
            monkeypatch.setattr(logging, "disable", lambda _: None)
            monkeypatch.setattr(bench, "PARTS", {"attention": lambda _: []})
            monkeypatch.setattr(bench, "report", lambda _: "")
            monkeypatch.setattr(bench, "draw_pictures", lambda *_: 0)
            assert bench.main() == 0
        else:
            (tmp_path / "layers.json").write_text(json.dumps({"state": "done", "rows": [], "wrong": []}))
            monkeypatch.setattr("scripts.gpu_report.tables.report", lambda _: "")
            assert gpu_report.write_tables(argparse.Namespace(folder=tmp_path)) == 1
        written = [tmp_path / name for name in ("benchmark.json", "report.json", "report.md")]
        inodes.append([path.stat().st_ino for path in written if path.exists()])
    assert inodes[0] and all(before != after for before, after in zip(*inodes, strict=True))
