"""What the commands that prepare fine-tuning data share: their options, and the run itself."""

import argparse
from collections.abc import Callable
from pathlib import Path

from luna_fairseq.console import help_parser, run
from luna_fairseq.data.files import copy_file, digest, inputs
from luna_fairseq.data.finetuning.output import Output
from luna_fairseq.data.pieces import DICTIONARY, Pieces
from luna_fairseq.data.settings import fill_folder
from luna_fairseq.errors import PreparationError

SMOKE_EXAMPLES = 300

# From options and a folder in the making, which it fills, to options of fairseq-train.
Reader = Callable[[argparse.Namespace, Output], str]


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of every kind of data; the description has an example."""
    parser = help_parser(prog, description)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the published data")
    parser.add_argument(
        "--pieces", type=Path, required=True, metavar="FOLDER", help="OUT of luna-fairseq prepare corpus"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE_EXAMPLES} examples a split, to OUT/smoke")
    return parser


def prepare(prog: str, kind: str, args: argparse.Namespace, reader: Reader) -> int:
    """Make OUT, or see that it is there; returns the exit code.

    Args:
        prog: what was typed, for messages.
        kind: the name of the data.
        args: of a parser of :func:`new_parser`.
        reader: reads the data, and writes them.
    """
    return run(prog, lambda: _prepare(kind, args, reader))


def _prepare(kind: str, args: argparse.Namespace, reader: Reader) -> None:
    if not args.data.is_dir():
        raise PreparationError(f"the folder {args.data} does not exist: name the one with the data")
    pieces = Pieces.of_folder(args.pieces)
    dictionary = args.pieces / DICTIONARY
    # The first name is that of the script which this was: what it has prepared is still known.
    settings = {"script": "prepare_finetuning.py", "data": kind, "smoke": args.smoke}
    settings.update({name: getattr(args, name) for name in ("task", "max_passage_pieces") if name in args})
    folder = args.data / args.task if "task" in args and (args.data / args.task).is_dir() else args.data
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in (".tsv", ".txt", ".jsonl"))
    settings.update(inputs(files, folder))
    settings.update({name: digest(path) for name, path in {**pieces.files, DICTIONARY: dictionary}.items()})

    def fill(folder: Path) -> str:
        options = reader(args, Output(folder, pieces, dictionary, SMOKE_EXAMPLES if args.smoke else None))
        # Beside the data, so that whoever loads the fine-tuned model has its pieces.
        for name, path in {**pieces.files, DICTIONARY: dictionary}.items():
            copy_file(path, folder / name)
        return f"{options} --init-token 0 --separator-token 2"

    fill_folder(args.out, args.smoke, settings, fill)
