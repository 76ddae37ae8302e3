"""Parallel text as it is, in the pieces of a SentencePiece model that is learned from both languages.

    luna-fairseq prepare pieces --train text/train --valid text/valid --test text/test --vocab-size 4000 --out pieces

A name stands for two files, such as text/train.en and text/train.de. The model is learned from the training text, by
byte pairs that cover every character. OUT/{train,valid,test} with the endings of the languages are the text in
pieces, for fairseq-preprocess. Everything is made anew each time. Nothing is cleaned: prepare translation does that.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from luna_fairseq.console import help_parser, positive, run
from luna_fairseq.data.files import alone_in, need_file, read_lines
from luna_fairseq.data.parallel import Pair, batched, both_files, read_pairs, write_pairs
from luna_fairseq.data.pieces import SentencePieceEncoder, train_sentencepiece
from luna_fairseq.data.settings import SETTINGS, read_settings, take
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_file

SPLITS = ("train", "valid", "test")
BLOCK_LINES = 2000


def learn(prefix: Path, languages: Pair, size: int, model: Path, verbose: bool) -> None:
    """Write ``model``.model and ``model``.vocab.

    Args:
        prefix: of the two files of text.
        languages: their endings.
        size: how many pieces to learn.
        model: the name without its ending.
        verbose: let SentencePiece tell what it does, on stderr.
    """
    learned = io.BytesIO()
    train_sentencepiece(
        size,
        # SentencePiece itself opens no file whose name the system's encoding cannot express.
        sentence_iterator=(
            text.rstrip("\n") for path in both_files(prefix, languages) for _, text in read_lines(path)
        ),
        model_writer=learned,
        model_type="bpe",
        character_coverage=1.0,
        minloglevel=0 if verbose else 2,
    )
    with whole_file(Path(f"{model}.model")) as temporary:
        temporary.write_bytes(learned.getvalue())
    pieces = SentencePieceEncoder(Path(f"{model}.model")).scores()
    with whole_file(Path(f"{model}.vocab")) as temporary:
        temporary.write_text("".join(f"{piece}\t{score:g}\n" for piece, score in pieces), encoding="utf-8")


def encoded(encoder: SentencePieceEncoder, pairs: Iterator[Pair]) -> Iterator[Pair]:
    """Both sides of every pair in pieces."""
    for block in batched(pairs, BLOCK_LINES):
        sides = [encoder.encode([line.strip() for line in side]) for side in zip(*block, strict=True)]
        yield from zip(*sides, strict=True)


def prepare(args: argparse.Namespace) -> None:
    """Learn the pieces and apply them to every split."""
    languages = (args.source_lang, args.target_lang)
    prefixes: dict[str, Path] = {split: getattr(args, split) for split in SPLITS}
    for prefix in prefixes.values():
        for path in both_files(prefix, languages):
            if need_file(path).resolve().parent == args.out.resolve():
                raise PreparationError(f"--out {args.out} is the folder of the text {path}: name another one")
    model = args.model_prefix or args.out / "spm"
    with alone_in(args.out.resolve()):
        _take(args.out, model)
        print(f"learning {args.vocab_size:,} joint pieces and encoding")
        if args.keep_text:
            limits = args.lines or [None] * len(SPLITS)
            for (split, prefix), limit in zip(prefixes.items(), limits, strict=True):
                prefixes[split] = args.out / f"{split}.raw"
                pairs = read_pairs(prefix, languages, limit)
                write_pairs(
                    prefixes[split], languages, ((source.strip(), target.strip()) for source, target in pairs)
                )
        learn(prefixes["train"], languages, args.vocab_size, model, args.verbose)
        encoder = SentencePieceEncoder(Path(f"{model}.model"))
        for split, prefix in prefixes.items():
            write_pairs(args.out / split, languages, encoded(encoder, read_pairs(prefix, languages)))


def _take(out: Path, model: Path) -> None:
    """Take OUT, and the name of the model: an earlier model is replaced if it was made together with this OUT."""
    settings = {"script": "luna-fairseq prepare pieces", "model": str(model.resolve())}
    before = read_settings(out / SETTINGS) if (out / SETTINGS).is_file() else {}
    if model.resolve().parent != out.resolve() and before != settings:
        for path in (Path(f"{model}.model"), Path(f"{model}.vocab")):
            if path.exists() or path.is_symlink():
                raise PreparationError(f"{path} was not made with {out}: name another --model-prefix")
    take(out, settings)


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, __doc__)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, required=True, metavar="PREFIX", help="two files of text")
    parser.add_argument("-s", "--source-lang", default="en", help="of the text, and the ending of its files")
    parser.add_argument("-t", "--target-lang", default="de", help="likewise")
    parser.add_argument("--vocab-size", type=positive, required=True, metavar="N", help="pieces to learn")
    parser.add_argument("--model-prefix", type=Path, metavar="PREFIX", help="of .model and .vocab; default: OUT/spm")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--keep-text", action="store_true", help="write the text, too: OUT/SPLIT.raw.LANGUAGE")
    parser.add_argument(
        "--lines", type=positive, nargs=3, metavar="N",
        help="take only the first N lines of train, of valid and of test; needs --keep-text",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="show what SentencePiece reports")
    args = parser.parse_args(arguments)
    if args.lines and not args.keep_text:
        parser.error("--lines needs --keep-text, to learn from the lines that are kept")
    return run(prog, lambda: prepare(args))
