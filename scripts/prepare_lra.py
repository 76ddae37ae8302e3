"""The Long Range Arena's data, generated or as published, to folders for the tasks ``lra-text`` and ``lra-image``.

    prepare_lra.py listops --out OUT                     generated; --data FOLDER reads basic_{train,val,test}.tsv
    prepare_lra.py text --data aclImdb --out OUT         {train,test}/{pos,neg}/*.txt, byte by byte
    prepare_lra.py retrieval --data FOLDER --out OUT     new_aan_pairs.{train,eval,test}.tsv, byte by byte
    prepare_lra.py image --data cifar-10-batches-py --out OUT        data_batch_1 to 5 and test_batch, in grey
    prepare_lra.py pathfinder --size 32 --out OUT        generated; --data FOLDER reads LEVEL/{metadata,imgs}
    prepare_lra.py digits --out OUT                      scikit-learn's digits, 8x8: real images that need no download

OUT appears when it is finished; --smoke writes a few examples to OUT/smoke. As tokens OUT has src-bin and label-bin,
and src1-bin for second documents, each as fairseq-preprocess --only-source writes them; a byte or a grey value is its
decimal number, a symbol of its own. --as pixels writes OUT/input/{train,valid,test}.src, an image a line, and
OUT/label/{train,valid,test}.label.
"""

import argparse
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

import listops as expressions
import pathfinder as paths
from text_pieces import (
    DICTIONARY,
    PreparationError,
    fill_folder,
    in_order,
    listing,
    need_file,
    one_line,
    positive,
    progress,
    quiet_import,
    run,
    split_builder,
)

SMOKE_EXAMPLES = 12  # a smoke run of a minute tests a Transformer on so many images of 128 x 128
VALUES = tuple(map(str, range(256)))
TEN, TWO = tuple(map(str, range(10))), ("0", "1")
GREY = (0.2989, 0.5870, 0.1140)
IMAGES_AT_ONCE = 64
LEVEL = "curv_contour_length_14"
SPLITS = ("train", "valid", "test")


class Example(NamedTuple):
    """Rows of symbols, by their places in the list of symbols, and the class."""

    rows: tuple[np.ndarray, ...]
    label: int


Splits = Iterator[tuple[str, Iterable[Example]]]


@dataclass(frozen=True)
class Dataset:
    """What a reader has found, before the work begins.

    Args:
        splits: the examples of train, valid and test, each one read to its end before the next.
        classes: their names.
        arch: the published architecture for this data.
        symbols: what rows are made of.
        rows: how many an example has.
        settings: all that decides the result, beside the options that every kind of data has.
    """

    splits: Callable[[], Splits]
    classes: tuple[str, ...]
    arch: str
    symbols: tuple[str, ...] = VALUES
    rows: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


def _counts(args: argparse.Namespace) -> dict[str, int]:
    return {split: min(getattr(args, split), SMOKE_EXAMPLES if args.smoke else sys.maxsize) for split in SPLITS}


def _limited(args: argparse.Namespace, examples: Iterable[Example]) -> Iterable[Example]:
    return islice(examples, SMOKE_EXAMPLES) if args.smoke else examples


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise PreparationError(f"the folder {path} does not exist: name {what}")
    return path


# ---------------------------------------------------------------------------------------------- ListOps
def listops(args: argparse.Namespace) -> Dataset:
    """ListOps: 96,000, 2,000 and 2,000 different expressions of more than 500 and fewer than 2,000 symbols."""
    dataset = partial(Dataset, classes=TEN, arch="luna_lra_listop", symbols=expressions.SYMBOLS)

    def example(expression: bytes, value: int) -> Example:
        return Example((np.frombuffer(expression, dtype=np.uint8),), value)

    if args.data:
        names = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
        files = {split: need_file(args.data / name) for split, name in names.items()}

        def published() -> Splits:
            for split, path in files.items():
                rows = expressions.read_published(path)
                yield split, _limited(args, (example(*row) for row in rows))

        return dataset(published, settings={"files": listing(files.values(), args.data)})

    limits = expressions.Limits(args.min_length, args.max_length, args.max_depth, args.max_arguments)
    counts = _counts(args)

    def generated() -> Splits:
        rows = iter(expressions.generate(sum(counts.values()), args.seed, limits, args.workers))
        for split, count in counts.items():
            yield split, (example(*row) for row in islice(rows, count))

    return dataset(generated, settings={"seed": args.seed, **vars(limits), **counts})


# ----------------------------------------------------------------------------------------------- bytes
def text(args: argparse.Namespace) -> Dataset:
    """Text: reviews of IMDb, byte by byte, with the test split for validation as in the Long Range Arena."""
    classes = ("neg", "pos")
    files: dict[str, list[list[Path]]] = {}
    for split in ("train", "test"):
        folders = [_folder(args.data / split / name, "the folder aclImdb") for name in classes]
        files[split] = [
            sorted(folder.glob("*.txt"), key=lambda path: (len(path.stem), path.stem)) for folder in folders
        ]
        for folder, found in zip(folders, files[split], strict=True):
            if not found:
                raise PreparationError(f"{folder} has no .txt files: name the folder aclImdb")
    settings = {"files": listing((path for split in files.values() for name in split for path in name), args.data)}
    files = {"train": files["train"], "valid": files["test"], "test": files["test"]}
    if args.hold_out:
        settings.update(hold_out=args.hold_out, seed=args.seed)
        each, most = args.hold_out // 2, min(map(len, files["train"])) - 1
        if args.hold_out % 2 or each > most:
            raise PreparationError(
                f"--hold-out {args.hold_out} takes half of its examples from either class: "
                f"give an even number of at most {2 * most}"
            )
        random = np.random.default_rng(args.seed)
        picks = [set(random.permutation(len(found))[:each].tolist()) for found in files["train"]]
        for split, held in (("valid", True), ("train", False)):
            files[split] = [
                [path for place, path in enumerate(found) if (place in pick) == held]
                for found, pick in zip(files["train"], picks, strict=True)
            ]

    def splits() -> Splits:
        for split, found in files.items():
            # The files of a class follow one another.
            chosen = [names[: SMOKE_EXAMPLES // 2] if args.smoke else names for names in found]
            yield split, (Example((_bytes(path.read_bytes()),), label) for label in (0, 1) for path in chosen[label])

    return Dataset(splits, classes, "luna_lra_imdb", settings=settings)


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


def read_pairs(path: Path) -> Iterator[Example]:
    """The pairs of documents of one file: label, two names, two texts, between tabs."""
    labels = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.removesuffix(b"\n").split(b"\t")
            if cells == [b""]:
                continue
            if len(cells) != 5:
                raise PreparationError(
                    f"{path}, line {number} has {len(cells)} columns and not 5, for label, two names and two texts: "
                    "mend it"
                )
            if cells[0] not in labels:
                label = cells[0][:40].decode("utf-8", "replace")
                raise PreparationError(f"{path}, line {number}: the label {label!r} is neither 0 nor 1: mend it")
            yield Example((_bytes(cells[3]), _bytes(cells[4])), labels[cells[0]])


def retrieval(args: argparse.Namespace) -> Dataset:
    """Retrieval: pairs of papers of the ACL anthology, byte by byte; whether one cites the other."""
    names = {"train": "train", "valid": "eval", "test": "test"}
    files = {split: need_file(args.data / f"new_aan_pairs.{name}.tsv") for split, name in names.items()}

    def splits() -> Splits:
        for split, path in files.items():
            yield split, _limited(args, read_pairs(path))

    settings = {"files": listing(files.values(), args.data)}
    return Dataset(splits, TWO, "luna_lra_aan", rows=2, settings=settings)


# ---------------------------------------------------------------------------------------------- images
class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain objects and arrays of bytes, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.empty(0).__reduce__()[0]  # where it lies depends on the numpy
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return self._bytes_only
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return self._latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    @staticmethod
    def _latin1(text: str, encoding: str) -> bytes:
        return text.encode("latin1")

    @staticmethod
    def _bytes_only(name: str | bytes, *options: Any) -> np.dtype:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it has an array of {name!r}")
        return np.dtype("u1", *options)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The grey images [N, 1024] and the labels [N] of a file of CIFAR-10."""
    with open(need_file(path), "rb") as file:
        content = _unpickle(file, path)
    try:
        data, labels = content[b"data"], content[b"labels"]
        good = (
            isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == 3 * 1024 and data.dtype == np.uint8
        )
        good = good and len(labels) == len(data) and all(type(label) is int and 0 <= label < 10 for label in labels)
    except (KeyError, TypeError, IndexError):
        good = False
    if not good:
        raise PreparationError(
            f"{path} does not have data of 3,072 bytes an image and labels from 0 to 9: name the folder "
            "cifar-10-batches-py"
        )
    colours = data.reshape(-1, 3, 1024).astype(np.float64)
    grey = sum(weight * colours[:, number] for number, weight in enumerate(GREY))
    return np.rint(grey).astype(np.uint8), np.array(labels, dtype=np.int64)


def _unpickle(file: IO[bytes], path: Path) -> Any:
    try:
        return _ArrayUnpickler(file, encoding="bytes").load()
    except Exception as error:  # broken pickles raise nearly anything
        raise PreparationError(
            f"{path} is not a file of CIFAR-10: {one_line(error) or type(error).__name__}"
        ) from error


def image(args: argparse.Namespace) -> Dataset:
    """Image: CIFAR-10 in grey; the last tenth of its training images is for validation."""
    names = ("test_batch", *(f"data_batch_{number}" for number in range(1, 6)))
    files = [need_file(args.data / name) for name in names]

    def splits() -> Splits:
        test, *train = map(read_batch, files)
        images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
        end = len(images) * 9 // 10
        parts = {"train": (images[:end], labels[:end]), "valid": (images[end:], labels[end:]), "test": test}
        for split, (rows, classes) in parts.items():
            yield split, _limited(args, _examples(rows, classes))

    return Dataset(splits, TEN, "luna_lra_cifar10", settings={"files": listing(files, args.data)})


def _examples(images: Iterable[np.ndarray], labels: Iterable[int]) -> Iterator[Example]:
    return (Example((row.reshape(-1),), int(label)) for row, label in zip(images, labels, strict=True))


def _tenths(items: Sequence[Any], random: np.random.Generator) -> dict[str, list[Any]]:
    """A split of 8, 1 and 1 tenths, in random order."""
    order = random.permutation(len(items)).tolist()
    ends = [0, len(items) * 8 // 10, len(items) * 9 // 10, len(items)]
    return {split: [items[n] for n in order[ends[k] : ends[k + 1]]] for k, split in enumerate(SPLITS)}


def digits(args: argparse.Namespace) -> Dataset:
    """Digits: 1,797 real images of 8x8, which scikit-learn brings along; 80, 10 and 10 % of every class."""
    with extra("scikit-learn"):
        from sklearn.datasets import load_digits

    def splits() -> Splits:
        found = load_digits()
        images = np.rint(found.images * (255 / 16)).astype(np.uint8)
        random = np.random.default_rng(args.seed)
        of_class = [_tenths(np.nonzero(found.target == label)[0].tolist(), random) for label in range(10)]
        for split in SPLITS:
            places = random.permutation([place for parts in of_class for place in parts[split]])
            yield split, _limited(args, _examples(images[places], found.target[places]))

    return Dataset(splits, TEN, "luna_lra_cifar10", settings={"seed": args.seed})


@contextmanager
def extra(package: str) -> Iterator[None]:
    """Import a package of the extra ``lra``; without it one sentence says how to get it."""
    try:
        yield
    except ImportError as error:
        raise PreparationError(f"{package} is not installed: pip install '.[lra]'") from error


# ------------------------------------------------------------------------------------------ Pathfinder
def pathfinder(args: argparse.Namespace) -> Dataset:
    """Pathfinder: are two dots on one path; 160,000, 20,000 and 20,000 images, half of them yes."""
    dataset = partial(Dataset, classes=TWO, arch=f"luna_lra_pf{args.size}")
    settings: dict[str, Any] = {"size": args.size, "seed": args.seed}
    if args.data:
        level = _folder(args.data / args.level, "the folder that has the folder of the level, or another --level")
        files = sorted(
            _folder(level / "metadata", "published data").glob("*.npy"), key=lambda x: (len(x.name), x.name)
        )
        if not files:
            raise PreparationError(f"{level / 'metadata'} has no .npy files: name published data")
        with extra("pillow"):
            import PIL.Image  # noqa: F401
        settings.update(level=args.level, files=listing(files, args.data))
        return dataset(lambda: _published_paths(args, level, files), settings=settings)

    counts = _counts(args)

    def generated() -> Splits:
        start = 0
        for split, count in counts.items():
            yield split, _draw_all(args, split, start, start + count)
            start += count

    return dataset(generated, settings={**settings, **counts})


def _draw_all(args: argparse.Namespace, split: str, start: int, end: int) -> Iterator[Example]:
    starts = range(start, end, IMAGES_AT_ONCE)
    tasks = ((args.size, args.seed, first, min(end, first + IMAGES_AT_ONCE)) for first in starts)
    with progress(end - start, f"drawing {split}", " images") as bar:
        for images, labels in in_order(_draw, tasks, args.workers):
            yield from _examples(images, labels)
            bar.update(len(images))


def _draw(size: int, seed: int, start: int, end: int) -> tuple[list[np.ndarray], list[int]]:
    try:
        images, labels = zip(*(paths.generate(size, seed, index) for index in range(start, end)), strict=True)
    except ValueError as error:
        raise PreparationError(one_line(error)) from error
    return list(images), list(labels)


def _published_paths(args: argparse.Namespace, level: Path, files: Sequence[Path]) -> Splits:
    images = [image for path in files for image in _read_metadata(path, level)]
    # Some of the published files are empty.
    whole = [(path, label) for path, label in images if need_file(path).stat().st_size]
    if len(whole) < len(images):
        print(f"{level}: {len(images) - len(whole)} empty images are left out")
    for split, part in _tenths(whole, np.random.default_rng(args.seed)).items():
        yield split, _limited(args, (Example((_read_png(path, args.size),), label) for path, label in part))


def _read_metadata(path: Path, level: Path) -> list[tuple[Path, int]]:
    """The images and labels of a file that is called .npy and is text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PreparationError(f"{path} is not text: name published data") from error
    images = []
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if len(cells) < 4 or cells[3] not in TWO:
            raise PreparationError(f"{path}, line {number} has no folder, file, number and label 0 or 1: mend it")
        images.append((level / cells[0] / cells[1], int(cells[3])))
    return images


def _read_png(path: Path, size: int) -> np.ndarray:
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=("PNG",)) as image:
            mode, found, pixels = image.mode, image.size, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise PreparationError(f"{path} is not a whole PNG image: remove it from the metadata") from error
    if mode != "L" or found != (size, size):
        raise PreparationError(
            f"{path} is {found[0]}x{found[1]} in mode {mode}, not {size}x{size} in grey: give its --size"
        )
    return pixels.reshape(-1)


# ----------------------------------------------------------------------------------------------- output
class Tokens:
    """Binarised splits, for ``lra-text``.

    Args:
        folder: where to write.
        data: what is written.
    """

    options = "--task lra-text"

    def __init__(self, folder: Path, data: Dataset) -> None:
        with quiet_import():
            from fairseq.data import Dictionary
        names = ["src-bin", "src1-bin"][: data.rows]
        self._folders = [folder / name for name in (*names, "label-bin")]
        self._symbols = [data.symbols] * data.rows + [data.classes]
        self._dictionaries = [Dictionary() for _ in self._folders]
        for folder, dictionary, symbols in zip(self._folders, self._dictionaries, self._symbols, strict=True):
            folder.mkdir()
            for symbol in symbols:
                dictionary.add_symbol(symbol, n=0)

    def write(self, split: str, examples: Iterable[Example]) -> None:
        """Write a split."""
        import torch

        first, end = self._dictionaries[0].nspecial, self._dictionaries[0].eos()
        counts = [np.zeros(len(symbols), dtype=np.int64) for symbols in self._symbols]
        with ExitStack() as stack:
            builders = [
                split_builder(stack, folder / split, dictionary)
                for folder, dictionary in zip(self._folders, self._dictionaries, strict=True)
            ]
            for example in examples:
                rows = (*example.rows, np.array([example.label]))
                for builder, row, count in zip(builders, rows, counts, strict=True):
                    ids = np.full(len(row) + 1, end, dtype=np.int64)
                    np.add(row, first, out=ids[:-1], dtype=np.int64)
                    builder.add_item(torch.from_numpy(ids))
                    count += np.bincount(row, minlength=len(count))
        if split == "train":
            self._write_dictionaries(counts)

    def _write_dictionaries(self, counts: Sequence[np.ndarray]) -> None:
        *texts, labels = counts
        totals = [np.sum(texts, axis=0)] * len(texts) + [labels]  # both documents have the same dictionary
        for folder, dictionary, symbols, total in zip(
            self._folders, self._dictionaries, self._symbols, totals, strict=True
        ):
            for symbol, count in zip(symbols, total.tolist(), strict=True):
                dictionary.add_symbol(symbol, n=count)
            dictionary.save(str(folder / DICTIONARY))


class Pixels:
    """Text files of grey values and of labels, for ``lra-image``.

    Args:
        folder: where to write.
        data: what is written.
    """

    options = "--task lra-image --input-type image"

    def __init__(self, folder: Path, data: Dataset) -> None:
        self._input, self._label = folder / "input", folder / "label"
        for folder in (self._input, self._label):
            folder.mkdir()

    def write(self, split: str, examples: Iterable[Example]) -> None:
        """Write a split."""
        with (
            open(self._input / f"{split}.src", "w", encoding="ascii") as images,
            open(self._label / f"{split}.label", "w", encoding="ascii") as labels,
        ):
            for example in examples:
                images.write(" ".join(map(VALUES.__getitem__, example.rows[0].tolist())) + "\n")
                labels.write(f"{example.label}\n")


class Tally:
    """What a split has, counted while it is written.

    Args:
        classes: their names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes, self._examples = classes, [0] * len(classes)
        self._lengths: list[int] = []

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Count the examples, and give them on."""
        for example in examples:
            self._examples[example.label] += 1
            self._lengths += map(len, example.rows)
            yield example

    def report(self, split: str) -> None:
        """Say how many examples every class has; none at all are an error."""
        if not self._lengths:
            raise PreparationError(f"there are no examples for {split}: name data that has some")
        classes = ", ".join(f"{name}: {count:,}" for name, count in zip(self._classes, self._examples, strict=True))
        lengths = f"{sum(self._lengths):,} symbols, {min(self._lengths):,} to {max(self._lengths):,} in a row"
        print(f"{split}: {sum(self._examples):,} examples ({classes}), {lengths}")


READERS = {
    "listops": listops,
    "text": text,
    "retrieval": retrieval,
    "image": image,
    "pathfinder": pathfinder,
    "digits": digits,
}
# Options of what is generated, which published data has no use for: the default and what they are.
GENERATED: dict[str, dict[str, tuple[int, str]]] = {
    "listops": {
        "seed": (1, "decides what is drawn"),
        "train": (96000, "examples of train"),
        "valid": (2000, "examples of valid"),
        "test": (2000, "examples of test"),
        "min_length": (expressions.Limits.min_length, "expressions have more symbols than this"),
        "max_length": (expressions.Limits.max_length, "expressions have fewer symbols than this"),
        "max_depth": (expressions.Limits.max_depth, "of an expression; a digit has depth 1"),
        "max_arguments": (expressions.Limits.max_arguments, "of an operator"),
    },
    "pathfinder": {
        "train": (160000, "examples of train"),
        "valid": (20000, "examples of valid"),
        "test": (20000, "examples of test"),
    },
}


def prepare(args: argparse.Namespace) -> None:
    """Make OUT, or see that it is there."""
    if args.data:
        _folder(args.data, "the one with the data")
    data = READERS[args.kind](args)
    settings = {"script": "prepare_lra.py", "data": args.kind, "as": args.form, "smoke": args.smoke, **data.settings}

    def fill(folder: Path) -> str:
        output = (Pixels if args.form == "pixels" else Tokens)(folder, data)
        for split, examples in data.splits():
            tally = Tally(data.classes)
            output.write(split, tally.watch(examples))
            tally.report(split)
        return f"{output.options} --arch {data.arch}"

    fill_folder(args.out, args.smoke, settings, fill)


def whole(text: str) -> int:
    """An option that is a number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare OUT; returns the exit code."""
    parser = argparse.ArgumentParser(description="the Long Range Arena's data to folders for lra-text and lra-image")
    kinds = parser.add_subparsers(dest="kind", required=True)
    commands: dict[str, argparse.ArgumentParser] = {}
    for kind, reader in READERS.items():
        described = (reader.__doc__ or "").removesuffix(".").replace("%", "%%")
        commands[kind] = options = kinds.add_parser(kind, help=described, description=described)
        options.add_argument("--out", type=Path, required=True, help="folder to write")
        options.add_argument("--smoke", action="store_true", help=f"{SMOKE_EXAMPLES} examples a split, to OUT/smoke")
        if kind in ("image", "pathfinder", "digits"):
            help_ = "a grey value is a symbol, or a real number (default: tokens)"
            options.add_argument("--as", dest="form", choices=("tokens", "pixels"), default="tokens", help=help_)
        options.set_defaults(form="tokens", data=None)
    for kind in ("text", "retrieval", "image"):
        commands[kind].add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the published data")
    for kind in ("text", "pathfinder", "digits"):
        commands[kind].add_argument("--seed", type=whole, default=1, metavar="N", help="decides what is drawn")
    commands["text"].add_argument(
        "--hold-out",
        type=positive,
        metavar="N",
        help="take N examples of train for validation, half of them from either class; without it the test split is "
        "the validation split too, as in the Long Range Arena",
    )
    for kind, defaults in GENERATED.items():
        options = commands[kind]
        options.add_argument("--data", type=Path, metavar="FOLDER", help="read the published data, generate nothing")
        for name, (default, said) in defaults.items():
            kind_of = whole if name in ("seed", "min_length") else positive
            help_ = f"{said} (default: {default:,})"
            options.add_argument(f"--{name.replace('_', '-')}", type=kind_of, metavar="N", help=help_)
        options.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    commands["pathfinder"].add_argument("--size", type=int, choices=(32, 128), required=True, help="of a side")
    commands["pathfinder"].add_argument("--level", help=f"folder in --data (default: {LEVEL})")

    args = parser.parse_args(argv)
    for name, (default, _) in GENERATED.get(args.kind, {}).items():
        if args.data and getattr(args, name) is not None:
            commands[args.kind].error(f"--{name.replace('_', '-')} is for generated data: leave it out, or --data")
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.kind == "pathfinder":
        if args.level and not args.data:
            parser.error("--level is for published data: leave it out, or give --data")
        args.level = args.level or LEVEL
    return run("prepare_lra.py", lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
