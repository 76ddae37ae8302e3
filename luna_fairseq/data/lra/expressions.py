"""ListOps of the Long Range Arena: nested lists of digits under MIN, MAX, MED and SM, and the digit they come to.

    [MAX 2 9 [MIN 4 7 ] 0 ]   is   9

MED is the median without its fraction, SM the sum modulo 10.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from luna_fairseq.data.files import read_lines
from luna_fairseq.errors import PreparationError

MEDIAN = "[MED"
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    MEDIAN: lambda values: (sorted(values)[(len(values) - 1) // 2] + sorted(values)[len(values) // 2]) // 2,
    "[SM": lambda values: sum(values) % 10,
}
END = "]"
DIGITS = tuple(map(str, range(10)))
# An expression is a string of bytes: the places of its symbols in this list.
SYMBOLS = (*OPERATORS, END, *DIGITS)
NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS)}
_FUNCTIONS, END_NUMBER, FIRST_DIGIT = tuple(OPERATORS.values()), NUMBERS[END], NUMBERS[DIGITS[0]]


def evaluate(expression: bytes) -> int:
    """The digit an expression comes to.

    Raises:
        ValueError: it is not one whole expression.
    """
    # The last list is of the operator that is open; the first holds the result.
    values: list[int] = []
    open_lists: list[tuple[int, list[int]]] = []
    for symbol in expression:
        if symbol >= FIRST_DIGIT:
            values.append(symbol - FIRST_DIGIT)
        elif symbol != END_NUMBER:
            open_lists.append((symbol, values))
            values = []
        elif open_lists and values:
            operator, before = open_lists.pop()
            before.append(_FUNCTIONS[operator](values))
            values = before
        else:
            raise ValueError("a bracket closes nothing")
    if open_lists or len(values) != 1:
        raise ValueError("it does not end where it should")
    return values[0]


def parse(text: str) -> bytes:
    """An expression from its text; round brackets mean nothing.

    Raises:
        ValueError: a symbol is unknown.
    """
    try:
        return bytes(NUMBERS[symbol] for symbol in text.split() if symbol not in "()")
    except KeyError as error:
        raise ValueError(f"{error} is not a symbol") from error


def to_text(expression: bytes) -> str:
    """An expression as text, without round brackets."""
    return " ".join(SYMBOLS[symbol] for symbol in expression)


def read_published(path: Path) -> Iterator[tuple[bytes, int]]:
    """The expressions and digits of a published file, such as basic_train.tsv.

    Raises:
        PreparationError: a line is something else, or comes to another digit.
    """
    lines = (line for _, line in read_lines(path))
    if next(lines, "").split() != ["Source", "Target"]:
        raise PreparationError(f"{path} does not begin with the line Source, Target: name a file of ListOps")
    for number, line in enumerate(lines, 2):
        text, _, target = line.strip().rpartition("\t")
        if not line.strip():
            continue
        try:
            expression = parse(text)
            value = evaluate(expression)
        except ValueError as error:
            raise PreparationError(
                f"{path}, line {number} is not a ListOps expression and its digit: {error}"
            ) from error
        if str(value) != target:
            raise PreparationError(f"{path}, line {number} says {target!r}, and its expression is {value}: mend it")
        yield expression, value
