"""``luna-fairseq prepare image``: the published CIFAR-10, in grey."""

import argparse

import numpy as np

from luna_fairseq.data.files import inputs, need_file
from luna_fairseq.data.lra import command
from luna_fairseq.data.lra.cifar10 import read_batch
from luna_fairseq.data.lra.dataset import TEN_CLASSES, Dataset, Splits, image_examples, limited


def read(args: argparse.Namespace) -> Dataset:
    """Image: CIFAR-10 in grey; the last tenth of its training images is for validation."""
    names = ("test_batch", *(f"data_batch_{number}" for number in range(1, 6)))
    files = [need_file(args.data / name) for name in names]

    def splits() -> Splits:
        test, *train = map(read_batch, files)
        images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
        end = len(images) * 9 // 10
        parts = {"train": (images[:end], labels[:end]), "valid": (images[end:], labels[end:]), "test": test}
        for split, (rows, classes) in parts.items():
            yield split, limited(image_examples(rows, classes), args.smoke)

    return Dataset(splits, TEN_CLASSES, "luna_lra_cifar10", settings=inputs(files, args.data))


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, read, "--data cifar-10-batches-py --out image", images=True)
    command.add_data(parser)
    return command.prepare(prog, "image", parser.parse_args(arguments), read)
