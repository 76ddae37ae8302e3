"""Draws ListOps expressions as the published generator draws them.

A node is an operator with chance 1/4 and else a digit, at the greatest depth always a digit; an operator is one of
the four and has 2 to 10 arguments, each number with the same chance; an expression is kept if it has more than 500
and fewer than 2,000 symbols, and no two are alike. Of 12 trees 11 are thrown away, so the shapes of thousands of
trees grow together, level by level, and only those that are kept get their symbols.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count

import numpy as np

from luna_fairseq.console import progress
from luna_fairseq.data.lra.expressions import DIGITS, END_NUMBER, FIRST_DIGIT, OPERATORS, evaluate
from luna_fairseq.data.workers import in_order
from luna_fairseq.errors import PreparationError

ONE_IN = 4
LEAST_ARGUMENTS = 2
# Part of what a seed means, as is the order of the draws.
TREES = 4096
STALLED_BLOCKS = 200


@dataclass(frozen=True)
class Limits:
    """Which expressions are drawn, and which of them are kept; the defaults are the published ones.

    Args:
        min_length: keep those with more symbols: operators, digits and closing brackets.
        max_length: keep those with fewer symbols.
        max_depth: a digit alone has depth 1.
        max_arguments: of an operator.

    Raises:
        PreparationError: no expression is within the limits.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_arguments: int = 10

    def __post_init__(self) -> None:
        if self.max_arguments < LEAST_ARGUMENTS:
            raise PreparationError(
                f"an operator has at least 2 arguments, and --max-arguments is {self.max_arguments}"
            )
        if self.max_length - self.min_length < 2:
            raise PreparationError(
                f"no length is above --min-length {self.min_length} and below --max-length {self.max_length}: "
                "put them further apart"
            )
        longest = 1
        for _ in range(self.max_depth - 1):
            if longest <= self.min_length:  # the numbers grow beyond all bounds
                longest = 2 + self.max_arguments * longest
        if longest <= self.min_length:
            raise PreparationError(
                f"with --max-depth {self.max_depth} and --max-arguments {self.max_arguments} no expression has more "
                f"than {longest} symbols: give a smaller --min-length than {self.min_length}"
            )


def _grow(random: np.random.Generator, limits: Limits) -> list[np.ndarray]:
    """The shapes of those among ``TREES`` trees that are within the limits.

    Returns:
        For each level how many arguments each node has, 0 for a digit; the children of a node stand side by side in
        the next level, in the order of their parents.
    """
    tree = np.arange(TREES)
    lengths = np.ones(TREES, dtype=np.int64)
    levels: list[tuple[np.ndarray, np.ndarray]] = []
    for depth in range(1, limits.max_depth + 1):
        arguments = np.zeros(len(tree), dtype=np.int64)
        if depth < limits.max_depth:
            (operators,) = np.nonzero(random.integers(0, ONE_IN, len(tree), dtype=np.uint8) == 0)
            arguments[operators] = random.integers(LEAST_ARGUMENTS, limits.max_arguments + 1, len(operators))
            # A child is at least one symbol, and an operator has its bracket.
            np.add.at(lengths, tree[operators], arguments[operators] + 1)
        levels.append((tree, arguments))
        # A tree that is too long already is not grown further: it would be thrown away.
        growing = lengths[tree] < limits.max_length
        tree = np.repeat(tree[growing], arguments[growing])
        if not len(tree):
            break
    kept = (lengths > limits.min_length) & (lengths < limits.max_length)
    return [arguments[kept[tree]] for tree, arguments in levels]


def _symbols(random: np.random.Generator, levels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Give operators and digits to shapes; returns the symbols of all expressions, and where each one starts."""
    # From the bottom up: the symbols of every node with all below it, and their sum over the children before.
    sizes: list[np.ndarray] = []
    before = np.zeros(1, dtype=np.int64)
    befores: list[np.ndarray] = []
    for arguments in reversed(levels):
        last = np.cumsum(arguments)
        sizes.append(np.where(arguments > 0, 2 + before[last] - before[last - arguments], 1))
        befores.append(before)
        before = np.concatenate(([0], np.cumsum(sizes[-1])))
    # From the top down: where each node begins.
    symbols = np.empty(before[-1], dtype=np.uint8)
    starts = place = before[:-1]
    for arguments, size, below in zip(levels, reversed(sizes), reversed(befores), strict=True):
        operator = arguments > 0
        symbols[place[~operator]] = FIRST_DIGIT + random.integers(0, len(DIGITS), (~operator).sum(), dtype=np.uint8)
        symbols[place[operator]] = random.integers(0, len(OPERATORS), operator.sum(), dtype=np.uint8)
        symbols[(place + size - 1)[operator]] = END_NUMBER
        first = np.cumsum(arguments) - arguments
        place = np.repeat(place + 1 - below[first], arguments) + below[:-1]
    return symbols, starts


def draw(seed: int, block: int, limits: Limits) -> list[tuple[bytes, int]]:
    """The expressions that a block of trees yields, and their digits; some may be alike."""
    random = np.random.default_rng([seed, 1, block])
    symbols, starts = _symbols(random, _grow(random, limits))
    text, ends = symbols.tobytes(), [*starts[1:].tolist(), len(symbols)]
    expressions = [text[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]
    return [(expression, evaluate(expression)) for expression in expressions]


def generate(total: int, seed: int, limits: Limits, workers: int = 1) -> list[tuple[bytes, int]]:
    """Different expressions and their digits, in random order.

    Args:
        total: how many.
        seed: decides which; the number of workers does not.
        limits: which are kept.
        workers: processes.

    Raises:
        PreparationError: there seem to be no more within the limits.
    """
    found: dict[bytes, int] = {}
    stalled = 0
    tasks = ((seed, block, limits) for block in count())
    with closing(in_order(draw, tasks, workers)) as blocks, progress(total, "drawing", " expressions") as bar:
        for block in blocks:
            known = len(found)
            found.update(block)
            bar.update(min(total, len(found)) - min(total, known))
            if len(found) >= total:
                break
            stalled = 0 if len(found) > known else stalled + 1
            if stalled == STALLED_BLOCKS:
                raise PreparationError(
                    f"only {len(found):,} different expressions turned up, and none in the last {stalled * TREES:,} "
                    "trees: ask for fewer, or widen the limits"
                )
    # Common expressions turn up first, and every split shall have its share of them.
    expressions = list(found.items())[:total]
    order = np.random.default_rng([seed, 2]).permutation(total)
    return [expressions[place] for place in order.tolist()]
