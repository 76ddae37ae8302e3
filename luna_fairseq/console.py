"""How a command talks: progress, interruption, errors in one sentence, options."""

import argparse
import codecs
import io
import os
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


def system_error(error: OSError) -> str:
    """A sentence about what the system could not do with a file, or the one that the error has been given."""
    name = error.filename
    if name is None:
        return one_line(error)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if error.strerror not in (None, os.strerror(error.errno or 0)):
        return f"{name}: {' '.join(error.strerror.split())}"  # whoever raised it has said more
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist: name one that does"
    if isinstance(error, FileExistsError):
        return f"{name} is there already: name another one"
    if isinstance(error, PermissionError):
        return f"{name} may not be read or written: name another one"
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder: name a file"
    if isinstance(error, NotADirectoryError):
        return f"{name} is no folder, or lies in something that is none: name a folder"
    return f"{error.strerror or error}: {name}"


def say_everything() -> None:
    """Let what is printed have all characters where the system's encoding is ASCII: translations have others.

    Names of files come out as the bytes that they are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name == "ascii":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")


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
    say_everything()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a file shows what is done, too
    known: Tuple[Type[Exception], ...] = (PreparationError, *errors)
    try:
        work()
    except known as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{prog}: {system_error(error)}", file=sys.stderr)
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
