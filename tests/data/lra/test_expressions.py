"""ListOps: values against a slow check and published rows, expressions against the published recipe done plainly."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import pytest

from luna_fairseq.data.lra import draw_expressions, expressions
from luna_fairseq.data.lra.draw_expressions import Limits
from luna_fairseq.errors import PreparationError

SMALL = Limits(min_length=5, max_length=60, max_depth=5, max_arguments=4)


def slow_value(text: str) -> int:
    """Replaces what is innermost by its value until one digit is left."""
    operators = {"MIN": np.min, "MAX": np.max, "MED": np.median, "SM": lambda values: np.sum(values) % 10}
    innermost = re.compile(r"\[(\w+)((?: \d)+) \]")
    while not re.fullmatch(r"\d", text):
        text, count = innermost.subn(
            lambda found: str(int(operators[found[1]](list(map(int, found[2].split()))))), text
        )
        assert count
    return int(text)


def plain_tree(generator: random.Random, limits: Limits, depth: int = 1) -> str:
    """The published recipe: a digit or an operator, then its arguments."""
    if depth == limits.max_depth or generator.random() > 0.25:
        return str(generator.randrange(10))
    arguments = [plain_tree(generator, limits, depth + 1) for _ in range(generator.randint(2, limits.max_arguments))]
    return " ".join([generator.choice(["[MIN", "[MAX", "[MED", "[SM"]), *arguments, "]"])


def shape(text: str) -> Tuple[int, List[int]]:
    """The depth of an expression, and how many arguments its operators have, in the order of their ends."""
    deepest, arguments = 1, []
    open_operators = [0]
    for symbol in text.split():
        if symbol == "]":
            arguments.append(open_operators.pop())
            continue
        open_operators[-1] += 1
        if symbol.startswith("["):
            open_operators.append(0)
            deepest = max(deepest, len(open_operators))
    assert open_operators == [1]
    return deepest, arguments


# -------------------------------------------------------------------------------------------- evaluating
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[SM 9 9 9 ]", 7),
        ("[MED 9 1 3 ]", 3),
        ("[MED 1 2 ]", 1),
        ("[MED 9 0 4 5 ]", 4),
        ("[MED 2 8 8 9 ]", 8),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM [SM 8 7 ] [MED 6 [MAX 1 3 ] ] 5 ]", 4),
        ("( ( ( [SM 8 ) 7 ) ] )", 5),
    ],
)
def test_values(text: str, value: int) -> None:
    assert expressions.evaluate(expressions.parse(text)) == value


@pytest.mark.parametrize(
    "text",
    ["", "]", "1 2", "[MIN 1", "1 ]", "[MIN ]", "[MIN 1 2 ] 3", "[MIN 1 2 ] ]", "[MEAN 1 2 ]", "12", "[MIN 1 2]"],
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        expressions.evaluate(expressions.parse(text))


def test_values_against_the_slow_check() -> None:
    drawn = draw_expressions.draw(3, 0, Limits())[:30] + draw_expressions.draw(3, 0, SMALL)[:300]
    for expression, value in drawn:
        text = expressions.to_text(expression)
        assert slow_value(text) == value
        assert expressions.parse(text) == expression


def test_published_rows(shared_golden: Path) -> None:
    path = shared_golden / "listops.tsv"
    lines = path.read_text().splitlines()[1:]
    assert len(lines) == 120
    read = list(expressions.read_published(path))
    for line, (expression, value) in zip(lines, read, strict=True):
        text, target = line.split("\t")
        assert value == int(target)
        plain = " ".join(text.replace("(", " ").replace(")", " ").split())
        assert expressions.to_text(expression) == plain
        assert slow_value(plain) == value


# ------------------------------------------------------------------------------------------ published files
def test_read_published(tmp_path: Path) -> None:
    path = tmp_path / "basic_val.tsv"
    path.write_bytes(b"Source\tTarget\r\n( ( ( [MIN 4 ) 2 ) ] )\t2\r\n[SM 9 [MED 3 4 ] ]\t2\r\n")
    read = [(expressions.to_text(expression), value) for expression, value in expressions.read_published(path)]
    assert read == [("[MIN 4 2 ]", 2), ("[SM 9 [MED 3 4 ] ]", 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not begin with the line Source, Target: name a file of ListOps"),
        ("[MIN 4 2 ]\t2\n", "does not begin with the line Source, Target: name a file of ListOps"),
        ("Source\tTarget\n7\t7\n[MIN 4 2 ]\t4\n", "line 3 says '4', and its expression is 2: mend it"),
        (
            "Source\tTarget\n[MIN 4 2\t4\n",
            "line 2 is not a ListOps expression and its digit: it does not end where it",
        ),
        ("Source\tTarget\n[MIN 4 2 ]\n", "line 2 is not a ListOps expression and its digit"),
        ("Source\tTarget\n[MIN 4 x ]\t4\n", "line 2 is not a ListOps expression and its digit: 'x' is not a symbol"),
    ],
)
def test_wrong_files(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "basic_train.tsv"
    path.write_text(content)
    with pytest.raises(PreparationError) as raised:
        list(expressions.read_published(path))
    assert str(path) in str(raised.value)
    assert message in str(raised.value)


# -------------------------------------------------------------------------------------------- generating
@pytest.mark.parametrize("limits", [Limits(), SMALL, Limits(64, 256), Limits(5, 13, 4, 4)])
def test_limits_hold(limits: Limits) -> None:
    lengths = set()
    for expression, value in draw_expressions.draw(5, 1, limits):
        deepest, arguments = shape(expressions.to_text(expression))
        assert limits.min_length < len(expression) < limits.max_length
        assert deepest <= limits.max_depth
        assert 2 <= min(arguments) <= max(arguments) <= limits.max_arguments
        assert value == expressions.evaluate(expression)
        lengths.add(len(expression))
    if limits.max_length == 13:
        assert lengths == set(range(6, 13))


def test_different_and_the_same_with_any_workers() -> None:
    whole = draw_expressions.generate(1500, 7, SMALL)
    assert len({expression for expression, _ in whole}) == len(whole) == 1500
    assert draw_expressions.generate(1500, 7, SMALL, workers=2) == whole
    assert draw_expressions.generate(1500, 7, SMALL) == whole
    others = draw_expressions.generate(1500, 8, SMALL)
    # The short ones turn up with every seed.
    assert len({*whole, *others}) > 2500


def test_every_expression_and_no_more() -> None:
    """Exactly 4 x 100 expressions have four symbols; every split has its share of those that turn up first."""
    limits = Limits(3, 5, 2, 2)
    everything = draw_expressions.generate(400, 1, limits)
    wanted = {f"[{name} {a} {b} ]" for name in ("MIN", "MAX", "MED", "SM") for a in range(10) for b in range(10)}
    assert {expressions.to_text(expression) for expression, _ in everything} == wanted
    drawn = [pair for block in range(9) for pair in draw_expressions.draw(1, block, limits)]
    first = [pair for pair, _ in zip(dict(drawn).items(), range(200), strict=False)]
    assert 70 < len({*first} & {*everything[:200]}) < 130
    with pytest.raises(PreparationError, match=r"only 400 different expressions turned up, and none in the last "):
        draw_expressions.generate(401, 1, limits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((500, 501), "no length is above --min-length 500 and below --max-length 501"),
        ((500, 2000, 3), "no expression has more than 122 symbols"),
        ((500, 2000, 1), "no expression has more than 1 symbols"),
        ((5, 20, 3, 1), "an operator has at least 2 arguments, and --max-arguments is 1"),
    ],
)
def test_limits_that_nothing_meets(limits: Tuple[int, ...], message: str) -> None:
    with pytest.raises(PreparationError, match=message):
        Limits(*limits)


def test_how_many_trees_are_kept() -> None:
    """Exact chances: of a subtree's length given the levels below it, by adding up arguments."""
    size = Limits().max_length
    chances = np.zeros(size)
    chances[1] = 1.0
    for _ in range(Limits().max_depth - 1):
        arguments, either = chances, np.zeros(size)
        for _ in range(2, 11):
            arguments = np.convolve(arguments, chances)[:size]
            either += arguments / 9
        chances = 0.25 * np.concatenate(([0.0, 0.0], either[:-2]))
        chances[1] += 0.75
    kept = chances[501:].sum()
    lengths = [len(expression) for block in range(8) for expression, _ in draw_expressions.draw(11, block, Limits())]
    trees = 8 * draw_expressions.TREES
    assert abs(len(lengths) - trees * kept) < 4 * (trees * kept) ** 0.5
    found, _ = np.histogram(lengths, bins=range(500, 2001, 100))
    wanted = np.array([chances[max(501, start) : start + 100].sum() * trees for start in range(500, 2000, 100)])
    assert (abs(found - wanted) < 4 * wanted**0.5).all()


def test_the_same_as_the_plain_recipe() -> None:
    """Depths, arguments, symbols and values occur as often as when every tree is drawn and most are thrown away."""
    generator = random.Random(4)
    drawn = [
        expressions.to_text(expression)
        for block in range(3)
        for expression, _ in draw_expressions.draw(9, block, SMALL)
    ]
    plain: List[str] = []
    while len(plain) < len(drawn):
        text = plain_tree(generator, SMALL)
        if SMALL.min_length < len(text.split()) < SMALL.max_length:
            plain.append(text)

    def features(texts: List[str]) -> Dict[Tuple[str, object], int]:
        counts: Counter[Tuple[str, object]] = Counter()
        for text in texts:
            symbols = text.split()
            deepest, arguments = shape(text)
            counts.update([("length", len(symbols) // 5), ("depth", deepest), ("root", arguments[-1])])
            counts.update([("operator", symbols[0]), ("first", symbols[1]), ("last", symbols[-2])])
            counts.update([("deep", arguments[0]), ("value", slow_value(text))])
        return counts

    ours, theirs = features(drawn), features(plain)
    assert len(drawn) > 1000
    for feature in {*ours, *theirs}:
        difference = abs(ours[feature] - theirs[feature])
        assert difference <= 4 * (ours[feature] + theirs[feature]) ** 0.5, feature
