"""Fixtures: a small corpus made into a fairseq data folder by the real tools, and the shared golden folder."""

import random
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from torch import Tensor

from luna_fairseq import plugin
from support.running import WORDS_DE, WORDS_EN, Corpus, LMCorpus, run_command, write_indexed
from support.wmt14_archives import make_archives

# What --user-dir does: tests build models and load checkpoints without a command.
plugin.load()


def _write_corpus(folder: Path) -> None:
    generator = random.Random(5)
    for split, lines in (("train", 90), ("valid", 13), ("test", 11)):
        with open(folder / f"{split}.en", "w") as en, open(folder / f"{split}.de", "w") as de:
            for _ in range(lines):
                picks = [generator.randrange(len(WORDS_EN)) for _ in range(generator.randint(2, 9))]
                en.write(" ".join(WORDS_EN[i] for i in picks) + "\n")
                de.write(" ".join(WORDS_DE[i] for i in picks) + "\n")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Raw text, a SentencePiece model, and a joined data folder."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("corpus")
    _write_corpus(folder)
    sentencepiece.SentencePieceTrainer.train(
        input=f"{folder}/train.en,{folder}/train.de",
        model_prefix=str(folder / "spm"),
        vocab_size=70,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    for split in ("train", "valid", "test"):
        for lang in ("en", "de"):
            lines = (folder / f"{split}.{lang}").read_text().splitlines()
            text = "".join(" ".join(pieces.encode(line, out_type=str)) + "\n" for line in lines)
            (folder / f"{split}.spm.{lang}").write_text(text)
    data = folder / "data-bin"
    prefixes = [
        f"--{name}pref={folder}/{split}.spm"
        for name, split in zip(("train", "valid", "test"), ("train", "valid", "test"), strict=True)
    ]
    run_command("fairseq-preprocess", "-s", "en", "-t", "de", "--joined-dictionary", f"--destdir={data}", *prefixes)
    return Corpus(folder, data, folder / "spm.model")


@pytest.fixture(scope="session")
def wmt14_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small archives for luna-fairseq fetch wmt14."""
    folder = tmp_path_factory.mktemp("archives")
    make_archives(folder)
    return folder


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder with reference checkpoints and third-party text, which is not part of this repository."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the folder shared/golden with the reference checkpoints is not beside this repository")
    return folder


@pytest.fixture(scope="session")
def lm_corpus(tmp_path_factory: pytest.TempPathFactory) -> LMCorpus:
    """Data for masked LM (two shards), for a sentence pair task and for multiple choice, with one dictionary."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("lm")
    generator = random.Random(6)

    def sentence() -> str:
        return " ".join(generator.choice(WORDS_EN) for _ in range(generator.randint(3, 9)))

    documents = [[sentence() for _ in range(generator.randint(2, 5))] for _ in range(40)]
    (folder / "text").write_text("\n".join(line for document in documents for line in document))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "sentencepiece"),
        vocab_size=36,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.model"))
    dictionary = Dictionary()
    for index in range(3, pieces.get_piece_size()):  # <unk> <s> </s> are fairseq's own
        dictionary.add_symbol(pieces.id_to_piece(index), n=5)
    dictionary.save(str(folder / "dict.txt"))

    def encode(line: str) -> Tensor:
        return dictionary.encode_line(" ".join(pieces.encode(line, out_type=str)), add_if_not_exist=False)

    for shard, part in (("shard0", documents[:15]), ("shard1", documents[15:30])):
        for split, texts in (("train", part), ("valid", documents[30:])):
            lines = [encode(line) for document in texts for line in [*document, ""]]
            write_indexed(folder / shard / split, lines, dictionary)

    # A pair is of label 0 when it begins with the same word.
    labels = Dictionary()
    for name in ("same", "other"):
        labels.add_symbol(name)
    for split, count in (("train", 24), ("valid", 10)):
        pairs = [(sentence(), sentence()) for _ in range(count)]
        answers = [int(a.split()[0] != b.split()[0]) for a, b in pairs]
        for i in range(2):
            write_indexed(folder / "pairs" / f"input{i}" / split, [encode(pair[i]) for pair in pairs], dictionary)
        rows = [torch.tensor([labels.nspecial + answer, labels.eos()]) for answer in answers]
        write_indexed(folder / "pairs" / "label" / split, rows, labels)
        for i in range(4):
            write_indexed(
                folder / "choice" / f"input{i}" / split, [encode(sentence()) for _ in range(count)], dictionary
            )
        (folder / "choice" / "label").mkdir(exist_ok=True)
        (folder / "choice" / "label" / f"{split}.label").write_text(
            "".join(f"{generator.randrange(3)}\n" for _ in range(count))
        )
    return LMCorpus(folder)
