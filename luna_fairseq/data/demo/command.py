"""``luna-fairseq prepare demo``: write a synthetic English-German parallel corpus.

German gender, case and adjective endings, verb-second main clauses, verb-final subordinate clauses, the perfect with
its participle at the end, modal verbs, separable verbs, compounds and number words; English agreement, do-support,
a/an and participles. Every English sentence has exactly one German translation, so a small model can learn the
mapping. The corpus is a demonstration: scores on it say nothing about real translation.
"""

import random
from collections.abc import Iterable
from pathlib import Path

from luna_fairseq.console import help_parser, positive, run
from luna_fairseq.data.demo.corpus import generate, words
from luna_fairseq.data.files import alone_in
from luna_fairseq.data.settings import begun, take
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_file

DESCRIPTION = """A synthetic English-German corpus, to try everything with: OUT/{train,valid,test}.{en,de}.

    luna-fairseq prepare demo text

Every English sentence has exactly one German translation, by a little grammar: a small model learns it in minutes,
and scores on it say nothing about real translation.
"""


def _write(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def prepare(out: Path, seed: int, sizes: dict[str, int]) -> None:
    """Write OUT/SPLIT.en and OUT/SPLIT.de, with the same sentences in no two splits.

    Args:
        out: the folder.
        seed: decides the sentences.
        sizes: how many pairs each split has.
    """
    try:
        pairs = generate(sum(sizes.values()), seed)
    except RuntimeError as error:
        raise PreparationError(str(error)) from error
    random.Random(seed).shuffle(pairs)
    with alone_in(out.resolve()):
        settings = {"script": "luna-fairseq prepare demo", "seed": seed, **sizes}
        begun(out, settings)
        take(out, settings)
        for split, size in sizes.items():
            part, pairs = pairs[:size], pairs[size:]
            english, german = [pair.en for pair in part], [pair.de for pair in part]
            _write(out / f"{split}.en", english)
            _write(out / f"{split}.de", german)
            print(f"{split}: {size} pairs, {len(words(english))} English and {len(words(german))} German words")


def main(prog: str, arguments: list[str]) -> int:
    """Write OUT/{train,valid,test}.{en,de}; returns the exit code."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--seed", type=int, default=1, help="decides the sentences")
    parser.add_argument("--train", type=positive, default=24000, metavar="N", help="pairs for training")
    parser.add_argument("--valid", type=positive, default=500, metavar="N", help="pairs for validation")
    parser.add_argument("--test", type=positive, default=500, metavar="N", help="pairs for testing")
    args = parser.parse_args(arguments)
    sizes = {"train": args.train, "valid": args.valid, "test": args.test}
    return run(prog, lambda: prepare(args.out, args.seed, sizes))
