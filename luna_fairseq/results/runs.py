"""What the tables share: reading what a run has left in its folder, and Markdown."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional

from luna_fairseq.cli import shared_folder
from luna_fairseq.console import help_parser, run
from luna_fairseq.errors import DataError

NOT_RUN = "not run"
SMOKE = "SMOKE"


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def header(names: Sequence[str]) -> str:
    """The names of the columns, and the line under them."""
    return f"{row(names)}\n{rule(len(names))}"


def rule(columns: int) -> str:
    """The line under the names of the columns."""
    return "|" + "---|" * columns


def read_json(path: Path) -> Any:
    """What a script has written about a run.

    Raises:
        DataError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: remove it, and let the script write it again") from error


def is_smoke(run: Path) -> bool:
    """Whether a run is one of those that only show that a script works: it has a mark, or lies in OUT/smoke."""
    return (run / ".smoke").exists() or run.absolute().parent.name == "smoke"


def figure(value: str, smoke: bool) -> str:
    """One of our figures; that of a smoke run says so, and is never taken for a real one."""
    return f"{value} {SMOKE}" if smoke else value


def read_results(out: Path) -> List[Dict[str, Any]]:
    """The result.json of every run in ``out``, in the order of their names, and whether it was a smoke run."""
    return [{**read_json(path), "smoke": is_smoke(path.parent)} for path in sorted(out.glob("*/result.json"))]


def accuracy(result: Dict[str, Any], digits: int) -> str:
    """The accuracy of a run with its tag."""
    return figure(f"{result['accuracy']:.{digits}f} {result['tag']}".strip(), result.get("smoke", False))


def perplexities(log: str) -> List[str]:
    """The perplexity of every validation in a log of fairseq, from the first to the last."""
    return re.findall(r"valid on .*? ppl ([\d.]+)", log)


def parameters(log: str) -> str:
    """How many parameters the model of a log has, such as 4,967,424; "" if the log does not say."""
    return ["", *re.findall(r"num. shared model params: ([\d,]+)", log)][-1]


def existing(out: Path) -> Path:
    """The folder of the runs.

    Raises:
        DataError: if there is none, which may be a slip of the pen: a table in which nothing has run would hide it.
    """
    if not out.is_dir():
        raise DataError(f"the folder {out} does not exist: name the one that the script has written to, its OUT")
    return out


def run_names(out: Path, configs: Path, pattern: str) -> List[str]:
    """The configs, whether they have run or not, and what has run of them under a TAG.

    Args:
        out: the folder of the runs.
        configs: the folder of the configs.
        pattern: of their files.

    Raises:
        ValueError: if there are none.
    """
    names = sorted(path.stem for path in configs.glob(pattern))
    if not names:
        raise ValueError(f"{configs} has no {pattern}: name the folder of the configs by --configs")
    return sorted([*names, *(found.name for name in names for found in out.glob(f"{name}-*"))])


def print_table(
    prog: str, arguments: List[str], description: str, table: Callable[..., str], configs: Optional[str] = None
) -> int:
    """A command that takes the folder OUT and prints its table; returns the exit code.

    Args:
        prog: what was typed so far.
        arguments: the rest of the command line.
        description: for the help.
        table: from OUT, and the folder of the configs if there is one, to the text without the last line break.
        configs: the folder of ``configs`` that has a row for each file, if there is one.
    """
    parser = help_parser(prog, f"{description}\n\n    {prog} {prog.split()[-1]}-out")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the runs")
    if configs is None:
        args = parser.parse_args(arguments)
        return run(prog, lambda: print(table(existing(args.out))), ValueError)
    own = shared_folder("configs") / configs
    parser.add_argument("--configs", type=Path, default=own, help="another folder of configs")
    args = parser.parse_args(arguments)
    return run(prog, lambda: print(table(existing(args.out), args.configs)), ValueError)
