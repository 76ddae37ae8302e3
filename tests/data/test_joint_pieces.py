"""Parallel text in the pieces of one model, as it comes out of SentencePiece itself."""

import os
from pathlib import Path
from typing import Any, List

import pytest
import sentencepiece
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig

from luna_fairseq import compat
from luna_fairseq.data.joint_pieces import main
from luna_fairseq.data.pieces import SentencePieceEncoder
from support.running import run_command
from support.wmt14_archives import sentence_pairs

LANGUAGES = ("en", "de")
NAMES = {"train": "train", "valid": "val", "test": "test_2016"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with train, val and test_2016 in English and German; lines have space around them."""
    folder = tmp_path / "text"
    folder.mkdir()
    for seed, (name, count) in enumerate((("train", 80), ("val", 12), ("test_2016", 9))):
        pairs = sentence_pairs(count, seed + 60)
        for i, lang in enumerate(LANGUAGES):
            (folder / f"{name}.{lang}").write_text("".join(f" {pair[i]}\t\n" for pair in pairs), encoding="utf-8")
    return folder


def _words(text: Path, out: Path, *options: Any) -> List[str]:
    words = [word for split, name in NAMES.items() for word in (f"--{split}", text / name)]
    return [str(word) for word in [*words, "--vocab-size", 60, "--out", out, *options]]


def _expected(text: List[Path], model: Path) -> None:
    """Train SentencePiece on these files."""
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, text)),
        model_prefix=str(model),
        model_type="bpe",
        vocab_size=60,
        character_coverage=1.0,
        minloglevel=2,
    )


def _pieces(model: Path) -> List[Any]:
    """The pieces, their scores, and what is done to a text before it is cut."""
    found = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    return [
        *((found.id_to_piece(number), found.get_score(number)) for number in range(len(found))),
        found.normalize(" Ⅳ  ﬁne\t"),
    ]


def _in_pieces(path: Path, model: Path) -> str:
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    lines = path.read_text(encoding="utf-8").splitlines()
    return "".join(" ".join(pieces.encode(line.strip(), out_type=str)) + "\n" for line in lines)


def test_the_text_in_pieces(text: Path, tmp_path: Path) -> None:
    """By the command itself: the model is what SentencePiece makes of the files."""
    out, model = tmp_path / "pieces", tmp_path / "models" / "joint"
    said = run_command("luna-fairseq", "prepare", "pieces", *_words(text, out, "--model-prefix", model))
    assert said == "learning 60 joint pieces and encoding\n"
    assert sorted(path.suffix for path in model.parent.iterdir()) == [".model", ".vocab"]
    pieces = _pieces(model)
    # SentencePiece's own file has the names of the texts in it, too.
    _expected([text / f"train.{lang}" for lang in LANGUAGES], tmp_path / "expected")
    assert pieces == _pieces(tmp_path / "expected")
    assert model.with_suffix(".vocab").read_bytes() == (tmp_path / "expected.vocab").read_bytes()
    files = ["settings.json", *(f"{split}.{lang}" for split in NAMES for lang in LANGUAGES)]
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    for split, name in NAMES.items():
        for lang in LANGUAGES:
            assert (out / f"{split}.{lang}").read_text("utf-8") == _in_pieces(text / f"{name}.{lang}", model)


def test_a_part_of_the_text_is_kept(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main("it", _words(text, out, "--keep-text", "--lines", 50, 10, 4)) == 0
    for (split, name), lines in zip(NAMES.items(), (50, 10, 4), strict=True):
        for lang in LANGUAGES:
            kept = (out / f"{split}.raw.{lang}").read_text("utf-8")
            whole = (text / f"{name}.{lang}").read_text("utf-8").splitlines()
            assert kept == "".join(f"{line.strip()}\n" for line in whole[:lines])
            assert (out / f"{split}.{lang}").read_text("utf-8") == _in_pieces(
                out / f"{split}.raw.{lang}", out / "spm"
            )
    _expected([out / f"train.raw.{lang}" for lang in LANGUAGES], tmp_path / "expected")
    assert _pieces(out / "spm") == _pieces(tmp_path / "expected")


def test_names_that_the_encoding_of_the_system_cannot_express(text: Path, tmp_path: Path) -> None:
    """As any umlaut with LC_ALL=C and PYTHONUTF8=0: SentencePiece itself then takes no such name."""
    compat.prepare()
    folder = tmp_path / os.fsdecode(b"gr\xf6\xdfe")
    text.rename(folder)
    assert main("it", _words(folder, folder / "out")) == 0
    model = str(folder / "out" / "spm.model")
    with pytest.raises((TypeError, UnicodeError)):
        sentencepiece._sentencepiece.SentencePieceProcessor().LoadFromFile(model)
    pieces = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=model))  # that of fairseq's commands
    assert pieces.encode("the dog") == SentencePieceEncoder(Path(model)).encode(["the dog"])[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vocab-size", 3), "--vocab-size 3 does not work: the characters of this text alone take "),
        (("--vocab-size", 5000), "--vocab-size 5000 does not work: this text has only "),
        (("--valid", "none"), "the file none.en does not exist: name one that does"),
        (("--valid", "short"), "short.de ends at line 1, before its translation: give parallel text"),
        (("--out", "text"), "--out text is the folder of the text "),
    ],
)
def test_errors(
    options: Any, message: str, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(text.parent)
    Path("short.en").write_text("one\ntwo\n")
    Path("short.de").write_text("eins\n")
    assert main("it", _words(text, Path("out"), *options)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"it: {message}")


def test_options(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main("it", _words(text, tmp_path, "--lines", 1, 1, 1))
    assert "--lines needs --keep-text" in capsys.readouterr().err
