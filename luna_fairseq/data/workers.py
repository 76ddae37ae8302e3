"""Work in several processes, which an interrupt ends."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from luna_fairseq.errors import PreparationError

Result = TypeVar("Result")


_STOP = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def _held_signals() -> Iterator[None]:
    """Signals that come meanwhile are raised afterwards.

    Around a fork: Python runs callbacks then and ignores their errors, an interrupt raised in one of them too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
    # A parent that is killed tells nobody.
    threading.Thread(target=end_with_parent, daemon=True).start()


def in_order(
    function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], workers: int, ahead: int = 2
) -> Generator[Result, None, None]:
    """What a function returns for every task, in the order of the tasks, which may be endless.

    Args:
        function: runs in the workers.
        tasks: its arguments.
        workers: how many processes; with one there is none beside this one.
        ahead: so many tasks for each worker are begun before their results are asked for.
    """
    if workers == 1:
        for task in tasks:
            yield function(*task)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (os.getpid(),))
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            with _held_signals():  # the first one forks the workers
                waiting.append(pool.submit(function, *task))
            if len(waiting) >= ahead * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise PreparationError(
            "a worker was killed, perhaps for want of memory: run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
