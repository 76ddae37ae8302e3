"""How a command tells of an error."""

import sys
from typing import Callable


def run(prog: str, work: Callable[[], None]) -> int:
    """Call ``work``; an error that the user can do something about is one line on stderr. Returns the exit code."""
    try:
        work()
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0
