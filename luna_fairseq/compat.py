"""fairseq 0.12.3 on today's torch and Python: the one place that knows what does not fit.

Everything here was needed with fairseq-fixed 0.12.3.1, torch 2.13, hydra-core 1.3 and Python 3.11; weights-only
loading is torch's default since 2.6.
Public hooks are used wherever there is one; the replacements of fairseq's own parts are in
:func:`_explain_errors`, :func:`_check_data_and_sizes`, :func:`_keep_the_last_batch` and the ``_repair_`` functions,
with the reasons.
"""

import argparse
import atexit
import collections
import contextlib
import errno
import functools
import inspect
import itertools
import logging
import os
import pickle
import queue
import re
import threading
import time
import types
import typing
import warnings
import zipfile
from typing import Any, List

import numpy as np
import torch

# What fairseq's command lines print although the user can do nothing about it. Beginnings of messages.
_NOISE = [
    r"hydra\.experimental\.\w+\(\) is no longer experimental",
    r"\s*The version_base parameter is not specified",
    r"In '[^']*': Usage of deprecated keyword in package header",
    r"\s*'config' is validated against ConfigStore schema with the same name",
    r"\s*The strict flag in the compose API is deprecated",
    r"\s*Future Hydra versions will no longer change working directory",
    r"'pin_memory' argument is set as true but no accelerator is found",
    r"`torch\.cuda\.amp\.autocast\(args\.\.\.\)` is deprecated",
    r"Support for mismatched key_padding_mask and attn_mask is deprecated",
    r"amp_C fused kernels unavailable",
]


class CheckpointError(RuntimeError):
    """A checkpoint file cannot be read, or is not allowed to be."""


def prepare() -> None:
    """Make fairseq work here; called once, when the plugin is imported."""
    _quieten_noise()
    _allow_checkpoint_classes()
    _explain_errors()
    _check_data_and_sizes()
    _keep_the_last_batch()
    _repair_replace_unk()
    _repair_break_mode_eos()
    _repair_bf16()
    atexit.register(_stop_background_consumers)


def _quieten_noise() -> None:
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    # A task that has nothing to do with us asks for tensorboardX, and a model sets the root logger to DEBUG.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    logging.getLogger("hydra").setLevel(logging.INFO)


def _allow_checkpoint_classes() -> None:
    """Let ``torch.load`` read what fairseq saves, with weights-only loading on (the default since torch 2.6).

    Plain data only: none of these runs code when it is unpickled.
    """
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    classes: List[Any] = [
        # The options of a fairseq-train run with a model that is not a dataclass, and of fairseq 0.9.
        argparse.Namespace,
        # Validation meters of --eval-bleu.
        np.ndarray,
        np.dtype,
        np.empty(0).__reduce__()[0],  # numpy's array constructor, whose home moved between versions
        np.float64(0).__reduce__()[0],  # the same for a scalar
        *(type(np.dtype(name)) for name in ("int64", "float64", "float32")),
        # A distributed run that resumes sends the whole state from rank 0 to the others.
        _TensorPlaceholder,
        DictConfig,
        ListConfig,
        ContainerMetadata,
        Metadata,
        AnyNode,
        typing.Any,
        collections.defaultdict,
        dict,
        list,
        int,
    ]
    torch.serialization.add_safe_globals(classes)


def _explain_errors() -> None:
    """Say what is wrong, and what to do, where fairseq lets a low-level error through.

    There is no hook for any of it, so three parts of fairseq are replaced (0.12.3.1):

    * ``checkpoint_utils.load_checkpoint_to_cpu``, which every command uses, is wrapped: a file that is cut
      short or damaged is named.
    * ``Trainer.train_step`` is wrapped: a run that diverges says at which update, and what to try. fairseq's
      NanDetector looks at forward passes only: today's torch ends with a StopIteration in its backward hook of a
      module that returns a dictionary, as every encoder does.
    * The tasks ``translation``, ``masked_lm``, ``sentence_prediction`` and ``sentence_ranking`` become ours,
      which check their data first.
    """
    from fairseq import checkpoint_utils, trainer
    from fairseq.tasks import TASK_REGISTRY

    from luna_fairseq.tasks._masked_lm import CheckedMaskedLMTask
    from luna_fairseq.tasks._sentences import CheckedSentencePredictionTask, CheckedSentenceRankingTask
    from luna_fairseq.tasks._translation import CheckedTranslationTask

    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def load_or_explain(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(path, *args, **kwargs)
        except Exception as error:
            # EINVAL: torch seeks before the start of a file that is cut short.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
            if refused:
                raise CheckpointError(
                    f"{path} was not loaded: it holds {refused[1]} that no fairseq checkpoint holds, and loading "
                    "that could run code; get the checkpoint from somebody you trust"
                ) from error
            unreadable = isinstance(error, pickle.UnpicklingError | OSError) or "PytorchStreamReader" in str(error)
            if unreadable or not zipfile.is_zipfile(path):
                raise CheckpointError(
                    f"{path} ({os.path.getsize(path)} bytes) is cut short or damaged and cannot be loaded; move it "
                    "away and go on from an older one with --restore-file"
                ) from error
            raise

    train_step = trainer.Trainer.train_step

    @functools.wraps(train_step)
    def train_step_or_explain(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return train_step(self, *args, **kwargs)
        except FloatingPointError as error:
            if "Nan/Inf" not in str(error):  # fairseq's other reasons say what to try
                raise
            raise FloatingPointError(
                f"training has diverged: the gradient of update {self.get_num_updates() + 1} is not finite; "
                f"{os.path.join(self.cfg.checkpoint.save_dir, 'crash.pt')} holds the weights before it; lower --lr, "
                "raise --warmup-updates or set --clip-norm, and go on from an earlier checkpoint with --restore-file"
            ) from error

    checkpoint_utils.load_checkpoint_to_cpu = load_or_explain
    trainer.Trainer.train_step = train_step_or_explain
    trainer.NanDetector = functools.partial(trainer.NanDetector, backward=False)
    TASK_REGISTRY.update(
        translation=CheckedTranslationTask,
        masked_lm=CheckedMaskedLMTask,
        sentence_prediction=CheckedSentencePredictionTask,
        sentence_ranking=CheckedSentenceRankingTask,
    )


def _check_data_and_sizes() -> None:
    """Stop at half-written data and at state that belongs to another model; there is no hook for any of it.

    * ``data_utils.load_indexed_dataset``: fairseq finds out only when training comes to the missing part.
    * ``Trainer.load_checkpoint``: fairseq says "please ensure that the architectures match" whatever is
      wrong, takes an optimizer state of other shapes, with which the first update fails, and goes on from a
      checkpoint without one (--no-save-optimizer-state, an average) as if its warm-up were still to come.
    * ``checkpoint_utils.load_model_ensemble_and_task``, which loads for evaluation: fairseq takes random
      weights for a classification head that the checkpoint lacks or has in another size.
    """
    from fairseq import checkpoint_utils
    from fairseq.data import data_utils
    from fairseq.trainer import Trainer

    from luna_fairseq.checkpoint import CheckpointMismatch, check_optimizer
    from luna_fairseq.tasks._checks import check_complete

    load_dataset = data_utils.load_indexed_dataset
    load_checkpoint = Trainer.load_checkpoint
    load_models = checkpoint_utils.load_model_ensemble_and_task

    @functools.wraps(load_dataset)
    def load_complete(path: str, *args: Any, **kwargs: Any) -> Any:
        combine = inspect.signature(load_dataset).bind(path, *args, **kwargs).arguments.get("combine", False)
        for k in itertools.count():  # train, train1, ...
            part = path + (str(k) if k > 0 else "")
            check_complete(part)
            if not combine or not os.path.exists(f"{part}.idx"):
                break
        return load_dataset(path, *args, **kwargs)

    @functools.wraps(load_checkpoint)
    def load_matching(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        try:
            extra_state = load_checkpoint(self, filename, *args, **kwargs)
        except Exception as error:
            if isinstance(error.__context__, CheckpointMismatch):
                raise error.__context__ from None
            if isinstance(error, ValueError) and "parameter group" in str(error):
                raise CheckpointMismatch(
                    f"{filename} holds the optimizer of a model with other parameters: add --reset-optimizer to "
                    "start from its weights alone, or name another --save-dir"
                ) from error
            raise
        asked = inspect.signature(load_checkpoint).bind(self, filename, *args, **kwargs).arguments
        if extra_state is not None and not asked.get("reset_optimizer") and self.get_num_updates() == 0:
            raise CheckpointMismatch(
                f"{filename} holds no state of an optimizer, so its training cannot go on: add --reset-optimizer to "
                "start a new schedule from its weights, or name another --save-dir"
            )
        check_optimizer(self._optimizer, filename)
        return extra_state

    @functools.wraps(load_models)
    def load_whole(filenames: List[str], *args: Any, **kwargs: Any) -> Any:
        models, cfg, task = load_models(filenames, *args, **kwargs)
        for filename, model in zip(filenames, models, strict=False):
            for reason in getattr(model, "fresh_heads", {}).values():
                raise CheckpointMismatch(f"{filename} cannot be evaluated so: {reason}")
        return models, cfg, task

    checkpoint_utils.load_model_ensemble_and_task = load_whole
    data_utils.load_indexed_dataset = load_complete
    Trainer.load_checkpoint = load_matching


def _keep_the_last_batch() -> None:
    """Let every sentence be read.

    fairseq 0.12.3 throws the last batch away when its size is no multiple of
    ``--required-batch-size-multiple`` (8 unless you change it): with nothing said, ``fairseq-generate`` then
    translates 16 sentences of a test set of 20, and training never sees the longest ones. There is no hook.
    """
    from fairseq.data import data_utils

    split = data_utils.batch_by_size

    @functools.wraps(split)
    def split_all(indices: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        if len(indices) == 0:
            return []
        batches = split(indices, *args, **kwargs)
        if isinstance(batches, list):
            kept = sum(len(batch) for batch in batches)
            if kept < len(indices):
                batches = [*batches, indices[kept:]]
        return batches

    data_utils.batch_by_size = split_all


def _repair_replace_unk() -> None:
    """Make ``--replace-unk`` read the alignments that ``--print-alignment`` makes.

    fairseq 0.12.3 looks the target position up in a list of (source, target) pairs and ends with a
    TypeError, or with an IndexError when there is no alignment. There is no hook.
    """
    from fairseq import utils

    replace = utils.replace_unk

    @functools.wraps(replace)
    def replace_aligned(hypo_str: str, src_str: str, alignment: Any, align_dict: Any, unk: str) -> str:
        hypo_tokens = hypo_str.split()
        if unk not in hypo_tokens:
            return hypo_str
        end = len(src_str.split())  # stands for "no word", as in fairseq
        if end == 0:
            return replace(hypo_str, src_str, [end] * len(hypo_tokens), align_dict, unk)
        if len(alignment) == 0:
            raise ValueError("--replace-unk needs to know which source word to take: add --print-alignment")
        if len(alignment) > len(hypo_tokens) + 1:
            raise ValueError(
                "--replace-unk works on pieces, and these were joined to words: leave out --post-process"
            )
        if isinstance(alignment[0], tuple):
            source_of = {target: source for source, target in alignment}
        else:  # --print-alignment soft: a row of weights a target word, the last one for the end symbol
            rows = [[float(weight) for weight in row] for row in alignment]
            source_of = {i: max(range(len(row) - 1), key=row.__getitem__) for i, row in enumerate(rows)}
        sources = [source_of.get(i, end) for i in range(len(hypo_tokens))]
        return replace(hypo_str, src_str, sources, align_dict, unk)

    utils.replace_unk = replace_aligned


def _repair_break_mode_eos() -> None:
    """Make ``--sample-break-mode eos`` work: fairseq 0.12.3 takes a type from ``numpy.compat``, which is gone."""
    from fairseq.data import token_block_dataset

    numpy = types.SimpleNamespace(**vars(np))
    numpy.compat = types.SimpleNamespace(long=np.int64)
    token_block_dataset.np = numpy


def _repair_bf16() -> None:
    """Make ``fairseq-train --bf16`` train here: fairseq 0.12.3 takes it for a wish for a TPU."""
    import importlib.util

    from fairseq import tasks
    from fairseq.trainer import Trainer
    from omegaconf import OmegaConf

    if importlib.util.find_spec("torch_xla") is not None:
        return
    setup, init = tasks.setup_task, Trainer.__init__

    def no_tpu(cfg: Any) -> None:
        common = cfg.get("common") if OmegaConf.is_config(cfg) else None
        if common is not None and common.get("bf16") and common.get("tpu"):
            common.tpu = False
            if cfg.criterion is not None and "tpu" in cfg.criterion:
                cfg.criterion.tpu = False

    @functools.wraps(setup)
    def setup_task(cfg: Any, **kwargs: Any) -> Any:
        if OmegaConf.is_config(cfg):
            no_tpu(cfg._get_root())
        return setup(cfg, **kwargs)

    @functools.wraps(init)
    def init_trainer(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        no_tpu(cfg)
        init(self, cfg, *args, **kwargs)

    tasks.setup_task = setup_task
    Trainer.__init__ = init_trainer


def _stop_background_consumers() -> None:
    """End fairseq's loader threads before the interpreter goes.

    A run that stops in the middle of an epoch (``--max-update``, ``--max-valid-steps``) leaves a daemon
    thread collating batches; torch then aborts the finished run with "terminate called without an active
    exception" and exit code 134, now and then.
    """
    from fairseq.data.iterators import BackgroundConsumer

    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread._max_len = 0  # makes it stop after the batch at hand
            deadline = time.monotonic() + 60.0  # a source that hangs must not keep a finished run from ending
            while thread.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(queue.Empty):  # it may be waiting for room in its queue
                    thread._queue.get(timeout=0.05)
