"""Reads the words of the corpus, lexicon.txt."""

from functools import cache
from pathlib import Path

LEXICON = Path(__file__).with_name("lexicon.txt")


@cache
def _sections() -> dict[str, list[list[str]]]:
    sections: dict[str, list[list[str]]] = {}
    for line in LEXICON.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            sections[line.strip("[]")] = entries = []
        elif line and not line.startswith("#"):
            # A bar without a space in front of it is part of a verb.
            entries.append([cell.strip() for cell in line.split(" |")])
    return sections


def rows(section: str) -> list[list[str]]:
    """The entries of a section in their order, each a list of its columns."""
    return _sections()[section]
