"""Batches and epochs: every sentence is read, and an epoch is the same in every run that reaches it."""

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from fairseq import tasks
from fairseq.data import data_utils
from fairseq.tasks.masked_lm import MaskedLMConfig
from omegaconf import OmegaConf

from support.running import Corpus, LMCorpus, train
from support.runs import assert_same_run, in_a_child


@pytest.mark.parametrize("count", [0, 1, 5, 8, 20, 24])
@pytest.mark.parametrize(
    "limits", [{"max_tokens": 100}, {"max_sentences": 7}, {"max_tokens": 50, "max_sentences": 9}]
)
def test_every_sentence_is_in_a_batch(count: int, limits: Any) -> None:
    """fairseq by itself loses the last batch if its size is no multiple of 8."""
    sizes = np.full(count, 10)
    batches = data_utils.batch_by_size(
        np.arange(count), lambda i: 10, num_tokens_vec=sizes, required_batch_size_multiple=8, **limits
    )
    assert [int(i) for batch in batches for i in batch] == list(range(count))
    assert all(len(batch) * 10 <= limits.get("max_tokens", 1000) for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_the_same_after_a_restart(shuffle: bool, workers: int, lm_corpus: LMCorpus) -> None:
    """Its batches, their order and the masks, which are others in each epoch.

    Not shuffled, an epoch begins with the items that fairseq has kept.
    """
    options = {"data": f"{lm_corpus.folder}/shard0", "tokens_per_sample": 40, "sample_break_mode": "eos", "seed": 3}
    task = tasks.setup_task(OmegaConf.structured(MaskedLMConfig(_name="masked_lm", **options)))

    def run(start: int, end: int) -> Dict[int, List[Any]]:
        task.load_dataset("train", epoch=start)
        epochs = {}
        for epoch in range(start, end + 1):
            batches = task.get_batch_iterator(
                task.dataset("train"), max_sentences=2, seed=3, epoch=epoch, num_workers=workers, data_buffer_size=2
            )
            assert batches.first_batch is not None  # fairseq's trainer asks for it
            epochs[epoch] = [
                (batch["id"].tolist(), batch["net_input"]["src_tokens"].tolist(), batch["target"].tolist())
                for batch in batches.next_epoch_itr(shuffle=shuffle)
            ]
        task.dataset_to_epoch_iter.clear()  # as in a new process
        return epochs

    whole = run(1, 3)
    assert run(2, 3) == {epoch: whole[epoch] for epoch in (2, 3)} and run(3, 3)[3] == whole[3]
    masks = [
        {i: target for ids, _, targets in whole[k] for i, target in zip(ids, targets, strict=True)} for k in whole
    ]
    assert len(masks[0]) > 20
    for earlier, later in itertools.pairwise(masks):
        assert earlier.keys() == later.keys()
        assert sum(earlier[i] == later[i] for i in later) < len(later) / 3, "the masks of the epoch before"


def test_the_workers_of_a_shard_end_with_it(lm_corpus: LMCorpus) -> None:
    """Left to the garbage collector each would hold up the training for five seconds."""
    options = {"data": lm_corpus.shards, "tokens_per_sample": 40, "seed": 3}
    task = tasks.setup_task(OmegaConf.structured(MaskedLMConfig(_name="masked_lm", **options)))
    task.load_dataset("train", epoch=1)
    before = {child.pid for child in multiprocessing.active_children()}
    batches = task.get_batch_iterator(
        task.dataset("train"), max_sentences=2, num_workers=1, data_buffer_size=2, disable_iterator_cache=True
    )
    for batch in batches.next_epoch_itr():
        assert batch["id"].numel()
    deadline = time.monotonic() + 20
    while {child.pid for child in multiprocessing.active_children()} - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {child.pid for child in multiprocessing.active_children()} <= before


def test_the_schedule_hears_of_the_last_epoch_before_a_restart(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "whole", "--max-epoch", 2)
    for epochs in (1, 2):
        train(corpus, tmp_path / "restarted", "--max-epoch", epochs)
    assert_same_run(tmp_path / "restarted", tmp_path / "whole")
    state = torch.load(tmp_path / "restarted" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["lr_scheduler_state"]["best"] > 0


def test_an_orphan_knows_that_it_is_one(tmp_path: Path) -> None:
    """A data worker whose training was killed before the worker could look who its parent is."""
    from torch.utils.data._utils import worker

    def work(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.01)
        (tmp_path / "answer").write_text(str(worker.ManagerWatchdog().is_alive()))

    def killed() -> None:
        multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(),)).start()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while not (tmp_path / "answer").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.05)
    assert (tmp_path / "answer").read_text() == "False"
    assert worker.ManagerWatchdog().is_alive()
