"""fairseq 0.12.3 on today's torch and Python: the one place that knows what does not fit.

Everything here was needed with fairseq-fixed 0.12.3.1, torch 2.13, hydra-core 1.3 and Python 3.11; weights-only
loading is torch's default since 2.6.
Public hooks are used wherever there is one; the replacements of fairseq's own parts are in
:func:`_explain_errors`, :func:`_keep_checkpoints_whole`, :func:`_evaluate_data_only`, :func:`_check_data_and_sizes`,
:func:`_keep_the_last_batch`, :func:`_check_commands`, :func:`_end_orphaned_workers` and the ``_repair_`` functions,
with the reasons.
"""

import argparse
import ast
import atexit
import collections
import contextlib
import errno
import functools
import importlib
import inspect
import itertools
import logging
import multiprocessing
import os
import pickle
import queue
import re
import sys
import threading
import time
import types
import typing
import warnings
import zipfile
from typing import Any, List

import numpy as np
import torch

from luna_fairseq.checkpoint_files import check_whole, copy_atomically, damaged, newest_checkpoint, save_atomically
from luna_fairseq.errors import CheckpointError

logger = logging.getLogger(__name__)

# What fairseq's command lines print although the user can do nothing about it. Beginnings of messages.
_NOISE = [
    r"hydra\.experimental\.\w+\(\) is no longer experimental",
    r"\s*The version_base parameter is not specified",
    r"In '[^']*': Usage of deprecated keyword in package header",
    r"\s*'config' is validated against ConfigStore schema with the same name",
    r"\s*The strict flag in the compose API is deprecated",
    r"\s*Future Hydra versions will no longer change working directory",
    r"'pin_memory' argument is set as true but no accelerator is found",
    r"`torch\.cuda\.amp\.(autocast|GradScaler)\(args\.\.\.\)` is deprecated",
    r"Support for mismatched key_padding_mask and attn_mask is deprecated",
    r"`broadcast_buffers` is deprecated",
    r"amp_C fused kernels unavailable",
]


_prepared = False


def prepare() -> None:
    """Make fairseq work here, once; every part of the plugin that needs fairseq calls it first."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    _quieten_noise()
    _import_fairseq()
    _allow_checkpoint_classes()
    _explain_errors()
    _keep_checkpoints_whole()
    _evaluate_data_only()
    _check_data_and_sizes()
    _keep_the_last_batch()
    _check_commands()
    _repair_epochs()
    _remember_patience()
    _end_orphaned_workers()
    _repair_replace_unk()
    _repair_break_mode_eos()
    _repair_amp()
    _repair_ddp_on_cpu()
    atexit.register(_stop_background_consumers)


def _quieten_noise() -> None:
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    # A task that has nothing to do with us asks for tensorboardX; fairseq-hydra-train imports fairseq before us.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    logging.getLogger("hydra").setLevel(logging.INFO)


def _import_fairseq() -> None:
    """One of its models sets the root logger to DEBUG: matplotlib and others would print thousands of lines."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    importlib.import_module("fairseq")
    root.setLevel(level)
    root.handlers[:] = handlers


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

    There is no hook for any of it, so two parts of fairseq are replaced (0.12.3.1):

    * ``checkpoint_utils.load_checkpoint_to_cpu``, which every command uses, is wrapped: a file that is cut
      short or damaged is named, one byte of it included; so is one that holds something else.
    * ``Trainer.train_step`` is wrapped: a run that diverges says at which update, and what to try. fairseq's
      NanDetector looks at forward passes only: today's torch ends with a StopIteration in its backward hook of a
      module that returns a dictionary, as every encoder does.
    """
    from fairseq import checkpoint_utils, trainer

    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def load_or_explain(path: str, *args: Any, **kwargs: Any) -> Any:
        if os.path.isfile(path):
            check_whole(path)
        try:
            state = load(path, *args, **kwargs)
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
                raise damaged(path) from error
            # What fairseq and torch trip over when they find a tensor, a list, a state_dict or a script there.
            foreign = isinstance(error, AttributeError | IndexError | KeyError | TypeError | ValueError)
            if foreign or re.search("TorchScript|__contains__", str(error)):
                state = {}
            else:
                raise
        if "model" not in state:
            raise CheckpointError(f"{path} is no checkpoint of fairseq: name a file that fairseq-train has written")
        return state

    train_step = trainer.Trainer.train_step

    @functools.wraps(train_step)
    def train_step_or_explain(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return train_step(self, *args, **kwargs)
        except FloatingPointError as error:
            if "inconsistent" in str(error):  # another reason, of which fairseq says what to try
                raise
            scaled = ", with the smallest loss scale" if "loss scale" in str(error) else ""
            raise FloatingPointError(
                f"training has diverged: the gradient of update {self.get_num_updates() + 1} is not finite{scaled}; "
                f"{os.path.join(self.cfg.checkpoint.save_dir, 'crash.pt')} holds the weights before it; lower --lr, "
                "raise --warmup-updates or set --clip-norm, and go on from an earlier checkpoint with --restore-file"
            ) from error

    checkpoint_utils.load_checkpoint_to_cpu = load_or_explain
    trainer.Trainer.train_step = train_step_or_explain
    trainer.NanDetector = functools.partial(trainer.NanDetector, backward=False)


def _keep_checkpoints_whole() -> None:
    """Let a run that was killed, or found the disk full, go on from where it stood when the command is repeated.

    There is no hook; of fairseq 0.12.3 these are replaced:

    * ``checkpoint_utils.torch_persistent_save``: when a write fails fairseq tries again behind the half that was
      written, and calls the file a checkpoint.
    * ``PathManager.copy``, which makes checkpoint_last.pt: fairseq overwrites the old one in place.
    * ``checkpoint_utils.load_checkpoint``: without a checkpoint_last.pt fairseq starts from scratch, even if
      others are there (as after the very first save was interrupted between two files).
    """
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager
    from omegaconf import OmegaConf

    save, copy, load = checkpoint_utils.torch_persistent_save, PathManager.copy, checkpoint_utils.load_checkpoint

    @functools.wraps(save)
    def save_whole(obj: Any, filename: str, async_write: bool = False) -> None:
        if async_write or not PathManager.supports_rename(filename):
            save(obj, filename, async_write)
        else:
            save_atomically(obj, filename)

    @functools.wraps(copy)
    def copy_whole(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if any(PathManager.path_requires_pathmanager(path) for path in (src_path, dst_path)):
            return copy(src_path, dst_path, overwrite)
        copy_atomically(src_path, dst_path)
        return True

    @functools.wraps(load)
    def load_newest(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        last = os.path.join(cfg.save_dir, "checkpoint_last.pt")
        if cfg.restore_file == "checkpoint_last.pt" and not trainer.checkpoint_suffix and not os.path.exists(last):
            newest = newest_checkpoint(cfg.save_dir)
            if newest is not None:
                logger.warning(
                    "%s is missing: going on from %s; to start from scratch, name another --save-dir", last, newest
                )
                cfg = OmegaConf.merge(cfg, {"restore_file": newest, "finetune_from_model": None})
        return load(cfg, trainer, **kwargs)

    checkpoint_utils.torch_persistent_save = save_whole
    PathManager.copy = staticmethod(copy_whole)
    checkpoint_utils.load_checkpoint = load_newest


def _evaluate_data_only() -> None:
    """Let no option run code: those of a model come from its checkpoint.

    fairseq 0.12.3 gives the strings of some options to ``eval``, such as --encoder-layers of ``fconv`` or the
    left-pad-source of ``multilingual_translation``, also when it loads a checkpoint of somebody else's for
    generation. There is no hook: the modules of fairseq get an ``eval`` of their own, which computes with constants.
    """
    import fairseq.criterions
    import fairseq.models
    import fairseq.tasks  # noqa: F401  (each loads all of its kind)

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "fairseq":
            module.eval = _evaluate  # type: ignore[attr-defined]


_HARMLESS = (
    *(ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Load),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UnaryOp, ast.UAdd, ast.USub),
)


def _evaluate(text: Any) -> Any:
    """The value of an option such as ``[(512, 3)] * 4``.

    Raises:
        ValueError: if it is more than constants, lists and sums.
        TypeError: if it is no string, as ``eval`` does.
    """
    tree = ast.parse(text.strip() if isinstance(text, str) else text, mode="eval")
    if not all(isinstance(node, _HARMLESS) for node in ast.walk(tree)):
        raise ValueError(f"the option {text!r} was not evaluated: write numbers, strings, lists and tuples")
    return eval(compile(tree, "<option>", "eval"), {"__builtins__": {}})


_NO_DICTIONARY = (
    "{} is no dictionary, or a damaged one (each line is a symbol and a count, and no symbol comes twice): copy it "
    "again, or run fairseq-preprocess again"
)


def _check_data_and_sizes() -> None:
    """Stop at half-written data and at state that belongs to another model; there is no hook for any of it.

    * ``Dictionary.add_from_file``, which reads dict.txt: fairseq does not say which file it could not read, and takes
      an empty one.
    * ``data_utils.load_indexed_dataset``: fairseq finds out only when training comes to the missing part, or to a
      symbol that is not in the dictionary.
    * ``Trainer.load_checkpoint``: fairseq starts from scratch if the file that --restore-file names is missing,
      says "please ensure that the architectures match" whatever is wrong, takes an optimizer state of other
      shapes, with which the first update fails, goes on from a checkpoint without one
      (--no-save-optimizer-state, an average) as if its warm-up were still to come, and says "best" of the state of
      another --lr-scheduler.
    * ``checkpoint_utils.load_model_ensemble_and_task``, which loads for evaluation: fairseq takes random
      weights for a classification head that the checkpoint lacks or has in another size.
    """
    from fairseq import checkpoint_utils
    from fairseq.data import Dictionary, data_utils
    from fairseq.file_io import PathManager
    from fairseq.trainer import Trainer

    from luna_fairseq.checkpoint import check_optimizer
    from luna_fairseq.checks import check_complete
    from luna_fairseq.errors import CheckpointMismatch, DataError

    add_from_file = Dictionary.add_from_file
    load_dataset = data_utils.load_indexed_dataset
    load_checkpoint = Trainer.load_checkpoint
    load_models = checkpoint_utils.load_model_ensemble_and_task

    @functools.wraps(add_from_file)
    def add_from_whole_file(self: Any, f: Any) -> None:
        before = len(self)
        try:
            add_from_file(self, f)
        except OSError:
            raise
        except Exception as error:
            if not isinstance(f, str):  # it calls itself with the open file
                raise
            raise DataError(_NO_DICTIONARY.format(f)) from error
        if isinstance(f, str) and len(self) == before:
            raise DataError(_NO_DICTIONARY.format(f))

    @functools.wraps(load_dataset)
    def load_complete(path: str, *args: Any, **kwargs: Any) -> Any:
        asked = inspect.signature(load_dataset).bind(path, *args, **kwargs).arguments
        for k in itertools.count():  # train, train1, ...
            part = path + (str(k) if k > 0 else "")
            check_complete(part)
            if not asked.get("combine") or not os.path.exists(f"{part}.idx"):
                break
        dataset, dictionary = load_dataset(path, *args, **kwargs), asked.get("dictionary")
        if dataset is not None and dictionary is not None and not getattr(dataset, "supports_prefetch", False):
            # A look into as much as does not take time.
            some = (dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, min(len(dataset), 10_000)))
            largest = max((int(item.max()) for item in some if len(item) > 0), default=0)
            if largest >= len(dictionary):
                raise DataError(
                    f"{path} holds symbol number {largest} and its dictionary ends at {len(dictionary) - 1}: the "
                    "dictionary was cut short, or is another one; copy it again, or prepare the data again"
                )
        return dataset

    @functools.wraps(load_checkpoint)
    def load_matching(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        default = os.path.join(self.cfg.checkpoint.save_dir, f"checkpoint_last{self.checkpoint_suffix}.pt")
        if filename != default and not PathManager.isfile(filename):
            raise FileNotFoundError(
                f"there is no checkpoint {filename}: correct --restore-file, or leave it out to go on from the "
                "newest one of --save-dir"
            )
        try:
            extra_state = load_checkpoint(self, filename, *args, **kwargs)
        except Exception as error:
            if isinstance(error.__context__, CheckpointMismatch):
                raise error.__context__ from None
            if isinstance(error, KeyError) and error.args == ("best",):
                raise CheckpointMismatch(
                    f"{filename} holds the state of another --lr-scheduler: give that one, or --reset-lr-scheduler"
                ) from error
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

    Dictionary.add_from_file = add_from_whole_file
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


def _check_commands() -> None:
    """Refuse what nobody registered, trains nothing, trains alone in several processes, or cannot train.

    There is no hook; of fairseq 0.12.3 these are wrapped:

    * ``distributed.utils.call_main``, which starts every command (fairseq-hydra-train loads the plugin after it). It
      is also told that --bf16 without torch_xla is no wish for a TPU.
    * ``tasks.setup_task``, of which training is sure to come before it builds anything.
    * ``Trainer.__init__``, which only training calls.
    """
    import importlib.util

    from fairseq import tasks
    from fairseq.distributed import utils as distributed_utils
    from fairseq.trainer import Trainer
    from omegaconf import OmegaConf

    from luna_fairseq.checks import check_device, check_names, check_optimizer_modes, check_processes

    call, setup, init = distributed_utils.call_main, tasks.setup_task, Trainer.__init__
    has_tpu = importlib.util.find_spec("torch_xla") is not None

    @functools.wraps(call)
    def call_main(cfg: Any, main: Any, **kwargs: Any) -> Any:
        if cfg.common.bf16 and cfg.common.tpu and not has_tpu:
            for options in cfg.values():
                if OmegaConf.is_config(options) and "tpu" in options:
                    options.tpu = False
        check_processes(cfg)
        return call(cfg, main, **kwargs)

    @functools.wraps(setup)
    def setup_task(cfg: Any, **kwargs: Any) -> Any:
        if OmegaConf.is_config(cfg) and not kwargs.get("from_checkpoint"):  # whose training is over
            check_names(cfg._get_root())
            check_optimizer_modes(cfg._get_root())
        return setup(cfg, **kwargs)

    @functools.wraps(init)
    def init_trainer(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        check_processes(cfg)
        check_device(cfg)
        init(self, cfg, *args, **kwargs)

    distributed_utils.call_main = call_main
    tasks.setup_task = setup_task
    Trainer.__init__ = init_trainer


def _repair_epochs() -> None:
    """Make an epoch the same in every run that reaches it: one that was restarted on the way, too.

    There is no hook. fairseq 0.12.3

    * makes the batches once a run, by a seed that counts the epoch in which the run starts: restarted in epoch 5 it
      has other batches than in epochs 1 to 4, perhaps another number of them ("dataloader mismatch");
    * keeps the data workers over the epochs, so that they never hear of the next one: a masked LM that has workers
      and one shard masks the same words in every epoch, and with several shards the workers of each are left to the
      garbage collector, in which torch waits 5 seconds for every one;
    * keeps the last items in ``LRUCacheDataset``, with the masks of the epoch before;
    * saves at the end of an epoch before the schedule hears of its validation loss: restarted there, it never does.
    """
    from fairseq.data import BaseWrapperDataset, LRUCacheDataset
    from fairseq.tasks import FairseqTask
    from fairseq.trainer import Trainer

    get, load = FairseqTask.get_batch_iterator, Trainer.load_checkpoint

    @functools.wraps(get)
    def get_the_same(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = inspect.signature(get).bind(self, *args, **kwargs)
        asked.apply_defaults()
        options = asked.arguments
        each_epoch = options["disable_iterator_cache"] or options["update_epoch_batch_itr"]
        each_epoch = each_epoch or getattr(self.cfg, "rebuild_batches", False)
        if each_epoch or not self.can_reuse_epoch_itr(options["dataset"]):
            batches = get(self, *args, **kwargs)
        else:
            seed = options["seed"]
            options["seed"] += 1 - options["epoch"]
            batches = get(*asked.args, **asked.kwargs)
            batches.seed = seed  # of their order, which is another one in each epoch
        batches.reuse_dataloader = batches.persistent_workers = False
        return batches

    def set_epoch(self: Any, epoch: int) -> None:
        BaseWrapperDataset.set_epoch(self, epoch)
        LRUCacheDataset.__getitem__.cache_clear()

    @functools.wraps(load)
    def load_and_end_the_epoch(self: Any, *args: Any, **kwargs: Any) -> Any:
        extra_state = load(self, *args, **kwargs)
        asked = inspect.signature(load).bind(self, *args, **kwargs).arguments
        if extra_state is not None and not (asked.get("reset_optimizer") or asked.get("reset_lr_scheduler")):
            place = extra_state.get("train_iterator") or {}
            if place.get("iterations_in_epoch") == 0 and extra_state.get("val_loss") is not None:
                self.lr_step(place["epoch"] - 1, extra_state["val_loss"])
        return extra_state

    FairseqTask.get_batch_iterator = get_the_same
    Trainer.load_checkpoint = load_and_end_the_epoch
    LRUCacheDataset.set_epoch = set_epoch


def _remember_patience() -> None:
    """Let ``--patience`` count over restarts.

    There is no hook. fairseq 0.12.3 keeps the best validation and the number of those since then in the process
    alone: a run that is restarted begins to count again, and one that has stopped early goes on.
    """
    from fairseq.trainer import Trainer

    save, load = Trainer.save_checkpoint, Trainer.load_checkpoint

    def counter() -> Any:
        """The function that keeps the count, imported late: its module sends all logging to standard output."""
        return importlib.import_module("fairseq_cli.train").should_stop_early

    @functools.wraps(save)
    def save_patience(self: Any, filename: str, extra_state: Any) -> None:
        counted = counter()
        if hasattr(counted, "best"):  # of a run with patience alone
            extra_state = {**extra_state, "patience": {"best": counted.best, "num_runs": counted.num_runs}}
        save(self, filename, extra_state)

    @functools.wraps(load)
    def load_patience(self: Any, *args: Any, **kwargs: Any) -> Any:
        extra_state = load(self, *args, **kwargs)
        asked = inspect.signature(load).bind(self, *args, **kwargs).arguments
        patience = self.cfg.checkpoint.patience
        count = (extra_state or {}).get("patience")
        if patience <= 0 or not count or asked.get("reset_optimizer") or asked.get("reset_meters"):
            return extra_state
        counted = counter()
        counted.best, counted.num_runs = count["best"], count["num_runs"]
        if count["num_runs"] >= patience:
            logger.info(
                "early stop since the last %d validations were no better: to go on, raise --patience", patience
            )
            self.cfg.optimization.max_epoch = -1  # 0 would be no end
        return extra_state

    Trainer.save_checkpoint = save_patience
    Trainer.load_checkpoint = load_patience


def _end_orphaned_workers() -> None:
    """Let a data worker end whose training was killed while the worker was starting.

    torch 2.13 looks up the parent of a worker when the worker begins to wait for orders: if it is an orphan by then,
    it waits for ever. There is no hook.
    """
    from torch.utils.data._utils import worker

    class Watchdog(worker.ManagerWatchdog):
        def __init__(self) -> None:
            super().__init__()
            parent = multiprocessing.parent_process()
            if parent is not None and parent.pid is not None:
                self.manager_pid = parent.pid

    worker.ManagerWatchdog = Watchdog  # type: ignore[misc]


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


def _repair_amp() -> None:
    """Make ``--amp`` divide gradients by the loss scale once, and end at a NaN on a CPU, which has no scale.

    fairseq 0.12.3 unscales for its torch optimizer to clip, and steps with its own wrapper around that, which torch
    takes for another optimizer and unscales again: all gradients are 128 times too small, and more as the scale
    grows. Adam hides it, Apollo does not. Of a scale that is not there it asks by how much to lower it.
    """
    from fairseq.optim import AMPOptimizer

    def step(self: Any) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def next_loss_scale(self: Any) -> float:
        return self.scaler.get_scale() * self.scaler.get_backoff_factor() if self.scaler.is_enabled() else 0.0

    AMPOptimizer.step = step
    AMPOptimizer.next_loss_scale = property(next_loss_scale)


def _repair_ddp_on_cpu() -> None:
    """Let the default ``--ddp-backend`` train on a CPU: fairseq 0.12.3 always names a GPU to torch's class."""
    from fairseq.models import distributed_fairseq_model

    parallel = distributed_fairseq_model.DistributedDataParallel

    def on_its_device(module: Any, **options: Any) -> Any:
        if next(module.parameters()).device.type == "cpu":
            options.update(device_ids=None, output_device=None)
        return parallel(module, **options)

    distributed_fairseq_model.DistributedDataParallel = on_its_device


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
