"""What scripts/lra.sh has trained, next to the paper's figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

from luna_fairseq.results.runs import NOT_RUN, accuracy, figure, print_table, read_results, row, rule


class Published(NamedTuple):
    """A row of the paper.

    Attributes:
        name: of the model.
        figures: in the order of TASKS, and their average.
    """

    name: str
    figures: str


PAPER = {  # section 4.1, table 2; by our names of the layers
    "transformer": Published("Transformer", "37.11 65.21 79.14 42.94 71.83 59.24"),
    "luna_16": Published("Luna-16", "37.43 65.74 79.38 46.39 78.36 61.46"),
    "luna_16_bias": Published("Luna-16 with a position bias", "- - - - - -"),  # not in the paper
    "luna_128": Published("Luna-128", "38.01 65.74 79.55 47.47 78.89 61.93"),
    "luna_256": Published("Luna-256", "37.98 65.78 79.56 47.86 78.55 61.95"),
}
# What a column is called, and our config.
TASKS = {"ListOps": "listops", "Text": "text", "Retrieval": "retrieval", "Image": "image", "Pathfinder": "pathfinder"}
OTHERS = {
    "Path-X": "pathfinder128",
    "ListOps, 64 to 256 tokens": "listops_small",
    "Text, 1,000 bytes": "text_small",
    "Image, few updates": "image_small",
    "Pathfinder, few updates": "pathfinder_small",
    "digits": "digits",
}
Results = Sequence[Dict[str, Any]]


def ours(results: Results, config: str, layers: str) -> str:
    """The accuracies of a config with some layers, and their tags; or "not run"."""
    values = [accuracy(result, 2) for result in _of(results, config, layers)]
    return ", ".join(values) or NOT_RUN


def average(results: Results, layers: str) -> str:
    """The average over TASKS of the runs without a tag; "not run" if one of them is missing."""
    found = [
        [result for result in _of(results, config, layers) if not result["tag"]][:1] for config in TASKS.values()
    ]
    if not all(found):
        return NOT_RUN
    smoke = any(result.get("smoke", False) for (result,) in found)
    return figure(f"{sum(result['accuracy'] for (result,) in found) / len(TASKS):.2f}", smoke)


def _of(results: Results, config: str, layers: str) -> List[Dict[str, Any]]:
    return [result for result in results if (result["config"], result["layers"]) == (config, layers)]


def paper_table(results: Results) -> List[str]:
    """A row for each of the paper's models: its figure and ours for each task."""
    lines = _header([*TASKS, "average"])
    for layers, (name, figures) in PAPER.items():
        found = [*(ours(results, config, layers) for config in TASKS.values()), average(results, layers)]
        cells = [f"{figure} ({here})" for figure, here in zip(figures.split(), found, strict=True)]
        lines.append(row([name, *cells]))
    return lines


def other_table(results: Results) -> List[str]:
    """A row for each of the paper's models: our accuracies on what the paper has no figures of."""
    lines = _header([*OTHERS])
    for layers, (name, _) in PAPER.items():
        lines.append(row([name, *(ours(results, config, layers) for config in OTHERS.values())]))
    return lines


def _header(names: Sequence[str]) -> List[str]:
    """The names of the columns after the first one, which has none, and the line under them."""
    return [f"| {row(names)}", rule(1 + len(names))]


def table(out: Path) -> str:
    """Both tables of what is in OUT."""
    results = read_results(out)
    return "\n".join(
        [
            "Test accuracy: the paper's figure and (ours).\n",
            *paper_table(results),
            "\nOf these the paper has no figures (Path-X: no model learned anything).\n",
            *other_table(results),
        ]
    )


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    return print_table(prog, arguments, "What scripts/lra.sh has trained, in Markdown.", table)
