"""Parallel text is cleaned, cut into pieces and binarised."""

import json
from pathlib import Path
from typing import Any

import pytest

from luna_fairseq.data import recipes, translation
from support.wmt14_archives import sentence_pairs


def _prepare(tmp_path: Path, *options: Any) -> int:
    words = ["--train", tmp_path / "train", "--valid", tmp_path / "valid", "--test", tmp_path / "test"]
    words += ["--out", tmp_path / "out", "--workers", 1, "--smoke", *options]
    return translation.main("it", [str(word) for word in words])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for seed, (split, count) in enumerate((("train", 150), ("valid", 10), ("test", 9))):
        pairs = sentence_pairs(count, seed + 40)
        for i, lang in enumerate(("en", "de")):
            (tmp_path / f"{split}.{lang}").write_text("".join(f"{pair[i]}\n" for pair in pairs))
    return tmp_path


def test_cleaning_counts_what_it_leaves_out(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(text / "train.en", "a") as en, open(text / "train.de", "a") as de:
        first, held_out = (
            (text / "train.en").read_text().split("\n")[0],
            (text / "test.en").read_text().split("\n")[0],
        )
        for source, target in (
            (first, (text / "train.de").read_text().split("\n")[0]),
            (first, "another Katze translation of the same"),
            (held_out, "die Katze"),
            ("\x00 \u200b", "die Katze"),
            ("the cat", "die Katze " * 30),
            ("the cat " * 200, "die Katze " * 200),
        ):
            en.write(f"{source}\n")
            de.write(f"{target}\n")
    assert _prepare(text, "--vocab-size", 60, "--max-ratio", 9) == 0
    said = capsys.readouterr().out
    repeated = 150 - len(
        set(zip(*((text / f"train.{lang}").read_text().split("\n")[:150] for lang in ("en", "de")), strict=True))
    )
    assert f"{153 - repeated} kept; left out: {repeated + 1} repeated, 1 in the held-out sets, 1 empty" in said
    assert (
        f"{151 - repeated} kept; left out: 1 more than 9 times as long as the other side, 1 of more than 250 pieces"
        in said
    )
    out = text / "out" / "smoke"
    assert sorted(path.name for path in out.iterdir()) == ["data-bin", "sentencepiece.model", "settings.json", "text"]
    assert _prepare(text, "--vocab-size", 60, "--max-ratio", 9) == 0
    assert "already prepared" in capsys.readouterr().out
    assert _prepare(text, "--vocab-size", 61, "--max-ratio", 9) == 1
    assert "was begun with vocab_size 60, not 61: repeat it" in capsys.readouterr().err
    lines = (text / "train.en").read_text().splitlines(keepends=True)
    (text / "train.en").write_text("".join([*lines[1:], lines[0]]))
    assert _prepare(text, "--vocab-size", 60, "--max-ratio", 9) == 1
    assert "was begun with another text in files of the same name and size: name" in capsys.readouterr().err
    known = json.loads((out / "settings.json").read_text())
    del known["content"]  # as before it was kept
    (out / "settings.json").write_text(json.dumps(known))
    assert _prepare(text, "--vocab-size", 60, "--max-ratio", 9) == 0


def test_the_published_recipe(text: Path) -> None:
    line = "It's a cat-dog, isn't it?"
    with open(text / "train.en", "a") as en, open(text / "train.de", "a") as de:
        en.write(f"{line}\n")
        de.write("„Das ist ein Katzen-Hund , nicht wahr ?“\n")
    assert _prepare(text, "--recipe", "moses", "--merges", 20) == 0
    out = text / "out" / "smoke"
    english, german = (out / "text" / f"train.{lang}" for lang in ("en", "de"))
    undone = english.read_text().splitlines()[-1].replace("@@ ", "")
    assert undone == "It &apos;s a cat @-@ dog , isn &apos;t it ?"
    assert german.read_text().splitlines()[-1].replace("@@ ", "").startswith("&quot; Das ist")
    assert len((out / "codes").read_text().splitlines()) == 21
    assert "@@ " in english.read_text()


def test_finished_steps_are_not_done_again(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(translation.Preparation, "binarise", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _prepare(text, "--vocab-size", 60)
    monkeypatch.setattr(translation, "tokenise_pairs", lambda pairs: [(a, a, b) for a, b in pairs])
    monkeypatch.setattr(recipes, "learn_sentencepiece", None)
    monkeypatch.setattr(translation, "encode_pairs", None)
    assert _prepare(text, "--vocab-size", 60) == 0
    assert (text / "out" / "smoke" / "data-bin" / "dict.en.txt").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("short", (), "train.de ends at line 150, before its translation"),
        ("empty", (), "test has an empty line: remove it from both languages"),
        ("missing", (), "valid.de does not exist"),
        ("binary", (), "train.en, line 1 is not UTF-8"),
        ("", ("--max-length", 1), "no training pair is left"),
        ("", ("--vocab-size", 5), "--vocab-size 5 does not work: the characters of this text alone take"),
    ],
)
def test_bad_text(change: str, options: Any, message: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if change == "short":
        with open(text / "train.en", "a") as en:
            en.write("more\n")
    elif change == "empty":
        for lang in ("en", "de"):
            (text / f"test.{lang}").write_text("\n")
    elif change == "missing":
        (text / "valid.de").unlink()
    elif change == "binary":
        (text / "train.en").write_bytes(b"\xff\n" + (text / "train.en").read_bytes())
    if "--vocab-size" not in options:
        options = (*options, "--vocab-size", 60)
    assert _prepare(text, *options) == 1
    assert message in capsys.readouterr().err
