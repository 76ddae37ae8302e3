"""Parallel sentences joined into parallel documents of some length, to translate long texts.

    luna-fairseq prepare documents --text pieces --length 512 --out documents

Reads FOLDER/{train,valid,test} with the endings of the languages, as luna-fairseq prepare pieces leaves them, and
writes OUT with the same names: to a line as many sentences in a row as fit into LENGTH symbols on either side, with
the end of the line. A sentence that is longer stands alone. FOLDER/test.raw, if it is there, is the text of the test
part, and joined alike, to be scored against.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from luna_fairseq.console import help_parser, positive, run
from luna_fairseq.data.files import alone_in, copy_file, need_file
from luna_fairseq.data.joint_pieces import SPLITS
from luna_fairseq.data.parallel import Pair, both_files, read_pairs, write_pairs
from luna_fairseq.data.settings import take
from luna_fairseq.errors import PreparationError

MODEL = "spm.model"


def documents(pairs: Iterable[Pair], length: int) -> Iterator[range]:
    """The numbers of the sentences of each document.

    Args:
        pairs: sentences in pieces.
        length: how many symbols a document has at most on each side, with its end.
    """
    begin, sizes = 0, [1, 1]
    number = -1
    for number, pair in enumerate(pairs):
        more = [len(side.split()) for side in pair]
        grown = [size + added for size, added in zip(sizes, more, strict=True)]
        if number > begin and max(grown) > length:
            yield range(begin, number)
            begin, grown = number, [1 + added for added in more]
        sizes = grown
    if number >= 0:
        yield range(begin, number + 1)


def joined(pairs: Iterator[Pair], parts: Sequence[range]) -> Iterator[Pair]:
    """The pairs of each document, with a space between its sentences."""
    for part in parts:
        own = [next(pairs) for _ in part]
        left, right = (" ".join(side.strip() for side in sides) for sides in zip(*own, strict=True))
        yield left, right


def prepare(args: argparse.Namespace) -> None:
    """Write the documents, and say how many there are."""
    languages = (args.source_lang, args.target_lang)
    for split in SPLITS:
        for path in both_files(args.text / split, languages):
            need_file(path)
    if args.text.resolve() == args.out.resolve():
        raise PreparationError(f"--out {args.out} is the folder of the text: name another one")
    with alone_in(args.out.resolve()):
        take(args.out, {"script": "luna-fairseq prepare documents"})
        for split in SPLITS:
            parts = list(documents(read_pairs(args.text / split, languages), args.length))
            sentences = parts[-1].stop if parts else 0
            write_pairs(args.out / split, languages, joined(read_pairs(args.text / split, languages), parts))
            if split == "test":
                _join_raw(args, languages, parts, sentences)
            print(f"{split}: {sentences:,} sentences in {len(parts):,} documents")
        if (args.text / MODEL).is_file():
            copy_file(args.text / MODEL, args.out / MODEL)


def _join_raw(args: argparse.Namespace, languages: Pair, parts: Sequence[range], sentences: int) -> None:
    """The text of the test part, joined like its pieces; without one an earlier run's is taken away."""
    if not all(path.exists() for path in both_files(args.text / "test.raw", languages)):
        for path in both_files(args.out / "test.raw", languages):
            path.unlink(missing_ok=True)
        return
    raw = list(read_pairs(args.text / "test.raw", languages))
    if len(raw) != sentences:
        raise PreparationError(
            f"{args.text / 'test.raw'} has {len(raw):,} lines and {args.text / 'test'} {sentences:,}: give one "
            "line for each, or take test.raw away"
        )
    write_pairs(args.out / "test.raw", languages, joined(iter(raw), parts))


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, __doc__)
    parser.add_argument("--text", type=Path, required=True, metavar="FOLDER", help="of luna-fairseq prepare pieces")
    parser.add_argument("-s", "--source-lang", default="en", help="of the text, and the ending of its files")
    parser.add_argument("-t", "--target-lang", default="de", help="likewise")
    parser.add_argument("--length", type=positive, required=True, metavar="N", help="symbols of a document, at most")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(arguments)
    return run(prog, lambda: prepare(args))
