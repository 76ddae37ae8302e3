"""Training text whose translations are a model's own, for sequence-level distillation (Kim and Rush 2016).

    luna-fairseq prepare distilled --text pieces/train --translations generate.log --out distilled

Reads what fairseq-generate has printed of the training text (--gen-subset train, without --bpe and --post-process, so
that pieces stay pieces), in one file or in several of --num-shards. OUT/train holds the sentences and the best
translation of each, in the order of the training text. Left out are sentences that were not translated (too long for
the model), empty translations, those whose length is out of proportion to the reference, and those that go round in
circles: beam search ends so where a model knows nothing.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from luna_fairseq.console import help_parser, run
from luna_fairseq.data.files import alone_in, need_file, read_lines
from luna_fairseq.data.parallel import Pair, both_files, read_pairs, write_pairs
from luna_fairseq.data.settings import take
from luna_fairseq.errors import PreparationError

# So many pieces in a row that come back and back again make a circle.
CIRCLE = 4


def best_translations(logs: Iterable[Path]) -> dict[int, str]:
    """The first translation of each sentence, in pieces, by its number in the training text.

    Raises:
        PreparationError: if a file has no translations, or two have the same sentence.
    """
    found: dict[int, str] = {}
    for log in logs:
        own: dict[int, str] = {}
        for _, line in read_lines(need_file(log)):
            if line.startswith("H-"):
                number, _, pieces = line.rstrip("\n").removeprefix("H-").split("\t", 2)
                own.setdefault(int(number), pieces.strip())
        if not own:
            raise PreparationError(f"{log} has no line that begins with H-: give what fairseq-generate printed")
        if twice := found.keys() & own.keys():
            raise PreparationError(f"sentence {min(twice)} is in {log} and in an earlier file: give each part once")
        found.update(own)
    return found


def goes_in_circles(pieces: list[str]) -> bool:
    """Whether some pieces in a row come more than twice."""
    runs = Counter(zip(*(pieces[start:] for start in range(CIRCLE)), strict=False))
    return any(count > 2 for count in runs.values())


def fault(translation: str | None, reference: str, ratio: float) -> str | None:
    """Why a translation is left out, or None if it is good."""
    if translation is None:
        return "not translated"
    pieces, wanted = translation.split(), reference.split()
    if not pieces:
        return "empty"
    if not 1 / ratio <= len(pieces) / max(1, len(wanted)) <= ratio:
        return "too long or too short"
    return "in circles" if goes_in_circles(pieces) else None


def distilled(
    pairs: Iterable[Pair], translations: dict[int, str], ratio: float, left_out: Counter[str]
) -> Iterator[Pair]:
    """The sentences and their translations that are good; why others are not is counted in ``left_out``."""
    for number, (source, reference) in enumerate(pairs):
        translation = translations.get(number)
        if why := fault(translation, reference, ratio):
            left_out[why] += 1
        else:
            assert translation is not None
            yield source, translation


def prepare(args: argparse.Namespace) -> None:
    """Write the training text, and say what was left out."""
    languages = (args.source_lang, args.target_lang)
    for path in both_files(args.text, languages):
        if need_file(path).resolve().parent == args.out.resolve():
            raise PreparationError(f"--out {args.out} is the folder of the text {path}: name another one")
    translations = best_translations(args.translations)
    lines = sum(1 for _ in read_pairs(args.text, languages))
    if max(translations) >= lines:
        raise PreparationError(
            f"{args.text} has {lines} lines, and there is a translation of number {max(translations)}, from 0: give "
            "the text that was translated"
        )
    left_out: Counter[str] = Counter()
    good = list(distilled(read_pairs(args.text, languages), translations, args.ratio, left_out))
    reasons = ", ".join(f"{why} {count:,}" for why, count in sorted(left_out.items()))
    if not good and not args.with_references:
        raise PreparationError(f"no translation of {args.text} is good ({reasons}): take a better teacher")
    references = read_pairs(args.text, languages) if args.with_references else iter(())
    pairs = ((source.rstrip("\n"), target.rstrip("\n")) for source, target in itertools.chain(references, good))
    with alone_in(args.out.resolve()):
        take(args.out, {"script": "luna-fairseq prepare distilled"})
        written = write_pairs(args.out / "train", languages, pairs)
    print(f"{len(good):,} of {lines:,} translations kept{f'; left out: {reasons}' if reasons else ''}")
    print(f"{written:,} pairs: {args.out / 'train'}")


def _ratio(text: str) -> float:
    value = float(text)
    if not value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1: give a number from 1")
    return value


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, __doc__)
    parser.add_argument(
        "--text", type=Path, required=True, metavar="PREFIX", help="the training text in pieces, as it was binarised"
    )
    parser.add_argument(
        "--translations", type=Path, required=True, nargs="+", metavar="FILE", help="what fairseq-generate printed"
    )
    parser.add_argument("-s", "--source-lang", default="en", help="of the text, and the ending of its files")
    parser.add_argument("-t", "--target-lang", default="de", help="likewise")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--ratio", type=_ratio, default=2.0, help="of the lengths of translation and reference, at most; default 2"
    )
    parser.add_argument(
        "--with-references", action="store_true", help="write the references, too, before the translations"
    )
    args = parser.parse_args(arguments)
    return run(prog, lambda: prepare(args))
