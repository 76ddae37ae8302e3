"""Checks before data is read or a training begins: one clear sentence instead of an error from deep inside."""

import os
import struct
from typing import Any, Iterable, List

import numpy as np
import torch
from fairseq.data import indexed_dataset
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from omegaconf import DictConfig

from luna_fairseq.errors import DataError

_INDEX_HEAD = struct.Struct("<9sQBQ")  # magic, version, type, number of entries


def check_folder(folder: str) -> None:
    """Raise ``FileNotFoundError`` if a data folder does not exist."""
    if not folder:
        raise FileNotFoundError("no data folder given: name one that fairseq-preprocess has written")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"data folder {folder} does not exist: name one that fairseq-preprocess has written")


def check_dictionary(*path: str, remedy: str = "run fairseq-preprocess, or name the folder above it") -> None:
    """Raise ``FileNotFoundError`` if a dictionary does not exist."""
    name = os.path.join(*path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"dictionary {name} does not exist: {remedy}")


def check_complete(path: str) -> None:
    """Compare a binarised file with its index, without loading either.

    Args:
        path: without ``.bin`` and ``.idx``; nothing there, or data of another kind than fairseq's memory-mapped
            one, passes.

    Raises:
        DataError: if one of the files is missing or shorter than it should be, as after an interrupted
            fairseq-preprocess.
    """
    data, index = indexed_dataset.data_file_path(path), indexed_dataset.index_file_path(path)
    there = [name for name in (data, index) if os.path.exists(name)]
    if not there:
        return
    if len(there) == 1:
        raise DataError(f"{there[0]} is there without its .bin or .idx: run the preparation again")
    magic = indexed_dataset.MMapIndexedDataset.Index._HDR_MAGIC
    with open(index, "rb") as file:
        head = file.read(_INDEX_HEAD.size)
    if head[: len(magic)] != magic[: len(head)]:
        return
    entries = item = 0
    if len(head) == _INDEX_HEAD.size:
        _, _, code, entries = _INDEX_HEAD.unpack(head)
        item = np.dtype(indexed_dataset._code_to_dtype[code]).itemsize
    # A size (4 bytes) and a place (8) for each entry.
    if len(head) < _INDEX_HEAD.size or os.path.getsize(index) < len(head) + 12 * entries:
        raise DataError(f"{index} is damaged or only half written: run the preparation again")
    wanted = int(np.fromfile(index, np.int32, entries, offset=len(head)).sum(dtype=np.int64)) * item
    if os.path.getsize(data) < wanted:
        raise DataError(
            f"{data} has {os.path.getsize(data)} bytes and its index asks for {wanted}: it was only half written; "
            "run the preparation again"
        )


def check_labels(labels: Iterable[int], num_classes: int, where: str, option: str = "--num-classes") -> None:
    """Raise :class:`DataError` for a label below 0 or not below ``num_classes``.

    Args:
        labels: in the order of the examples.
        num_classes: how many there may be.
        where: the file, for the sentence.
        option: what says how many.
    """
    for i, label in enumerate(labels):
        if not 0 <= label < num_classes:
            known = (
                "is no number of a class, or not in the label dictionary,"
                if label < 0
                else f"has number {label} (counted from 0)"
            )
            raise DataError(
                f"the label of example {i} in {where} {known} and {option} is {num_classes}: correct {option}, "
                "or prepare the data again"
            )


def read_labels(path: str) -> List[int]:
    """The numbers of classes in a file, one a line; -1, which :func:`check_labels` refuses, for what is none."""
    with open(path) as file:
        return [int(line) if line.isdigit() else -1 for line in file.read().split()]


def check_count(path: str, labels: int, examples: int, what: str = "labels") -> None:
    """Raise :class:`DataError` if a file has another number of labels than there are examples."""
    if labels != examples:
        raise DataError(f"{path} has {labels} {what} for {examples} examples: prepare the data again")


def check_names(cfg: Any) -> None:
    """Say which name of a YAML nobody registered.

    fairseq 0.12.3 ends with "KeyError: '_name'" (a model) or with the bare name (anything else), after it has loaded
    the data.

    Args:
        cfg: fairseq's whole config, or one of a task alone, which passes.

    Raises:
        ValueError: with the name and its group.
    """
    known = {group: registry["registry"] for group, registry in REGISTRIES.items()}
    known["model"] = {**ARCH_MODEL_REGISTRY, **MODEL_REGISTRY}
    for group, names in known.items():
        part = cfg.get(group)
        name = part.get("_name") if isinstance(part, DictConfig) else None
        if name is not None and name not in names:
            raise ValueError(
                f"{group}._name is {name!r}, which nobody registered: correct it, or name the plugin that has it in "
                "common.user_dir"
            )


def check_processes(cfg: Any) -> None:
    """Refuse a number of processes with which nothing is trained, or the same thing several times.

    Args:
        cfg: fairseq's whole config.

    Raises:
        ValueError: with what to set.
    """
    options = cfg.distributed_training
    size = options.distributed_world_size
    # What torchrun sets, and fairseq looks for; it does so only if the world size is not 1.
    launched = all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"))
    started = int(os.environ["WORLD_SIZE"]) if launched else 1
    if started > 1 and size == 1:
        raise ValueError(
            f"{started} processes were started and --distributed-world-size is 1, so that each would train alone "
            f"into the same --save-dir: add --distributed-world-size {started}, or use scripts/torchrun.sh"
        )
    spawns = size > 1 and not options.distributed_no_spawn and not cfg.common.tpu
    if spawns and torch.cuda.device_count() == 0:
        raise ValueError(
            f"--distributed-world-size is {size} and there is no GPU, so that fairseq would start no process at all: "
            "start them with scripts/torchrun.sh and CPU=1, or leave the option out"
        )


def check_optimizer_modes(cfg: Any) -> None:
    """Refuse what Apollo cannot do: it needs each tensor whole, and in float32.

    Args:
        cfg: fairseq's whole config, or one of a task alone, which passes.

    Raises:
        ValueError: with what to take instead.
    """
    if getattr(cfg.get("optimizer"), "_name", None) != "apollo":
        return
    if cfg.distributed_training.ddp_backend == "fully_sharded":
        raise ValueError(
            "--ddp-backend fully_sharded cuts tensors into pieces and --optimizer apollo needs them whole: leave out "
            "--ddp-backend, or take --optimizer adam"
        )
    for name in ("fp16", "bf16"):
        if cfg.common[f"memory_efficient_{name}"]:
            raise ValueError(
                f"--memory-efficient-{name} keeps no float32 weights and --optimizer apollo needs them: take "
                f"{'--fp16 with --fp16-no-flatten-grads' if name == 'fp16' else '--bf16'}, or --optimizer adam"
            )


def check_device(cfg: Any) -> None:
    """Refuse training in float16 on a CPU, which ends at the first overflow, if not at the start.

    Args:
        cfg: fairseq's whole config.

    Raises:
        ValueError: with what to take instead.
    """
    if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
        raise ValueError("--fp16 needs a GPU: leave it out, or take --bf16")
