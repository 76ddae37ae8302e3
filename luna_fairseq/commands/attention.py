"""``luna-fairseq attention``: translate, and show what the model looks at."""

import argparse
import io
import sys
from pathlib import Path
from typing import List

from luna_fairseq.console import help_parser, run

DESCRIPTION = """Translate, and show what a model looks at, from each target symbol and from each packed row.

    luna-fairseq attention --path checkpoints/average.pt --data data/data-bin \\
        --sentencepiece-model data/sentencepiece.model --output attention.svg "the old cat"

As text, and with --output as a picture of every head.
"""


def _attention(args: argparse.Namespace) -> None:
    from luna_fairseq.attention_map import attention_map
    from luna_fairseq.models.luna import LunaModel

    path = Path(args.path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: give the file to --path")
    pieces = args.sentencepiece_model
    options = {"bpe": "sentencepiece", "sentencepiece_model": pieces} if pieces else {}
    hub = LunaModel.from_pretrained(
        str(path.resolve().parent), path.name, data_name_or_path=str(Path(args.data).resolve()), **options
    )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(newline="\n")  # a carriage return alone is part of a line, as in fairseq-interactive
    sentences = args.sentences or [line.strip() for line in sys.stdin if line.strip()]
    for number, sentence in enumerate(sentences):
        found = attention_map(hub, sentence, args.layer)
        print(f"{sentence}\n{found.translation}\n{found}\n")
        if args.output:
            output = Path(args.output)
            output = output if len(sentences) == 1 else output.with_stem(f"{output.stem}-{number}")
            found.draw(output)
            print(f"wrote {output}\n")


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("sentences", nargs="*", help="text; none: the lines of the standard input")
    parser.add_argument("--path", required=True, help="a checkpoint of a translation model")
    parser.add_argument("--data", required=True, help="the folder of its dictionaries")
    parser.add_argument("--sentencepiece-model", help="whose pieces the text is cut into; none: it is cut already")
    parser.add_argument("--layer", type=int, default=-1, help="of the decoder, from 0; -1 is the last")
    parser.add_argument("--output", help="a picture, .png or .svg (needs matplotlib); numbered if there are more")
    args = parser.parse_args(arguments)
    return run(prog, lambda: _attention(args), RuntimeError, ValueError)
