"""What became of a check, and how a check that raises becomes a verdict, too."""

import dataclasses
import time
from typing import Any, Callable, Dict, List

from luna_fairseq.console import one_line

OK, FAILED, NOT_TRIED = "ok", "failed", "not tried"


class Wrong(Exception):
    """What was computed is not what it should be; the message says how far off."""


class NotTried(Exception):
    """There is nothing here to check; the message says why."""


class UnknownDevice(ValueError):
    """Somebody asks for a device that is not there, which is no verdict on what is."""


@dataclasses.dataclass
class Finding:
    """What a check that passed has seen.

    Attributes:
        text: a line.
        details: the same for a program, in what JSON can hold.
        table: lines that are printed below it.
    """

    text: str
    details: Dict[str, Any] = dataclasses.field(default_factory=dict)
    table: List[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Verdict:
    """What became of a check.

    Attributes:
        name: of the check.
        verdict: OK, FAILED or NOT_TRIED.
        text: what was seen, or why not; a line.
        seconds: what it took.
        details, table: see :class:`Finding`.
    """

    name: str
    verdict: str
    text: str
    seconds: float
    details: Dict[str, Any] = dataclasses.field(default_factory=dict)
    table: List[str] = dataclasses.field(default_factory=list)

    def lines(self) -> List[str]:
        """How it is printed."""
        return [f"{self.verdict:<10}{self.name}: {self.text}", *(f"{'':<12}{line}" for line in self.table)]


def attempt(name: str, check: Callable[[], Finding]) -> Verdict:
    """Do a check; whatever it raises is its verdict, and the others go on.

    Args:
        name: of the check.
        check: raises NotTried, or anything else if what it looks at is wrong.

    Raises:
        UnknownDevice: if the check does.
    """
    start = time.perf_counter()
    try:
        found = check()
    except UnknownDevice:
        raise
    except NotTried as reason:
        verdict, found = NOT_TRIED, Finding(one_line(reason))
    except (Exception, SystemExit) as error:  # a command of fairseq's leaves by SystemExit
        verdict, found = FAILED, Finding(_reason(error))
    else:
        verdict = OK
    seconds = round(time.perf_counter() - start, 2)
    return Verdict(name, verdict, found.text, seconds, found.details, found.table)


def _reason(error: BaseException) -> str:
    """An error in a line; an assertion of ours says all by itself."""
    text = one_line(error)[:400]
    if isinstance(error, Wrong):
        return text
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed here: see docs/install.md"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
