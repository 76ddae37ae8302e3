"""``luna-fairseq prepare text``: the published IMDb reviews, byte by byte."""

import argparse
from pathlib import Path

import numpy as np

from luna_fairseq.console import positive
from luna_fairseq.data.files import inputs
from luna_fairseq.data.lra import command
from luna_fairseq.data.lra.dataset import SMOKE_EXAMPLES, Dataset, Example, Splits, need_folder
from luna_fairseq.errors import PreparationError

CLASSES = ("neg", "pos")
Files = list[list[Path]]  # of either class


def read(args: argparse.Namespace) -> Dataset:
    """Text: reviews of IMDb, byte by byte, with the test split for validation as in the Long Range Arena.

    Other documents of two classes do as well, one file each: FOLDER/{train,test}/{pos,neg}/*.txt.
    """
    train, test = (_find(args.data / name) for name in ("train", "test"))
    every = (path for split in (train, test) for of_class in split for path in of_class)
    settings = inputs(every, args.data)
    files = {"train": train, "valid": test, "test": test}
    if args.hold_out:
        settings.update(hold_out=args.hold_out, seed=args.seed)
        files["train"], files["valid"] = _hold_out(train, args.hold_out, args.seed)

    def splits() -> Splits:
        for split, found in files.items():
            # The files of a class follow one another.
            chosen = [names[: SMOKE_EXAMPLES // 2] if args.smoke else names for names in found]
            yield split, (_example(path, label) for label in (0, 1) for path in chosen[label])

    return Dataset(splits, CLASSES, "luna_lra_imdb", settings=settings)


def _find(folder: Path) -> Files:
    """The reviews of either class, in the order of their numbers."""
    folders = [need_folder(folder / name, "the folder aclImdb") for name in CLASSES]
    files = [sorted(of_class.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)) for of_class in folders]
    for of_class, found in zip(folders, files, strict=True):
        if not found:
            raise PreparationError(f"{of_class} has no .txt files: name the folder aclImdb")
    return files


def _hold_out(train: Files, count: int, seed: int) -> tuple[Files, Files]:
    """Split the training files into those that stay and ``count`` others, half of them from either class."""
    each, most = count // 2, min(map(len, train)) - 1
    if count % 2 or each > most:
        raise PreparationError(
            f"--hold-out {count} takes half of its examples from either class: "
            f"give an even number of at most {2 * most}"
        )
    random = np.random.default_rng(seed)
    picks = [set(random.permutation(len(found))[:each].tolist()) for found in train]
    stay, held = (
        [
            [path for place, path in enumerate(found) if (place in pick) == wanted]
            for found, pick in zip(train, picks, strict=True)
        ]
        for wanted in (False, True)
    )
    return stay, held


def _example(path: Path, label: int) -> Example:
    return Example((np.frombuffer(path.read_bytes(), dtype=np.uint8),), label)


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, read, "--data aclImdb --out text")
    command.add_data(parser)
    command.add_seed(parser)
    parser.add_argument(
        "--hold-out",
        type=positive,
        metavar="N",
        help="take N examples of train for validation, half of them from either class; without it the test split is "
        "the validation split too, as in the Long Range Arena",
    )
    return command.prepare(prog, "text", parser.parse_args(arguments), read)
