"""What data of multiple choice share."""

from collections.abc import Sequence
from typing import Any

from luna_fairseq.errors import PreparationError


def spaced(text: str) -> str:
    """The text with single spaces and no line breaks."""
    return " ".join(text.split())


def choice(answer: Any, letters: Sequence[str], place: str) -> str:
    """The number of a letter."""
    if not isinstance(answer, str) or answer not in list(letters):
        raise PreparationError(f"{place}: the label {answer!r} is none of {', '.join(letters)}: mend it")
    return str(list(letters).index(answer))
