"""Signals: a training that is told to end finishes the update at hand and saves; restarted, it goes on from there.

The signal is only noted when it comes. All processes of a training learn of it with the sums that they exchange in
each update, and so stop after the same one. What is due after that update (a validation, a save, the end of an epoch)
is done as ever, because a restart would not do it any more.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any, Dict, Iterator, List, Optional

from luna_fairseq.compat._replace import replaces, replaces_value

logger = logging.getLogger(__name__)

# Ctrl-C; a terminal that is gone; the end of a job; what Slurm and others send some time before that.
SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SAME = 0.5  # seconds in which a second signal is the same wish, come by two ways: the terminal's, and a parent's


class Watch:
    """What a training has heard.

    Attributes:
        heard: the first signal that came to this process, or 0.
        votes: the sum of what all processes have heard, and how many have; None before they exchanged it.
        updates: how many this process has made.
        saved: what ``updates`` was at the last save.
        stop: the signal after which the training ends with its epoch, or 0.
    """

    def __init__(self) -> None:
        self.heard = 0
        self.votes: Optional[List[Any]] = None
        self.updates = self.saved = self.stop = 0
        self._when = 0.0
        self._before: Dict[int, Any] = {}

    def begin(self) -> None:
        """Listen to the signals that nobody ignores or listens to, as far as this thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if _is_usual(number):
                    self._before[number] = signal.signal(number, self.hear)

    def end(self) -> None:
        """Give the signals back, but for those that somebody else has taken meanwhile."""
        while self._before:
            number, before = self._before.popitem()
            if signal.getsignal(number) == self.hear:
                signal.signal(number, before)

    def hear(self, number: int, frame: Any) -> None:
        """Note the first signal, end the process at the second."""
        if self.heard and time.monotonic() - self._when < _SAME:
            return
        if self.heard or not _is_training(frame):
            self.end()
            if self.heard:
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.heard, self._when = number, time.monotonic()
        name = signal.Signals(number).name
        if self.updates == 0:
            os.write(2, f"ended by {name} before its first update: the same command starts again\n".encode())
            raise SystemExit(128 + number)
        with contextlib.suppress(OSError):
            if os.isatty(2):
                os.write(2, f"{name}: the training ends after this update; the same again ends it at once\n".encode())

    def wish(self, processes: int) -> int:
        """The signal that all processes of the training know of, or 0."""
        if processes == 1:
            return self.heard
        total, count = (int(vote) for vote in self.votes or (0, 0))
        if count == 0:
            return 0
        return total // count if total % count == 0 and total // count in SIGNALS else int(signal.SIGTERM)


_watch: Optional[Watch] = None


def _is_usual(number: int) -> bool:
    """Whether nobody listens to a signal or ignores it."""
    return signal.getsignal(number) is (signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _is_training(frame: Any) -> bool:
    """Whether a training is at work below this frame: a program may do something else after it."""
    file = os.path.join("fairseq_cli", "train.py")
    while frame is not None:
        if frame.f_code.co_name == "main" and frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False


def _is_left_alone(options: Any) -> bool:
    """Whether who has started this process knows nothing of the plugin, and will not pass signals on or wait.

    Args:
        options: fairseq's group ``distributed_training``.
    """
    spawned = options.distributed_world_size > 1 and not options.distributed_no_spawn
    if not spawned or multiprocessing.parent_process() is None:
        return False
    main = getattr(sys.modules.get("__mp_main__"), "__file__", None) or ""
    return "fairseq_cli.hydra_train" in sys.modules or main.endswith(os.path.join("fairseq_cli", "hydra_train.py"))


def _in_a_fork() -> None:
    if _watch is not None:
        _watch.end()


os.register_at_fork(after_in_child=_in_a_fork)


@replaces(
    "fairseq_cli.train",
    "add_defaults",
    fairseq="ends where it stands when a signal comes, SIGINT with a long traceback",
    here="it ends after the update at hand, with a checkpoint, one sentence and 128 + signal; at the second, at once",
    since="fairseq 0.12.3",
)
def listen_to_signals(original: Any, cfg: Any) -> None:
    """What training does first in each of its processes."""
    global _watch
    original(cfg)
    if _is_left_alone(cfg.distributed_training) and cfg.distributed_training.distributed_rank == 0:
        logger.warning(
            "told to end, fairseq-hydra-train ends at once, and this training saves behind it: start it by "
            "`luna-fairseq run fairseq-hydra-train`, which waits"
        )
    if _watch is not None:
        _watch.end()
    _watch = Watch()
    _watch.begin()


@replaces(
    "fairseq.trainer.Trainer",
    "_aggregate_logging_outputs",
    fairseq="lets each process of a training end at another update, or wait for one that has ended",
    here="they tell each other of a signal, with the sums of each update, and stop after the same one",
    since="fairseq 0.12.3",
)
def agree_on_the_end(original: Any, self: Any, logging_outputs: Any, *sums: Any, ignore: bool = False) -> Any:
    heard = 0 if _watch is None else _watch.heard
    logging_outputs, added = original(self, logging_outputs, *sums, heard, int(heard > 0), ignore=ignore)
    if _watch is not None:
        _watch.votes = list(added[-2:])  # read after the update, so that a GPU need not be waited for here
    return logging_outputs, added[:-2]


@replaces(
    "fairseq.checkpoint_utils",
    "save_checkpoint",
    fairseq="does not tell whether an update ended with a save",
    here="it is noted, so that a training that was told to end saves what is not saved yet",
    since="fairseq 0.12.3",
)
def note_the_save(original: Any, *args: Any, **kwargs: Any) -> Any:
    saved = original(*args, **kwargs)
    if _watch is not None:
        _watch.saved = _watch.updates
    return saved


@replaces(
    "fairseq_cli.train",
    "validate_and_save",
    fairseq="knows no end of a training but its own limits",
    here="a signal is one, without a validation or a save that would not have been",
    since="fairseq 0.12.3",
)
def end_after_the_update(
    original: Any, cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: Any, end_of_epoch: bool
) -> Any:
    watch = _watch
    if watch is not None:
        watch.updates += 1
    losses, should_stop = original(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
    wish = 0 if watch is None else watch.wish(trainer.data_parallel_world_size)
    if watch is None or should_stop or not wish:
        return losses, should_stop
    if end_of_epoch and epoch_itr.next_epoch_idx > (cfg.optimization.max_epoch or math.inf):
        return losses, should_stop  # that was its last update
    if watch.saved != watch.updates:
        _save(cfg.checkpoint, trainer, task, epoch_itr, losses[0] if end_of_epoch else None)
    if not end_of_epoch:
        _leave(cfg, trainer, wish)
    watch.stop = wish
    return losses, should_stop


@replaces(
    "fairseq_cli.train",
    "train",
    fairseq="goes on with the next epoch",
    here="a training that was told to end does so when the epoch's figures are logged",
    since="fairseq 0.12.3",
)
def end_with_the_epoch(original: Any, cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(cfg, trainer, *args, **kwargs)
    if _watch is not None and _watch.stop:
        _leave(cfg, trainer, _watch.stop)
    return result


def _save(options: Any, trainer: Any, task: Any, epoch_itr: Any, loss: Any) -> None:
    """Save where fairseq would not have: what a restart needs, and nothing that is kept or chosen.

    Args:
        options: fairseq's group ``checkpoint``.
        trainer: the trainer.
        task: its task.
        epoch_itr: the place in the data.
        loss: of the epoch, if it is over, for its schedule; it is not compared with the best.
    """
    from fairseq import checkpoint_utils
    from omegaconf import OmegaConf

    others = {"save_interval_updates": 0}
    if options.no_last_checkpoints:  # a restart finds the newest file that has a number
        others = {"save_interval_updates": 1, "save_interval": 1, "no_epoch_checkpoints": False}
    options = OmegaConf.merge(options, others)
    save = trainer.save_checkpoint
    trainer.save_checkpoint = lambda filename, extra_state: save(filename, {**extra_state, "val_loss": loss})
    try:
        path = checkpoint_utils.save_checkpoint(options, trainer, epoch_itr, None)
    finally:
        del trainer.save_checkpoint
    if path is not None and hasattr(task, "post_save"):
        task.post_save(path, trainer.get_num_updates())


def _leave(cfg: Any, trainer: Any, number: int) -> None:
    """End the process, once all are there: whoever has started them may end the others when the first is gone."""
    import torch.distributed
    from fairseq.distributed import utils as distributed_utils
    from fairseq.file_io import PathManager

    if trainer.data_parallel_world_size > 1:
        torch.distributed.barrier(distributed_utils.get_global_group())
    if cfg.checkpoint.write_checkpoints_asynchronously:
        PathManager.async_close()
    if distributed_utils.is_master(cfg.distributed_training):
        saved = "and nothing is saved, because of --no-save"
        if not cfg.checkpoint.no_save:
            saved = f"with a checkpoint in {cfg.checkpoint.save_dir}: the same command goes on from there"
        name = signal.Signals(number).name
        logger.warning("ended by %s after update %d, %s", name, trainer.get_num_updates(), saved)
    raise SystemExit(128 + number)


@replaces_value(
    "torch.utils.data._utils.worker",
    "ManagerWatchdog",
    fairseq="has data workers of torch's, which die of a signal to the whole group, and the training with them",
    here="they leave it to the training, and end when it says so, or is gone",
    since="torch 2.13",
)
def obey_the_training_alone(original: Any) -> Any:
    """As after Ctrl-C: a terminal sends it to all processes of the group."""

    class Watchdog(original):
        def __init__(self) -> None:
            super().__init__()
            if _watch is not None and multiprocessing.parent_process() is not None:
                _leave_signals_to(self.manager_pid)

    return Watchdog


@replaces(
    "torch.utils.data.dataloader._MultiProcessingDataLoaderIter",
    "__init__",
    fairseq="has data workers of torch's, which die of a signal that comes while they start",
    here="the signal waits until a worker can leave it to the training",
    since="torch 2.13",
)
def start_undisturbed(original: Any, self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
    """A worker is forked with the signals that its parent blocks."""
    context = loader.multiprocessing_context or multiprocessing
    if _watch is None or context.get_start_method() != "fork":
        original(self, loader, *args, **kwargs)
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        original(self, loader, *args, **kwargs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to(parent: int) -> None:
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS} - {signal.SIGTERM})
    if not hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return
    # torch ends workers by SIGTERM, so that it matters who has sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()


@contextlib.contextmanager
def _passed_on() -> Iterator[List[int]]:
    """Send signals on to the processes that this one has started; they are listed."""
    passed: List[int] = []
    before: Dict[int, Any] = {}

    def pass_on(number: int, frame: Any) -> None:
        passed.append(number)
        for child in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid or os.getpid(), number)

    for number in SIGNALS:
        if _is_usual(number):
            before[number] = signal.signal(number, pass_on)
    try:
        yield passed
    finally:
        for restore in before.items():
            signal.signal(*restore)


@replaces(
    "fairseq.distributed.utils",
    "call_main",
    fairseq="ends before the processes that it has started for its GPUs, when a signal comes",
    here="they hear of the signal, and it ends when they have ended",
    since="fairseq 0.12.3",
)
def pass_signals_on(original: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
    options = cfg.distributed_training
    starts = options.distributed_world_size > 1 and not options.distributed_no_spawn and not cfg.common.tpu
    if not starts or threading.current_thread() is not threading.main_thread():
        return original(cfg, main, **kwargs)
    with _passed_on() as passed:
        try:
            return original(cfg, main, **kwargs)
        except Exception:
            if passed:
                raise SystemExit(128 + passed[0]) from None
            raise
