"""Translations of the training text as training text: the best of each sentence, in order, and what is left out."""

from pathlib import Path
from typing import Any, List

import pytest

from luna_fairseq.data.distilled import goes_in_circles, main

SOURCES = ["▁a ▁b", "▁c", "▁d ▁e ▁f", "▁g", "▁h ▁i", "▁j"]
REFERENCES = ["▁A ▁B", "▁C", "▁D ▁E ▁F", "▁G", "▁H ▁I", "▁J"]
LOGS = (
    "S-2\t▁d ▁e ▁f\nT-2\t▁D ▁E ▁F\nH-2\t-0.1\t▁D ▁E\nH-2\t-0.2\t▁worse\nD-2\t-0.1\tD E\nP-2\t-0.1\n",
    "| INFO | something\nH-0\t-0.3\t▁A2 ▁B2\nH-4\t-0.3\t\nH-3\t-0.3\t▁G ▁G ▁G\nH-5\t-1.0\t▁J\n",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With text/train.{en,de} in pieces, and what fairseq-generate printed of two parts of it."""
    (tmp_path / "text").mkdir()
    for language, lines in (("en", SOURCES), ("de", REFERENCES)):
        (tmp_path / "text" / f"train.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for number, log in enumerate(LOGS):
        (tmp_path / f"{number}.log").write_text(log, encoding="utf-8")
    return tmp_path


def _run(folder: Path, *options: Any, out: str = "out", logs: Any = (0, 1)) -> int:
    files = [str(folder / f"{log}.log") for log in logs]
    words = ["--text", folder / "text" / "train", "--translations", *files, "--out", folder / out, *options]
    return main("prepare distilled", [str(word) for word in words])


def _lines(folder: Path, language: str) -> List[str]:
    return (folder / "out" / f"train.{language}").read_text(encoding="utf-8").splitlines()


def test_the_best_of_each_sentence_in_the_order_of_the_text(folder: Path, capsys: Any) -> None:
    assert _run(folder) == 0
    assert (_lines(folder, "en"), _lines(folder, "de")) == (
        ["▁a ▁b", "▁d ▁e ▁f", "▁j"],
        ["▁A2 ▁B2", "▁D ▁E", "▁J"],
    )
    assert capsys.readouterr().out == (
        "3 of 6 translations kept; left out: empty 1, not translated 1, too long or too short 1\n"
        f"3 pairs: {folder / 'out' / 'train'}\n"
    )


def test_another_ratio_and_the_references_too(folder: Path) -> None:
    assert _run(folder, "--ratio", 3, "--with-references") == 0
    assert _lines(folder, "en") == [*SOURCES, "▁a ▁b", "▁d ▁e ▁f", "▁g", "▁j"]
    assert _lines(folder, "de") == [*REFERENCES, "▁A2 ▁B2", "▁D ▁E", "▁G ▁G ▁G", "▁J"]


def test_circles() -> None:
    assert goes_in_circles("x a b c d a b c d a b c d".split())
    assert not goes_in_circles("x a b c d a b c d a b c e".split())
    assert not goes_in_circles(["a"] * 5) and goes_in_circles(["a"] * 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logs": (0, 0)}, "sentence 2 is in {0}/0.log and in an earlier file: give each part once"),
        ({"logs": ("none",)}, "the file {0}/none.log does not exist: name one that does"),
        ({"logs": (0, "text/train.en", 1)}, "the file {0}/text/train.en.log does not exist: name one that does"),
        ({"logs": ("empty",)}, "{0}/empty.log has no line that begins with H-: give what fairseq-generate printed"),
        ({"logs": ("bad",)}, "no translation of {0}/text/train is good (not translated 5, too long or too short 1): "
         "take a better teacher"),
        ({"logs": ("other",)}, "{0}/text/train has 6 lines, and there is a translation of number 6, from 0: give the "
         "text that was translated"),
        ({"out": "text"}, "--out {0}/text is the folder of the text {0}/text/train.en: name another one"),
        ({"out": "mine"}, "{0}/mine has a file that luna-fairseq prepare did not make: name another folder"),
    ],
)  # fmt: skip
def test_what_cannot_be(options: Any, message: str, folder: Path, capsys: Any) -> None:
    (folder / "empty.log").write_text("nothing\n")
    (folder / "other.log").write_text("H-6\t-1\t▁x\n")
    (folder / "bad.log").write_text("H-1\t-1\t▁x ▁y ▁z\n")
    (folder / "mine").mkdir()
    (folder / "mine" / "file").touch()
    assert _run(folder, **options) == 1
    assert capsys.readouterr().err == f"prepare distilled: {message.format(folder)}\n"
    assert not (folder / "out").exists()
    assert sorted(path.name for path in (folder / "text").iterdir()) == ["train.de", "train.en"]


def test_a_ratio_below_one(folder: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        _run(folder, "--ratio", 0.5)
    assert "0.5 is less than 1: give a number from 1" in capsys.readouterr().err
