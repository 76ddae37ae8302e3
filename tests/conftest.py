"""Fixtures: a small corpus made into a fairseq data folder by the real tools, and the shared golden folder."""

import random
from pathlib import Path

import pytest

from commands import Corpus, run_command

WORDS_EN = "the a small old cat dog house man woman sees finds loves red green and".split()
WORDS_DE = "die ein kleine alte Katze Hund Haus Mann Frau sieht findet liebt rot grün und".split()


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
def shared_golden() -> Path:
    """The folder with reference checkpoints and third-party text, which is not part of this repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the folder shared/golden with the reference checkpoints is not beside this repository")
    return folder
