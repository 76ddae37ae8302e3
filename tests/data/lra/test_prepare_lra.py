"""The Long Range Arena's data to folders: generated or from files of the published layouts, and read back."""

import io
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils

from luna_fairseq import cli
from luna_fairseq.data.lra import pathfinder
from luna_fairseq.data.lra.cifar10 import read_batch
from luna_fairseq.data.lra.expressions import evaluate, parse
from luna_fairseq.data.lra.pathfinder_image import generate
from support.evil import Pickled
from support.forks import REAL

EVERY_BYTE = bytes(range(256))
BYTES = [str(number) for number in range(256)]
Prepare = Callable[..., str]


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Iterator[Prepare]:
    """Calls the command; returns what it printed, or its error if ``code`` is not 0."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(kind: str, *args: Any, code: int = 0) -> str:
        assert cli.main(["prepare", kind, *map(str, args)]) == code
        printed = capsys.readouterr()
        if not code:
            return printed.out
        last, start = printed.err.splitlines()[-1], f"luna-fairseq prepare {kind}: "
        assert last.startswith(start)
        return last.removeprefix(start)

    yield call
    signal.signal(signal.SIGTERM, handler)


def rows(folder: Path, split: str) -> List[List[str]]:
    """The symbols of every row of a binarised split."""
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(folder / split), dictionary)
    assert data is not None
    found = []
    for ids in data:
        assert ids[-1] == dictionary.eos()
        symbols = [dictionary[number] for number in ids[:-1].tolist()]
        # fairseq itself makes the same of them.
        assert dictionary.encode_line(" ".join(symbols), add_if_not_exist=False).tolist() == ids.tolist()
        assert dictionary.unk() not in ids
        found.append(symbols)
    return found


def labels(out: Path, split: str) -> List[str]:
    found = rows(out / "label-bin", split)
    assert all(len(row) == 1 for row in found)
    return [row[0] for row in found]


def documents(out: Path, split: str, part: str = "src-bin") -> List[bytes]:
    return [bytes(map(int, row)) for row in rows(out / part, split)]


def images(out: Path, split: str) -> Tuple[List[List[int]], List[int]]:
    """From text files."""
    lines = (out / "input" / f"{split}.src").read_text().splitlines()
    numbers = (out / "label" / f"{split}.label").read_text().splitlines()
    return [list(map(int, line.split(" "))) for line in lines], list(map(int, numbers))


def symbols(folder: Path) -> List[str]:
    """The symbols of a dictionary, in their order, without their counts."""
    return [line.split(" ")[0] for line in (folder / "dict.txt").read_text().splitlines()]


def files(out: Path) -> List[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def token_files(*parts: str) -> List[str]:
    names = ["dict.txt", *(f"{split}.{end}" for split in ("test", "train", "valid") for end in ("bin", "idx"))]
    return sorted([*(f"{part}/{name}" for part in parts for name in names), "settings.json"])


PIXEL_FILES = sorted(
    ["settings.json"]
    + [f"{name}" for split in ("test", "train", "valid") for name in (f"input/{split}.src", f"label/{split}.label")]
)


# ---------------------------------------------------------------------------------------------- ListOps
SHORT = ["--min-length", 10, "--max-length", 40, "--max-depth", 4, "--max-arguments", 5]


def test_listops(prepare: Prepare, tmp_path: Path) -> None:
    sizes = {"train": 60, "valid": 20, "test": 10}
    counts = [option for split, size in sizes.items() for option in (f"--{split}", size)]
    out = tmp_path / "one"
    output = prepare("listops", *SHORT, *counts, "--workers", 1, "--out", out)
    assert output.splitlines()[-2:] == [f"prepared: {out}", f"data for --task lra-text --arch luna_lra_listop: {out}"]
    assert files(out) == token_files("src-bin", "label-bin")
    assert symbols(out / "src-bin") == ["[MIN", "[MAX", "[MED", "[SM", "]", *BYTES[:10]]
    assert symbols(out / "label-bin") == BYTES[:10]
    every = []
    for line, (split, size) in zip(output.splitlines(), sizes.items(), strict=False):
        texts, values = [" ".join(row) for row in rows(out / "src-bin", split)], labels(out, split)
        assert len(texts) == size
        assert [str(evaluate(parse(text))) for text in texts] == values
        classes = ", ".join(f"{digit}: {values.count(digit)}" for digit in BYTES[:10])
        assert line.startswith(f"{split}: {size} examples ({classes}), ")
        assert all(10 < len(text.split()) < 40 for text in texts)
        every += texts
    assert len(set(every)) == len(every)

    prepare("listops", *SHORT, *counts, "--workers", 2, "--out", tmp_path / "two")
    for name in files(out):
        assert (out / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    prepare("listops", *SHORT, *counts, "--seed", 2, "--out", tmp_path / "other")
    assert (out / "src-bin" / "train.bin").read_bytes() != (tmp_path / "other/src-bin/train.bin").read_bytes()


def test_published_listops(prepare: Prepare, tmp_path: Path) -> None:
    data, out = tmp_path / "listops", tmp_path / "out"
    data.mkdir()
    for name, text, value in (("train", "[SM 9 ) 3 ) ] )", 2), ("val", "[MED 4 7 ]", 5), ("test", "8", 8)):
        (data / f"basic_{name}.tsv").write_bytes(f"Source\tTarget\r\n( ( {text}\t{value}\r\n".encode())
    prepare("listops", "--data", data, "--out", out)
    assert rows(out / "src-bin", "train") == ["[SM 9 3 ]".split()]
    assert rows(out / "src-bin", "valid") == ["[MED 4 7 ]".split()]
    assert rows(out / "src-bin", "test") == [["8"]]
    assert [labels(out, split) for split in ("train", "valid", "test")] == [["2"], ["5"], ["8"]]
    (data / "basic_val.tsv").write_text("Source\tTarget\n[MED 4 7 ]\t6\n")
    said = prepare("listops", "--data", data, "--out", tmp_path / "no", code=1)
    assert said == f"{data}/basic_val.tsv, line 2 says '6', and its expression is 5: mend it"
    (data / "basic_val.tsv").unlink()
    said = prepare("listops", "--data", data, "--out", tmp_path / "no", code=1)
    assert said == f"the file {data}/basic_val.tsv does not exist: name one that does"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["listops", "out"]


@pytest.mark.long
def test_smoke_interrupted_and_again(prepare: Prepare, tmp_path: Path) -> None:
    """A smoke run before the real one; a run that is interrupted, one that was killed; a finished one again."""
    out = tmp_path / "out"
    usual = ["listops", "--max-length", 40, "--min-length", 10, "--out", out]
    assert "train: 12 examples" in prepare(*usual, "--smoke", "--workers", 1)
    assert len(labels(out / "smoke", "valid")) == 12

    program = REAL / "luna-fairseq"
    command = [program, "prepare", "listops", "--out", out, "--workers", 2]
    # A terminal tells the workers, too.
    pipes: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), start_new_session=True, **pipes) as done:
        while not list(tmp_path.glob(".out.tmp-*/label-bin")):
            assert done.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        os.killpg(done.pid, signal.SIGINT)
        # Both ends of the pipes close only when the workers are gone, too.
        _, said = done.communicate(timeout=60)
    assert done.returncode == 130, said
    assert said.splitlines()[-1] == "luna-fairseq prepare listops: interrupted: run the same command again"
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["smoke"]

    (tmp_path / ".out.tmp-1" / "src-bin").mkdir(parents=True)
    (tmp_path / ".out.tmp-1" / "src-bin" / "train.bin").write_bytes(b"half")
    real = [*usual, "--workers", 1, "--train", 400, "--valid", 5, "--test", 5]
    prepare(*real)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["label-bin", "settings.json", "smoke", "src-bin"]
    assert len(labels(out, "train")) == 400
    before = (out / "src-bin" / "train.bin").stat().st_mtime_ns
    assert prepare(*real) == f"already prepared: {out}\n"
    assert prepare(*real, "--workers", 2) == f"already prepared: {out}\n"
    assert (out / "src-bin" / "train.bin").stat().st_mtime_ns == before
    said = prepare(*real, "--seed", 3, code=1)
    assert said == f"{out} was begun with seed 1, not 3: repeat it, or name another folder"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    said = prepare(*real, "--out", tmp_path / "full", code=1)
    assert said == f"{tmp_path}/full has a mine.txt that luna-fairseq prepare did not make: name another folder"


def test_interrupt_while_workers_start() -> None:
    """Python drops an interrupt that comes in the middle of a fork."""
    code = (
        "import os, signal\n"
        "from luna_fairseq import console\n"
        "from luna_fairseq.data import workers\n"
        "os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "def prepare(): print(list(workers.in_order(abs, [(-1,)], workers=2)))\n"
        "raise SystemExit(console.run('it', prepare))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "it: interrupted: run the same command again\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--min-length", "50", "--max-length", "51"],
            "no length is above --min-length 50 and below --max-length 51",
        ),
        (["--max-depth", "3"], "with --max-depth 3 and --max-arguments 10 no expression has more than 122 symbols"),
        (["--data", "nowhere"], "the folder nowhere does not exist: name the one with the data"),
    ],
)
def test_wrong_options_of_listops(options: List[str], message: str, prepare: Prepare, tmp_path: Path) -> None:
    assert prepare("listops", *options, "--out", tmp_path / "out", code=1).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["listops", "--data", ".", "--seed", "2"], "--seed is for generated data: leave it out, or --data"),
        (
            ["listops", "--data", ".", "--max-depth", "2"],
            "--max-depth is for generated data: leave it out, or --data",
        ),
        (
            ["pathfinder", "--size", "32", "--level", "x"],
            "--level is for published data: leave it out, or give --data",
        ),
        (["pathfinder", "--size", "64"], "invalid choice: 64"),
        (["digits", "--seed", "-1"], "must be at least 0"),
    ],
)
def test_options_that_do_not_go_together(
    options: List[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["prepare", *options, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ bytes
def write_imdb(folder: Path) -> Dict[Tuple[str, str], List[bytes]]:
    """Reviews in the order of their numbers."""
    special = [b"", EVERY_BYTE, b"two\nlines\r\n", "caf\u00e9 \U0001f600".encode(), b"\xff\xfe\xc3(", b" <unk> </s> "]
    written = {}
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            reviews = [f"{split} {name} {number} ".encode() + text for number, text in enumerate(special * 2)]
            reviews[0] = b""
            (folder / split / name).mkdir(parents=True)
            for number, review in enumerate(reviews):
                (folder / split / name / f"{number}_{number % 5}.txt").write_bytes(review)
            written[split, name] = reviews
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0_0.txt").write_text("no label")
    (folder / "README").write_text("read me")
    return written


def test_text(prepare: Prepare, tmp_path: Path) -> None:
    data, out = tmp_path / "aclImdb", tmp_path / "out"
    written = write_imdb(data)
    output = prepare("text", "--data", data, "--out", out)
    assert output.startswith("train: 24 examples (neg: 12, pos: 12), ")
    assert output.splitlines()[-1] == f"data for --task lra-text --arch luna_lra_imdb: {out}"
    assert files(out) == token_files("src-bin", "label-bin")
    assert symbols(out / "src-bin") == BYTES
    assert symbols(out / "label-bin") == ["neg", "pos"]
    for split, source in (("train", "train"), ("valid", "test"), ("test", "test")):
        assert labels(out, split) == ["neg"] * 12 + ["pos"] * 12
        assert documents(out, split) == written[source, "neg"] + written[source, "pos"]
    # The counts are those of the training text.
    joined = b"".join(written["train", "neg"] + written["train", "pos"])
    lines = (out / "src-bin" / "dict.txt").read_text().splitlines()
    assert lines == [f"{number} {joined.count(number)}" for number in range(256)]
    assert (out / "label-bin" / "dict.txt").read_text() == "neg 12\npos 12\n"


def test_text_with_examples_held_out(prepare: Prepare, tmp_path: Path) -> None:
    data = tmp_path / "aclImdb"
    written = write_imdb(data)
    usual = ["text", "--data", data, "--hold-out", 6]
    for name, options in (("one", []), ("same", []), ("other", ["--seed", 2])):
        prepare(*usual, *options, "--out", tmp_path / name)
    one = tmp_path / "one"
    assert labels(one, "valid") == ["neg"] * 3 + ["pos"] * 3
    assert labels(one, "train") == ["neg"] * 9 + ["pos"] * 9
    train, valid = documents(one, "train"), documents(one, "valid")
    assert sorted(train + valid) == sorted(written["train", "neg"] + written["train", "pos"])
    assert documents(one, "test") == written["test", "neg"] + written["test", "pos"]
    for split in ("train", "valid"):
        assert documents(tmp_path / "same", split) == documents(one, split)
    assert sorted(documents(tmp_path / "other", "valid")) != sorted(valid)
    for number in (5, 24):
        said = prepare(*usual, "--hold-out", number, "--out", tmp_path / "no", code=1)
        assert said.startswith(f"--hold-out {number} takes half of its examples from either class: give an even")
    said = prepare(*usual[:3], "--out", one, code=1)
    assert said == f"{one} was begun with hold_out 6, not null: repeat it, or name another folder"


def test_wrong_folders_of_text(prepare: Prepare, tmp_path: Path) -> None:
    data, out = tmp_path / "aclImdb", tmp_path / "out"
    write_imdb(data)
    usual = ["text", "--data", data, "--out", out]
    for path in (data / "test" / "pos").iterdir():
        path.unlink()
    assert prepare(*usual, code=1) == f"{data}/test/pos has no .txt files: name the folder aclImdb"
    (data / "test" / "pos").rmdir()
    assert prepare(*usual, code=1) == f"the folder {data}/test/pos does not exist: name the folder aclImdb"
    assert not list(tmp_path.glob(".out*")) and not out.exists()


def write_pairs(folder: Path) -> List[Tuple[bytes, bytes]]:
    """Three files that have other labels and the same texts."""
    folder.mkdir()
    every = bytes(byte for byte in range(256) if byte not in b"\t\n")
    pairs = [(b"", b""), (every, b'"quoted'), (b"\xff\r", "\u00fc".encode()), (b"'", b"b" * 500)]
    for split, names in (("train", "0.0 1.0 1.0 0.0"), ("eval", "1 0 1 0"), ("test", "0 0 0 1")):
        cells = zip(names.split(), pairs, strict=True)
        lines = [b"\t".join([name.encode(), b"P1", b"W2", *texts]) + b"\n" for name, texts in cells]
        (folder / f"new_aan_pairs.{split}.tsv").write_bytes(b"".join(lines))
    return pairs


def test_retrieval(prepare: Prepare, tmp_path: Path) -> None:
    data, out = tmp_path / "aan", tmp_path / "out"
    pairs = write_pairs(data)
    output = prepare("retrieval", "--data", data, "--out", out)
    assert output.startswith("train: 4 examples (0: 2, 1: 2), ")
    assert output.splitlines()[-1] == f"data for --task lra-text --arch luna_lra_aan: {out}"
    assert files(out) == token_files("src-bin", "src1-bin", "label-bin")
    for split, names in (("train", "0110"), ("valid", "1010"), ("test", "0001")):
        assert labels(out, split) == list(names)
        assert documents(out, split) == [first for first, _ in pairs]
        assert documents(out, split, "src1-bin") == [second for _, second in pairs]
    assert symbols(out / "src-bin") == BYTES
    assert (out / "src-bin" / "dict.txt").read_bytes() == (out / "src1-bin" / "dict.txt").read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"0.5\ta\tb\tc\td\n", "line 5: the label '0.5' is neither 0 nor 1: mend it"),
        (b"1\ta\tb\tc\n", "line 5 has 4 columns and not 5, for label, two names and two texts: mend it"),
        (b"1\ta\tb\tc\td\te\n", "line 5 has 6 columns and not 5, for label, two names and two texts: mend it"),
    ],
)
def test_wrong_pairs(line: bytes, message: str, prepare: Prepare, tmp_path: Path) -> None:
    write_pairs(tmp_path / "aan")
    path = tmp_path / "aan" / "new_aan_pairs.eval.tsv"
    path.write_bytes(path.read_bytes() + line)
    said = prepare("retrieval", "--data", tmp_path / "aan", "--out", tmp_path / "out", code=1)
    assert said == f"{path}, {message}"
    path.write_bytes(b"")
    said = prepare("retrieval", "--data", tmp_path / "aan", "--out", tmp_path / "out", code=1)
    assert said == "there are no examples for valid: name data that has some"
    assert [path.name for path in tmp_path.iterdir()] == ["aan"]


# ---------------------------------------------------------------------------------------------- CIFAR-10
class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as they are in the published files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content: bytes) -> None:
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(content)

    dispatch[bytes] = save_bytes


def python2_pickle(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar(folder: Path, each: int = 4) -> Dict[str, Tuple[np.ndarray, List[int]]]:
    folder.mkdir()
    random = np.random.default_rng(1)
    written = {}
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        data = random.integers(0, 256, (each, 3072), dtype=np.uint8)
        classes = random.integers(0, 10, each).tolist()
        content = {b"batch_label": name.encode(), b"labels": classes, b"data": data, b"filenames": [b"a.png"] * each}
        (folder / name).write_bytes(python2_pickle(content))
        written[name] = data, classes
    return written


def test_image(prepare: Prepare, tmp_path: Path) -> None:
    data, out = tmp_path / "cifar-10-batches-py", tmp_path / "pixels"
    written = write_cifar(data)
    output = prepare("image", "--data", data, "--out", out, "--as", "pixels")
    last = f"data for --task lra-image --input-type image --arch luna_lra_cifar10: {out}"
    assert output.splitlines()[-1] == last
    assert files(out) == PIXEL_FILES
    test = written.pop("test_batch")
    data_parts, class_parts = zip(*written.values(), strict=True)
    every, every_class = np.concatenate(data_parts), np.concatenate(class_parts).tolist()
    wanted = {"train": (every[:18], every_class[:18]), "valid": (every[18:], every_class[18:]), "test": test}
    for split, (colours, classes) in wanted.items():
        found, found_classes = images(out, split)
        assert found_classes == classes
        for row, colour in zip(found, colours.tolist(), strict=True):
            assert row == [round(0.2989 * colour[n] + 0.5870 * colour[1024 + n] + 0.1140 * colour[2048 + n])
                           for n in range(1024)]  # fmt: skip

    tokens = tmp_path / "tokens"
    output = prepare("image", "--data", data, "--out", tokens)
    assert output.splitlines()[-1] == f"data for --task lra-text --arch luna_lra_cifar10: {tokens}"
    assert files(tokens) == token_files("src-bin", "label-bin")
    assert symbols(tokens / "src-bin") == BYTES and symbols(tokens / "label-bin") == BYTES[:10]
    for split in wanted:
        assert ([list(text) for text in documents(tokens, split)], list(map(int, labels(tokens, split)))) == images(
            out, split
        )
    said = prepare("image", "--data", data, "--out", out, code=1)
    assert said == f'{out} was begun with as "pixels", not "tokens": repeat it, or name another folder'


def test_grey(tmp_path: Path) -> None:
    colours = np.zeros((4, 3, 1024), dtype=np.uint8)
    colours[0, 0], colours[1, 1], colours[2, 2], colours[3] = 255, 255, 255, 255
    path = tmp_path / "batch"
    path.write_bytes(python2_pickle({b"data": colours.reshape(4, 3072), b"labels": [0, 9, 3, 3]}))
    grey, classes = read_batch(path)
    assert grey.tolist() == [[value] * 1024 for value in (76, 150, 29, 255)]
    assert classes.tolist() == [0, 9, 3, 3]


class Runs:
    """Makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_unsafe_and_wrong_batches(prepare: Prepare, tmp_path: Path) -> None:
    data = tmp_path / "cifar"
    write_cifar(data)
    path, trap = data / "data_batch_3", tmp_path / "trap"
    good = {b"data": np.zeros((1, 3072), dtype=np.uint8), b"labels": [3]}
    refusal = f"{path} is not a file of CIFAR-10: "
    needs = f"{path} does not have data of 3,072 bytes an image and labels from 0 to 9: name the folder "
    fields = {"a": (np.dtype("u1"), 1 << 40)}
    cases: List[Tuple[Any, str]] = [
        ({**good, b"more": Runs(trap)}, f"{refusal}it asks for posix.mkdir"),
        ({**good, b"data": np.array([Runs(trap)], dtype=object)}, f"{refusal}a numpy dtype 'O8'"),
        ({**good, b"data": np.zeros((1, 3072), dtype="i1,i1")}, f"{refusal}a numpy dtype 'V2'"),
        (
            {**good, b"data": Pickled(np.dtype, (b"u1",), (3, b"|", None, ("a",), fields, 8, 1, 0))},
            f"{refusal}a numpy",
        ),
        ({**good, b"data": np.zeros((1, 3072), dtype=np.int16)}, needs),
        ({**good, b"data": np.zeros((2, 3072), dtype=np.uint8)}, needs),
        ({**good, b"data": np.zeros((1, 1024), dtype=np.uint8)}, needs),
        ({**good, b"data": [0] * 3072}, needs),
        ({**good, b"labels": [10]}, needs),
        ({**good, b"labels": ["3"]}, needs),
        ({b"data": good[b"data"]}, needs),
        ([1, 2], needs),
    ]
    for content, message in cases:
        path.write_bytes(python2_pickle(content))
        said = prepare("image", "--data", data, "--out", tmp_path / "out", code=1)
        assert said.startswith(message), content
        assert not trap.exists()
    for content in (b"", b"no pickle", python2_pickle(good)[:200]):
        path.write_bytes(content)
        assert prepare("image", "--data", data, "--out", tmp_path / "out", code=1).startswith(refusal)
    path.unlink()
    said = prepare("image", "--data", data, "--out", tmp_path / "out", code=1)
    assert said == f"the file {path} does not exist: name one that does"
    assert [path.name for path in tmp_path.iterdir()] == ["cifar"]
    # The trap works where it is let.
    pickle.loads(python2_pickle(Runs(trap)))
    assert trap.exists()


# ------------------------------------------------------------------------------------------ Pathfinder
def test_pathfinder(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathfinder, "IMAGES_AT_ONCE", 3)
    sizes = {"train": 8, "valid": 4, "test": 2}
    counts = [option for split, size in sizes.items() for option in (f"--{split}", size)]
    usual = ["pathfinder", "--size", 32, "--seed", 5, *counts]
    out, tokens = tmp_path / "pixels", tmp_path / "tokens"
    output = prepare(*usual, "--as", "pixels", "--workers", 2, "--out", out)
    assert output.startswith(
        "train: 8 examples (0: 4, 1: 4), 8,192 symbols, 1,024 to 1,024 in a row\nvalid: 4 examples"
    )
    assert output.splitlines()[-1] == f"data for --task lra-image --input-type image --arch luna_lra_pf32: {out}"
    assert files(out) == PIXEL_FILES
    prepare(*usual, "--workers", 1, "--out", tokens)
    index = 0
    for split, size in sizes.items():
        found, classes = images(out, split)
        assert sorted(classes) == [0] * (size // 2) + [1] * (size // 2)
        for row, label in zip(found, classes, strict=True):
            image, wanted = generate(32, 5, index)
            assert (row, label) == (image.flatten().tolist(), wanted)
            index += 1
        assert [list(text) for text in documents(tokens, split)] == found
        assert labels(tokens, split) == list(map(str, classes))


def write_pathfinder(folder: Path, level: str, size: int = 32) -> Dict[bytes, int]:
    """Eleven images in two folders, one of them empty as one of the published is; returns the whole ones' labels."""
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(3)
    (folder / level / "metadata").mkdir(parents=True)
    written = {}
    for number, count in ((9, 6), (10, 5)):
        (folder / level / "imgs" / str(number)).mkdir(parents=True)
        lines = []
        for sample in range(count):
            path = folder / level / "imgs" / str(number) / f"sample_{sample}.png"
            pixels = random.integers(0, 256, (size, size), dtype=np.uint8)
            image.fromarray(pixels).save(path)
            label = (number + sample) % 2
            lines.append(f"imgs/{number} sample_{sample}.png {sample} {label} 1.8 6 1.0 2 6 3 3 0.5\n")
            if (number, sample) == (10, 4):
                path.write_bytes(b"")
            else:
                written[pixels.tobytes()] = label
        (folder / level / "metadata" / f"{number}.npy").write_text("".join(lines))
    return written


def test_published_pathfinder(prepare: Prepare, tmp_path: Path) -> None:
    data = tmp_path / "pathfinder32"
    written = write_pathfinder(data, "curv_contour_length_14")
    usual = ["pathfinder", "--size", 32, "--data", data]
    for name, options in (("one", []), ("same", []), ("other", ["--seed", 2])):
        output = prepare(*usual, *options, "--as", "pixels", "--out", tmp_path / name)
        assert output.startswith(f"{data}/curv_contour_length_14: 1 empty images are left out\n")
    found: Dict[bytes, int] = {}
    for split, size in (("train", 8), ("valid", 1), ("test", 1)):
        rows_, classes = images(tmp_path / "one", split)
        assert len(rows_) == size
        found.update(zip(map(bytes, rows_), classes, strict=True))
        assert images(tmp_path / "same", split) == (rows_, classes)
    assert found == written
    assert images(tmp_path / "other", "train") != images(tmp_path / "one", "train")
    said = prepare(*usual, "--level", "curv_baseline", "--out", tmp_path / "no", code=1)
    assert said.startswith(f"the folder {data}/curv_baseline does not exist: name the folder that has the folder of")


def png_header(side: int) -> bytes:
    """The beginning of a picture of so many pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9)))]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_wrong_published_pathfinder(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    data, level = tmp_path / "pathfinder", "curv_baseline"
    write_pathfinder(data, level)
    usual = ["pathfinder", "--data", data, "--level", level, "--out", tmp_path / "out"]
    said = prepare(*usual, "--size", 128, code=1)
    assert said.endswith(" is 32x32 in mode L, not 128x128 in grey: give its --size")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "PIL.Image", None)
        said = prepare(*usual, "--size", 32, code=1)
        assert said == "pillow is not installed: pip install '.[lra]'"
    path = data / level / "imgs" / "9" / "sample_2.png"
    image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(path)
    said = prepare(*usual, "--size", 32, code=1)
    assert said == f"{path} is 32x32 in mode RGB, not 32x32 in grey: give its --size"
    path.write_bytes(b"no image")
    said = prepare(*usual, "--size", 32, code=1)
    assert said == f"{path} is not a whole PNG image: remove it from the metadata"
    for side in (10_000, 60_000):  # of the one pillow warns, the other it refuses
        path.write_bytes(png_header(side))
        said = prepare(*usual, "--size", 32, code=1)
        assert said == f"{path} says that it is far larger than 32x32: remove it from the metadata"
    path.unlink()
    assert prepare(*usual, "--size", 32, code=1) == f"the file {path} does not exist: name one that does"
    metadata = data / level / "metadata" / "9.npy"
    metadata.write_text("imgs/9 sample_0.png 0 7\n")
    said = prepare(*usual, "--size", 32, code=1)
    assert said == f"{metadata}, line 1 has no folder, file, number and label 0 or 1: mend it"
    np.save(metadata, np.zeros(3))
    assert prepare(*usual, "--size", 32, code=1) == f"{metadata} is not text: name published data"
    shutil.rmtree(metadata.parent)
    assert (
        prepare(*usual, "--size", 32, code=1) == f"the folder {metadata.parent} does not exist: name published data"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pathfinder"]


# ---------------------------------------------------------------------------------------------- digits
def test_digits(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    out = tmp_path / "out"
    output = prepare("digits", "--out", out, "--as", "pixels")
    assert output.splitlines()[-1].startswith("data for --task lra-image --input-type image --arch ")
    digits = datasets.load_digits()
    scaled = (digits.data * 255 / 16).round().astype(int).tolist()
    wanted = list(zip(scaled, digits.target.tolist(), strict=True))
    parts = {split: images(out, split) for split in ("train", "valid", "test")}
    found = [pair for part in parts.values() for pair in zip(*part, strict=True)]
    assert sorted(found) == sorted(wanted)
    for split, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        classes = parts[split][1]
        for label in range(10):
            assert abs(classes.count(label) - share * digits.target.tolist().count(label)) <= 1
        assert classes != sorted(classes)
    prepare("digits", "--out", tmp_path / "tokens")
    assert [list(text) for text in documents(tmp_path / "tokens", "test")] == parts["test"][0]
    assert "train: 12 examples" in prepare("digits", "--seed", 2, "--smoke", "--out", tmp_path / "other")
    others = [list(text) for text in documents(tmp_path / "other" / "smoke", "train")]
    assert len(others) == 12 and others != parts["train"][0][:12]
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    said = prepare("digits", "--out", tmp_path / "no", code=1)
    assert said == "scikit-learn is not installed: pip install '.[lra]'"
