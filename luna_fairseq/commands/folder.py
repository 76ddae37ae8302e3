"""``luna-fairseq user-dir``, ``configs`` and ``scripts``: folders to write into other command lines."""

import argparse
from typing import List

from luna_fairseq.cli import COMMANDS, shared_folder, user_dir


def main(prog: str, arguments: List[str]) -> int:
    """Print the folder that the last word of ``prog`` names; returns the exit code."""
    name = prog.split()[-1]
    parser = argparse.ArgumentParser(prog=prog, description=f"{COMMANDS[name].help.capitalize()}.")
    parser.parse_args(arguments)
    try:
        print(user_dir() if name == "user-dir" else shared_folder(name))
    except FileNotFoundError as error:
        parser.exit(1, f"{prog}: {error}\n")
    return 0
