"""How a process ends: a finished run exits 0."""

import atexit
import contextlib
import gc
import importlib
import queue
import threading
import time
from typing import Any

from luna_fairseq.compat._replace import Undo, acts, replaces


def stop_background_consumers() -> None:
    """End fairseq's loader threads before the interpreter goes.

    A run that stops in the middle of an epoch (``--max-update``, ``--max-valid-steps``) leaves a daemon thread that
    collates batches.
    """
    from fairseq.data.iterators import BackgroundConsumer

    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread._max_len = 0  # makes it stop after the batch at hand
            deadline = time.monotonic() + 60.0  # a source that hangs must not keep a finished run from ending
            while thread.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(queue.Empty):  # it may be waiting for room in its queue
                    thread._queue.get(timeout=0.05)


@acts(
    fairseq="leaves a loader thread at work when a run stops in an epoch; torch aborts some such runs (exit 134)",
    here="the thread is ended before the interpreter goes, and the run exits 0",
    since="torch 2.13",
)
def stop_loader_threads() -> Undo:
    atexit.register(stop_background_consumers)
    return lambda: atexit.unregister(stop_background_consumers)


# Whether the program of this process has come to its end together with those of all others.
_together = False


def leave_process_groups() -> None:
    """End the threads of torch.distributed before the interpreter goes, if all processes have ended well.

    A thread of gloo needs the interpreter to let go of a tensor, after it has said that the work is done. On a busy
    machine it may not have come to that when the interpreter no longer lets anybody in, and torch aborts. Where a
    process has failed nothing is done: threads that wait for it would never end.
    """
    import torch
    from fairseq.distributed import utils as distributed_utils

    if _together and torch.distributed.is_initialized():
        vars(distributed_utils.get_global_group).pop("_global_group", None)
        gc.collect()  # a model in a cycle, which holds its group
        torch.distributed.destroy_process_group()


@acts(
    fairseq="leaves the threads of torch.distributed at work; torch aborts a training of several processes now and "
    "then after its last word (exit 134)",
    here="they are ended before the interpreter goes, and the training exits 0",
    since="torch 2.13",
)
def end_distributed_threads() -> Undo:
    atexit.register(leave_process_groups)
    return lambda: atexit.unregister(leave_process_groups)


@replaces(
    "fairseq.distributed.utils",
    "distributed_main",
    fairseq="does not say that all processes have come to the end",
    here="it is noted, for what must be done before the interpreter goes",
    since="torch 2.13",
)
def note_the_end_of_all(original: Any, *args: Any, **kwargs: Any) -> Any:
    global _together
    # Its functions have the group of their time as a default: imported later, they keep that and its threads.
    importlib.import_module("torch.distributed.nn.functional")
    result = original(*args, **kwargs)  # waits for the others at its end
    _together = True
    return result
