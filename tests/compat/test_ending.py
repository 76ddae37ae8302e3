"""How a process ends: a finished run exits 0."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import iterators

from luna_fairseq.compat import ending
from support.running import Corpus, train


def test_loader_thread_is_stopped() -> None:
    def endless() -> Any:
        for i in range(10**9):
            yield torch.ones(100).sum() * i

    class Source:
        def __iter__(self) -> Any:
            return endless()

        def __len__(self) -> int:
            return 10**9

    buffered = iterators.BufferedIterator(3, Source())
    next(buffered)
    thread = buffered._consumer
    time.sleep(0.05)
    assert thread.is_alive()
    ending.stop_background_consumers()
    assert not thread.is_alive()


@pytest.mark.parametrize("runs", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_run_that_stops_in_the_middle_of_an_epoch_exits_0(runs: int) -> None:
    """Without the plugin's exit handler this ends in SIGABRT about as often as not."""
    code = (
        "import torch, luna_fairseq.models\n"
        "from fairseq.data.iterators import BufferedIterator\n"
        "class Source(list):\n"
        "    def __iter__(self):\n"
        "        while True:\n"
        "            yield torch.stack([torch.randn(200, 200) for _ in range(20)]).sum()\n"
        "buffered = BufferedIterator(2, Source(range(1000)))\n"
        "next(buffered)\n"
    )
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("part", range(3))  # which several workers share
def test_six_trainings_that_stop_in_an_epoch_exit_well(part: int, corpus: Corpus, tmp_path: Path) -> None:
    for run in range(2):
        said = train(corpus, tmp_path / str(run), "--max-update", 2, "--data-buffer-size", 10, "--no-save", real=True)
        assert "done training" in said
