"""What scripts/denoising.sh has trained: scores with and without pretraining."""

from typing import List

from luna_fairseq.results import multi30k


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    return multi30k.main(prog, arguments, "pairs", "denoising")
