"""Peak memory, commands in a process of their own, the machine in words; the rest is in luna_fairseq/measuring.py."""

import ctypes
import importlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, List

import torch

import luna_fairseq
from luna_fairseq.measuring import peak_allocated

MALLOC = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"


def _this_command() -> List[str]:
    """How this process was started; ``sys.argv`` does not say that it was with ``-m``."""
    return [sys.executable, *sys.orig_argv[1:]]


def keep_memory() -> None:
    """Begin this command again, once, with a malloc that keeps what is freed, as scripts/experiment.sh trains.

    On a CPU much of an update is spent getting fresh memory from the system otherwise. malloc reads the setting when
    a process begins.
    """
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, _this_command(), {**os.environ, "GLIBC_TUNABLES": MALLOC})


def _return_memory() -> None:
    """Give the system what malloc keeps: the process beside this one may need it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _resident_kib(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def resident_bytes() -> int:
    """What this process has in memory (Linux)."""
    return _resident_kib("VmRSS") * 1024


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory that ``work`` takes on top of what this process has: allocated on a GPU, resident on a CPU.

    On a CPU (Linux) the process must be a fresh one: memory that malloc keeps is taken again unseen.
    """
    if device.type == "cuda":
        return peak_allocated(work, device)
    importlib.import_module("torch._dynamo")  # the first optimizer would, and it is nobody's work
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident_kib("VmRSS")
    work()
    return (_resident_kib("VmHWM") - before) * 1024


def in_own_process(*options: str) -> Any:
    """Run this command again with its options and these; returns the JSON of its last line.

    Raises:
        RuntimeError: if it fails, with its last line.
    """
    _return_memory()
    done = subprocess.run([*_this_command(), *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise RuntimeError(f"{' '.join(options)}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def machine(device: torch.device) -> str:
    """The hardware and the versions, in words."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        hardware = f"{_processor()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}"
    return f"{hardware}, torch {torch.__version__}, luna-fairseq {luna_fairseq.__version__}"
