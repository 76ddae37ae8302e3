"""``luna-fairseq prepare digits``: small real images that scikit-learn brings along."""

import argparse

import numpy as np

from luna_fairseq.data.lra import command
from luna_fairseq.data.lra.dataset import SPLITS, TEN_CLASSES, Dataset, Splits, image_examples, in_tenths, limited


def read(args: argparse.Namespace) -> Dataset:
    """Digits: 1,797 real images of 8x8, which scikit-learn brings along; 80, 10 and 10 % of every class."""
    with command.extra("scikit-learn"):
        from sklearn.datasets import load_digits

    def splits() -> Splits:
        found = load_digits()
        images = np.rint(found.images * (255 / 16)).astype(np.uint8)
        random = np.random.default_rng(args.seed)
        of_class = [in_tenths(np.nonzero(found.target == label)[0].tolist(), random) for label in range(10)]
        for split in SPLITS:
            places = random.permutation([place for parts in of_class for place in parts[split]])
            yield split, limited(image_examples(images[places], found.target[places]), args.smoke)

    return Dataset(splits, TEN_CLASSES, "luna_lra_cifar10", settings={"seed": args.seed})


def main(prog: str, arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = command.new_parser(prog, read, "--out digits", images=True)
    command.add_seed(parser)
    return command.prepare(prog, "digits", parser.parse_args(arguments), read)
