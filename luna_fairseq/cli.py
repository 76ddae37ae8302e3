"""The console command ``luna-fairseq``; each of its commands is a module that is imported when it is asked for.

So the help, the version and ``user-dir``, which stands in every command line of fairseq, ``configs`` and ``scripts``
answer without torch.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from luna_fairseq._version import __version__

DESCRIPTION = """Luna attention for fairseq: what is needed beside fairseq's own commands.

    fairseq-train data-bin --user-dir $(luna-fairseq user-dir) --arch luna ...    any command of fairseq, with Luna
    luna-fairseq run fairseq-train data-bin --arch luna ...                       the same
    luna-fairseq doctor                                                           does it work on this machine?
    luna-fairseq prepare translation --help                                       every command has its help

From raw text to a score: docs/translation.md, or "make demo" in a clone.
"""


class Command(NamedTuple):
    """Where a command is, and what it does."""

    module: str  # with a function main(prog, arguments), which returns the exit code
    help: str  # a line


COMMANDS: Dict[str, Command] = {
    "user-dir": Command("luna_fairseq.commands.folder", "print the folder to give to --user-dir"),
    "configs": Command("luna_fairseq.commands.folder", "print the folder of the configs, for --config-dir"),
    "scripts": Command("luna_fairseq.commands.folder", "print the folder of the experiment scripts"),
    "run": Command("luna_fairseq.commands.run", "start a command of fairseq with the plugin loaded first"),
    "doctor": Command("luna_fairseq.commands.doctor", "check the plugin on this machine, a line for each verdict"),
    "prepare": Command("luna_fairseq.commands.prepare", "make data for training from text, images or a generator"),
    "fetch": Command("luna_fairseq.commands.fetch", "download public archives, check them, take the text out"),
    "score": Command("luna_fairseq.commands.score", "score translations by sacreBLEU and by tokenised BLEU"),
    "plot": Command("luna_fairseq.commands.plot", "draw trainings from their logs"),
    "table": Command("luna_fairseq.commands.table", "what is finished of an experiment, next to the paper's figures"),
    "average": Command("luna_fairseq.commands.average", "average checkpoints, and write a model card"),
    "card": Command("luna_fairseq.commands.card", "write the model card of a checkpoint, or add scores to it"),
    "export": Command("luna_fairseq.commands.export", "write a model as safetensors, ONNX or torch.export"),
    "import": Command("luna_fairseq.commands.import_", "make a checkpoint of an exported folder of safetensors"),
    "attention": Command(
        "luna_fairseq.commands.attention",
        "translate, and show the source-target map and what each packed row collects",
    ),
}


def user_dir() -> Path:
    """The folder to give to fairseq's ``--user-dir``."""
    return Path(__file__).resolve().parent


def shared_folder(name: str) -> Path:
    """The folder ``configs`` or ``scripts``: the clone's, or the one that was installed with the package.

    Raises:
        FileNotFoundError: if there is none; the message says what to do.
    """
    for parent in (user_dir() / "share", user_dir().parent):
        if (parent / name).is_dir() and (parent / "configs" / "translation").is_dir():
            return parent / name
    raise FileNotFoundError(f"there is no folder {name} in {user_dir() / 'share'}: install luna-fairseq again")


def dispatch(prog: str, description: str, commands: Dict[str, Command], arguments: List[str]) -> int:
    """Give the arguments after a command's name to its module; returns the exit code.

    Args:
        prog: what was typed so far.
        description: for the help.
        commands: by their names.
        arguments: the rest of the command line.
    """
    if arguments and arguments[0] in commands:
        module = importlib.import_module(commands[arguments[0]].module)
        return module.main(f"{prog} {arguments[0]}", arguments[1:])
    # What is left is help, the version, or an error.
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"luna-fairseq {__version__}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        choices.add_parser(name, help=command.help)
    parser.parse_args(arguments)
    parser.error("name the command first")


def main(arguments: Optional[List[str]] = None) -> int:
    """Run ``luna-fairseq``; returns the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    return dispatch("luna-fairseq", DESCRIPTION, COMMANDS, arguments)
