"""Matplotlib, which is optional, without a display."""

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
