"""A mistake of the user's ends a command of fairseq's with one sentence; what nobody foresaw ends with a traceback.

``LUNA_TRACEBACK=1`` in the environment ends everything with a traceback, as in fairseq; so does Hydra's own
``HYDRA_FULL_ERROR=1``.
"""

import argparse
import difflib
import dis
import functools
import json
import multiprocessing
import os
import re
import sys
import time
from types import TracebackType
from typing import Any, List, NoReturn, Optional

from luna_fairseq import errors
from luna_fairseq.compat._replace import Undo, acts, replaces, replaces_value, variant
from luna_fairseq.console import one_line, say_everything, system_error

VARIABLES = ("LUNA_TRACEBACK", "HYDRA_FULL_ERROR")

_HERE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_OURS = tuple(kind for kind in vars(errors).values() if isinstance(kind, type))
_FORESEEN = (ArithmeticError, ImportError, OSError, RuntimeError, ValueError)
# What another process has written down: the last lines are the kind of the error, and its message.
_REPORTED = re.compile(r"Traceback \(most recent call last\):\n.*\n(\S+): (.*)", re.S)


class Mistake(Exception):
    """What a process tells the one that has started it; the message is the sentence."""


def _frames(error: BaseException) -> List[TracebackType]:
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append(trace)
        trace = trace.tb_next
    return found


def _package(trace: TracebackType) -> str:
    """Whose code it is: ``luna_fairseq``, ``fairseq``, ``fairseq_cli``, or something else."""
    file = trace.tb_frame.f_code.co_filename
    if file.startswith(_HERE):
        return "luna_fairseq"
    if os.path.basename(os.path.dirname(file)) == "fairseq_cli":  # whose module may be __main__
        return "fairseq_cli"
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_raised(trace: TracebackType) -> bool:
    """Whether a ``raise`` or an ``assert`` stands there, and not a line that has failed."""
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def sentence(error: BaseException) -> Optional[str]:
    """What to tell the user in the place of a traceback; None if nobody foresaw the error.

    Foreseen is what this package raises, and what fairseq raises with a message; a file that the system cannot open
    or write, because somebody has named it; and an option that fairseq's configs do not have, or lack.
    """
    reported = _REPORTED.search(str(error))
    if reported is not None:
        return " ".join(reported[2].split()) if reported[1].startswith("luna_fairseq.") else None
    frames = _frames(error)
    package, raised = (_package(frames[-1]), _is_raised(frames[-1])) if frames else ("", False)
    ours = package == "luna_fairseq" and raised and isinstance(error, _FORESEEN)
    if isinstance(error, OSError) and (ours or error.filename is not None):
        return system_error(error)
    if ours or isinstance(error, (*_OURS, Mistake)):
        return one_line(error)
    if package == "omegaconf":
        return _about_an_option(error, [trace.tb_frame.f_code.co_name for trace in frames])
    foreseen = package == "fairseq_cli" or (
        package == "fairseq"
        and (type(error) is Exception or isinstance(error, (ImportError, OSError, ValueError)) or "--" in str(error))
    )
    return _of_fairseq(error) if raised and foreseen and str(error) else None


# What to do about the messages of fairseq that name a value and leave the user there.
_ADVICE = {
    "Model file not found": "correct --path",
    "Dataset not found": "name a split that is there by --train-subset, --valid-subset or --gen-subset",
    "Cannot find dataset": "name a split that is there by --valid-subset",
    "Could not infer language pair": "give --source-lang and --target-lang, or name the folder of the data",
}


def _of_fairseq(error: BaseException) -> str:
    """The message of an error of fairseq's, with what to do about it if that is known."""
    said = one_line(error)
    if isinstance(error, FileExistsError):  # the message is its name
        return f"{said} is there already: name another folder, or remove it"
    if isinstance(error, FileNotFoundError) and os.path.isabs(said):
        return f"{said} does not exist: name one that does"
    for start, advice in _ADVICE.items():
        if said.startswith(start):
            return f"{said}: {advice}"
    return f"{said} ({VARIABLES[0]}=1 shows where fairseq says so)"


def _about_an_option(error: Any, functions: List[str]) -> Optional[str]:
    """An option of a YAML, of Hydra's command line or of a checkpoint that fairseq does not have, or cannot take.

    Args:
        error: of omegaconf.
        functions: in which it came to it.
    """
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, ValidationError

    name = str(getattr(error, "full_key", ""))
    if isinstance(error, MissingMandatoryValue) and name:
        return f"--{name.rpartition('.')[2].replace('_', '-')} is not given, and needed: name a value"
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and "merge_with_parent" in functions:
        known = list(getattr(error.object_type, "__dataclass_fields__", ()))
        near = difflib.get_close_matches(name, known, 3)
        meant = f"did you mean {', '.join(near)}?" if near else "leave it out"
        return f"{str(error).splitlines()[0]}: {meant}"
    if isinstance(error, ValidationError) and "merge_with_parent" in functions and name:
        return f"{name}: {str(error).splitlines()[0]}: correct it"
    return None


def _command(error: BaseException) -> Optional[str]:
    """The command of fairseq's that an error has ended, if it was one."""
    for trace in _frames(error):
        if _package(trace) == "fairseq_cli":
            name = os.path.splitext(os.path.basename(trace.tb_frame.f_code.co_filename))[0]
            return f"fairseq-{name.replace('_', '-')}"
    return None


def _tell(error: BaseException) -> bool:
    """Print the sentence of an error that has ended a command; returns whether there is one."""
    command = _command(error)
    if command is None or any(os.environ.get(name, "0") not in ("", "0") for name in VARIABLES):
        return False
    said = sentence(error)
    if said is None:
        return False
    print(f"{command}: {said}", file=sys.stderr)
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:  # torchrun ends with what it finds there
        with open(report, "w") as file:
            json.dump({"message": {"message": said, "extraInfo": {"timestamp": str(int(time.time()))}}}, file)
    return True


@acts(
    fairseq="ends with a traceback of a hundred lines whatever is wrong, a wrong path or a damaged program",
    here="a mistake that was foreseen is one sentence; LUNA_TRACEBACK=1 shows the traceback, as everything else does",
    since="fairseq 0.12.3",
)
def end_with_a_sentence() -> Undo:
    """By the hook of the interpreter, so that a program that calls fairseq gets the same errors as ever."""
    before = sys.excepthook

    def hook(kind: Any, error: BaseException, trace: Any) -> None:
        if not _tell(error):
            before(kind, error, trace)

    sys.excepthook = hook

    def undo() -> None:
        sys.excepthook = before

    return undo


@replaces_value(
    "hydra._internal.utils",
    "traceback",
    fairseq="has a hydra that prints each error itself, with its traceback",
    here="a mistake that was foreseen is one sentence there, too",
    since="hydra-core 1.1",
)
def end_hydra_with_a_sentence(original: Any) -> Any:
    def print_exception(*args: Any, **kwargs: Any) -> None:
        if _tell(kwargs.get("value") or args[1]):
            sys.exit(1)  # as hydra does next
        original.print_exception(*args, **kwargs)

    return variant(original, print_exception=print_exception)


def _telling(main: Any, *args: Any, **kwargs: Any) -> Any:
    """A program in a process that another one has started, which reads nothing but the text of an error."""
    try:
        return main(*args, **kwargs)
    except Exception as error:
        said = sentence(error)
        if said is None or multiprocessing.parent_process() is None:
            raise
        raise Mistake(said) from error


@replaces(
    "fairseq.distributed.utils",
    "call_main",
    fairseq="has a process for each GPU, whose errors come back as the text of a traceback",
    here="the sentence comes back, and is the last line",
    since="fairseq 0.12.3",
)
def bring_the_sentence_back(original: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
    if cfg.distributed_training.distributed_world_size > 1:
        main = functools.partial(_telling, main)
    return original(cfg, main, **kwargs)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        # fairseq asks its tables for them, and ends with an error that has no text.
        for option in ("--arch", "--task"):
            action = self._option_string_actions.get(option)
            if action is not None and action.choices and getattr(found, action.dest, None) is None:
                self.error(f"the following arguments are required: {option}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {self._explain(message)}\n")

    def _explain(self, message: str) -> str:
        """The message of argparse, with what may have been meant, and without a hundred names."""
        choice = re.match(r"(argument (\S+): invalid choice: '?(.*?)'?)[, ]+\(?(?:maybe|choose from)", message)
        if choice is not None:
            option = choice[2].partition("/")[0]
            known = [str(one) for one in self._option_string_actions[option].choices or ()]
            return f"{choice[1]!s}: {self._meant([choice[3]], known, 'take one of those')}"
        if message.startswith("unrecognized arguments: "):
            given = [word.partition("=")[0] for word in message.split()[2:] if word.startswith("-")]
            return f"{message}: {self._meant(given, list(self._option_string_actions), 'leave it out, or see those')}"
        return f"{message} (all options: {self.prog} --help)"

    def _meant(self, given: List[str], known: List[str], otherwise: str) -> str:
        near = [name for one in given for name in difflib.get_close_matches(one, known, 3)]
        if near:
            return f"did you mean {', '.join(near)}? (all: {self.prog} --help)"
        if len(known) <= 30:
            return f"take one of {', '.join(known)}"
        return f"{otherwise} of {self.prog} --help"


@replaces_value(
    "fairseq.options",
    "argparse",
    fairseq="answers a misspelt option or architecture with a hundred lines of usage",
    here="one line says what may have been meant",
    since="fairseq 0.12.3",
)
def say_what_was_meant(original: Any) -> Any:
    """The plugin is loaded before fairseq makes its parser; a parser that is there already is fairseq's."""
    return variant(original, ArgumentParser=_Parser)


@replaces(
    "fairseq.tasks",
    "setup_task",
    fairseq="ends at the first translation with a character that an ASCII system's encoding does not have",
    here="a command prints UTF-8 there",
    since="fairseq 0.12.3",
)
def print_every_character(original: Any, cfg: Any, **kwargs: Any) -> Any:
    """What a program of somebody's prints is left to it."""
    main = os.path.dirname(getattr(sys.modules["__main__"], "__file__", None) or "")
    if "fairseq_cli" in sys.modules or os.path.basename(main) == "fairseq_cli":
        say_everything()
    return original(cfg, **kwargs)
