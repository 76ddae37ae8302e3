"""Matplotlib, which is optional, without a display."""

from pathlib import Path
from typing import Any

from luna_fairseq.outputs import whole_file

# Okabe and Ito's colours, which people with any kind of colour blindness tell apart; the lightest is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def load_pyplot() -> Any:
    """``matplotlib.pyplot``, set to draw into files.

    Raises:
        ValueError: if matplotlib is missing.
    """
    try:
        import matplotlib
        from cycler import cycler
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install matplotlib, or leave the picture out") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "luna"  # the same picture from the same numbers
    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=COLOURS)
    from matplotlib import pyplot

    return pyplot


def legend_below(figure: Any, axis: Any, columns: int) -> None:
    """The legend of one panel, for all of them, below the picture: it covers no line.

    Args:
        figure: with the layout ``constrained``, which makes room.
        axis: whose lines are named.
        columns: of the legend.
    """
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)


def save(figure: Any, path: Path) -> None:
    """Write a picture, whole or not at all; the same bytes for the same picture.

    Raises:
        ValueError: if the ending of the name is not that of a picture, or a file is there that is not one of these.
    """
    kind = path.suffix[1:].lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"{path} does not say what kind of picture it is: name a file that ends in .png or .svg")
    if path.is_file() and not _made_here(path):
        raise ValueError(f"{path} is no picture that matplotlib made: name another file, or remove it")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _made_here(path: Path) -> bool:
    """Whether matplotlib has left its name in a file, at the head or, in a PDF, at the end; or nothing is in it."""
    content = path.read_bytes().lower()
    return not content or b"matplotlib" in content[:4096] + content[-4096:]
