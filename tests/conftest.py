"""What every test run needs; the fixtures are in support/fixtures.py."""

import gc
import os
import signal
import sys

# Before torch: a process forked after OpenMP has started threads of its own waits for them forever.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from luna_fairseq import compat
from luna_fairseq.compat import noise
from support import forks

# A shell starts background jobs with interrupts ignored; the commands that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton looks at it once, when it is first imported; see tests/ops/test_triton.py.
os.environ["TRITON_INTERPRET"] = "1"

# The same examples in every run: what fails here fails for everybody.
settings.register_profile("deterministic", derandomize=True)
settings.load_profile("deterministic")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that runs tests, or one that hands them out (pytest-xdist), which needs no torch."""
    # pytest sets the filters of warnings anew for each test: what the plugin hides stays hidden.
    for message in noise.MESSAGES:
        config.addinivalue_line("filterwarnings", f"ignore:{message.replace(':', '.')}")  # fields end at a colon
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        forks.start()
    else:
        if sys.version_info >= (3, 14):  # fairseq cannot be imported before
            compat.prepare()
        config.pluginmanager.import_plugin("support.fixtures")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it again and again."""
    gc.freeze()
