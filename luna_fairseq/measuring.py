"""Fair timing, with the Triton kernels or without, and the memory that torch allocates on a CPU."""

import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Dict, List

import torch


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment has this value meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def kernels(mode: str) -> AbstractContextManager[None]:
    """``LUNA_KERNELS`` is this meanwhile: see :mod:`luna_fairseq.ops.proving`."""
    return environment("LUNA_KERNELS", mode)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> Dict[str, List[float]]:
    """Seconds of every step in every round; a round takes each once, so what the machine does besides meets all.

    Args:
        steps: name -> what to time.
        rounds: rounds that count; one more warms up.
        device: where they compute.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in steps}
    for counts in [False] + [True] * rounds:
        for name, step in steps.items():
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            if counts:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def repeated(step: Callable[[], object], number: int) -> Callable[[], None]:
    """The step so many times in a row: what starts and ends a measurement counts less."""

    def run() -> None:
        for _ in range(number):
            step()

    return run


def peak_allocated(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that torch holds on a device during ``work``, on top of what it holds before."""
    if device.type == "cpu":
        return allocated_bytes(work)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def allocated_bytes(work: Callable[[], object]) -> int:
    """The most bytes that torch holds on a CPU at any moment of ``work``, on top of what it holds before.

    Every allocation counts, an operation's scratch included; so the same work always takes the same.
    """
    gc.collect()  # what is given back meanwhile was not allocated there, and torch warns of that
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))
