"""The pictures of the benchmarks: which lines they have, in colours that differ, with a legend that covers none."""

import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

from luna_fairseq.pictures import COLOURS, save
from scripts.bench import __main__ as command
from scripts.bench import length, picture
from support.running import ROOT

pytest.importorskip("matplotlib")

SERIES = {
    "attention": ["softmax", "causal softmax", "Luna, l = 32", "causal Luna, l = 32"],
    "transcription": ["transcription, l = 32", "causal Luna, l = 32"],
}


def _labels(svg: str) -> list[str]:
    return [
        text for text in re.findall(r"<!-- (.*?) -->", svg) if "Luna" in text or "softmax" in text or "tran" in text
    ]


def test_a_finished_run_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of the documentation are those of its figures."""
    monkeypatch.setattr(command.logging, "disable", lambda _: None)
    given = ["--draw", str(ROOT / "docs" / "benchmark.json"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scripts.bench", *given])
    assert command.main() == 0
    for name, series in SERIES.items():
        drawn, kept = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, ROOT / "docs"))
        assert _labels(drawn) == _labels(kept) == series
        paths = [re.findall(r"M [\d.]+ [\d.]+ \n(?:L .*\n){6,}", svg) for svg in (drawn, kept)]
        assert len(paths[0]) == len(paths[1]) >= 2


@pytest.mark.parametrize("styles", [picture.SOFTMAX, picture.TRANSCRIPTION])
def test_lines_differ_in_more_than_their_colour(styles: Dict[str, Tuple[Any, ...]]) -> None:
    assert {colour for colour, *_ in styles.values()} <= set(COLOURS)
    assert len({colour for colour, *_ in styles.values()}) == len({marker for _, _, marker, _ in styles.values()})
    assert len({marker for _, _, marker, _ in styles.values()}) == len(styles)


def test_no_legend_covers_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(figure: Any, path: Path) -> None:
        save(figure, path)
        renderer = figure.canvas.get_renderer()
        (legend,) = figure.legends
        for axis in figure.axes:
            assert axis.get_legend() is None
            assert not legend.get_window_extent(renderer).overlaps(axis.get_window_extent(renderer))
        seen.append(path.name)

    monkeypatch.setattr(picture, "save", look)
    monkeypatch.setattr(length, "save", look)
    found = json.loads((ROOT / "docs" / "benchmark.json").read_text())
    picture.draw(found["attention"], found["sizes"]["tokens"], tmp_path)
    speeds = {"Transformer": {1000: (2.0, 1.0), 4000: (1.0, 4.0)}, "Luna-16": {1000: (3.0, 1.0), 4000: (9.0, 1.0)}}
    length.draw(speeds, tmp_path / "efficiency.png")
    assert seen == ["attention.svg", "transcription.svg", "efficiency.png"]
