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


# Two programs, the second of which fails.
TOGETHER = """
import atexit, sys
from pathlib import Path

def say(when):
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print(when, names.count("pt_gloo_runloop"), flush=True)

atexit.register(say, "at the end:")

import luna_fairseq.models, torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed import utils
from omegaconf import OmegaConf

cfg = OmegaConf.structured(FairseqConfig(model={}))
options = cfg.distributed_training
options.distributed_world_size, options.distributed_rank, options.distributed_backend = 1, 0, "gloo"
options.distributed_init_method = f"file://{sys.argv[1]}/store"

def main(cfg):
    group = utils.get_global_group()
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2), process_group=group)
    vars(model)["cycle"] = model
    model(torch.ones(1, 2)).sum().backward()
    say("at work:")
    int(sys.argv[2])

utils.distributed_main(0, main, cfg, {})
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the names of threads are read from /proc")
@pytest.mark.parametrize("well", [True, False])
def test_threads_of_torch_distributed_end_with_a_training_that_ends_well(well: bool, tmp_path: Path) -> None:
    """Left to themselves they abort such trainings, seldom: one of them wants the interpreter when it is gone."""
    command = [sys.executable, "-c", TOGETHER, str(tmp_path), "1" if well else "failed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    before, after = (int(line.split(": ")[1]) for line in done.stdout.splitlines())
    assert before > 0 and (after == 0 if well else after == before), done.stderr
    assert done.returncode == (0 if well else 1)


@pytest.mark.long
@pytest.mark.parametrize("part", range(3))  # which several workers share
def test_six_trainings_that_stop_in_an_epoch_exit_well(part: int, corpus: Corpus, tmp_path: Path) -> None:
    for run in range(2):
        said = train(corpus, tmp_path / str(run), "--max-update", 2, "--data-buffer-size", 10, "--no-save", real=True)
        assert "done training" in said
