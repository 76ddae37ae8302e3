"""What prepares data imports fairseq, and nobody notices."""

import subprocess

from support.forks import REAL

CODE = """
import logging
from luna_fairseq.data.pieces import quiet_import

logging.getLogger().setLevel(logging.ERROR)
with quiet_import():
    import fairseq
print(logging.getLevelName(logging.getLogger().level), logging.getLogger().handlers, logging.root.manager.disable)
"""


def test_the_root_logger_stays_as_it_was() -> None:
    """At DEBUG, where fairseq leaves it, Pillow prints two lines for each image of the Long Range Arena."""
    # A new interpreter: the one that the other tests here fork has imported fairseq.
    done = subprocess.run([str(REAL / "python"), "-c", CODE], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "ERROR [] 0" and "DEBUG" not in done.stderr
