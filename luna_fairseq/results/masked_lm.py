"""What scripts/masked_lm.sh has trained, next to the paper's figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from luna_fairseq.results.runs import NOT_RUN, header, parameters, perplexities, print_table, read_results, row

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
    values = [
        f"{result['accuracy']:.1f} {result['tag']}".strip()
        for result in results
        if result["config"] == config and result["from"] == source
    ]
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


def wikitext_table(results: Sequence[Dict[str, Any]], logs: Dict[str, str]) -> List[str]:
    """A row for each small model.

    Args:
        results: of all runs.
        logs: what was printed during the pretraining of a model, if it is finished.
    """
    names = ["WikiText-2, then SST-2", "validation perplexity", "parameters", "SST-2 dev", "SST-2 dev, from scratch"]
    lines = [header(names)]
    for name in ("luna_tied_32", "luna_tied_32_bias", "luna_untied_32", "luna_untied_32_bias", "roberta"):
        log, config = logs.get(name, ""), f"sst2_small_{name}"
        perplexity = [NOT_RUN, *perplexities(log)][-1]
        accuracies = [ours(results, config, source) for source in (f"wikitext2_{name}", "scratch")]
        lines.append(row([name, perplexity, parameters(log), *accuracies]))
    return lines


def read_logs(out: Path) -> Dict[str, str]:
    """What finished trainings on WikiText-2 have printed, by their models."""
    prefix = "wikitext2_"
    finished = [path.with_name("train.log") for path in out.glob(f"{prefix}*/.trained")]
    return {path.parent.name.removeprefix(prefix): path.read_text() for path in finished if path.exists()}


def table(out: Path) -> str:
    """Both tables of what is in OUT."""
    results = read_results(out)
    title = "Dev accuracy (RACE: test accuracy), the paper's figure and (ours).\n"
    return "\n".join([title, *paper_table(results), "", *wikitext_table(results, read_logs(out))])


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    return print_table(prog, arguments, "What scripts/masked_lm.sh has trained, in Markdown.", table)
