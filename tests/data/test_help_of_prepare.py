"""``luna-fairseq prepare KIND --help`` answers without what takes seconds to import."""

import subprocess
import sys

import pytest

CODE = """
import sys
from luna_fairseq import cli
try:
    cli.main(["prepare", sys.argv[1], "--help"])
finally:
    heavy = {"torch", "fairseq", "sentencepiece", "sklearn", "PIL"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize("kind", "listops text retrieval image digits pathfinder glue race csqa demo".split())
def test_help(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, kind], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: luna-fairseq prepare {kind} ")
