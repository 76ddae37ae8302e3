"""``luna-fairseq run COMMAND ARGS...``: a command of fairseq, with the plugin loaded before fairseq itself."""

import argparse
import functools
import importlib
import logging
import sys
from typing import Any, List

from luna_fairseq.cli import user_dir
from luna_fairseq.console import help_parser

COMMANDS = (
    "fairseq-train fairseq-hydra-train fairseq-generate fairseq-interactive fairseq-validate fairseq-eval-lm "
    "fairseq-preprocess fairseq-score"
).split()

DESCRIPTION = f"""A command of fairseq, with the plugin loaded first.

    luna-fairseq run fairseq-train data-bin --arch luna --optimizer adam --max-tokens 4096 ...
    torchrun --nproc_per_node 2 -m luna_fairseq run fairseq-train data-bin --distributed-world-size 2 ...

COMMAND is one of {", ".join(COMMANDS[:4])},
{", ".join(COMMANDS[4:])}; "fairseq-" can be left out.
What it does, prints and returns is what it does with --user-dir (common.user_dir for fairseq-hydra-train), which
need not be given. fairseq is repaired before it is imported, so that it prints no warnings of Hydra, and starts on a
Python with which it cannot be imported otherwise.
ARGS are those of the command; "luna-fairseq run COMMAND --help" is its own help.
"""


def _give_user_dir(hydra_train: Any) -> None:
    """Set ``common.user_dir`` of every config that says nothing else, in a YAML or on the command line."""
    original = hydra_train._hydra_main

    @functools.wraps(original)
    def with_plugin(cfg: Any, **kwargs: Any) -> Any:
        from omegaconf import OmegaConf

        if OmegaConf.select(cfg, "common.user_dir") is None:
            OmegaConf.update(cfg, "common.user_dir", str(user_dir()), force_add=True)
        return original(cfg, **kwargs)

    hydra_train._hydra_main = with_plugin


def _names_user_dir(arguments: List[str]) -> bool:
    """Whether fairseq would find ``--user-dir`` among the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--user-dir")
    return parser.parse_known_args(arguments)[0].user_dir is not None


def run_fairseq(command: str, arguments: List[str]) -> Any:
    """Run a command of fairseq as if it had been typed; returns what its main function returns.

    Args:
        command: one of COMMANDS.
        arguments: of the command.
    """
    from luna_fairseq import plugin_first

    plugin_first.load()
    if command != "fairseq-train":  # which sets up its log itself; the import of fairseq has done it for the others
        logging.basicConfig(level=logging.INFO)
    module = importlib.import_module(f"fairseq_cli.{command.removeprefix('fairseq-').replace('-', '_')}")
    if command == "fairseq-hydra-train":
        _give_user_dir(module)
    elif command != "fairseq-score" and not _names_user_dir(arguments):
        arguments = ["--user-dir", str(user_dir()), *arguments]
    sys.argv = [command, *arguments]
    return module.cli_main()


def main(prog: str, arguments: List[str]) -> Any:
    """Run the command; returns what fairseq's own console script would end with."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("command", metavar="COMMAND", help="the name of the command")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments")
    args = parser.parse_args(arguments[:1])  # the rest is not ours to look at
    command = f"fairseq-{args.command.removeprefix('fairseq-')}"
    if command not in COMMANDS:
        parser.error(f"there is no command {args.command} of fairseq: take one of {', '.join(COMMANDS)}")
    return run_fairseq(command, arguments[1:])
