"""Trainings that something happens to, at an update that a test chooses."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, List, Tuple

from fairseq.trainer import Trainer

from luna_fairseq import plugin
from luna_fairseq.compat import locking
from support.running import ADAM, TINY, TRAIN, USER_DIR, Corpus

plugin.load()  # once, and not in every fork


def at(owner: Any, name: str, update: int, act: Callable[[], None]) -> None:
    """In this process, call ``act`` in the middle of a function of fairseq's, once, after some updates."""
    original, trainers, done = getattr(owner, name), [], []
    step = Trainer.train_step

    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        trainers[:] = [self]
        return step(self, *args, **kwargs)

    def function(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        updates = trainers[0].get_num_updates() if trainers else 0
        if updates == update and not done:
            done.append(True)
            act()
        return result

    Trainer.train_step = train_step
    if (owner, name) == (Trainer, "train_step"):
        original = train_step
    setattr(owner, name, function)


def train_here(
    corpus: Corpus,
    save: Path,
    options: List[Any],
    prepare: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> Tuple[int, str]:
    """``fairseq-train`` in a fork of this process, in a group of its own; its exit code and output."""
    optimizer = [] if "--optimizer" in options else ADAM
    command = ["fairseq-train", corpus.data, "--user-dir", USER_DIR, "--arch", "luna", *TINY, *TRAIN, *optimizer]
    command += ["--save-dir", save, *options]
    output = save.parent / f"{save.name}.log"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a process that has just begun
            signal.signal(signal.SIGINT, signal.default_int_handler)
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(name)s | %(message)s", force=True)
            sys.argv = [str(part) for part in command]
            from fairseq_cli.train import cli_main

            prepare()
            cli_main()
            after()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        finally:
            locking._release()  # as at the end of an interpreter
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, output.read_text()


def kill(number: int = signal.SIGTERM) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)
