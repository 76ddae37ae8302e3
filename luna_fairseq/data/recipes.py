"""How parallel text becomes pieces: SentencePiece on plain text, or Moses tokenisation and merges, as published."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from luna_fairseq.data.parallel import Pair, lines_of
from luna_fairseq.data.pieces import SENTENCEPIECE, Sample, SentencePieceEncoder, learn_sentencepiece, quiet_import
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_file

CODES = "codes"


class Recipe(Protocol):
    """How text becomes pieces.

    Attributes:
        file: what is learned, in OUT.
    """

    file: Path

    def tokenise(self, side: int, line: str) -> str:
        """A line of the source (0) or of the target (1) before it is cut into pieces."""

    def learn(self, text: Sequence[Path], args: argparse.Namespace) -> None:
        """Learn the pieces from tokenised text, and write their file to OUT."""

    def load(self) -> None:
        """Read the file of the pieces."""

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The pieces of tokenised lines."""


class SentencePiece:
    """Joint byte pairs on the plain text.

    Args:
        out: where the model is.
        _: the languages; SentencePiece does not care.
    """

    def __init__(self, out: Path, _: Pair) -> None:
        self.file = out / SENTENCEPIECE

    def tokenise(self, _: int, line: str) -> str:
        """The line as it is."""
        return line

    def learn(self, text: Sequence[Path], args: argparse.Namespace) -> None:
        """Learn from a sample: SentencePiece keeps all of it in memory."""
        sample = Sample(args.vocab_lines, seed=1)
        for line in lines_of(text):
            sample.add(line)
        # All but one in 20,000 characters: text from the web has some of every script.
        model = learn_sentencepiece(sample.lines, args.vocab_size, exact=not args.smoke, character_coverage=0.99995)
        with whole_file(self.file) as temporary:
            temporary.write_bytes(model)

    def load(self) -> None:
        """Read the model."""
        self._encoder = SentencePieceEncoder(self.file)

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The pieces of every line."""
        return self._encoder.encode(lines)


class Moses:
    """Moses tokenisation and subword-nmt, by the classes with which fairseq-generate undoes them.

    Args:
        out: where the merges are.
        languages: of the source and of the target.
    """

    def __init__(self, out: Path, languages: Pair) -> None:
        try:
            import subword_nmt.apply_bpe  # noqa: F401
            from sacremoses import MosesPunctNormalizer
        except ImportError as error:
            raise PreparationError(
                f"--recipe moses needs {error.name}: pip install sacremoses subword-nmt"
            ) from error
        with quiet_import():
            from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
        self.file = out / CODES
        self._sides = [
            (
                MosesPunctNormalizer(language, perl_parity=True),
                MosesTokenizer(MosesTokenizerConfig(source_lang=language, target_lang=language)),
            )
            for language in languages
        ]

    def tokenise(self, side: int, line: str) -> str:
        """Punctuation normalised, words and punctuation apart."""
        normaliser, tokeniser = self._sides[side]
        return tokeniser.encode(normaliser.normalize(line))

    def learn(self, text: Sequence[Path], args: argparse.Namespace) -> None:
        """Learn the merges from all of the text."""
        from subword_nmt.learn_bpe import learn_bpe

        print(f"learning {args.merges:,} merges")
        with whole_file(self.file) as temporary, open(temporary, "w", encoding="utf-8") as target:
            learn_bpe(lines_of(text), target, args.merges)

    def load(self) -> None:
        """Read the merges."""
        with quiet_import():
            from fairseq.data.encoders.subword_nmt_bpe import SubwordNMTBPE, SubwordNMTBPEConfig
        self._bpe = SubwordNMTBPE(SubwordNMTBPEConfig(bpe_codes=str(self.file)))

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The pieces of every line."""
        return [self._bpe.encode(line) for line in lines]


RECIPES: dict[str, Callable[[Path, Pair], Recipe]] = {"sentencepiece": SentencePiece, "moses": Moses}
