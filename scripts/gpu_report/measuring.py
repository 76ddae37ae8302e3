"""Times, memory and kernels of a step, with the Triton kernels or without."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Dict, List

import torch
from torch.autograd import DeviceType

from luna_fairseq.measuring import interleaved, kernels, repeated, synchronize

Step = Callable[[], object]

LONG = 0.05  # seconds that a measurement of short steps should last


def modes(device: torch.device, name: str) -> Dict[str, str]:
    """How a model or a layer is measured: by LUNA_KERNELS, the name of each way; one way where there is no choice."""
    if device.type == "cuda" and "luna" in name.lower():
        return {"torch": f"{name}, no kernels", "auto": f"{name}, kernels"}
    return {"auto": name}


def steps_of(device: torch.device, arch: str) -> List[str]:
    """How a model's decoding is measured: values of LUNA_GRAPH."""
    return ["0", "1"] if device.type == "cuda" and arch.startswith("luna") else ["0"]


def in_mode(step: Step, number: int, mode: str) -> Step:
    """The step so many times in a row, with ``LUNA_KERNELS`` as ``mode`` says."""

    def run() -> None:
        with kernels(mode):
            repeated(step, number)()

    return run


def repeats(step: Step, args: argparse.Namespace) -> int:
    """How often a step is taken in a measurement: less often if it is long."""
    step()
    synchronize(args.device)
    start = time.perf_counter()
    step()
    synchronize(args.device)
    return max(1, min(args.repeats, int(LONG / (time.perf_counter() - start))))


def times(steps: Mapping[str, Step], rounds: int, device: torch.device) -> Dict[str, float]:
    """Seconds of each, medians over rounds that take each in turn."""
    return {name: statistics.median(seconds) for name, seconds in interleaved(steps, rounds, device).items()}


def launched(step: Step, device: torch.device) -> Dict[str, Any]:
    """How many kernels a step launches on a GPU, and the seconds that they last by torch's profiler."""
    if device.type != "cuda":
        return {}
    step()
    synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        synchronize(device)
    events = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    return {"launches": len(events), "kernel seconds": sum(event.time_range.elapsed_us() for event in events) / 1e6}
