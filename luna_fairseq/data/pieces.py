"""Pieces of words: SentencePiece, GPT-2's byte pairs, and fairseq's dictionaries of them."""

import io
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from luna_fairseq.console import one_line
from luna_fairseq.data.files import need_file
from luna_fairseq.errors import PreparationError

SENTENCEPIECE, ENCODER_JSON, VOCAB_BPE, DICTIONARY = "sentencepiece.model", "encoder.json", "vocab.bpe", "dict.txt"
SENTENCEPIECE_NAMES = (SENTENCEPIECE, "sentencepiece.bpe.model", "spm.model")  # the second: published models
KINDS = ("sentencepiece", "gpt2")  # as fairseq calls them
# fairseq's Dictionary begins with these itself and refuses to read them from a file.
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
UNKNOWN_WORD = re.compile(r"(?<!\S)<unk>(?!\S)")
MOST_UNKNOWN = 0.1
ENOUGH_KNOWN = 0.5  # of the symbols of a dictionary: rare characters, of which some have many, are in no model
MOST_FOREIGN = 0.02  # of them: signs of languages and the like, that somebody has added
_ADDED = re.compile(r"<.*>|madeupword\d+")  # symbols that are no pieces


class Encoder(Protocol):
    """Text to pieces."""

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The pieces of every line, separated by single spaces; "" for a line that has none."""


def read_sentencepiece(model: Path) -> Any:
    """A ``SentencePieceProcessor`` of a model.

    Raises:
        PreparationError: if the file is not one.
    """
    import sentencepiece

    found = sentencepiece.SentencePieceProcessor()
    try:
        # By its content: SentencePiece opens no file whose name the system's encoding cannot express.
        found.LoadFromSerializedProto(model.read_bytes())
    except (RuntimeError, OSError) as error:
        raise PreparationError(f"{model} is not a SentencePiece model: {one_line(error)}") from error
    return found


class SentencePieceEncoder:
    """The pieces of a SentencePiece model.

    Args:
        model: its file.
    """

    def __init__(self, model: Path) -> None:
        self._model = read_sentencepiece(model)
        self.pieces: list[str] = [self._model.id_to_piece(number) for number in range(len(self._model))]
        for piece in self.pieces:
            if piece.split() != [piece]:
                raise PreparationError(
                    f"{model} has the piece {piece!r}, and fairseq separates pieces at white space: "
                    "train the model with the nmt_nfkc normalisation"
                )

    def scores(self) -> list[tuple[str, float]]:
        """Every piece and its score, as the trainer lists them in a ``.vocab``."""
        return [(piece, self._model.get_score(number)) for number, piece in enumerate(self.pieces)]

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The pieces of every line; characters that the model does not know stay as they are.

        A word that is written ``<unk>``, as in WikiText, stays one symbol: fairseq's own.
        """
        if any(UNKNOWN_WORD.search(line) for line in lines):
            parts = [UNKNOWN_WORD.split(line) for line in lines]
            pieces = iter(self._encode([part for line in parts for part in line]))
            return [" ".join(" <unk> ".join(next(pieces) for _ in line).split()) for line in parts]
        return self._encode(lines)

    def _encode(self, lines: Sequence[str]) -> list[str]:
        encoded = self._model.encode(list(lines), out_type=str, num_threads=1)
        # Unknown characters may be white space of another kind, at which fairseq would separate pieces or end a line.
        return [" ".join(" ".join(pieces).split()) for pieces in encoded]


class Gpt2Encoder:
    """The byte pairs of GPT-2 by fairseq's own class; a piece is the number that encoder.json gives it.

    Args:
        encoder_json: byte pairs and their numbers.
        vocab_bpe: the merges.
    """

    def __init__(self, encoder_json: Path, vocab_bpe: Path) -> None:
        with quiet_import():
            from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
        try:
            self._gpt2 = GPT2BPE(GPT2BPEConfig(gpt2_encoder_json=str(encoder_json), gpt2_vocab_bpe=str(vocab_bpe)))
        except (ValueError, AttributeError, TypeError) as error:
            raise PreparationError(f"{encoder_json} and {vocab_bpe} are not GPT-2's: {one_line(error)}") from error
        self._names = f"{encoder_json} does not belong to {vocab_bpe}"

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The numbers of the byte pairs of every line."""
        if len(self._gpt2.bpe.cache) > 1_000_000:  # it remembers every word, which many gigabytes of text are full of
            self._gpt2.bpe.cache.clear()
        try:
            return [self._gpt2.encode(line) for line in lines]
        except KeyError as error:
            raise PreparationError(f"{self._names}: it has no number for {error}") from error


@dataclass(frozen=True)
class Pieces:
    """Where the files of an encoder lie.

    Args:
        files: their names in a prepared folder, and where they are now.
    """

    files: dict[str, Path]

    @classmethod
    def of_sentencepiece(cls, model: Path) -> "Pieces":
        """A SentencePiece model."""
        return cls({SENTENCEPIECE: need_file(model)})

    @classmethod
    def of_gpt2(cls, encoder_json: Path, vocab_bpe: Path) -> "Pieces":
        """GPT-2's byte pairs."""
        return cls({ENCODER_JSON: need_file(encoder_json), VOCAB_BPE: need_file(vocab_bpe)})

    @classmethod
    def of_folder(cls, folder: Path) -> "Pieces":
        """What a folder of luna-fairseq prepare corpus, or of a published model, holds beside dict.txt."""
        hint = "name a folder of luna-fairseq prepare corpus, or one with dict.txt and the files of the pieces"
        if not folder.is_dir():
            raise PreparationError(f"the folder {folder} does not exist: {hint}")
        if not (folder / DICTIONARY).is_file():
            raise PreparationError(f"{folder} has no {DICTIONARY}: {hint}")
        found = [pieces for kind in KINDS if (pieces := cls.in_folder(folder, kind))]
        if len(found) > 1:
            one, other = (next(iter(pieces.files.values())).name for pieces in found)
            raise PreparationError(f"{folder} has both {one} and {other}: leave one of them there")
        if not found and any((folder / name).exists() for name in (ENCODER_JSON, VOCAB_BPE)):
            return cls.of_gpt2(folder / ENCODER_JSON, folder / VOCAB_BPE)  # says which is missing
        if not found:
            raise PreparationError(f"{folder} has neither {SENTENCEPIECE} nor {ENCODER_JSON} and {VOCAB_BPE}: {hint}")
        return found[0]

    @classmethod
    def in_folder(cls, folder: Path, kind: str) -> "Pieces | None":
        """What lies in a folder, of a kind (:data:`KINDS`), under any name that it may have."""
        if kind == "sentencepiece":
            model = next((folder / name for name in SENTENCEPIECE_NAMES if (folder / name).is_file()), None)
            return None if model is None else cls.of_sentencepiece(model)
        gpt2 = [folder / name for name in (ENCODER_JSON, VOCAB_BPE)]
        return cls.of_gpt2(*gpt2) if all(path.is_file() for path in gpt2) else None

    @classmethod
    def of_model(cls, folder: Path, *others: Path, kinds: Sequence[str] = KINDS) -> "Pieces | None":
        """The pieces that a model's text was cut into, found by its dictionaries.

        What lies beside these is taken. Two folders higher, where ``prepare corpus`` leaves it, and elsewhere
        may lie somebody else's: they are taken if they fit a dictionary (:meth:`fits`).

        Args:
            folder: of the dictionaries (of ``input0`` and the like: the one above).
            others: where else to look.
            kinds: of :data:`KINDS`.
        """
        folder = folder.absolute()
        dictionaries = [*folder.glob(DICTIONARY), *folder.glob("dict.*.txt"), *folder.glob(f"input0/{DICTIONARY}")]
        for place in (folder, *folder.parents[:2], *others):
            for kind in kinds:
                found = cls.in_folder(place, kind)
                if found and (place == folder or any(map(found.fits, dictionaries))):
                    return found
        return None

    def fits(self, dictionary: Path) -> bool:
        """Whether a dictionary is of these pieces; False if a file cannot be read.

        Most of its symbols are pieces, and the others have a character that is none. A model cuts what consists of
        known characters into pieces; symbols of that kind are those of another model, which in the same language
        shares most of them.
        """
        try:
            symbols = {symbol for symbol in read_dictionary(dictionary) if not _ADDED.fullmatch(symbol)}
            pieces = self._names()
        except (PreparationError, OSError, ValueError, AttributeError):
            return False
        characters = {piece for piece in pieces if len(piece) == 1}
        foreign = sum(characters.issuperset(symbol) for symbol in symbols - pieces)
        return len(symbols & pieces) > ENOUGH_KNOWN * len(symbols) and foreign <= MOST_FOREIGN * len(symbols)

    def _names(self) -> set[str]:
        """All pieces, as they stand in a dictionary."""
        if SENTENCEPIECE in self.files:
            model = read_sentencepiece(self.files[SENTENCEPIECE])
            return {model.id_to_piece(number) for number in range(len(model))}
        return {str(number) for number in json.loads(self.files[ENCODER_JSON].read_text(encoding="utf-8")).values()}

    def load(self) -> Encoder:
        """Read the files."""
        if SENTENCEPIECE in self.files:
            return SentencePieceEncoder(self.files[SENTENCEPIECE])
        return Gpt2Encoder(self.files[ENCODER_JSON], self.files[VOCAB_BPE])


@contextmanager
def quiet_import() -> Iterator[None]:
    """Import fairseq without the line in which it asks for an optional package; the root logger stays as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)
        root.handlers[:] = handlers


def read_dictionary(path: Path) -> set[str]:
    """The symbols of a fairseq dictionary, without those that fairseq adds."""
    symbols: set[str] = set()
    try:
        with open(need_file(path), encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                symbol, _, count = line.rstrip().removesuffix(" #fairseq:overwrite").rpartition(" ")
                if not symbol or not count.isdigit():
                    raise PreparationError(
                        f"{path}, line {number}: {line.rstrip()[:40]!r} is not a symbol and its count: "
                        "name a dict.txt of fairseq"
                    )
                if symbol in SPECIAL_SYMBOLS or symbol in symbols:
                    raise PreparationError(f"{path}, line {number}: fairseq has {symbol!r} already: remove the line")
                symbols.add(symbol)
    except UnicodeDecodeError as error:
        raise PreparationError(f"{path} is not UTF-8: name a dict.txt of fairseq") from error
    return symbols


def wrong_dictionary(path: Path) -> str:
    """The reason for which ``check_known`` refuses a dictionary."""
    return f"the dictionary {path} does not belong to these pieces, name the one that was made with them"


def check_known(unknown: int, total: int, split: str, reason: str) -> None:
    """Refuse pieces most of which mean nothing to the model."""
    if unknown > MOST_UNKNOWN * total:
        raise PreparationError(f"{unknown / total:.0%} of the pieces of {split} are <unk>: {reason}")


class Sample:
    """At most ``size`` lines, each line of the text with the same chance."""

    def __init__(self, size: int, seed: int) -> None:
        self.lines: list[str] = []
        self._size, self._random, self._seen = size, random.Random(seed), 0

    def add(self, line: str) -> None:
        """Offer a line."""
        self._seen += 1
        if len(self.lines) < self._size:
            self.lines.append(line)
        elif (place := int(self._random.random() * self._seen)) < self._size:
            self.lines[place] = line


def train_sentencepiece(size: int, **options: Any) -> None:
    """Train SentencePiece.

    Args:
        size: ``--vocab-size``, how many pieces to learn.
        options: of SentencePiece's trainer.

    Raises:
        PreparationError: if the text does not give so many pieces, or needs more.
    """
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(vocab_size=size, **options)
    except RuntimeError as error:
        message = one_line(error)
        if most := re.search(r"value <= (\d+)", message):
            message = f"this text has only {most[1]} pieces, give at most that"
        elif least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
            message = f"the characters of this text alone take {least[1]}, give more than that"
        raise PreparationError(f"--vocab-size {size} does not work: {message}") from error


def learn_sentencepiece(lines: Sequence[str], size: int, exact: bool, **options: Any) -> bytes:
    """Learn byte pairs from lines in memory.

    Args:
        lines: the text.
        size: ``--vocab-size``, how many pieces to learn.
        exact: fewer pieces are an error.
        options: of SentencePiece's trainer.

    Returns:
        the model.
    """
    print(f"learning {size:,} pieces from {len(lines):,} lines")
    model = io.BytesIO()
    train_sentencepiece(
        size,
        sentence_iterator=(UNKNOWN_WORD.sub(" ", line) for line in lines),
        model_writer=model,
        model_type="bpe",
        hard_vocab_limit=exact,
        max_sentence_length=1 << 30,  # longer lines would be left out
        num_threads=1,  # the number is part of the model
        minloglevel=2,
        **options,
    )
    return model.getvalue()
