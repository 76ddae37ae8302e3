"""luna-fairseq prepare writes over nothing that it did not make, whatever the kind of data."""

from pathlib import Path
from typing import Any, Dict, List

import pytest

from luna_fairseq import cli
from support.trees import snapshot

SMALL = ["--train", 4, "--valid", 2, "--test", 2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Files that are looked at before OUT is: enough to come so far."""
    folder = tmp_path / "sources"
    for name in ("text/train.en", "text/train.de", "text/valid.en", "text/valid.de", "text/test.en", "text/test.de",
                 "pieces/dict.txt", "pieces/sentencepiece.model", "glue/SST-2/train.tsv", "race/train/high/1.txt",
                 "csqa/train_rand_split.jsonl", "imdb/train/pos/1_7.txt", "imdb/train/neg/1_1.txt",
                 "imdb/test/pos/1_7.txt", "imdb/test/neg/1_1.txt", "aan/new_aan_pairs.train.tsv",
                 "aan/new_aan_pairs.eval.tsv", "aan/new_aan_pairs.test.tsv",
                 *(f"cifar/data_batch_{number}" for number in range(1, 6)), "cifar/test_batch"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"▁a {len(name)}\n")
    return folder


def _commands(sources: Path) -> Dict[str, List[Any]]:
    """For each kind the arguments before --out, and the folder of the source."""
    text, pieces = sources / "text", ["--pieces", sources / "pieces"]
    pairs = ["--train", text / "train", "--valid", text / "valid", "--test", text / "test", "--vocab-size", 9]
    corpus = ["--train", text / "train.en", "--valid", text / "valid.en", "--vocab-size", 9, "--workers", 1]
    return {
        "translation": [*pairs, "--workers", 1],
        "pieces": pairs,
        "corpus": corpus,
        "glue": ["--task", "SST-2", "--data", sources / "glue", *pieces],
        "race": ["--data", sources / "race", *pieces],
        "csqa": ["--data", sources / "csqa", *pieces],
        "text": ["--data", sources / "imdb"],
        "retrieval": ["--data", sources / "aan"],
        "image": ["--data", sources / "cifar"],
        "listops": [*SMALL, "--workers", 1],
        "pathfinder": ["--size", 32, *SMALL, "--workers", 1],
        "digits": [],
        "demo": SMALL,
    }


def _refused(kind: str, sources: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which OUT is refused."""
    place = [out] if kind == "demo" else ["--out", out]
    arguments = [*map(str, ["prepare", kind, *place, *_commands(sources)[kind]])]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"luna-fairseq prepare {kind}: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    "there",
    [
        {"notes.txt": "mine"},
        {"data-bin/mine": "mine", "dict.txt": "mine", "sentencepiece.model": "mine", ".work/mine": "mine"},
        {"train.en": "mine", "train.raw.de": "mine", "spm.model": "mine", "clean/mine": "mine"},
        {"settings.json": '{"editor.fontSize": 12}', "train.en": "mine"},
        {"settings.json": '// comments are allowed here\n{"editor.fontSize": 12}'},
        {"settings.json": "[1, 2]"},
        {"settings.json": '{"script": "another"}', "train.en": "mine"},
    ],
    ids=str,
)
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", _commands(Path()))
def test_a_folder_of_somebody_else_s_is_refused(
    kind: str, linked: bool, there: Dict[str, str], sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in there.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "link").symlink_to("mine")
    before = snapshot(tmp_path)
    said = _refused(kind, sources, tmp_path / ("link" if linked else "mine"), capsys)
    assert "name another folder" in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    ("kind", "source"),
    [("translation", "text"), ("pieces", "text"), ("corpus", "text"), ("glue", "glue"), ("glue", "glue/SST-2"),
     ("glue", "pieces"), ("race", "race"), ("csqa", "csqa"), ("text", "imdb"), ("retrieval", "aan"),
     ("image", "cifar")],
)  # fmt: skip
def test_the_source_is_refused(
    kind: str, source: str, linked: bool, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(sources / source)
    before = snapshot(tmp_path)
    assert "name another" in _refused(kind, sources, tmp_path / "link" if linked else sources / source, capsys)
    assert snapshot(tmp_path) == before


def test_what_was_made_is_made_anew(tmp_path: Path) -> None:
    """By the same command; tests/data/demo has what happens with other settings."""
    out = tmp_path / "out"
    assert cli.main(["prepare", "demo", str(out), *map(str, SMALL)]) == 0
    (out / "test.en").write_text("of before\n")
    assert cli.main(["prepare", "demo", str(out), *map(str, SMALL)]) == 0
    assert (out / "test.en").read_text() != "of before\n"


@pytest.mark.parametrize("there", [".model", ".vocab"])
def test_a_model_of_somebody_else_s_is_refused(
    there: str, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"mine{there}").write_text("mine")
    before = snapshot(tmp_path)
    words = ["prepare", "pieces", *_commands(sources)["pieces"], "--out", tmp_path / "out"]
    assert cli.main([*map(str, [*words, "--model-prefix", tmp_path / "mine"])]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/mine{there} was not made with {tmp_path}/out: name another --model-prefix" in said
    assert snapshot(tmp_path) == before
