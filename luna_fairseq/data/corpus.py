"""Plain text to data folders for fairseq's ``masked_lm``: pieces, shards, dictionary, binarised files.

    luna-fairseq prepare corpus --train a.txt [b.txt ...] --valid v.txt [--test t.txt] --out OUT --shards 8
        --workers 4 PIECES

PIECES is one of

    --vocab-size 8000                 learn so many SentencePiece pieces from the text
    --sentencepiece-model FILE        take a model that is there
    --pieces FOLDER                   of an earlier OUT or of a published model, with its dictionary: for a checkpoint
                                      that is to go on training on other text
    --gpt2-encoder-json FILE --gpt2-vocab-bpe FILE --gpt2-dict FILE       GPT-2's byte pairs, as RoBERTa has them

A line of text becomes a line of pieces. Blank lines end documents and stay, one between two documents, for
``--sample-break-mode complete_doc``; a document is never split between shards. OUT/data-bin/shard0 and so on are the
data folders; OUT also keeps dict.txt and the files of the pieces, which prepare glue, race and csqa take. It can be
interrupted and run again: finished shards are not done again.
"""

import argparse
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from luna_fairseq.console import help_parser, positive, progress, run
from luna_fairseq.data.binarise import binarise
from luna_fairseq.data.documents import Block, deal, scan
from luna_fairseq.data.files import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    CONTENT,
    alone_in,
    copy_file,
    digest,
    fingerprint,
    need_file,
    read_json,
    read_lines,
    write_json,
)
from luna_fairseq.data.pieces import (
    DICTIONARY,
    SENTENCEPIECE,
    SPECIAL_SYMBOLS,
    Encoder,
    Pieces,
    Sample,
    SentencePieceEncoder,
    check_known,
    learn_sentencepiece,
    read_dictionary,
    wrong_dictionary,
)
from luna_fairseq.data.settings import SETTINGS, SMOKE, begun
from luna_fairseq.data.workers import in_order
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_file, whole_folder

SMOKE_LINES = 2000

_encoder: Encoder  # workers are forked, and so have it too


def encode_block(path: Path, start: int, end: int) -> tuple[str, Counter[str]]:
    """The lines of pieces of a block, never two empty ones in a row, and how often each piece occurs."""
    with open(path, "rb") as source:
        source.seek(start)
        text = source.read(end - start).decode("utf-8")
    if start == 0:
        text = text.removeprefix(BYTE_ORDER_MARK)
    lines = _encoder.encode([line.strip() for line in text.removesuffix("\n").split("\n")])
    kept = [line for line, before in zip(lines, ["(none)", *lines], strict=False) if line or before]
    return "".join(f"{line}\n" for line in kept), Counter(itertools.chain.from_iterable(map(str.split, kept)))


class Preparation:
    """One OUT folder.

    Args:
        args: the options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.texts: dict[str, list[Path]] = {"train": args.train, "valid": [args.valid]}
        if args.test:
            self.texts["test"] = [args.test]
        self.held_out = [split for split in self.texts if split != "train"]
        self.out = (args.out / SMOKE if args.smoke else args.out).resolve()
        self.work = self.out / ".work"
        self.dictionary = self.out / DICTIONARY
        self.given_dictionary: Path | None = args.pieces / DICTIONARY if args.pieces else args.gpt2_dict
        self.settings_file = self.out / SETTINGS
        self.limit = SMOKE_LINES if args.smoke else None

    def __call__(self) -> None:
        """Do what is not done yet."""
        if ":" in str(self.out):
            raise PreparationError(
                f"--out {self.out} has a colon, at which fairseq separates data folders: rename it"
            )
        with alone_in(self.args.out.resolve()):
            self.prepare()

    def prepare(self) -> None:
        """Do what is not done yet, alone in OUT."""
        for path in itertools.chain.from_iterable(self.texts.values()):
            need_file(path)
        settings = self.settings()
        if not begun(self.out, settings):
            self.check_pieces()
        shards = self.shards(self.args.shards)
        if self.settings_file.exists() and self.dictionary.exists() and all(map(self.finished, shards)):
            print(f"already prepared: {self.out}")
        else:
            plan = self.plan(settings)
            shards = self.shards(len(plan["train"]))
            todo = [number for number, shard in enumerate(shards) if not self.finished(shard)]
            if not self.dictionary.exists() and len(todo) < len(shards):
                copy_file(next(filter(self.finished, shards)) / DICTIONARY, self.dictionary)
            self.encode(plan, todo, need_held_out=len(todo) == len(shards))
            self.write_dictionary(len(shards))
            for number in todo:
                self.binarise(number, shards)
            print(f"prepared: {self.out}")
        shutil.rmtree(self.work, ignore_errors=True)
        print(f"data for --task masked_lm or language_modeling: {':'.join(map(str, shards))}")

    def shards(self, count: int) -> list[Path]:
        """The data folders."""
        return [self.out / "data-bin" / f"shard{number}" for number in range(count)]

    def settings(self) -> dict[str, Any]:
        """All that decides the result."""
        args = self.args
        pieces: dict[str, Any]
        if args.vocab_size:
            pieces = {"vocab-size": args.vocab_size, "vocab-lines": args.vocab_lines, "seed": args.seed}
        elif args.pieces:
            files = {**Pieces.of_folder(args.pieces).files, DICTIONARY: args.pieces / DICTIONARY}
            pieces = {name: digest(path) for name, path in files.items()}
        elif args.sentencepiece_model:
            pieces = {"sentencepiece-model": digest(need_file(args.sentencepiece_model))}
        else:
            files = {
                "gpt2-encoder-json": args.gpt2_encoder_json,
                "gpt2-vocab-bpe": args.gpt2_vocab_bpe,
                "gpt2-dict": args.gpt2_dict,
            }
            pieces = {name: digest(need_file(path)) for name, path in files.items()}
        inputs = {split: [[path.name, path.stat().st_size] for path in files] for split, files in self.texts.items()}
        content = {split: [fingerprint(path) for path in files] for split, files in self.texts.items()}
        # The first name is that of the script which this was: what it has prepared is still known.
        known = {"script": "prepare_corpus.py", "smoke": args.smoke, "shards": args.shards}
        return {**known, **pieces, **inputs, CONTENT: content}

    def given_pieces(self) -> Pieces | None:
        """The pieces that the options name."""
        if self.args.vocab_size:
            return None
        if self.args.pieces:
            return Pieces.of_folder(self.args.pieces)
        if self.args.sentencepiece_model:
            return Pieces.of_sentencepiece(self.args.sentencepiece_model)
        return Pieces.of_gpt2(self.args.gpt2_encoder_json, self.args.gpt2_vocab_bpe)

    def check_pieces(self) -> None:
        """Before hours of work: pieces that do not fit the text or the dictionary are refused."""
        if (pieces := self.given_pieces()) is None:
            return
        encoder = pieces.load()
        lines = [text.strip() for _, text in itertools.islice(read_lines(self.args.train[0]), 1000)]
        encoded = [piece for line in encoder.encode(lines) for piece in line.split()]
        if self.given_dictionary:
            known, reason = read_dictionary(self.given_dictionary), wrong_dictionary(self.given_dictionary)
        else:
            assert isinstance(encoder, SentencePieceEncoder)
            known, model = set(encoder.pieces), self.args.sentencepiece_model
            reason = f"the SentencePiece model {model} was not made for this text, name another one"
        check_known(sum(piece not in known for piece in encoded), len(encoded), "train", reason)

    # Text ---------------------------------------------------------------------------------------------
    def plan(self, settings: dict[str, Any]) -> dict[str, list[list[Block]]]:
        """Which blocks of text each shard gets; the pieces are learned from the same reading of the text.

        The settings are written as soon as nothing in them can be refused any more.
        """
        begun = self.settings_file.exists()
        learn = bool(self.args.vocab_size) and not (begun and (self.out / SENTENCEPIECE).exists())
        path = self.work / "plan.json"
        if begun and path.exists() and not learn:
            plan = read_json(path)
            self.report_unbroken([Path(name) for name in plan.pop("unbroken")])
        else:
            sample = Sample(self.args.vocab_lines, self.args.seed) if learn else None
            train, unbroken = self.scan_train(sample)
            self.report_unbroken(unbroken)
            plan = {"train": train}
            for split in self.held_out:
                found = scan(self.texts[split], BLOCK_BYTES, BLOCK_BYTES, self.limit, None)
                plan[split] = deal(found.units, 1)
            model = (
                learn_sentencepiece(sample.lines, self.args.vocab_size, exact=not self.args.smoke) if sample else None
            )
            write_json(self.settings_file, settings)
            if model:
                with whole_file(self.out / SENTENCEPIECE) as temporary:
                    temporary.write_bytes(model)
            write_json(path, {**plan, "unbroken": [str(path) for path in unbroken]})
        if given := self.given_pieces():
            for name, file in given.files.items():
                if not (self.out / name).exists():
                    copy_file(file, self.out / name)
        return {split: [[Block(*block) for block in shard] for shard in plan[split]] for split in plan}

    def scan_train(self, sample: Sample | None) -> tuple[list[list[Block]], list[Path]]:
        """The blocks of every shard, and the files that have no documents."""
        files, shards = self.args.train, self.args.shards
        share = sum(path.stat().st_size for path in files) // shards
        unit_bytes = min(BLOCK_BYTES, max(1, share // 50))
        found = scan(files, unit_bytes, 4 * unit_bytes, self.limit, sample)
        if len(found.units) < shards:
            found = scan(files, 1, 4 * unit_bytes, self.limit, None)
        if len(found.units) < shards:
            if not self.args.smoke:
                raise PreparationError(
                    f"--shards {shards} is too much for the {found.documents} documents of the training text: "
                    f"give at most {len(found.units)}"
                )
            shards = len(found.units)
            print(f"so little text fills only {shards} of {self.args.shards} shards")
        return deal(found.units, shards), found.unbroken

    def report_unbroken(self, files: Sequence[Path]) -> None:
        """Say that lines are not documents, or refuse it."""
        for path in files:
            if self.args.require_documents:
                raise PreparationError(
                    f"{path} has no blank lines between documents: add them, or leave out --require-documents"
                )
            print(f"{path} has no blank lines between documents: it is split between shards at lines")

    # Pieces -------------------------------------------------------------------------------------------
    def encode(self, plan: dict[str, list[list[Block]]], shards: Sequence[int], need_held_out: bool) -> None:
        """Write the pieces of every shard that is not binarised yet, and of valid and test."""
        tasks = [(f"shard{number}", "train", plan["train"][number]) for number in shards]
        if need_held_out:
            tasks += [(split, split, plan[split][0]) for split in self.held_out]
        tasks = [task for task in tasks if not self.encoded(task[0])]
        if not tasks:
            return
        given = self.given_pieces()
        pieces = Pieces({name: self.out / name for name in (given.files if given else [SENTENCEPIECE])})
        global _encoder
        _encoder = pieces.load()
        total = sum(block.end - block.start for _, _, blocks in tasks for block in blocks)
        with progress(total, "encoding", "B") as bar:
            for name, split, blocks in tasks:
                self.encode_text(name, self.texts[split], blocks, bar)

    def encoded(self, name: str) -> bool:
        """Whether the pieces of a text are there, whole."""
        return (self.work / name).exists() and (self.work / f"{name}.json").exists()

    def encode_text(self, name: str, files: Sequence[Path], blocks: Sequence[Block], bar: Any) -> None:
        """Write one text of pieces, then a JSON file with its counts, which says that the text is whole."""
        counts: Counter[str] = Counter()
        lines, gap, file = 0, False, -1
        tasks = ((files[block.file], block.start, block.end) for block in blocks)
        with (
            whole_file(self.work / name) as temporary,
            open(temporary, "w", encoding="utf-8") as target,
            closing(in_order(encode_block, tasks, self.args.workers)) as encoded,
        ):
            for block, (text, found) in zip(blocks, encoded, strict=True):
                gap = gap or block.new_document or block.file != file or text.startswith("\n")
                if kept := text.strip("\n"):
                    if gap and lines:
                        target.write("\n")
                        lines += 1
                    target.write(f"{kept}\n")
                    lines += kept.count("\n") + 1
                    gap = text.endswith("\n\n")
                file = block.file
                counts.update(found)
                bar.update(block.end - block.start)
        if not lines:
            raise PreparationError(f"the text for {name} has no pieces: give another model, or other text")
        # A dictionary that is given is not counted.
        write_json(self.work / f"{name}.json", {"lines": lines, "counts": {} if self.given_dictionary else counts})

    def write_dictionary(self, shards: int) -> None:
        """Write OUT/dict.txt: the given one as it is, or every piece with its count in the training text."""
        if self.dictionary.exists():
            return
        if self.given_dictionary:
            copy_file(self.given_dictionary, self.dictionary)
            return
        counts: Counter[str] = Counter()
        for number in range(shards):
            counts.update(read_json(self.work / f"shard{number}.json")["counts"])
        pieces = [
            piece for piece in SentencePieceEncoder(self.out / SENTENCEPIECE).pieces if piece not in SPECIAL_SYMBOLS
        ]
        pieces.sort(key=lambda piece: -counts[piece])
        with whole_file(self.dictionary) as temporary:
            temporary.write_text("".join(f"{piece} {counts[piece]}\n" for piece in pieces), encoding="utf-8")

    # Binarised files ----------------------------------------------------------------------------------
    def names(self, *splits: str) -> list[str]:
        """The files of splits in a data folder."""
        return [f"{split}.{ending}" for split in splits for ending in ("bin", "idx")]

    def finished(self, shard: Path) -> bool:
        """Whether a data folder has all of its files."""
        return all((shard / name).is_file() for name in [DICTIONARY, *self.names(*self.texts)])

    def binarise(self, number: int, shards: Sequence[Path]) -> None:
        """Make one data folder; valid and test are the same files in all of them."""
        shard = shards[number]
        other = next((other for other in shards if self.finished(other)), None)
        print(f"binarising {shard.name}")
        if shard.exists():
            shutil.rmtree(shard)
        with whole_folder(shard) as temporary:
            prefixes = {"train": f"shard{number}"}
            if other is None:
                prefixes.update((split, split) for split in self.held_out)
            self.preprocess(temporary, prefixes)
            if other is not None:
                for name in self.names(*self.held_out):
                    try:
                        os.link(other / name, temporary / name)
                    except OSError:  # not every file system has links
                        shutil.copyfile(other / name, temporary / name)
            shutil.copyfile(self.dictionary, temporary / DICTIONARY)
        (self.work / f"shard{number}").unlink()

    def preprocess(self, folder: Path, prefixes: dict[str, str]) -> None:
        """Run fairseq-preprocess on the pieces."""
        options = ["--only-source", "--destdir", str(folder), "--srcdict", str(self.dictionary)]
        options += ["--workers", str(self.args.workers)]
        for split, name in prefixes.items():
            options += [f"--{split}pref", name]
        lines = {name: read_json(self.work / f"{name}.json")["lines"] for name in prefixes.values()}
        binarise(options, self.work, lines, self.out / "fairseq-preprocess.log")


def main(prog: str, arguments: list[str]) -> int:
    """Prepare OUT; returns the exit code."""
    parser = help_parser(prog, __doc__)
    text = parser.add_argument_group("text")
    text.add_argument("--train", type=Path, nargs="+", required=True, metavar="FILE", help="to train on")
    text.add_argument("--valid", type=Path, required=True, metavar="FILE", help="held out, to validate")
    text.add_argument("--test", type=Path, metavar="FILE", help="held out, for later")
    text.add_argument("--require-documents", action="store_true", help="refuse training text without blank lines")
    one_of = "one of --vocab-size, --sentencepiece-model, --pieces, and the three of GPT-2"
    pieces = parser.add_argument_group(f"pieces: {one_of}")
    pieces.add_argument("--vocab-size", type=positive, metavar="N", help="learn N pieces by SentencePiece")
    pieces.add_argument("--vocab-lines", type=positive, default=500000, metavar="N", help="from at most N lines")
    pieces.add_argument("--seed", type=int, default=1, help="decides which lines")
    pieces.add_argument("--sentencepiece-model", type=Path, metavar="FILE", help="a model that is there")
    pieces.add_argument("--pieces", type=Path, metavar="FOLDER", help="an earlier OUT, or a published model's folder")
    pieces.add_argument("--gpt2-encoder-json", type=Path, metavar="FILE", help="GPT-2's encoder.json")
    pieces.add_argument("--gpt2-vocab-bpe", type=Path, metavar="FILE", help="GPT-2's vocab.bpe")
    pieces.add_argument("--gpt2-dict", type=Path, metavar="FILE", help="the published dict.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--shards", type=positive, default=1, metavar="N", help="data folders; one is one epoch")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--smoke", action="store_true", help=f"only the first {SMOKE_LINES} lines, to OUT/smoke")
    args = parser.parse_args(arguments)
    gpt2 = [args.gpt2_encoder_json, args.gpt2_vocab_bpe, args.gpt2_dict]
    if any(gpt2) and not all(gpt2):
        parser.error("--gpt2-encoder-json, --gpt2-vocab-bpe and --gpt2-dict belong together: give all three")
    if sum(map(bool, (args.vocab_size, args.sentencepiece_model, args.pieces, args.gpt2_dict))) != 1:
        parser.error(f"give {one_of}")
    return run(prog, Preparation(args))
