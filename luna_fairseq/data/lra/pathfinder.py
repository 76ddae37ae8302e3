"""``luna-fairseq prepare pathfinder``: generated, or read from the published files."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from luna_fairseq.console import one_line, progress
from luna_fairseq.data.files import inputs
from luna_fairseq.data.lra import command, pathfinder_image
from luna_fairseq.data.lra.dataset import (
    TWO_CLASSES,
    Dataset,
    Example,
    Splits,
    image_examples,
    in_tenths,
    limited,
    need_folder,
)
from luna_fairseq.data.lra.pathfinder_files import find_images, find_metadata, read_png
from luna_fairseq.data.workers import in_order
from luna_fairseq.errors import PreparationError

IMAGES_AT_ONCE = 64
LEVEL = "curv_contour_length_14"
GENERATED: command.Generated = {
    "train": (160000, "examples of train"),
    "valid": (20000, "examples of valid"),
    "test": (20000, "examples of test"),
}


def read(args: argparse.Namespace) -> Dataset:
    """Pathfinder: are two dots on one path; 160,000, 20,000 and 20,000 images, half of them yes."""
    dataset = partial(Dataset, classes=TWO_CLASSES, arch=f"luna_lra_pf{args.size}")
    settings: dict[str, Any] = {"size": args.size, "seed": args.seed}
    if args.data:
        level = need_folder(args.data / args.level, "the folder that has the folder of the level, or another --level")
        files = find_metadata(level)
        with command.extra("pillow"):
            import PIL.Image  # noqa: F401
        settings.update(level=args.level, **inputs(files, args.data))
        return dataset(lambda: _published(args, level, files), settings=settings)

    counts = command.counts_of(args)

    def generated() -> Splits:
        start = 0
        for split, count in counts.items():
            yield split, _draw_split(args, split, start, start + count)
            start += count

    return dataset(generated, settings={**settings, **counts})


def _draw_split(args: argparse.Namespace, split: str, start: int, end: int) -> Iterator[Example]:
    """The images from one number to before another, drawn in several processes."""
    starts = range(start, end, IMAGES_AT_ONCE)
    tasks = ((args.size, args.seed, first, min(end, first + IMAGES_AT_ONCE)) for first in starts)
    with progress(end - start, f"drawing {split}", " images") as bar:
        for images, labels in in_order(_draw, tasks, args.workers):
            yield from image_examples(images, labels)
            bar.update(len(images))


def _draw(size: int, seed: int, start: int, end: int) -> tuple[list[np.ndarray], list[int]]:
    try:
        drawn = (pathfinder_image.generate(size, seed, index) for index in range(start, end))
        images, labels = zip(*drawn, strict=True)
    except ValueError as error:
        raise PreparationError(one_line(error)) from error
    return list(images), list(labels)


def _published(args: argparse.Namespace, level: Path, metadata: list[Path]) -> Splits:
    images = find_images(level, metadata)
    for split, part in in_tenths(images, np.random.default_rng(args.seed)).items():
        yield split, limited((Example((read_png(path, args.size),), label) for path, label in part), args.smoke)


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, read, "--size 32 --out pathfinder32", images=True)
    command.add_seed(parser)
    command.add_generated(parser, GENERATED)
    parser.add_argument("--size", type=int, choices=(32, 128), required=True, help="of a side")
    parser.add_argument("--level", help=f"folder in --data (default: {LEVEL})")
    args = parser.parse_args(arguments)
    command.fill_generated(parser, args, GENERATED)
    if args.level and not args.data:
        parser.error("--level is for published data: leave it out, or give --data")
    args.level = args.level or LEVEL
    return command.prepare(prog, "pathfinder", args, read)
