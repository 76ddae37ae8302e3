"""Batches and epochs: every sentence is read, and an epoch is the same in every run that reaches it."""

import inspect
import multiprocessing
from typing import Any

from luna_fairseq.compat._replace import named, replaces, replaces_value


@replaces(
    "fairseq.data.data_utils",
    "batch_by_size",
    fairseq="drops the last batch, without a word, if --required-batch-size-multiple (8) does not divide its size",
    here="every sentence is in a batch",
    since="fairseq 0.12.3",
)
def keep_the_last_batch(original: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    """``fairseq-generate`` would translate 16 sentences of 20; training would never see the longest ones."""
    import numpy as np

    if not isinstance(indices, np.ndarray):
        indices = np.fromiter(indices, dtype=np.int64, count=-1)
    if len(indices) == 0:
        return []
    batches = original(indices, *args, **kwargs)
    if isinstance(batches, list):
        kept = sum(len(batch) for batch in batches)
        if kept < len(indices):
            batches = [*batches, indices[kept:]]
    return batches


@replaces(
    "fairseq.tasks.FairseqTask",
    "get_batch_iterator",
    fairseq="keeps data workers over the epochs: they mask the same words in each, or take 5 seconds each to end",
    here="the workers of an epoch, or of a shard, end with it",
    since="fairseq 0.12.3",
)
def end_the_workers(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """With one shard, kept workers never hear of the next epoch.

    With several shards, the workers of each are left to the garbage collector, in which torch waits 5 seconds for
    every one.
    """
    batches = original(self, *args, **kwargs)
    batches.reuse_dataloader = batches.persistent_workers = False
    return batches


@replaces(
    "fairseq.tasks.FairseqTask",
    "get_batch_iterator",
    fairseq="makes the batches by a seed that counts the epoch in which the run starts: a restart has other batches",
    here="an epoch has the same batches in every run that reaches it",
    since="fairseq 0.12.3",
)
def make_the_same_batches(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Another number of batches after a restart would also end the run with "dataloader mismatch"."""
    asked = inspect.signature(original).bind(self, *args, **kwargs)
    asked.apply_defaults()
    options = asked.arguments
    each_epoch = options["disable_iterator_cache"] or options["update_epoch_batch_itr"]
    each_epoch = each_epoch or getattr(self.cfg, "rebuild_batches", False)
    if each_epoch or not self.can_reuse_epoch_itr(options["dataset"]):
        return original(self, *args, **kwargs)
    seed = options["seed"]
    options["seed"] += 1 - options["epoch"]
    batches = original(*asked.args, **asked.kwargs)
    batches.seed = seed  # of their order, which is another one in each epoch
    return batches


@replaces(
    "fairseq.data.LRUCacheDataset",
    "set_epoch",
    fairseq="keeps the last items in a cache over the end of the epoch, with the masks of the epoch before",
    here="the cache is emptied between epochs",
    since="fairseq 0.12.3",
)
def forget_kept_items(original: Any, self: Any, epoch: int) -> None:
    from fairseq.data import LRUCacheDataset

    original(self, epoch)
    LRUCacheDataset.__getitem__.cache_clear()


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq="saves at the end of an epoch before the schedule hears of its loss: restarted there, it never does",
    here="the schedule hears of it when the checkpoint is loaded",
    since="fairseq 0.12.3",
)
def end_the_epoch(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    extra_state = original(self, *args, **kwargs)
    asked = named(original, self, *args, **kwargs)
    if extra_state is not None and not (asked.get("reset_optimizer") or asked.get("reset_lr_scheduler")):
        place = extra_state.get("train_iterator") or {}
        if place.get("iterations_in_epoch") == 0 and extra_state.get("val_loss") is not None:
            self.lr_step(place["epoch"] - 1, extra_state["val_loss"])
    return extra_state


@replaces_value(
    "torch.utils.data._utils.worker",
    "ManagerWatchdog",
    fairseq="has data workers of torch's, which wait for ever if training was killed while they were starting",
    here="a worker knows from its start who its parent is, and ends with it",
    since="torch 2.13",
)
def know_the_parent(original: Any) -> Any:
    """A worker looks up its parent when it begins to wait for orders: it may be an orphan by then."""

    class Watchdog(original):
        def __init__(self) -> None:
            super().__init__()
            parent = multiprocessing.parent_process()
            if parent is not None and parent.pid is not None:
                self.manager_pid = parent.pid

    return Watchdog
