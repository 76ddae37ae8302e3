"""What luna-fairseq export takes along and from where, what it refuses, and names of files as paths."""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Dict, List

import pytest
import sentencepiece
from fairseq.tasks.language_modeling import LanguageModelingConfig
from fairseq.tasks.masked_lm import MaskedLMConfig
from fairseq.tasks.translation import TranslationConfig

from luna_fairseq.cli import main
from luna_fairseq.data.pieces import Pieces
from luna_fairseq.errors import DataError, PreparationError
from luna_fairseq.export.folder import find_belongings
from luna_fairseq.models._hub import find_pieces, load_for_hub
from luna_fairseq.models.lra import LRAModel
from luna_fairseq.models.luna import LunaModel
from luna_fairseq.models.luna_bert import LunaBertModel
from luna_fairseq.models.luna_lm import LunaLanguageModel
from luna_fairseq.tasks.long_range_arena import LRAImageConfig, LRATextConfig
from support.gpt2_files import tiny_gpt2
from support.models import make_bert_config, make_config, make_dictionary, make_lm_config, make_lra_config
from support.untrained import save_untrained

FILES = ("model.safetensors", "README.md", "config.json")


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pieces of the words w0 w1 ..., and of others."""
    folder = tmp_path_factory.mktemp("spm")
    letters = [f"{chr(97 + n % 19)}{chr(98 + n % 17)}" for n in range(41)]
    for name, words in (("model", [f"w{n}" for n in range(41)]), ("other", letters)):
        (folder / "text").write_text("\n".join(f"{words[n]} {words[n + 1]}" for n in range(40)))
        with open(folder / name, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter((folder / "text").read_text().splitlines()),
                model_writer=file, vocab_size=30, model_type="bpe", minloglevel=2, hard_vocab_limit=False,
            )  # fmt: skip
    return folder


def _corpus(out: Path, model: Path) -> Path:
    """As prepare corpus leaves it: the pieces two folders above the data."""
    shard = out / "data-bin" / "shard0"
    shard.mkdir(parents=True)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    words = [pieces.id_to_piece(number) for number in range(3, len(pieces))]
    (shard / "dict.txt").write_text("".join(f"{word} 5\n" for word in [*words, "猫", "<extra>", "madeupword0000"]))
    return shard


def _found(data: Path, checkpoint: Path) -> Dict[str, Path]:
    files = find_belongings(checkpoint, {"data": str(data)}, None, None).files
    return {name: path for name, path in files.items() if not name.endswith("dict.txt")}


@pytest.mark.parametrize("higher", [0, 1, 2])
@pytest.mark.parametrize("name", ["sentencepiece.model", "sentencepiece.bpe.model", "spm.model"])
def test_export_and_hub_find_the_same_pieces(higher: int, name: str, spm: Path, tmp_path: Path) -> None:
    shard = _corpus(tmp_path / "out", spm / "model")
    place = [shard, *shard.parents][higher] / name
    shutil.copy(spm / "model", place)
    assert _found(shard, tmp_path / "x.pt") == {"sentencepiece.bpe.model": place}
    assert find_pieces(str(shard), {"bpe": None}) == {"bpe": "sentencepiece", "sentencepiece_model": str(place)}
    assert find_pieces(str(shard), {"bpe": "gpt2"}) == {"bpe": "gpt2"}


@pytest.mark.parametrize("content", ["other", "none"])
def test_pieces_of_others_are_not_taken(content: str, spm: Path, tmp_path: Path) -> None:
    """What lies higher, or beside the checkpoint, has to be that of the dictionary; beside it, to be a model."""
    shard, run = _corpus(tmp_path / "out", spm / "model"), tmp_path / "run"
    run.mkdir()
    model = (spm / "other").read_bytes() if content == "other" else b"no model"
    for folder in (tmp_path / "out", run):
        (folder / "sentencepiece.model").write_bytes(model)
    assert _found(shard, run / "x.pt") == {} and find_pieces(str(shard), {}) == {}
    shutil.copy(spm / "model", run / "spm.model")
    (run / "sentencepiece.model").unlink()
    assert _found(shard, run / "x.pt") == {"sentencepiece.bpe.model": run / "spm.model"}
    (shard / "sentencepiece.model").write_bytes(model)
    if content == "other":
        assert _found(shard, run / "x.pt") == {"sentencepiece.bpe.model": shard / "sentencepiece.model"}
    else:
        with pytest.raises(PreparationError, match=rf"{shard}/sentencepiece\.model is not a SentencePiece model"):
            _found(shard, run / "x.pt")


def test_pieces_of_another_model_of_the_same_language_are_not_taken(tmp_path: Path) -> None:
    """Most symbols of the dictionary are pieces; the others, which are made of known characters, tell them apart."""
    shard = tmp_path / "out" / "data-bin" / "shard0"
    shard.mkdir(parents=True)
    words = [f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop"]
    with open(tmp_path / "out" / "sentencepiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 2), model_writer=file, vocab_size=60, model_type="bpe", minloglevel=2
        )
    model = Pieces.of_sentencepiece(tmp_path / "out" / "sentencepiece.model")
    own = sorted(piece for piece in model._names() if not piece.startswith("<"))
    for others, fits in (
        (["\u732b", "a\u732b", "[en]"] * 9, True),
        ([f"{word}x" for word in words[:15]], True),
        (words[:15], False),
    ):
        others = [symbol for symbol in dict.fromkeys(others) if symbol not in own]
        assert len(others) < len(own), "most are pieces"
        (shard / "dict.txt").write_text("".join(f"{symbol} 5\n" for symbol in [*own, *others]))
        assert bool(find_pieces(str(shard), {})) is fits, others


def test_a_file_that_is_named_says_which_pieces_are_meant(spm: Path, tmp_path: Path) -> None:
    """Not others that are found; and pieces that are asked for, and not there, are missed."""
    shard = _corpus(tmp_path / "out", spm / "model")
    named = {"sentencepiece_model": str(spm / "other")}
    assert find_pieces(str(shard), named) == {"bpe": "sentencepiece", **named}
    shutil.copy(spm / "model", shard / "sentencepiece.model")
    assert find_pieces(str(shard), named) == {"bpe": "sentencepiece", **named}
    gpt2 = {"gpt2_encoder_json": "e", "gpt2_vocab_bpe": "v"}
    assert find_pieces(str(shard), gpt2) == {"bpe": "gpt2", **gpt2}
    assert find_pieces(str(shard), {"bpe_codes": "c", "bpe": "fastbpe"}) == {"bpe": "fastbpe", "bpe_codes": "c"}
    (shard / "sentencepiece.model").unlink()
    (shard / "x.pt").touch()
    with pytest.raises(FileNotFoundError, match=f"bpe is sentencepiece and neither {shard} nor the two folders"):
        load_for_hub(shard, "x.pt", shard, bpe="sentencepiece")


def test_the_pieces_of_gpt2(tmp_path: Path) -> None:
    tiny_gpt2(tmp_path / "out")
    shard = tmp_path / "out" / "data-bin" / "shard0"
    shard.mkdir(parents=True)
    shutil.move(tmp_path / "out" / "dict.txt", shard)
    want = {name: tmp_path / "out" / name for name in ("encoder.json", "vocab.bpe")}
    assert _found(shard, tmp_path / "x.pt") == want
    encoder, merges = map(str, want.values())
    assert find_pieces(str(shard), {}) == {"bpe": "gpt2", "gpt2_encoder_json": encoder, "gpt2_vocab_bpe": merges}
    (shard / "dict.txt").write_text("dog 3\ncat 2\n")
    assert _found(shard, tmp_path / "x.pt") == {} and find_pieces(str(shard), {}) == {}


def test_an_exported_folder_has_pieces_for_fine_tuning(spm: Path, tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 1\n")
    shutil.copy(spm / "model", tmp_path / "sentencepiece.bpe.model")
    assert Pieces.of_folder(tmp_path).files == {"sentencepiece.model": tmp_path / "sentencepiece.bpe.model"}


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\x02\x08\x01", None])
def test_a_file_that_is_no_sentencepiece_model(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, before the checkpoint is read; and by the hub."""
    (tmp_path / "x.pt").touch()
    model = tmp_path / "pieces"
    if content is not None:
        model.write_bytes(content)
    arguments = ["export", str(tmp_path / "x.pt"), "--format", "safetensors", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--sentencepiece-model", str(model)]) == 1
    said = capsys.readouterr().err
    assert f"{model} is not a SentencePiece model: " in said or f"there is no file {model}: name the" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_where_a_relative_data_folder_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere, checkpoint = tmp_path / "elsewhere", tmp_path / "run" / "checkpoints" / "x.pt"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    task = {"_name": "translation", "data": "data-bin"}
    with pytest.raises(PreparationError) as caught:
        find_belongings(checkpoint, task, None, None)
    assert str(caught.value) == (
        f"there is no dict*.txt in {elsewhere}/data-bin, which the checkpoint names as data-bin, nor beside the "
        "checkpoint: name the folder of the dictionaries as --data"
    )
    with pytest.raises(PreparationError, match=rf"in {tmp_path}/data-bin, which the checkpoint names as "):
        find_belongings(checkpoint, {"data": f"{tmp_path}/data-bin:{tmp_path}/more"}, None, None)
    with pytest.raises(PreparationError, match=rf"in {elsewhere}/nowhere, which you name as nowhere: name"):
        find_belongings(checkpoint, task, "nowhere", None)
    for folder in (tmp_path / "run" / "data-bin", checkpoint.parent):
        folder.mkdir(parents=True)
        (folder / "dict.en.txt").touch()
    (checkpoint.parent / "dictionary-of-mine.txt").touch()
    assert find_belongings(checkpoint, task, None, None).data == checkpoint.parent
    assert list(find_belongings(checkpoint, task, None, None).files) == ["dict.en.txt"]
    monkeypatch.chdir(tmp_path / "run")
    assert find_belongings(checkpoint, task, None, None).data == Path("data-bin")
    assert find_belongings(checkpoint, task, "nowhere:data-bin", None).data == Path("data-bin")
    # Images have no dictionary.
    assert find_belongings(elsewhere / "x.pt", {"_name": "lra-image", "data": "no"}, None, None) == (elsewhere, {})


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("file", "is no folder: name another --out"),
        ("file/out", "is no folder: name another --out"),
        ("link", "is no folder: name another --out"),
        ("mine", "has a notes/a that luna-fairseq export did not write: name another --out"),
        ("empty folder", "has a config.json that luna-fairseq export did not write"),
        ("earlier", "has a empty that luna-fairseq export did not write: name another --out"),
        ("earlier 2", "has a mine that luna-fairseq export did not write: name another --out"),
        (".", "would be replaced, and is where you are: go elsewhere, or name another folder"),
        ("../here", "would be replaced, and is where you are: go elsewhere, or name another folder"),
    ],
)
def test_folders_that_are_not_written_to(
    out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("mine/notes", "empty folder", "earlier/empty", "earlier 2", "here"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("file", "mine/notes/a", "x.pt"):
        (tmp_path / file).touch()
    (tmp_path / "link").symlink_to("here")
    (tmp_path / "earlier 2" / "mine").symlink_to(tmp_path / "mine")
    (tmp_path / "empty folder" / "config.json").write_text("{}")
    for folder in ("earlier", "earlier 2"):
        (tmp_path / folder / "config.json").write_text(json.dumps({"luna_fairseq": {"files": []}}))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "here")
    place = out if out.startswith(".") else str(tmp_path / out)
    assert main(["export", str(tmp_path / "x.pt"), "--format", "safetensors", "--out", place]) == 1
    err = capsys.readouterr().err
    assert said in err and err.startswith("luna-fairseq export: ") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def _translation(data: Path, run: Path) -> Path:
    data.mkdir()
    for language in ("en", "de"):
        make_dictionary().save(str(data / f"dict.{language}.txt"))
    task = TranslationConfig(_name="translation", data=str(data), source_lang="en", target_lang="de")
    return save_untrained(run, "x.pt", task, _named(make_config(share_all_embeddings=True), "luna"))


def _named(config: Any, name: str) -> Any:
    config._name = name
    return config


def _masked_lm(data: Path, run: Path) -> Path:
    data.mkdir()
    make_dictionary().save(str(data / "dict.txt"))
    task = MaskedLMConfig(_name="masked_lm", data=str(data), tokens_per_sample=16)
    return save_untrained(run, "x.pt", task, _named(make_bert_config(), "luna_bert"))


def _language_model(data: Path, run: Path) -> Path:
    data.mkdir()
    make_dictionary().save(str(data / "dict.txt"))
    task = LanguageModelingConfig(_name="language_modeling", data=str(data), tokens_per_sample=64)
    model = _named(make_lm_config(decoder_input_dim=32, decoder_output_dim=32, tokens_per_sample=64), "luna_lm")
    return save_untrained(run, "x.pt", task, model)


def _lra_text(data: Path, run: Path) -> Path:
    for part in ("src-bin", "label-bin"):
        (data / part).mkdir(parents=True)
        make_dictionary(20 if part == "src-bin" else 5).save(str(data / part / "dict.txt"))
    task = LRATextConfig(_name="lra-text", data=str(data))
    return save_untrained(run, "x.pt", task, _named(make_lra_config(), "lra"))


def _lra_image(data: Path, run: Path) -> Path:
    data.mkdir()
    task = LRAImageConfig(_name="lra-image", data=str(data))
    return save_untrained(run, "x.pt", task, _named(make_lra_config(input_type="image"), "lra"))


MODELS: Dict[str, Any] = {
    "translation": (LunaModel, _translation, ["dict.de.txt", "dict.en.txt"]),
    "masked LM": (LunaBertModel, _masked_lm, ["dict.txt"]),
    "language model": (LunaLanguageModel, _language_model, ["dict.txt"]),
    "long texts": (LRAModel, _lra_text, ["label-bin/dict.txt", "src-bin/dict.txt"]),
    "images": (LRAModel, _lra_image, []),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_is_exported_and_loaded_by_paths(kind: str, tmp_path: Path) -> None:
    """From another folder than that of the training, which is gone; every file with the mode of the umask."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    model, make, dictionaries = MODELS[kind]
    data, moved, out = tmp_path / "data", tmp_path / "moved", tmp_path / "out"
    checkpoint = make(data, tmp_path / "run")
    data.rename(moved)
    arguments: List[Any] = ["export", checkpoint, "--format", "safetensors", "--out", out]
    if dictionaries:
        assert main([*map(str, arguments)]) == 1
        arguments += ["--data", moved]
    old = os.umask(0o027)
    try:
        assert main([*map(str, arguments)]) == 0
        assert main(["import", str(out), "--out", str(tmp_path / "back" / "again.pt")]) == 0
    finally:
        os.umask(old)
    files = [path for path in (*out.rglob("*"), tmp_path / "back" / "again.pt") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    names = [path.relative_to(out).as_posix() for path in files[:-1]]
    assert sorted(names) == sorted([*dictionaries, *FILES])
    # In a folder without dictionaries of its own, by a path of each kind.
    hub = model.from_pretrained(tmp_path / "back", Path("again.pt"), out)
    same = model.from_pretrained(str(tmp_path / "back"), "again.pt", str(out))
    one, other = ([*loaded.parameters()] for loaded in (hub, same))
    assert one and all((x == y).all() for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("given", [True, False])
def test_pieces_that_are_no_model_by_the_hub(given: bool, tmp_path: Path) -> None:
    _masked_lm(tmp_path / "data", tmp_path / "run")
    model = tmp_path / "pieces" if given else tmp_path / "data" / "sentencepiece.model"
    model.write_text("no model")
    options: Any = {"bpe": "sentencepiece", "sentencepiece_model": model} if given else {}
    with pytest.raises(DataError, match=f"{model} is not a SentencePiece model: name the one"):
        LunaBertModel.from_pretrained(tmp_path / "run", "x.pt", tmp_path / "data", **options)
