"""Data of fairseq's: shards, lines of text, numpy's old names, damaged indices."""

import re
import struct
import sys
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.tasks.translation import TranslationConfig, load_langpair_dataset

from luna_fairseq.checks import check_complete
from luna_fairseq.errors import DataError
from support.models import make_dictionary, make_sentences
from support.running import USER_DIR, Corpus, generate, logged, run_command, train, write_indexed


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(corpus, folder, "--max-update", 1)
    return folder / "checkpoint_last.pt"


def _found(said: str) -> List[str]:
    return sorted(line for line in said.splitlines() if re.match(r"H-\d+\t", line))


def test_each_shard_translates_its_part(corpus: Corpus, trained: Path) -> None:
    options = ["--batch-size", 2, "--beam", 1, "--max-len-b", 5]
    shards = [_found(generate(corpus, trained, *options, "--num-shards", 2, "--shard-id", k)) for k in (0, 1)]
    assert sorted(shards[0] + shards[1]) == _found(generate(corpus, trained, *options)) and min(map(len, shards)) > 3


@pytest.mark.long
def test_each_shard_validates_its_part(corpus: Corpus, trained: Path) -> None:
    def validate(*shard: Any, code: int = 0) -> str:
        return run_command(
            *("fairseq-validate", corpus.data, "--user-dir", USER_DIR, "--path", trained, "--cpu", "--batch-size", 2),
            *("--num-workers", 0, "--data-buffer-size", 0, "--log-format", "simple", "--log-interval", 1),
            *("--task", "translation", "--criterion", "cross_entropy", *shard),
            code=code,
        )

    def batches(said: str) -> int:
        return int(re.findall(r"valid on 'valid' subset: +\d+ / (\d+) ", said)[-1])

    whole = batches(validate())
    assert whole == 7 and [batches(validate("--num-shards", 2, "--shard-id", k)) for k in (0, 1)] == [4, 3]
    assert "the data makes 7 batches: take fewer shards" in validate("--num-shards", 9, code=1)


def test_sentences_in_buckets(corpus: Corpus, tmp_path: Path) -> None:
    assert logged(train(corpus, tmp_path, "--num-batch-buckets", 3, "--max-update", 1), "num_updates")


def test_fairseq_asks_numpy_for_nothing_that_is_gone() -> None:
    """In all of its modules, whether a test comes to the line or not."""
    import fairseq

    root = Path(fairseq.__file__).parent
    files = [path for path in root.rglob("*.py") if "examples" not in path.relative_to(root).parts]
    assert len(files) > 200
    for path in files:
        for name in re.findall(r"\bnp\.(\w+)", path.read_text()):
            module = sys.modules.get(".".join(["fairseq", *path.relative_to(root).with_suffix("").parts]))
            numpy = getattr(module, "np", None) or vars(data_utils)["np"]
            assert hasattr(numpy, name), f"{path} uses np.{name}"


def test_train1_without_upsampling(corpus: Corpus, tmp_path: Path) -> None:
    """All data is read, train once; an option says how often otherwise."""
    data = tmp_path / "data"
    data.mkdir()
    for path in corpus.data.iterdir():
        (data / path.name).symlink_to(path)
        if path.name.startswith("valid."):
            (data / path.name.replace("valid.", "train1.")).symlink_to(path)

    words = Dictionary.load(str(data / "dict.en.txt"))

    def size(upsample_primary: int) -> int:
        sides = dict(left_pad_source=True, left_pad_target=False, max_source_positions=99, max_target_positions=99)
        pairs = load_langpair_dataset(
            str(data), "train", "en", words, "de", words, combine=True, dataset_impl=None,
            upsample_primary=upsample_primary, **sides,
        )  # fmt: skip
        assert len(pairs[len(pairs) - 1]["source"]) > 1 and len(pairs.ordered_indices()) == len(pairs)
        return len(pairs)

    assert size(TranslationConfig().upsample_primary) == size(1) == 90 + 13
    assert size(2) == 2 * 90 + 13
    with pytest.raises(DataError, match="--upsample-primary is 0: it says how often train is taken, at least 1"):
        size(0)


def test_unequal_files_are_named(corpus: Corpus, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in corpus.data.iterdir():
        name = path.name
        if name.startswith("train.") and ".de." in name:
            path = path.with_name(name.replace("train.", "valid."))
        (data / name).symlink_to(path)
    said = train(Corpus(corpus.text, data, corpus.spm), tmp_path / "save", "--max-update", 1, code=1)
    train_files = data / "train.en-de"
    assert f"{train_files}.en has 90 examples and {train_files}.de has 13: each line" in said.splitlines()[-1]


def test_unequal_raw_text_is_named(corpus: Corpus, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for lang, lines in (("en", 3), ("de", 3 if split == "train" else 4)):
            (tmp_path / f"{split}.en-de.{lang}").write_text("the cat\n" * lines)
            (tmp_path / f"dict.{lang}.txt").write_text("the 1\ncat 1\n")
    raw = Corpus(corpus.text, tmp_path, corpus.spm)
    options = ["--dataset-impl", "raw", "-s", "en", "-t", "de", "--max-update", 1]
    said = train(raw, tmp_path / "save", *options, code=1).splitlines()[-1]
    assert f"{tmp_path}/valid.en-de.en has 3 examples and {tmp_path}/valid.en-de.de has 4: each line" in said


# Two lines, whatever is in them; a word that begins with a byte order mark would be unknown.
ODD = "\ufeffthe cat\rthe dog\r\nthe\u2028man\x85the\x0bwoman\n"


@pytest.mark.parametrize("source", ["-", "file"])
def test_lines_of_fairseq_interactive(source: str, corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(ODD.encode())
    name = "-" if source == "-" else tmp_path / "text"
    said = run_command(
        *("fairseq-interactive", corpus.data, "--user-dir", USER_DIR, "--path", trained, "--cpu", "--input", name),
        *("--buffer-size", 2, "--bpe", "sentencepiece", "--sentencepiece-model", corpus.spm),
        stdin=ODD if source == "-" else "",
    )
    assert re.findall(r"^S-(\d+)", said, re.MULTILINE) == ["0", "1"]
    assert "<unk>" not in re.findall(r"^S-0\t(.*)", said, re.MULTILINE)[0]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_lines_of_fairseq_preprocess(workers: int, tmp_path: Path) -> None:
    text = ODD + "".join(f"näher {k} \rund\r\n" for k in range(20))
    (tmp_path / "train.en").write_bytes(text.encode())
    (tmp_path / "train.de").write_text("ein Satz\n" * 22)
    run_command(
        *("fairseq-preprocess", "--user-dir", USER_DIR, "-s", "en", "-t", "de", "--trainpref", tmp_path / "train"),
        *("--destdir", tmp_path / "bin", "--workers", workers),
    )
    words = (tmp_path / "bin" / "dict.en.txt").read_text()
    assert "\ufeff" not in words and "und 20\n" in words and "the 4\n" in words
    data = data_utils.load_indexed_dataset(str(tmp_path / "bin" / "train.en-de.en"))
    assert len(data) == 22 and len(data[0]) == len(data[1]) == 5


def _change(place: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + value + content[place + len(value) :]


# Two entries: magic 0, version 9, type 17, their number 18, sizes 26, places 34.
DAMAGE = {
    "magic": (_change(0, b"PNG"), "is no index that fairseq-preprocess writes, or is damaged"),
    "version": (_change(9, struct.pack("<Q", 7)), "has version 7 and fairseq reads version 1"),
    "type": (_change(17, b"\x63"), "holds numbers of an unknown type, 99"),
    "number": (_change(18, struct.pack("<Q", 2**61)), "is damaged or only half written"),
    "negative size": (_change(30, struct.pack("<i", -9)), r"is damaged \(entry 1 has size -9 and lies at 10\)"),
    "negative place": (_change(34, struct.pack("<q", -1)), r"is damaged \(entry 0 has size 5 and lies at -1\)"),
    "place outside": (_change(42, struct.pack("<q", 11)), "has 28 bytes and its index asks for 29"),
    "place far outside": (_change(42, struct.pack("<q", 2**63 - 1)), "has 28 bytes and its index asks for 92233720"),
    "size outside": (_change(30, struct.pack("<i", 2**31 - 1)), "has 28 bytes and its index asks for 4294967304"),
    "cut short": (lambda content: content[:40], "is damaged or only half written"),
    "empty": (lambda content: b"", "is damaged or only half written"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_named(name: str, tmp_path: Path) -> None:
    change, message = DAMAGE[name]
    write_indexed(tmp_path / "train", make_sentences([5, 9]), make_dictionary())
    check_complete(str(tmp_path / "train"))
    index = tmp_path / "train.idx"
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(DataError, match=rf"^{tmp_path}/train\.(idx|bin) {message}"):
        data_utils.load_indexed_dataset(str(tmp_path / "train"))


# Of the older format, two entries: magic 0, version 8, type 16, size of a number 24, entries 32, dimensions 40,
# starts 48, places 72, sizes 96.
LEGACY = {
    "version": (_change(8, struct.pack("<Q", 2)), "has version 2"),
    "type": (_change(16, struct.pack("<Q", 99)), "holds numbers of an unknown type, 99"),
    "size of a number": (_change(24, struct.pack("<Q", 0)), "is damaged"),
    "entries": (_change(32, struct.pack("<Q", 2**60)), "is damaged or only half written"),
    "starts": (_change(56, struct.pack("<q", -1)), "is damaged"),
    "places": (_change(88, struct.pack("<q", 99)), "has 56 bytes and its index asks for 396"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_a_damaged_index_of_the_older_format_is_named(name: str, tmp_path: Path) -> None:
    from fairseq.data import indexed_dataset

    builder = indexed_dataset.make_builder(str(tmp_path / "train.bin"), impl="cached")
    for row in make_sentences([5, 9]):
        builder.add_item(row)
    builder.finalize(str(tmp_path / "train.idx"))
    assert len(data_utils.load_indexed_dataset(str(tmp_path / "train"))) == 2
    change, message = LEGACY[name]
    index = tmp_path / "train.idx"
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(DataError, match=rf"^{tmp_path}/train\.(idx|bin) {message}"):
        data_utils.load_indexed_dataset(str(tmp_path / "train"))


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    write_indexed(tmp_path / "train", [], make_dictionary())
    with pytest.raises(DataError, match=r"train\.bin holds no example"):
        data_utils.load_indexed_dataset(str(tmp_path / "train"))


def test_numpy_itself_is_as_it_was() -> None:
    assert not hasattr(np, "float") and not hasattr(np, "compat")
