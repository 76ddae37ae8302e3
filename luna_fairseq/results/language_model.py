"""What scripts/language_model.sh has trained: perplexities, sizes and speeds."""

import re
import statistics
from pathlib import Path
from typing import Any, Dict, List

from luna_fairseq.results.runs import (
    NOT_RUN,
    figure,
    header,
    is_smoke,
    parameters,
    perplexities,
    print_table,
    read_json,
    row,
    run_names,
)

# What perplexity.json holds, and what the columns are called.
KINDS: Dict[str, str] = {
    "blocks": "in blocks",
    "window": "behind half a block",
    "carried": "with carried state",
    "restarted": "with carried state, positions from 0",
    "faded": "with carried state that counts as one block, positions from 0",
}
COLUMNS = ("config", "validation perplexity in training", *KINDS.values(), "parameters", "training words/s")


def cells(folder: Path) -> List[str]:
    """The cells of a run after its name; "not run" for what is not there, and nothing for what a model cannot do."""
    log = (folder / "train.log").read_text() if (folder / ".trained").exists() else ""
    found = perplexities(log)
    if not found:
        return [NOT_RUN, *[""] * (len(COLUMNS) - 2)]
    path = folder / "perplexity.json"
    scores: Dict[str, Any] = read_json(path) if path.exists() else dict.fromkeys(KINDS, NOT_RUN)
    words = [float(speed) for speed in re.findall(r"train_inner.*? wps=([\d.]+)", log)]
    speed = f"{statistics.median(words):.0f}" if words else ""
    best = min(found, key=float)
    missing = "" if "transformer" in folder.name else NOT_RUN
    return [best, *(str(scores.get(kind, missing)) for kind in KINDS), parameters(log), speed]


def table(out: Path, configs: Path) -> str:
    """A row for each run and each config that has not run.

    Args:
        out: the folder of the runs.
        configs: the folder of the configs.

    Raises:
        ValueError: if there are no configs.
    """
    lines = [header(COLUMNS)]
    for name in run_names(out, configs, "*.yaml"):
        smoke = is_smoke(out / name)
        marked = [figure(cell, smoke) if cell and cell != NOT_RUN else cell for cell in cells(out / name)]
        lines.append(row([name, *marked]))
    return "\n".join(lines)


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    what = "What scripts/language_model.sh has trained, in Markdown."
    return print_table(prog, arguments, what, table, configs="language_model")
