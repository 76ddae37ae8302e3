"""Noise on the screen: what the user can do nothing about is not printed."""

import importlib
import logging
import warnings

from luna_fairseq.compat._replace import Undo, acts

# What fairseq's command lines print although the user can do nothing about it. Beginnings of messages.
MESSAGES = [
    r"hydra\.experimental\.\w+\(\) is no longer experimental",
    r"\s*The version_base parameter is not specified",
    r"In '[^']*': Usage of deprecated keyword in package header",
    r"\s*'[^']*' is validated against ConfigStore schema with the same name",
    r"\s*The strict flag in the compose API is deprecated",
    r"\s*Future Hydra versions will no longer change working directory",
    r"'pin_memory' argument is set as true but no accelerator is found",
    r"`torch\.cuda\.amp\.(autocast|GradScaler)\(args\.\.\.\)` is deprecated",
    r"Support for mismatched key_padding_mask and attn_mask is deprecated",
    r"`broadcast_buffers` is deprecated",
    r"amp_C fused kernels unavailable",
]


@acts(
    fairseq="runs into a dozen warnings of torch, hydra and its own about how it is written",
    here="these warnings are not printed; all others are",
    since="torch 2.4, hydra-core 1.1",
)
def hide_warnings() -> Undo:
    before = warnings.filters[:]
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    added = [rule for rule in warnings.filters if rule not in before]

    def undo() -> None:
        warnings.filters[:] = [rule for rule in warnings.filters if rule not in added]  # type: ignore[index]

    return undo


@acts(
    fairseq="logs that a task for speech would like to have tensorboardX, and every detail of hydra",
    here="neither is logged",
    since="fairseq 0.12.3",
)
def hide_log_lines() -> Undo:
    # fairseq-hydra-train imports fairseq before this.
    levels = {"fairseq.tasks.text_to_speech": logging.WARNING, "hydra": logging.INFO}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)

    def undo() -> None:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

    return undo


@acts(
    fairseq="sets the root logger to DEBUG when it is imported: matplotlib and others print thousands of lines",
    here="the root logger stays as it was",
    since="fairseq 0.12.3",
)
def keep_the_root_logger() -> Undo:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    importlib.import_module("fairseq")
    of_fairseq = root.level, root.handlers[:]
    root.setLevel(level)
    root.handlers[:] = handlers

    def undo() -> None:
        root.setLevel(of_fairseq[0])
        root.handlers[:] = of_fairseq[1]

    return undo
