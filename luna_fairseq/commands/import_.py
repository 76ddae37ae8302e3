"""``luna-fairseq import``: a checkpoint from a folder of safetensors."""

import argparse
from pathlib import Path
from typing import List

from luna_fairseq.console import help_parser, run

DESCRIPTION = """Make a checkpoint of a folder that "luna-fairseq export --format safetensors" wrote.

    luna-fairseq import exported --out checkpoint.pt

Every parameter is what it was, bit for bit, and parameters that were one tensor are one again. The state of the
optimizer is not in the folder: the checkpoint translates, and fine-tuning begins with it.
"""


def _import(args: argparse.Namespace) -> None:
    folder, out = Path(args.folder), Path(args.out)
    from luna_fairseq.export.folder import read_config
    from luna_fairseq.outputs import replaceable

    read_config(folder)
    replaceable(out)
    if out.exists():
        raise ValueError(f"{out} is there: name another --out, or remove it")
    from luna_fairseq import plugin  # here, because it takes seconds

    plugin.load()
    from luna_fairseq.checkpoint_files import save_atomically
    from luna_fairseq.export.weights import read_checkpoint

    checkpoint = read_checkpoint(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(checkpoint, out)
    print(f"wrote {out}; its dictionaries are in {folder}")


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("folder", help="that luna-fairseq export --format safetensors wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help="checkpoint to write")
    args = parser.parse_args(arguments)
    return run(prog, lambda: _import(args), RuntimeError, ValueError)
