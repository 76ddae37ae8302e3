"""The pictures of one attention layer."""

from pathlib import Path
from typing import Any, Dict, List, Tuple

from luna_fairseq.pictures import COLOURS, legend_below, load_pyplot, save

# The projection length that is drawn, if it was measured.
DRAWN = 32

# Colour, line, marker and its size, so that lines one upon the other are all seen.
Style = Tuple[str, str, str, int]
SOFTMAX: Dict[str, Style] = {
    "softmax": (COLOURS[1], "-", "o", 11),
    "causal softmax": (COLOURS[5], "--", "s", 8),
    "Luna": (COLOURS[0], "-", "^", 6),
    "causal Luna": (COLOURS[4], "--", "D", 4),
}
TRANSCRIPTION: Dict[str, Style] = {
    "transcription": (COLOURS[3], "-", "v", 6),
    "causal Luna": SOFTMAX["causal Luna"],
}


def draw(rows: List[Dict[str, Any]], tokens: int, folder: Path) -> None:
    """Draw time and memory of a sentence against its length, forward and backward, all axes logarithmic.

    Args:
        rows: of the benchmark of one layer.
        tokens: of a batch.
        folder: gets ``attention.svg``, Luna next to softmax attention, and ``transcription.svg``, the causal layer
            next to a transcription of the paper's formulas, if that was measured.
    """
    sizes = {row["l"] for row in rows if row["l"]}
    size = DRAWN if DRAWN in sizes else min(sizes)
    for name, styles in (("attention", SOFTMAX), ("transcription", TRANSCRIPTION)):
        if all(any(row["layer"] == layer for row in rows) for layer in styles):
            _draw(rows, tokens, size, styles, folder / f"{name}.svg")


def _draw(rows: List[Dict[str, Any]], tokens: int, size: int, styles: Dict[str, Style], output: Path) -> None:
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for layer, (colour, line, marker, marked) in styles.items():
        here = [row for row in rows if row["backward"] and row["layer"] == layer and row["l"] in (0, size)]
        lengths = [row["length"] for row in here]
        label = layer if "softmax" in layer else f"{layer}, l = {size}"
        for axis, what, unit in zip(axes, ("seconds", "bytes"), (1e-3, 2**20), strict=True):
            values = [row[what] / max(1, tokens // row["length"]) / unit for row in here]
            axis.loglog(
                lengths, values, label=label, color=colour, linestyle=line, marker=marker, markersize=marked,
                markerfacecolor="white", linewidth=1.8,
            )  # fmt: skip
    for axis, title, name in zip(axes, ("time", "memory"), ("ms", "MiB"), strict=True):
        lengths = sorted({row["length"] for row in rows})
        axis.set(title=f"{title} of a sentence", xlabel="length", ylabel=name)
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    legend_below(figure, axes[0], len(styles))
    save(figure, output)
    pyplot.close(figure)
