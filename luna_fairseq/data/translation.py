"""Parallel text to a data folder for fairseq's ``translation``: cleaned, tokenised, in pieces, binarised.

    luna-fairseq prepare translation --train raw/europarl raw/newscommentary --valid raw/valid --test raw/test
        --out OUT

A name stands for two files, such as raw/europarl.en and raw/europarl.de. Two recipes:

    --recipe sentencepiece    joint SentencePiece byte pairs on the plain text (--vocab-size)
    --recipe moses            as published: Moses tokenisation by sacremoses, joint merges by subword-nmt (--merges)

Training pairs that are empty, repeated, or whose source is in the held-out sets are left out, then those of more than
--max-length pieces or whose sides differ by more than --max-ratio; the counts are printed. OUT/data-bin is the data
folder; OUT also keeps the files of the pieces and the text in pieces (OUT/text). It can be interrupted and run again:
finished steps are not done again.
"""

import argparse
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import regex

from luna_fairseq.console import help_parser, positive, progress, run
from luna_fairseq.data.binarise import binarise
from luna_fairseq.data.files import CONTENT, alone_in, count_lines, fingerprint, need_file, write_json
from luna_fairseq.data.parallel import Pair, batched, both_files, read_pairs, write_pairs
from luna_fairseq.data.recipes import RECIPES, Recipe, lines_of
from luna_fairseq.data.settings import SETTINGS, SMOKE, begun
from luna_fairseq.data.workers import in_order
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_folder

BLOCK_LINES = 2000
SMOKE_LINES = 2000
# Control, format and unassigned characters, as Moses' remove-non-printing-char has them.
UNPRINTABLE = regex.compile(r"\p{C}+")

_recipe: Recipe  # workers are forked, and so have it too


def tidy(line: str) -> str:
    """A line without unprintable characters and repeated spaces."""
    return " ".join(UNPRINTABLE.sub(" ", line).split())


def tokenise_pairs(pairs: Sequence[Pair]) -> list[tuple[str, str, str]]:
    """The tidy source, by which pairs are compared, and both sides tokenised; "" for a side without text."""
    tidied = [(tidy(source), tidy(target)) for source, target in pairs]
    return [(a, _recipe.tokenise(0, a) if a else "", _recipe.tokenise(1, b) if b else "") for a, b in tidied]


def encode_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Both sides in pieces."""
    sides = [_recipe.encode(side) for side in zip(*pairs, strict=True)]
    return list(zip(*sides, strict=True))


class Preparation:
    """One OUT folder.

    Args:
        args: the options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.languages: Pair = (args.source_lang, args.target_lang)
        self.out = (args.out / SMOKE if args.smoke else args.out).resolve()
        self.texts: dict[str, list[Path]] = {"valid": [args.valid], "test": [args.test], "train": args.train}
        self.limit = SMOKE_LINES if args.smoke else None

    def __call__(self) -> None:
        """Do what is not done yet."""
        with alone_in(self.args.out.resolve()):
            self.prepare()

    def prepare(self) -> None:
        """Do what is not done yet, alone in OUT."""
        settings = self.settings()
        begun(self.out, settings)
        global _recipe
        _recipe = RECIPES[self.args.recipe](self.out, self.languages)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / SETTINGS, settings)
        if (self.out / "data-bin").exists():
            print(f"already prepared: {self.out}")
        else:
            self.clean()
            if not _recipe.file.exists():
                _recipe.learn(self.files("clean", "train"), self.args)
            _recipe.load()
            self.encode()
            self.binarise()
            shutil.rmtree(self.out / "clean")
        print(f"data for --task translation: {self.out / 'data-bin'}")

    def settings(self) -> dict[str, Any]:
        """All that decides the result."""
        args = self.args
        keys: tuple[str, ...] = ("recipe", "max_length", "max_ratio", "source_lang", "target_lang")
        keys += ("vocab_size", "vocab_lines") if args.recipe == "sentencepiece" else ("merges",)
        sizes, content = {}, {}
        for prefixes in self.texts.values():
            for path in (path for prefix in prefixes for path in both_files(prefix, self.languages)):
                sizes[path.name] = need_file(path).stat().st_size
                content[path.name] = fingerprint(path)
        if len(sizes) < 2 * sum(map(len, self.texts.values())):
            raise PreparationError("two of --train, --valid and --test have the same name: rename one of the files")
        return {**{key: getattr(args, key) for key in keys}, "bytes": sizes, CONTENT: content}

    def files(self, folder: str, split: str) -> list[Path]:
        """The two files of a split."""
        return both_files(self.out / folder / split, self.languages)

    def write(self, folder: str, split: str, pairs: Iterator[Pair]) -> int:
        """Write both files of a split; returns the number of pairs."""
        return write_pairs(self.out / folder / split, self.languages, pairs)

    def pairs(self, split: str) -> Iterator[Pair]:
        """The text of a split as it was given."""
        for prefix in self.texts[split]:
            yield from read_pairs(prefix, self.languages, self.limit)

    def done(self, folder: str, split: str) -> bool:
        """Whether a split has been written."""
        return all(path.exists() for path in self.files(folder, split))

    def clean(self) -> None:
        """OUT/clean: tokenised text; of the training text what is worth keeping."""
        held_out: set[str] = set()
        for split in ("valid", "test"):
            plain = [(tidy(source), tidy(target)) for source, target in self.pairs(split)]
            if not plain or not all(map(all, plain)):
                raise PreparationError(f"{self.texts[split][0]} has an empty line: remove it from both languages")
            held_out.update(source for source, _ in plain)
            if not self.done("clean", split):
                self.write("clean", split, ((source, target) for _, source, target in tokenise_pairs(plain)))
        if self.done("clean", "train"):
            return
        counts: Counter[str] = Counter()

        def kept() -> Iterator[Pair]:
            seen: set[bytes] = set()
            blocks = ((list(block),) for block in batched(self.pairs("train"), BLOCK_LINES))
            with (
                progress(self.train_lines(), "cleaning", " pairs") as bar,
                closing(in_order(tokenise_pairs, blocks, self.args.workers)) as tokenised,
            ):
                for block in tokenised:
                    for plain, source, target in block:
                        key = hashlib.blake2b(f"{source}\n{target}".encode(), digest_size=8).digest()
                        if not source or not target:
                            counts["empty"] += 1
                        elif plain in held_out:
                            counts["in the held-out sets"] += 1
                        elif key in seen:
                            counts["repeated"] += 1
                        else:
                            seen.add(key)
                            yield source, target
                    bar.update(len(block))

        left = self.write("clean", "train", kept())
        self.report(left, counts, "before pieces")

    def train_lines(self) -> int:
        """How many pairs there are to train on, before cleaning."""
        total = 0
        for prefix in self.texts["train"]:
            count = count_lines(both_files(prefix, self.languages)[0])
            total += count if self.limit is None else min(count, self.limit)
        return total

    def report(self, left: int, counts: Counter[str], when: str) -> None:
        """Say what was left out."""
        out = ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"
        print(f"training pairs {when}: {left:,} kept; left out: {out}")
        if not left:
            raise PreparationError("no training pair is left: give other text, or other --max-length and --max-ratio")

    def encode(self) -> None:
        """OUT/text: the text in pieces; training pairs that are too long or too unequal are left out."""
        for split in self.texts:
            if self.done("text", split):
                continue
            counts: Counter[str] = Counter()
            total = count_lines(self.files("clean", split)[0])

            def kept(split: str, counts: Counter[str], total: int) -> Iterator[Pair]:
                clean = zip(*(lines_of([path]) for path in self.files("clean", split)), strict=True)
                blocks = ((block,) for block in batched(clean, BLOCK_LINES))
                with (
                    progress(total, f"encoding {split}", " pairs") as bar,
                    closing(in_order(encode_pairs, blocks, self.args.workers)) as encoded,
                ):
                    for block in encoded:
                        for pair in block:
                            lengths = [side.count(" ") + 1 for side in pair]
                            if split != "train":
                                yield pair
                            elif max(lengths) > self.args.max_length:
                                counts[f"of more than {self.args.max_length} pieces"] += 1
                            elif max(lengths) > self.args.max_ratio * min(lengths):
                                counts[f"more than {self.args.max_ratio:g} times as long as the other side"] += 1
                            else:
                                yield pair
                        bar.update(len(block))

            left = self.write("text", split, kept(split, counts, total))
            if split == "train":
                self.report(left, counts, "in pieces")

    def binarise(self) -> None:
        """OUT/data-bin by fairseq-preprocess, with one dictionary."""
        print("binarising")
        files = [path for split in self.texts for path in self.files("text", split)]
        with whole_folder(self.out / "data-bin") as temporary:
            options = ["--joined-dictionary", "--source-lang", self.languages[0], "--target-lang", self.languages[1]]
            options += ["--destdir", str(temporary), "--workers", str(self.args.workers)]
            for split in self.texts:
                options += [f"--{split}pref", f"text/{split}"]
            lines = {f"text/{path.name}": count_lines(path) for path in files}
            binarise(options, self.out, lines, self.out / "fairseq-preprocess.log")
        symbols = count_lines(self.out / "data-bin" / f"dict.{self.languages[0]}.txt")
        print(f"  one dictionary of {symbols:,} symbols, and fairseq's own 4")


def main(prog: str, arguments: list[str]) -> int:
    """Prepare OUT; returns the exit code."""
    parser = help_parser(prog, __doc__)
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="PREFIX", help="to train on")
    parser.add_argument("--valid", type=Path, required=True, metavar="PREFIX", help="held out, to validate")
    parser.add_argument("--test", type=Path, required=True, metavar="PREFIX", help="held out, to score")
    parser.add_argument("-s", "--source-lang", default="en", help="of the text, and the ending of its files")
    parser.add_argument("-t", "--target-lang", default="de", help="likewise")
    parser.add_argument("--recipe", choices=RECIPES, default="sentencepiece", help="see above")
    parser.add_argument("--vocab-size", type=positive, default=40600, metavar="N", help="pieces of SentencePiece")
    parser.add_argument("--vocab-lines", type=positive, default=2000000, metavar="N", help="learn them from N lines")
    parser.add_argument("--merges", type=positive, default=40000, metavar="N", help="merges of subword-nmt")
    parser.add_argument("--max-length", type=positive, default=250, metavar="N", help="pieces of a training sentence")
    parser.add_argument("--max-ratio", type=float, default=1.5, help="of the lengths of a training pair, in pieces")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--smoke", action="store_true", help=f"only the first {SMOKE_LINES} lines, to OUT/smoke")
    return run(prog, Preparation(parser.parse_args(arguments)))
