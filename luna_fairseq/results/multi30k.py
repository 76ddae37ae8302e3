"""What scripts/multi30k.sh has trained: scores, sizes and speeds."""

import argparse
import re
import statistics
from pathlib import Path
from typing import Dict, List, Optional

from luna_fairseq.commands._errors import run
from luna_fairseq.results.runs import NOT_RUN, header, parameters, perplexities, read_json, row

COLUMNS = (
    "config",
    "BLEU",
    "validation perplexity",
    "parameters",
    "training words/s",
    "generation sentences/s",
)


def result_cells(bleu: float, train_log: str, generate_log: str) -> List[str]:
    """The cells of a finished run after its name.

    Args:
        bleu: its score.
        train_log: what fairseq-hydra-train printed.
        generate_log: what fairseq-generate printed.
    """
    words = statistics.median(map(float, re.findall(r"train_inner.*? wps=([\d.]+)", train_log)))
    sentences = re.findall(r"\(([\d.]+) sentences/s", generate_log)[-1]
    perplexity = min(map(float, perplexities(train_log)))
    return [str(bleu), str(perplexity), parameters(train_log), f"{words:.0f}", sentences]


def run_names(out: Path, configs: Path) -> List[str]:
    """The configs, whether they have run or not, and what has run of them under a TAG."""
    names = sorted(path.stem for path in configs.glob("multi30k_*.yaml"))
    return sorted([*names, *(found.name for name in names for found in out.glob(f"{name}-*"))])


def table(out: Path, configs: Path) -> str:
    """A row for each run and each config that has not run, and the signature of the scores.

    Args:
        out: the folder of the runs.
        configs: the folder of the configs.

    Raises:
        ValueError: if there are no configs.
    """
    names = run_names(out, configs)
    if not names:
        raise ValueError(f"{configs} has no multi30k_*.yaml: name the folder of the configs by --configs")
    lines, signature = [header(COLUMNS)], ""
    for name in names:
        score: Optional[Dict[str, str]] = None
        if (out / name / "bleu.json").exists():
            score = read_json(out / name / "bleu.json")
        if score is None:
            lines.append(row([name, NOT_RUN]) + " |" * 4)
            continue
        logs = [(out / name / log).read_text() for log in ("train.log", "generate.log")]
        lines.append(row([name, *result_cells(float(score["score"]), *logs)]))
        signature = score["signature"]
    return "\n".join([*lines, f"\n{signature}" if signature else ""])


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="What scripts/multi30k.sh has trained, in Markdown.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the runs")
    parser.add_argument("--configs", type=Path, default=Path("configs/translation"), help="where they are")
    args = parser.parse_args(arguments)
    return run(prog, lambda: print(table(args.out, args.configs)))
