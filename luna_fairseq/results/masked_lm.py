"""What scripts/masked_lm.sh has trained, next to the paper's figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from luna_fairseq.results.runs import (
    NOT_RUN,
    accuracy,
    figure,
    header,
    is_smoke,
    parameters,
    perplexities,
    print_table,
    read_results,
    row,
)

TASKS = {"SST-2": "sst2", "QNLI": "qnli", "QQP": "qqp", "RACE": "race", "CSQA": "csqa"}


class Published(NamedTuple):
    """A row of the paper.

    Attributes:
        name: of the model.
        figures: in the order of TASKS; "-" where there is none.
        pretraining: our config, or the folder of a published checkpoint; None if we have no such model.
    """

    name: str
    figures: str
    pretraining: Optional[str]


PAPER = (  # section 4.3
    Published("16 GB: BERT-base", "92.7 88.4 89.6 64.2 53.3", None),
    Published("16 GB: RoBERTa-base", "93.1 90.9 90.9 65.6 -", "pretrain_roberta_16gb"),
    Published("16 GB: Linformer-128", "92.4 90.4 90.2 - -", None),
    Published("16 GB: Luna-128, tied", "93.1 91.2 90.8 65.2 53.1", "pretrain_luna_tied_128_16gb"),
    Published("16 GB: Luna-128, untied", "- - - - -", "pretrain_luna_untied_128_16gb"),
    Published("160 GB: RoBERTa-base", "94.8 92.8 91.9 73.50 63.61", "pretrain_roberta_160gb"),
    Published("160 GB: Luna-128, tied", "94.3 91.5 91.2 71.50 61.48", "pretrain_luna_tied_128_160gb"),
    Published("160 GB: Luna-128, untied", "94.6 92.2 91.3 72.25 62.08", "pretrain_luna_untied_128_160gb"),
    Published("the published luna.base.tied", "- - - - -", "luna.base.tied"),
    Published("the published luna.base.untied", "- - - - -", "luna.base.untied"),
)


def ours(results: Sequence[Dict[str, Any]], config: str, source: str) -> str:
    """The accuracies of a config after a pretraining, with their tags; or "not run"."""
    values = [accuracy(result, 1) for result in results if result["config"] == config and result["from"] == source]
    return ", ".join(values) or NOT_RUN


def paper_table(results: Sequence[Dict[str, Any]]) -> List[str]:
    """A row for each of the paper's models: its figure and ours for each task."""
    lines = [header(["pretraining", *TASKS])]
    for name, figures, source in PAPER:
        cells = [
            f"{figure} ({ours(results, f'finetune_{task}', source)})" if source else figure
            for figure, task in zip(figures.split(), TASKS.values(), strict=True)
        ]
        lines.append(row([name, *cells]))
    return lines


def wikitext_table(results: Sequence[Dict[str, Any]], logs: Dict[str, str], smoke: Sequence[str] = ()) -> List[str]:
    """A row for each small model.

    Args:
        results: of all runs.
        logs: what was printed during the pretraining of a model, if it is finished.
        smoke: the models whose pretraining was a smoke run.
    """
    names = ["WikiText-2, then SST-2", "validation perplexity", "parameters", "SST-2 dev", "SST-2 dev, from scratch"]
    lines = [header(names)]
    for name in ("luna_tied_32", "luna_tied_32_bias", "luna_untied_32", "luna_untied_32_bias", "roberta"):
        log, config = logs.get(name, ""), f"sst2_small_{name}"
        found = [figure(value, name in smoke) for value in perplexities(log)]
        perplexity = [NOT_RUN, *found][-1]
        accuracies = [ours(results, config, source) for source in (f"wikitext2_{name}", "scratch")]
        size = figure(parameters(log), name in smoke and bool(log))
        lines.append(row([name, perplexity, size, *accuracies]))
    return lines


def pretrained(out: Path) -> Dict[str, Path]:
    """The finished trainings on WikiText-2, by their models."""
    prefix = "wikitext2_"
    finished = [path.parent for path in out.glob(f"{prefix}*/.trained")]
    return {path.name.removeprefix(prefix): path for path in finished if (path / "train.log").exists()}


def table(out: Path) -> str:
    """Both tables of what is in OUT."""
    results = read_results(out)
    title = "Dev accuracy (RACE: test accuracy), the paper's figure and (ours).\n"
    runs = pretrained(out)
    logs = {name: (run / "train.log").read_text() for name, run in runs.items()}
    smoke = [name for name, run in runs.items() if is_smoke(run)]
    return "\n".join([title, *paper_table(results), "", *wikitext_table(results, logs, smoke)])


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    return print_table(prog, arguments, "What scripts/masked_lm.sh has trained, in Markdown.", table)
