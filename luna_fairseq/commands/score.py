"""Score translations by sacreBLEU, and by tokenised BLEU with split compounds, which the papers on WMT'14 report.

    luna-fairseq score REFERENCE TRANSLATIONS --language de

Prints both as sacrebleu prints scores, in a JSON list, which ``luna-fairseq card --score`` takes: BLEU with its
signature, and tokenised-BLEU, of text that sacremoses tokenises, with every hyphen inside a word as a token of its
own.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from luna_fairseq.console import help_parser, run
from luna_fairseq.data.files import need_file
from luna_fairseq.errors import PreparationError


def tokenised(lines: Sequence[str], language: str) -> list[str]:
    """Moses tokenisation; "A-B" becomes "A ##AT##-##AT## B"."""
    try:
        from sacremoses import MosesTokenizer
    except ImportError as error:
        raise PreparationError("tokenised BLEU needs sacremoses: pip install sacremoses") from error
    tokeniser = MosesTokenizer(language)
    words = (tokeniser.tokenize(line, return_str=True, escape=False) for line in lines)
    return [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line) for line in words]


def score(reference: Sequence[str], translations: Sequence[str], language: str) -> list[dict[str, object]]:
    """Both scores.

    Args:
        reference: plain text, a sentence each.
        translations: likewise.
        language: of both, for the tokenisation.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU()
    plain = bleu.corpus_score(translations, [reference])
    split = BLEU(tokenize="none", force=True)
    words = split.corpus_score(tokenised(translations, language), [tokenised(reference, language)])
    return [
        {"name": "BLEU", "score": round(plain.score, 2), "signature": str(bleu.get_signature())},
        {"name": "tokenised-BLEU", "score": round(words.score, 2)},
    ]


def read(path: Path) -> list[str]:
    """The lines of a file.

    Raises:
        PreparationError: if there is none, or it is not UTF-8.
    """
    try:
        content = need_file(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PreparationError(f"{path} is not UTF-8: convert the file") from error
    # A carriage return alone is part of a line, as for fairseq-generate.
    return [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, __doc__)
    parser.add_argument("reference", type=Path, help="plain text, a sentence a line")
    parser.add_argument("translations", type=Path, help="likewise, in the same order")
    parser.add_argument("--language", default="de", help="whose words the tokenisation knows")
    args = parser.parse_args(arguments)

    def print_scores() -> None:
        reference, translations = read(args.reference), read(args.translations)
        if len(reference) != len(translations):
            raise PreparationError(
                f"{args.translations} has {len(translations):,} lines, {args.reference} has {len(reference):,}: "
                "give a translation of every sentence"
            )
        print(json.dumps(score(reference, translations, args.language)))

    return run(prog, print_scores)
