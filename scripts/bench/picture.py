"""The picture of one attention layer."""

from pathlib import Path
from typing import Any, Dict, List

from luna_fairseq.pictures import load_pyplot, save


def draw(rows: List[Dict[str, Any]], tokens: int, output: Path) -> None:
    """Time and memory of a sentence against its length, forward and backward, both axes logarithmic."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for layer, size in dict.fromkeys((row["layer"], row["l"]) for row in rows):
        line = [row for row in rows if row["backward"] and (row["layer"], row["l"]) == (layer, size)]
        lengths = [row["length"] for row in line]
        style = {"marker": "o", "markersize": 3, "linestyle": "--" if "causal" in layer else "-"}
        for axis, what in zip(axes, ("seconds", "bytes"), strict=True):
            values = [row[what] / max(1, tokens // row["length"]) / (2**20 if what == "bytes" else 1) for row in line]
            axis.loglog(lengths, values, label=f"{layer} {size or ''}", **style)
    axes[0].set(xlabel="length", ylabel="seconds a sentence, forward and backward")
    axes[1].set(xlabel="length", ylabel="MiB a sentence, forward and backward")
    axes[0].legend(fontsize="x-small")
    save(figure, output)
