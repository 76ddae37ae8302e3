"""What the commands that prepare the Long Range Arena's data share: their options, and the run itself."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from luna_fairseq.console import help_parser, positive, run
from luna_fairseq.data.lra.dataset import SMOKE_EXAMPLES, SPLITS, Dataset, need_folder
from luna_fairseq.data.lra.output import Pixels, Tally, Tokens
from luna_fairseq.data.settings import fill_folder
from luna_fairseq.errors import PreparationError

# Options of what is generated, which published data has no use for: the default, and what they are.
Generated = Mapping[str, tuple[int, str]]
Reader = Callable[[argparse.Namespace], Dataset]


def new_parser(prog: str, reader: Reader, example: str, images: bool = False) -> argparse.ArgumentParser:
    """A parser with the options of every kind of data; its description is the reader's.

    Args:
        prog: what was typed so far.
        reader: whose docstring says what it reads.
        example: arguments.
        images: the data can be written as pixels, too.
    """
    said = (reader.__doc__ or "").replace("\n    ", "\n").rstrip()
    parser = help_parser(prog, f"{said}\n\n    {prog} {example}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE_EXAMPLES} examples a split, to OUT/smoke")
    if images:
        help_ = "a grey value is a symbol, or a real number (default: tokens)"
        parser.add_argument("--as", dest="form", choices=("tokens", "pixels"), default="tokens", help=help_)
    parser.set_defaults(form="tokens", data=None)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, for a kind of data that is published and not generated."""
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the published data")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``, for a kind of data of which published files are drawn from, too."""
    parser.add_argument("--seed", type=whole, default=1, metavar="N", help="decides what is drawn")


def add_generated(parser: argparse.ArgumentParser, generated: Generated) -> None:
    """Add the options of a generator, and ``--data``, which takes its place."""
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="read the published data, generate nothing")
    for name, (default, said) in generated.items():
        kind = whole if name in ("seed", "min_length") else positive
        parser.add_argument(_option(name), type=kind, metavar="N", help=f"{said} (default: {default:,})")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")


def fill_generated(parser: argparse.ArgumentParser, args: argparse.Namespace, generated: Generated) -> None:
    """Put in the defaults of a generator's options; end with an error if one was given beside ``--data``."""
    for name, (default, _) in generated.items():
        if args.data and getattr(args, name) is not None:
            parser.error(f"{_option(name)} is for generated data: leave it out, or --data")
        if getattr(args, name) is None:
            setattr(args, name, default)


def counts_of(args: argparse.Namespace) -> dict[str, int]:
    """How many examples of each split are generated."""
    return {split: min(getattr(args, split), SMOKE_EXAMPLES if args.smoke else sys.maxsize) for split in SPLITS}


def prepare(prog: str, kind: str, args: argparse.Namespace, reader: Reader) -> int:
    """Make OUT, or see that it is there; returns the exit code.

    Args:
        prog: what was typed, for messages.
        kind: the name of the data.
        args: of a parser of :func:`new_parser`.
        reader: finds the data.
    """
    return run(prog, lambda: _prepare(kind, args, reader))


def _prepare(kind: str, args: argparse.Namespace, reader: Reader) -> None:
    if args.data:
        need_folder(args.data, "the one with the data")
    data = reader(args)
    # The first name is that of the script which this was: what it has prepared is still known.
    settings = {"script": "prepare_lra.py", "data": kind, "as": args.form, "smoke": args.smoke, **data.settings}

    def fill(folder: Path) -> str:
        output = (Pixels if args.form == "pixels" else Tokens)(folder, data)
        for split, examples in data.splits():
            tally = Tally(data.classes)
            output.write(split, tally.watch(examples))
            tally.report(split)
        return f"{output.options} --arch {data.arch}"

    fill_folder(args.out, args.smoke, settings, fill)


@contextmanager
def extra(package: str) -> Iterator[None]:
    """Import a package of the extra ``lra``; without it one sentence says how to get it."""
    try:
        yield
    except ImportError as error:
        raise PreparationError(f"{package} is not installed: pip install '.[lra]'") from error


def whole(text: str) -> int:
    """An option that is a number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
