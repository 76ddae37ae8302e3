"""How a process ends: a finished run exits 0."""

import atexit
import contextlib
import queue
import threading
import time

from luna_fairseq.compat._replace import Undo, acts


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
