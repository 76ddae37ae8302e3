"""How a command talks: progress, interruption, errors in one sentence, options."""

import argparse
import io
import signal
import sys
from collections.abc import Callable
from typing import Any, Tuple, Type

from luna_fairseq.errors import PreparationError


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS, "") or action.default == [] or "default" in said:
            return said
        default = action.default
        if isinstance(default, (list, tuple)):
            shown = " ".join(map(str, default))
        else:
            shown = f"{default:,}" if isinstance(default, int) else str(default)
        return f"{said} (default: {shown.replace('%', '%%')})"


def help_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help says what the command is for, with an example, and the defaults.

    Args:
        prog: what was typed so far.
        description: lines, or a docstring of a module; its quotes of code are left out.
    """
    text = description.strip().replace("``", "")
    return argparse.ArgumentParser(prog=prog, description=text, formatter_class=_Help)


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())


def run(prog: str, work: Callable[[], None], *errors: Type[Exception]) -> int:
    """Do the work of a command; errors of the user or of the system are one line on stderr.

    Args:
        prog: what was typed, which begins that line.
        work: the work.
        errors: what else tells the user what to change; anything else ends with a traceback.

    Returns:
        the exit code.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a file shows what is done, too
    known: Tuple[Type[Exception], ...] = (PreparationError, *errors)
    try:
        work()
    except known as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"{prog}: {error.filename or error} does not exist: name one that does", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"{prog}: {error.filename or error} may not be read or written: name another one", file=sys.stderr)
        return 1
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        print(f"{prog}: {error.strerror or error}{place}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted: run the same command again", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)  # for a program that goes on with something else
    return 0


def progress(total: int, name: str, unit: str) -> Any:
    """A progress display on stderr; rare lines if that is a file."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30
    tqdm.monitor_interval = 0  # its thread would be forked with the workers
    return tqdm(total=total, desc=name, unit=unit, unit_scale=True, mininterval=interval, maxinterval=interval)


def positive(text: str) -> int:
    """An option that is a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
