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
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup; a handler, unlike that, is not inherited
    signal.signal(signal.SIGHUP, lambda *_: None)

# Looked for so, a GPU stays free for processes that tests fork: none of them may use it once CUDA itself was asked.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# Without it cuBLAS may add in another order in the next run; read when the first product is made there.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# The same examples in every run: what fails here fails for everybody.
settings.register_profile("deterministic", derandomize=True)
settings.load_profile("deterministic")


def gpus() -> int:
    """How many GPUs torch finds."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def interpret_kernels() -> None:
    """Without a GPU Triton's kernels are interpreted (tests/ops/test_triton.py); with one they are compiled.

    Triton looks once, when it is first imported, which importing torch is not.
    """
    if gpus():
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs more GPUs than there are: one, or what the marker says."""
    for marker in item.iter_markers("gpu"):
        needed = marker.args[0] if marker.args else 1
        if gpus() < needed:
            pytest.skip("no GPU" if needed == 1 else f"fewer than {needed} GPUs")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A test that leaves more threads to torch lets one after it, which forks, wait forever."""
    torch = sys.modules.get("torch")
    if torch is not None and os.environ["OMP_NUM_THREADS"] == "1" and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        pytest.fail(f"{item.nodeid} has called torch.set_num_threads: take it back, or do not let it")


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
        interpret_kernels()
        config.pluginmanager.import_plugin("support.fixtures")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it again and again."""
    gc.freeze()
