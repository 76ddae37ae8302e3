"""Plain text to masked-LM data: nothing is lost, documents stay whole, an interrupted run ends like any other."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

import pytest
import sentencepiece
from fairseq.data import Dictionary, TokenBlockDataset, data_utils
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig

from luna_fairseq.data.pieces import SentencePieceEncoder
from support.forks import REAL
from support.gpt2_files import tiny_gpt2
from support.running import run_command

WORDS = "the a small old cat dog house man woman sees finds loves red green and über Straße naïve 12 1999".split()

# SentencePiece's normalisation removes it: a line of it has no pieces.
ZERO_WIDTH = "\u200b"


def prepare(*args: Any, code: int = 0) -> str:
    return run_command("luna-fairseq", "prepare", "corpus", *args, code=code)


def error(*args: Any, code: int = 1) -> str:
    """What the command says when it fails: one line, after those of the progress display."""
    output = prepare(*args, code=code)
    assert "Traceback" not in output
    return output.rstrip("\n").replace("\r", "\n").splitlines()[-1]


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(2, 9)))


def write_text(path: Path, documents: int, seed: int, breaks: List[str]) -> None:
    """Documents of up to 30 lines; what is between them is one of ``breaks``."""
    generator = random.Random(seed)
    made = [[sentence(generator) for _ in range(generator.choice([1, 1, 2, 3, 5, 30]))] for _ in range(documents)]
    for number, document in enumerate(made):
        places = [seed, number // 400, number // 20 % 20, number % 20]
        document[0] = " ".join([*(WORDS[place] for place in places), document[0]])  # all different
    text = "".join("\n".join(document) + "\n" + generator.choice(breaks) for document in made)
    path.write_text(generator.choice(breaks) + text, encoding="utf-8", newline="")


def documents_of(path: Path) -> List[List[str]]:
    """The documents of a text, found in another way than the script does."""
    documents: List[List[str]] = [[]]
    for line in path.read_text(encoding="utf-8-sig").split("\n"):
        if line.strip().strip(ZERO_WIDTH):
            documents[-1].append(line.strip())
        else:
            documents.append([])
    return [document for document in documents if document]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text with all kinds of document breaks, in two files."""
    folder = tmp_path_factory.mktemp("text")
    write_text(folder / "a.txt", 40, 1, ["\n", " \n", "\n\n \t\n", "\r\n", "\u00a0\n", f"{ZERO_WIDTH}\n"])
    with open(folder / "a.txt", "a", encoding="utf-8") as file:
        # Far from any blank line, so that the parts which workers encode begin and end here, too.
        file.writelines(f"{first} und {second}\n{ZERO_WIDTH * 6}\n" for first in WORDS[:20] for second in WORDS[:3])
    write_text(folder / "b.txt", 25, 2, ["\n"])
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbf" + (folder / "b.txt").read_bytes().strip(b"\n"))
    write_text(folder / "valid.txt", 6, 3, ["\n", "\n\n"])
    write_text(folder / "test.txt", 5, 4, ["\n"])
    return folder


def usual(text: Path, out: Path) -> List[Any]:
    files = ["--train", text / "a.txt", text / "b.txt", "--valid", text / "valid.txt", "--test", text / "test.txt"]
    return [*files, "--out", out, "--shards", 2, "--workers", 2, "--vocab-size", 120]


@pytest.fixture(scope="module")
def out(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("prepared") / "out"
    output = prepare(*usual(text, folder))
    expected = f"data for --task masked_lm or language_modeling: {folder}/data-bin/shard0:{folder}/data-bin/shard1"
    assert expected in output.splitlines()
    assert "no blank lines" not in output
    return folder


def tree(folder: Path) -> Dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(shard: Path, split: str) -> List[str]:
    """The lines of pieces of a binarised file."""
    dictionary = Dictionary.load(str(shard / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(shard / split), dictionary)
    assert data is not None
    assert all(ids[-1] == dictionary.eos() for ids in data)
    assert not any((ids == dictionary.unk()).any() for ids in data)
    return [dictionary.string(ids) for ids in data]


def in_documents(lines: List[str]) -> List[List[str]]:
    documents: List[List[str]] = [[]]
    for line in lines:
        if line:
            documents[-1].append(line)
        else:
            documents.append([])
    return [document for document in documents if document]


def encoded(model: Path, documents: List[List[str]]) -> List[List[str]]:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [[" ".join(pieces.encode(line, out_type=str)) for line in document] for document in documents]


# ------------------------------------------------------------------------------------------ what comes out
def test_every_document_is_whole_in_one_shard(text: Path, out: Path) -> None:
    expected = encoded(out / "sentencepiece.model", documents_of(text / "a.txt") + documents_of(text / "b.txt"))
    assert len(expected) == 125
    shards = [in_documents(load(out / "data-bin" / f"shard{number}", "train")) for number in range(2)]
    assert sorted(shards[0] + shards[1]) == sorted(expected)
    for shard in shards:
        places = [expected.index(document) for document in shard]
        assert places == sorted(places)
        assert min(places) < 20, "every part of the text in every shard"
        assert max(places) >= 100
    sizes = [sum(map(len, document)) for document in expected]
    in_shards = [sum(len(line) for document in shard for line in document) for shard in shards]
    assert abs(in_shards[0] - in_shards[1]) < 2 * max(sizes)


def test_no_empty_line_but_between_documents(out: Path) -> None:
    for split in ("train", "valid", "test"):
        lines = load(out / "data-bin" / "shard0", split)
        assert lines[0]
        assert lines[-1]
        assert not any(a == b == "" for a, b in itertools.pairwise(lines))


@pytest.mark.parametrize(("split", "count"), [("valid", 6), ("test", 5)])
def test_held_out_text_is_in_every_shard(split: str, count: int, text: Path, out: Path) -> None:
    expected = encoded(out / "sentencepiece.model", documents_of(text / f"{split}.txt"))
    assert len(expected) == count
    for number in range(2):
        assert in_documents(load(out / "data-bin" / f"shard{number}", split)) == expected


def test_fairseq_sees_the_documents(text: Path, out: Path) -> None:
    """Blocks of complete_doc that would hold any document are the documents."""
    dictionary = Dictionary.load(str(out / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(out / "data-bin" / "shard1" / "valid"), dictionary)
    blocks = TokenBlockDataset(
        data, data.sizes, 100000, pad=dictionary.pad(), eos=dictionary.eos(), break_mode="complete_doc"
    )
    expected = encoded(out / "sentencepiece.model", documents_of(text / "valid.txt"))
    assert [dictionary.string(block) for block in blocks] == [" ".join(document) for document in expected]


def test_dictionary(out: Path) -> None:
    counts = Counter(
        piece
        for number in range(2)
        for line in load(out / "data-bin" / f"shard{number}", "train")
        for piece in line.split()
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "sentencepiece.model"))
    pieces = [model.id_to_piece(number) for number in range(len(model))]
    assert len(pieces) == 120
    lines = [line.rsplit(" ", 1) for line in (out / "dict.txt").read_text(encoding="utf-8").splitlines()]
    assert sorted(piece for piece, _ in lines) == sorted(set(pieces) - {"<unk>", "<s>", "</s>"})
    assert {piece: int(count) for piece, count in lines if count != "0"} == counts
    numbers = [int(count) for _, count in lines]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 0, "a piece that the text does not need"
    dictionary = Dictionary.load(str(out / "dict.txt"))
    assert dictionary.symbols[4:] == [piece for piece, _ in lines]
    for number in range(2):
        assert (out / "data-bin" / f"shard{number}" / "dict.txt").read_bytes() == (out / "dict.txt").read_bytes()


def test_nothing_else_is_left(out: Path) -> None:
    binarised = [f"{split}.{ending}" for split in ("train", "valid", "test") for ending in ("bin", "idx")]
    shards = [f"data-bin/shard{n}/{name}" for n in range(2) for name in ["dict.txt", *binarised]]
    assert sorted(tree(out)) == sorted([*shards, "dict.txt", "sentencepiece.model", "settings.json"])
    assert sorted(path.name for path in out.iterdir()) == [
        "data-bin",
        "dict.txt",
        "sentencepiece.model",
        "settings.json",
    ]


# ---------------------------------------------------------------------------------------- done in pieces
def test_second_run_does_nothing(text: Path, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.bin")}
    output = prepare(*usual(text, out))
    assert f"already prepared: {out}" in output
    assert f"data for --task masked_lm or language_modeling: {out}/data-bin/shard0:{out}/data-bin/shard1" in output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.bin")} == before


def test_unfinished_shards_are_done_again(text: Path, out: Path, tmp_path: Path) -> None:
    """A shard that lacks a file, what a killed run leaves under temporary names, half a text of pieces."""
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    shard0, shard1 = copy / "data-bin" / "shard0", copy / "data-bin" / "shard1"
    kept = (shard0 / "train.bin").stat().st_mtime_ns
    (shard1 / "train.idx").unlink()
    (copy / "dict.txt").unlink()
    stale = copy / "data-bin" / ".shard1.tmp-1"
    stale.mkdir()
    (stale / "train.bin").write_text("half")
    (copy / ".work").mkdir()
    (copy / ".work" / "shard1").write_text("half\n")
    (copy / ".work" / ".shard1.tmp-1").write_text("half\n")
    output = prepare(*usual(text, copy))
    assert "binarising shard1" in output
    assert "binarising shard0" not in output
    assert tree(copy) == tree(out)
    assert not stale.exists()
    assert (shard0 / "train.bin").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    "moment",
    [
        ".work/shard1.json",
        *(pytest.param(name, marks=pytest.mark.long) for name in (".work/plan.json", "data-bin/shard0")),
    ],
)
def test_killed_and_run_again(moment: str, text: Path, out: Path, tmp_path: Path) -> None:
    again = tmp_path / "out"
    command = [REAL / "luna-fairseq", "prepare", "corpus", *usual(text, again)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + 200
        while not (again / moment).exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (again / "data-bin" / "shard1").exists()
    if moment == ".work/plan.json":
        (again / "sentencepiece.model").unlink()  # as if it had happened a moment earlier
    # Neither the interruption nor the number of workers makes a difference.
    output = prepare(*usual(text, again), "--workers", 1)
    assert tree(again) == tree(out)
    assert ("binarising shard0" in output) == (moment != "data-bin/shard0")
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in out.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--shards", 3], "shards 2, not 3"),
        (["--vocab-size", 110], "vocab-size 120, not 110"),
        (["--seed", 2], "seed 1, not 2"),
    ],
)
def test_other_settings_are_refused(option: List[Any], message: str, text: Path, out: Path) -> None:
    before = tree(out)
    said = error(*usual(text, out), *option)
    assert said == f"luna-fairseq prepare corpus: {out} was begun with {message}: repeat it, or name another folder"
    assert tree(out) == before


def test_other_text_is_refused(text: Path, out: Path, tmp_path: Path) -> None:
    shutil.copy(text / "b.txt", tmp_path)
    with open(tmp_path / "b.txt", "a") as file:
        file.write("one more line\n")
    said = error(*usual(text, out), "--train", text / "a.txt", tmp_path / "b.txt")
    assert f"{out} was begun with train" in said
    assert str((tmp_path / "b.txt").stat().st_size) in said
    (tmp_path / "b.txt").write_bytes((text / "b.txt").read_bytes().swapcase())
    said = error(*usual(text, out), "--train", text / "a.txt", tmp_path / "b.txt")
    assert f"{out} was begun with another text in files of the same name and size" in said


# --------------------------------------------------------------------------------- other text, other pieces
def test_text_without_documents(text: Path, tmp_path: Path) -> None:
    lines = [line for document in documents_of(text / "a.txt") for line in document]
    (tmp_path / "lines.txt").write_text("\n" + "\n".join(lines) + "\n \n", encoding="utf-8")
    files = ["--train", tmp_path / "lines.txt", "--valid", text / "valid.txt", "--vocab-size", 100, "--shards", 2]
    refused = tmp_path / "refused"
    said = error(*files, "--out", refused, "--require-documents")
    assert f"{tmp_path}/lines.txt has no blank lines between documents: add them, or leave out" in said
    assert not refused.exists()
    output = prepare(*files, "--out", tmp_path / "out")
    assert f"{tmp_path}/lines.txt has no blank lines between documents: it is split between shards at lines" in output
    model = tmp_path / "out" / "sentencepiece.model"
    shards = [load(tmp_path / "out" / "data-bin" / f"shard{number}", "train") for number in range(2)]
    (expected,) = encoded(model, [lines])
    assert sorted(shards[0] + shards[1]) == sorted(expected)
    assert abs(len(shards[0]) - len(shards[1])) < len(lines) / 10


def test_given_model(text: Path, out: Path, tmp_path: Path) -> None:
    """The same as the run that learned the model; a model for other text is refused."""
    model = tmp_path / "any.model"
    shutil.copy(out / "sentencepiece.model", model)
    options = usual(text, tmp_path / "out")[:-2]
    prepare(*options, "--sentencepiece-model", model)
    assert {**tree(tmp_path / "out"), "settings.json": b""} == {**tree(out), "settings.json": b""}
    (tmp_path / "japanese.txt").write_text("犬と猫\n犬が走る\n\n夏の海\n", encoding="utf-8")
    options = [
        "--train",
        tmp_path / "japanese.txt",
        "--valid",
        tmp_path / "japanese.txt",
        "--out",
        tmp_path / "japanese",
    ]
    said = error(*options, "--sentencepiece-model", model)
    assert f"of the pieces of train are <unk>: the SentencePiece model {model} was not made for this text" in said
    assert not (tmp_path / "japanese").exists()


def test_other_text_with_the_same_dictionary(text: Path, out: Path, tmp_path: Path) -> None:
    """What ``--pieces`` makes has the dictionary of the earlier folder, whatever its own text counts."""
    for folder, pieces in ((tmp_path / "other", out), (tmp_path / "third", tmp_path / "other")):
        usual = ["--train", text / "valid.txt", "--valid", text / "valid.txt", "--workers", 1, "--out", folder]
        prepare(*usual, "--pieces", pieces)
        for name in ("dict.txt", "sentencepiece.model", "data-bin/shard0/dict.txt"):
            assert (folder / name).read_bytes() == (out / name).read_bytes()
    assert load(folder / "data-bin" / "shard0", "valid") == load(out / "data-bin" / "shard0", "valid")
    assert "begun with" in error(*usual, "--pieces", tmp_path / "other", "--shards", 3)
    assert "has no dict.txt" in error(*usual[:-1], tmp_path / "no", "--pieces", text)


def test_gpt2(text: Path, tmp_path: Path) -> None:
    gpt2 = tiny_gpt2(tmp_path / "gpt2")
    out = tmp_path / "out"
    files = ["--train", text / "b.txt", "--valid", text / "valid.txt", "--workers", 2]
    prepare(*files, "--out", out, *gpt2)
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        assert (out / name).read_bytes() == (tmp_path / "gpt2" / name).read_bytes()
    config = GPT2BPEConfig(gpt2_encoder_json=str(out / "encoder.json"), gpt2_vocab_bpe=str(out / "vocab.bpe"))
    bpe = GPT2BPE(config)
    documents = in_documents(load(out / "data-bin" / "shard0", "train"))
    assert [[bpe.decode(line) for line in document] for document in documents] == documents_of(text / "b.txt")
    assert documents == [[bpe.encode(line) for line in document] for document in documents_of(text / "b.txt")]

    lines = (tmp_path / "gpt2" / "dict.txt").read_text().splitlines()
    (tmp_path / "gpt2" / "dict.txt").write_text("\n".join(lines[::2]) + "\n")
    said = error(*files, "--out", tmp_path / "other", *gpt2)
    assert f"the dictionary {tmp_path}/gpt2/dict.txt does not belong to these pieces" in said
    assert not (tmp_path / "other").exists()


def test_smoke(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", 1000, 1, ["\n"])
    write_text(tmp_path / "valid.txt", 20, 2, ["\n"])
    options = ["--train", tmp_path / "a.txt", "--valid", tmp_path / "valid.txt", "--vocab-size", 8000]
    output = prepare(*options, "--out", tmp_path / "out", "--smoke")
    shard = tmp_path / "out" / "smoke" / "data-bin" / "shard0"
    assert f"data for --task masked_lm or language_modeling: {shard}" in output
    documents = documents_of(tmp_path / "a.txt")
    found = in_documents(load(shard, "train"))
    model = tmp_path / "out" / "smoke" / "sentencepiece.model"
    assert found[:-1] == encoded(model, documents[: len(found) - 1])
    assert 1900 < sum(map(len, found)) + len(found) <= 2001
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["smoke"]


# ------------------------------------------------------------------------------------------------- errors
@pytest.fixture
def bad(tmp_path: Path) -> Dict[str, Any]:
    """Files that cannot be used."""
    (tmp_path / "latin.txt").write_bytes("fine\nnaïve\n".encode("latin-1"))
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "few.txt").write_text("one line\n\nand another\n")
    (tmp_path / "foreign" / "data-bin").mkdir(parents=True)
    return {"folder": tmp_path}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--train {folder}/none.txt", "the file {folder}/none.txt does not exist: name one that does"),
        ("--valid {folder}/none.txt", "the file {folder}/none.txt does not exist: name one that does"),
        ("--train {folder}/latin.txt", "{folder}/latin.txt, line 2 is not UTF-8: convert the file"),
        ("--train {folder}/blank.txt", "the file {folder}/blank.txt has no text: leave it out"),
        (
            "--train {folder}/few.txt",
            "--shards 3 is too much for the 2 documents of the training text: give at most 2",
        ),
        ("--vocab-size 100000", "--vocab-size 100000 does not work: this text has only "),
        ("--vocab-size 9", "--vocab-size 9 does not work: the characters of this text alone take "),
        ("--out {folder}/a:b", "--out {folder}/a:b has a colon, at which fairseq separates data folders: rename it"),
        (
            "--out {folder}/foreign",
            "{folder}/foreign has a data-bin that luna-fairseq prepare did not make: name another folder",
        ),
    ],
)
def test_errors(options: str, message: str, text: Path, tmp_path: Path, bad: Dict[str, Any]) -> None:
    usual = ["--train", text / "a.txt", "--valid", text / "valid.txt", "--vocab-size", 100, "--out", tmp_path / "out"]
    said = error(*usual, "--shards", 3, *options.format(**bad).split(" "))
    assert said.startswith(f"luna-fairseq prepare corpus: {message.format(**bad)}")
    assert not (tmp_path / "out").exists(), "nothing that another try would have to remove"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give one of --vocab-size, --sentencepiece-model, --pieces, and the three of GPT-2"),
        ("--vocab-size 9 --sentencepiece-model m", "give one of --vocab-size"),
        ("--gpt2-dict d", "--gpt2-dict belong together: give all three"),
        ("--vocab-size 0", "argument --vocab-size: must be at least 1"),
    ],
)
def test_options(options: str, message: str, tmp_path: Path) -> None:
    assert message in error("--train", "a", "--valid", "b", "--out", tmp_path / "out", *options.split(), code=2)


def test_damaged_pieces(text: Path, tmp_path: Path) -> None:
    files = ["--train", text / "a.txt", "--valid", text / "valid.txt", "--out", tmp_path / "out"]
    said = error(*files, "--sentencepiece-model", text / "a.txt")
    assert f"{text}/a.txt is not a SentencePiece model" in said
    gpt2 = tiny_gpt2(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "dict.txt").write_text("12 34\nword\n")
    assert "dict.txt, line 2: 'word' is not a symbol and its count" in error(*files, *gpt2)
    (tmp_path / "gpt2" / "encoder.json").write_text("{")
    assert "vocab.bpe are not GPT-2's" in error(*files, *gpt2)
    assert not (tmp_path / "out").exists()


def test_a_word_written_unk_is_fairseqs_own(out: Path, tmp_path: Path) -> None:
    """WikiText writes <unk> for a rare word; its letters must not become pieces."""
    (tmp_path / "train.txt").write_text("<unk> und <unk> <unk> haus\n\n" + "<unk>\nhaus und mehr\n\n" * 20)
    model = out / "sentencepiece.model"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    encode = SentencePieceEncoder(model).encode
    word = " ".join(pieces.encode("und", out_type=str))
    assert encode(["<unk> und <unk> <unk> und", "und", "<unk>"]) == [
        f"<unk> {word} <unk> <unk> {word}",
        word,
        "<unk>",
    ]
    assert "<unk>" not in encode(["und<unk>"])[0]
    # Learned from such a text, no piece holds a part of it, and the counted dictionary leaves it to fairseq.
    learned = tmp_path / "out"
    prepare(
        "--train", tmp_path / "train.txt", "--valid", tmp_path / "train.txt", "--out", learned, "--vocab-size", "24",
        "--workers", "1",
    )  # fmt: skip
    assert "unk" not in (learned / "dict.txt").read_text()
    dictionary = Dictionary.load(str(learned / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(learned / "data-bin" / "shard0" / "train"), dictionary)
    assert sum(int((ids == dictionary.unk()).sum()) for ids in data) == 23
