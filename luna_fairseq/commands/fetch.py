"""``luna-fairseq fetch NAME``: public archives, downloaded, checked and taken apart."""

from typing import Dict, List

from luna_fairseq.cli import Command, dispatch

NAMES: Dict[str, Command] = {
    "wmt14": Command("luna_fairseq.data.wmt14", "WMT'14 English-German"),
    "multi30k": Command("luna_fairseq.data.multi30k", "Multi30k English-German, captions of images"),
}


DESCRIPTION = """Download public archives, check their sums, and take the text out.

    luna-fairseq fetch wmt14 --out wmt14

A download that was interrupted goes on where it stopped.
"""


def main(prog: str, arguments: List[str]) -> int:
    """Run the command of a name; returns the exit code."""
    return dispatch(prog, DESCRIPTION, NAMES, arguments)
