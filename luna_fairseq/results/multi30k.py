"""What scripts/multi30k.sh has trained: scores, sizes and speeds."""

import re
import statistics
from functools import partial
from pathlib import Path
from typing import Any, List

from luna_fairseq.errors import DataError
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

EXPERIMENT = "multi30k"
COLUMNS = (
    "config",
    "BLEU",
    "validation perplexity",
    "parameters",
    "training words/s",
    "generation sentences/s",
)


def result_cells(score: Any, train_log: str, generate_log: str) -> List[str]:
    """The cells of a finished run after its name.

    Args:
        score: its BLEU.
        train_log: what fairseq-hydra-train printed.
        generate_log: what fairseq-generate printed.

    Raises:
        DataError: if a log does not say what is needed.
    """
    words = re.findall(r"train_inner.*? wps=([\d.]+)", train_log)
    sentences = re.findall(r"\(([\d.]+) sentences/s", generate_log)
    found = perplexities(train_log)
    if not (words and sentences and found):
        raise DataError("no perplexity or no speed in train.log or generate.log: train or score the run again")
    speed = statistics.median(map(float, words))
    return [str(score), str(min(map(float, found))), parameters(train_log), f"{speed:.0f}", sentences[-1]]


def table(out: Path, configs: Path, experiment: str = EXPERIMENT) -> str:
    """A row for each run and each config that has not run, and the signature of the scores.

    Args:
        out: the folder of the runs.
        configs: the folder of the configs.
        experiment: what their names begin with.

    Raises:
        ValueError: if there are no configs.
    """
    lines, signature = [header(COLUMNS)], ""
    for name in run_names(out, configs, f"{experiment}_*.yaml"):
        folder = out / name
        if not (folder / "bleu.json").exists():
            lines.append(row([name, NOT_RUN]) + " |" * 4)
            continue
        bleu = read_json(folder / "bleu.json")
        logs = [(folder / log).read_text() for log in ("train.log", "generate.log")]
        try:
            cells = result_cells(bleu["score"], *logs)
            lines.append(row([name, *(figure(cell, is_smoke(folder)) for cell in cells)]))
        except DataError as error:
            raise DataError(f"{folder} has {error}") from error
        signature = bleu["signature"]
    return "\n".join([*lines, f"\n{signature}" if signature else ""])


def main(prog: str, arguments: List[str], experiment: str = EXPERIMENT, script: str = "") -> int:
    """Run the command; returns the exit code."""
    own = partial(table, experiment=experiment)
    what = f"What scripts/{script or experiment}.sh has trained, in Markdown."
    return print_table(prog, arguments, what, own, configs="translation")
