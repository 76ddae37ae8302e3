"""Compare two trainings; end a process in the middle of its work."""

import os
from pathlib import Path
from typing import Any, Callable

import torch


def assert_same(got: Any, want: Any, where: str) -> None:
    """Bit for bit, tensors in dictionaries and lists included."""
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for i, pair in enumerate(zip(got, want, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert torch.equal(got, want) if torch.is_tensor(want) else got == want, where


def assert_same_run(got: Path, want: Path) -> None:
    """Weights, the optimizer's and the schedule's state, the place in the data and the best loss so far."""
    states = [torch.load(folder / "checkpoint_last.pt") for folder in (got, want)]
    for part in ("model", "last_optimizer_state"):
        assert_same(*(state[part] for state in states), part)
    assert_same(*(state["optimizer_history"][-1] for state in states), "schedule")
    for part in ("train_iterator", "best", "val_loss"):
        assert_same(*(state["extra_state"][part] for state in states), part)
    assert_same(*(torch.load(folder / "checkpoint_best.pt")["model"] for folder in (got, want)), "best model")


def in_a_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its exit code, 1 for an error, which is printed."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            code = 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
