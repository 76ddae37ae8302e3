"""A file that a command was told to write is replaced only if it is what that command writes."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luna_fairseq.criterions.lra_cross_entropy import LRACrossEntropyCriterion
from luna_fairseq.pictures import load_pyplot, save
from scripts.bench import __main__ as bench


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


@pytest.mark.parametrize("content", ["mine", "[1]", '{"a": 1}', ""])
def test_benchmarks(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(content)
    monkeypatch.setattr(sys, "argv", ["scripts.bench", "--smoke", "--output", str(tmp_path)])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with pytest.raises(SystemExit, match=r"benchmark\.json is not of a benchmark: name another --output"):
        bench.main()
    assert path.read_text() == content
