"""The published files of the Pathfinder task: metadata that is text, and PNG images."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from luna_fairseq.data.files import need_file
from luna_fairseq.data.lra.dataset import TWO_CLASSES, need_folder
from luna_fairseq.errors import PreparationError


def find_metadata(level: Path) -> list[Path]:
    """The files of metadata of a level, in the order of their numbers."""
    folder = need_folder(level / "metadata", "published data")
    files = sorted(folder.glob("*.npy"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise PreparationError(f"{folder} has no .npy files: name published data")
    return files


def find_images(level: Path, metadata: list[Path]) -> list[tuple[Path, int]]:
    """The images of a level that are not empty, as some of the published ones are, and their labels."""
    images = [image for path in metadata for image in _read_metadata(path, level)]
    whole = [(path, label) for path, label in images if need_file(path).stat().st_size]
    if len(whole) < len(images):
        print(f"{level}: {len(images) - len(whole)} empty images are left out")
    return whole


def _read_metadata(path: Path, level: Path) -> Iterator[tuple[Path, int]]:
    """The images and labels of a file that is called .npy and is text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PreparationError(f"{path} is not text: name published data") from error
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if len(cells) < 4 or cells[3] not in TWO_CLASSES:
            raise PreparationError(f"{path}, line {number} has no folder, file, number and label 0 or 1: mend it")
        yield level / cells[0] / cells[1], int(cells[3])


def read_png(path: Path, size: int) -> np.ndarray:
    """The grey values [size * size] of an image, row by row."""
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(path, formats=("PNG",))
        with image:
            if image.mode != "L" or image.size != (size, size):  # before it is decoded: it may be large
                raise PreparationError(
                    f"{path} is {image.size[0]}x{image.size[1]} in mode {image.mode}, not {size}x{size} in grey: "
                    "give its --size"
                )
            return np.asarray(image).reshape(-1)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise PreparationError(
            f"{path} says that it is far larger than {size}x{size}: remove it from the metadata"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PreparationError(f"{path} is not a whole PNG image: remove it from the metadata") from error
