"""What scripts/multi30k.sh has trained: scores, sizes and speeds."""

import re
import statistics
from pathlib import Path
from typing import Any, List

from luna_fairseq.console import help_parser, run
from luna_fairseq.errors import DataError
from luna_fairseq.results.runs import NOT_RUN, figure, header, is_smoke, parameters, perplexities, read_json, row

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


def run_names(out: Path, configs: Path, experiment: str = EXPERIMENT) -> List[str]:
    """The configs of an experiment, whether they have run or not, and what has run of them under a TAG."""
    names = sorted(path.stem for path in configs.glob(f"{experiment}_*.yaml"))
    return sorted([*names, *(found.name for name in names for found in out.glob(f"{name}-*"))])


def table(out: Path, configs: Path, experiment: str = EXPERIMENT) -> str:
    """A row for each run and each config that has not run, and the signature of the scores.

    Args:
        out: the folder of the runs.
        configs: the folder of the configs.
        experiment: what their names begin with.

    Raises:
        ValueError: if there are no configs.
    """
    names = run_names(out, configs, experiment)
    if not names:
        raise ValueError(f"{configs} has no {experiment}_*.yaml: name the folder of the configs by --configs")
    lines, signature = [header(COLUMNS)], ""
    for name in names:
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


def main(prog: str, arguments: List[str], experiment: str = EXPERIMENT) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(
        prog, f"What scripts/{experiment}.sh has trained, in Markdown.\n\n    {prog} {experiment}-out"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the runs")
    parser.add_argument(
        "--configs",
        type=Path,
        default=Path("configs/translation"),
        help="their folder, from a clone of the project (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    return run(prog, lambda: print(table(args.out, args.configs, experiment)), ValueError)
