"""The machine: versions, devices, and what each of them computes in."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Dict, List, Optional, Sequence

from luna_fairseq._version import __version__
from luna_fairseq.doctor.verdicts import Finding, UnknownDevice, Wrong

# The distributions of fairseq: one of them is there.
FAIRSEQ = ("fairseq-fixed", "fairseq", "ve-fairseq", "fairseq-built")
NEEDED = ("torch", "numpy", "hydra-core", "omegaconf", "pytorch-optimizer", "sacrebleu", "sentencepiece")
DTYPES = ("float64", "float32", "bfloat16", "float16")


def _version(name: str) -> Optional[str]:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> Dict[str, str]:
    """Everything that a bug report should name, by what is installed: nothing is imported.

    Raises:
        Wrong: if a package is missing.
    """
    found = {"luna-fairseq": __version__, "Python": platform.python_version(), "system": platform.platform()}
    for names in (FAIRSEQ, *((name,) for name in NEEDED)):
        present = [(name, number) for name in names if (number := _version(name))]
        if not present:
            raise Wrong(f"{names[0]} is not installed: install luna-fairseq with pip, which brings it")
        found.update(present)
    return found


def check_versions() -> Finding:
    """The versions, and where Python is."""
    found = versions()
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    return Finding(text, {"versions": found, "python": sys.executable})


def devices() -> List[str]:
    """The names of all devices that torch can compute on here."""
    import torch

    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def chosen(wanted: Sequence[str]) -> List[str]:
    """The devices that are meant; all if none is named, the first GPU by "cuda" alone.

    Raises:
        UnknownDevice: if one is not there.
    """
    there = devices()
    names = ["cuda:0" if name == "cuda" else name for name in wanted]
    for name in names:
        if name not in there:
            raise UnknownDevice(
                f"there is no device {name} here: leave out --device, or take one of {', '.join(there)}"
            )
    return list(dict.fromkeys(names)) or there


def describe(device: str) -> Dict[str, str]:
    """What a device is, for people."""
    import torch

    if device == "cpu":
        threads = torch.get_num_threads()
        capability = torch.backends.cpu.get_cpu_capability()
        return {"name": f"{platform.machine()}, {capability}", "cores": str(os.cpu_count()), "threads": str(threads)}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "capability": f"{properties.major}.{properties.minor}",
        "CUDA": str(torch.version.cuda or torch.version.hip),
    }


def check_devices(names: Sequence[str]) -> Finding:
    """The devices, each with what it is."""
    found = {name: describe(name) for name in names}
    text = "; ".join(
        f"{name} ({', '.join(f'{key} {value}' if key != 'name' else value for key, value in what.items())})"
        for name, what in found.items()
    )
    return Finding(text, {"devices": found})
