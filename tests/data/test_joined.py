"""Sentences joined into documents: which, how long, and the text to score against."""

from pathlib import Path
from typing import Any, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_fairseq.data.joined import documents, main

SIDE = st.integers(1, 12).map(lambda words: "▁x " * words)


@given(st.lists(st.tuples(SIDE, SIDE), max_size=30), st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_documents_are_whole_in_order_and_as_long_as_may_be(pairs: Any, length: int) -> None:
    parts = list(documents(pairs, length))
    assert [number for part in parts for number in part] == list(range(len(pairs)))

    def size(part: Any) -> int:
        return 1 + max(sum(len(pairs[number][side].split()) for number in part) for side in (0, 1))

    for part, following in zip(parts, [*parts, None][1:], strict=True):
        assert part and (size(part) <= length or len(part) == 1)
        if following:
            assert size([*part, following[0]]) > length


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of prepare pieces: three sentences of three pieces a split."""
    folder = tmp_path / "text"
    folder.mkdir()
    for split in ("train", "valid", "test", "test.raw"):
        for language in ("en", "de"):
            lines = [f" {language} {number} {split}\n" for number in range(3)]
            (folder / f"{split}.{language}").write_text("".join(lines))
    (folder / "spm.model").write_bytes(b"a model")
    return folder


def _run(text: Path, length: Any, out: Path) -> int:
    return main("prepare documents", ["--text", str(text), "--length", str(length), "--out", str(out)])


def _lines(path: Path) -> List[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize(("length", "cuts"), [(7, [2, 3]), (6, [1, 2, 3]), (1, [1, 2, 3]), (10, [3])])
def test_every_part_and_the_text_of_the_test(text: Path, length: int, cuts: List[int], capsys: Any) -> None:
    out = text.parent / "out"
    assert _run(text, length, out) == 0
    for split in ("train", "valid", "test", "test.raw"):
        for language in ("en", "de"):
            want, begin = [], 0
            for end in cuts:
                want.append(" ".join(f"{language} {number} {split}" for number in range(begin, end)))
                begin = end
            assert _lines(out / f"{split}.{language}") == want
    assert (out / "spm.model").read_bytes() == b"a model"
    assert capsys.readouterr().out.splitlines()[0] == f"train: 3 sentences in {len(cuts)} documents"
    assert _run(text, 10, out) == 0  # made anew


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: (text / "valid.de").unlink(), "the file {0}/valid.de does not exist: name one that does"),
        (lambda text: (text / "train.de").write_text("one\n"), "{0}/train.de ends at line 1, before its translation: "
         "give parallel text"),
        (lambda text: (text.parent / "out").mkdir() or (text.parent / "out" / "x").touch(),
         "{1} has a x that luna-fairseq prepare did not make: name another folder"),
        (lambda text: [(text / f"test.raw.{language}").write_text("one\n" * 4) for language in ("en", "de")],
         "{0}/test.raw has 4 lines and {0}/test 3: give one line for each, or take test.raw away"),
        (lambda text: [(text / f"test.raw.{language}").write_text("one\n") for language in ("en", "de")],
         "{0}/test.raw has 1 lines and {0}/test 3: give one line for each, or take test.raw away"),
    ],
)  # fmt: skip
def test_what_cannot_be(damage: Any, message: str, text: Path, capsys: Any) -> None:
    damage(text)
    out = text.parent / "out"
    assert _run(text, 10, out) == 1
    assert capsys.readouterr().err == f"prepare documents: {message.format(text, out)}\n"


def test_the_text_itself_is_not_written_over(text: Path, capsys: Any) -> None:
    before = {path: path.read_bytes() for path in text.iterdir()}
    assert _run(text, 10, text) == 1
    assert "is the folder of the text: name another one" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in text.iterdir()}


def test_without_the_text_of_the_test_that_of_an_earlier_run_goes(text: Path) -> None:
    out = text.parent / "out"
    assert _run(text, 10, out) == 0 and (out / "test.raw.en").exists()
    (text / "test.raw.de").unlink()
    assert _run(text, 10, out) == 0
    assert not list(out.glob("test.raw.*"))
