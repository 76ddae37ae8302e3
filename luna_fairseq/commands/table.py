"""``luna-fairseq table EXPERIMENT OUT``: what is finished in OUT, next to the paper's figures, in Markdown."""

from typing import Dict, List

from luna_fairseq.cli import Command, dispatch

EXPERIMENTS: Dict[str, Command] = {
    "wmt14": Command("luna_fairseq.results.wmt14", "what scripts/wmt14.sh has trained"),
    "multi30k": Command("luna_fairseq.results.multi30k", "what scripts/multi30k.sh has trained"),
    "documents": Command("luna_fairseq.results.documents", "what scripts/documents.sh has trained"),
    "denoising": Command("luna_fairseq.results.denoising", "what scripts/denoising.sh has trained"),
    "masked-lm": Command("luna_fairseq.results.masked_lm", "what scripts/masked_lm.sh has trained"),
    "language-model": Command("luna_fairseq.results.language_model", "what scripts/language_model.sh has trained"),
    "lra": Command("luna_fairseq.results.lra", "what scripts/lra.sh has trained"),
}


DESCRIPTION = """What is finished of an experiment, in Markdown, next to the paper's figures; the rest says "not run".

    luna-fairseq table lra lra-out
"""


def main(prog: str, arguments: List[str]) -> int:
    """Run the command of an experiment; returns the exit code."""
    return dispatch(prog, DESCRIPTION, EXPERIMENTS, arguments)
