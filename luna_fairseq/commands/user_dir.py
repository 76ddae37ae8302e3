"""``luna-fairseq user-dir``: the folder to give to ``--user-dir``."""

import argparse
from typing import List

from luna_fairseq.cli import user_dir


def main(prog: str, arguments: List[str]) -> int:
    """Print it; returns the exit code."""
    argparse.ArgumentParser(prog=prog, description=__doc__).parse_args(arguments)
    print(user_dir())
    return 0
