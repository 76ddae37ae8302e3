"""Matplotlib, which is optional, without a display."""

from pathlib import Path
from typing import Any


def load_pyplot() -> Any:
    """``matplotlib.pyplot``, set to draw into files.

    Raises:
        ValueError: if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install matplotlib, or leave the picture out") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "luna"  # the same picture from the same numbers
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure: nothing, or an earlier picture of matplotlib's, is in its place.

    Args:
        figure: of matplotlib.
        path: of the file; its ending is the format.
        options: of ``savefig``.

    Raises:
        ValueError: if something else is there.
    """
    if path.exists() and not _may_be_replaced(path):
        raise ValueError(f"{path} is there, and no picture that matplotlib made: name another file, or remove it")
    figure.savefig(path, **options)


def _may_be_replaced(path: Path) -> bool:
    """Whether it is a picture of matplotlib's, which writes its name at the head of a file, or empty."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096).lower()
    return not head or b"matplotlib" in head
