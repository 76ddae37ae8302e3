"""Options on their way to where they are used: they are neither changed nor run as code."""

import ast
import re
from argparse import Namespace
from typing import Any, List

from luna_fairseq.compat._replace import imported_modules, replaces, replaces_value

_HARMLESS = (
    *(ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Load),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UnaryOp, ast.UAdd, ast.USub),
)


class _Escaped(Namespace):
    """Options whose texts Hydra's grammar gives back as they were, once a backslash stands before each quote."""


@replaces(
    "fairseq.dataclass.utils",
    "_override_attr",
    fairseq="quotes options for Hydra, but no backslash before a quote: such a path ends in its grammar",
    here="these backslashes are doubled, and a folder may be called as it likes",
    since="fairseq 0.12.3",
)
def keep_backslashes(original: Any, sub_node: str, data_class: Any, args: Any) -> List[str]:
    if isinstance(args, Namespace) and not isinstance(args, _Escaped):
        args = _Escaped(**{name: _escaped(value) for name, value in vars(args).items()})
    return original(sub_node, data_class, args)


def _escaped(value: Any) -> Any:
    return re.sub(r"(\\+)('|\Z)", r"\1\1\2", value) if isinstance(value, str) else value


def _evaluate(text: Any) -> Any:
    """The value of an option such as ``[(512, 3)] * 4``.

    Raises:
        ValueError: if it is more than constants, lists and sums.
        TypeError: if it is not a string, as ``eval`` does.
    """
    tree = ast.parse(text.strip() if isinstance(text, str) else text, mode="eval")
    if not all(isinstance(node, _HARMLESS) for node in ast.walk(tree)):
        raise ValueError(f"the option {text!r} was not evaluated: write numbers, strings, lists and tuples")
    return eval(compile(tree, "<option>", "eval"), {"__builtins__": {}})


@replaces_value(
    imported_modules,
    "eval",
    fairseq="gives options such as --encoder-layers of fconv to eval, those of somebody else's checkpoint, too",
    here="every module of fairseq has an eval of its own, which computes with constants and refuses the rest",
    since="fairseq 0.12.3",
)
def evaluate_data_only(original: Any) -> Any:
    return _evaluate
