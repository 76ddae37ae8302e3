"""Commands: what trains nothing or cannot work is refused; shards, and lines of text, are read as they were meant."""

import difflib
import functools
import importlib.util
import itertools
import os
import sys
from pathlib import Path
from typing import Any, Iterator, List, Tuple

from luna_fairseq.compat._lines import Lines
from luna_fairseq.compat._replace import replaces


def check_names(cfg: Any) -> None:
    """Say which name of a YAML nobody registered.

    Args:
        cfg: fairseq's whole config, or one of a task alone, which passes.

    Raises:
        ValueError: with the name and its group.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from omegaconf import DictConfig

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
    import torch

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
    spawns = size > 1 and not launched and not options.distributed_no_spawn and not cfg.common.tpu
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
    import torch

    if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
        raise ValueError("--fp16 needs a GPU: leave it out, or take --bf16")


@replaces(
    "fairseq.distributed.utils",
    "call_main",
    fairseq="trains alone in each process of a torchrun without a world size, and nothing where it starts no process",
    here="such a command is refused at the start",
    since="fairseq 0.12.3",
)
def refuse_processes(original: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
    check_processes(cfg)
    return original(cfg, main, **kwargs)


def check_config_name() -> None:
    """Refuse a ``--config-name`` that no folder has: fairseq registers its defaults under whatever name is given.

    Raises:
        ValueError: with the folders, and the names that are near.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():  # not fairseq-hydra-train, or a process that it has started
        return
    hydra = HydraConfig.get()
    name = str(hydra.job.config_name).removesuffix(".yaml")
    folders: List[Path] = []
    for source in hydra.runtime.config_sources:
        if source.schema == "file":
            folders.append(Path(source.path))
        elif source.schema == "pkg":
            spec = importlib.util.find_spec(source.path)
            folders += map(Path, (spec and spec.submodule_search_locations) or ())
    if any((folder / f"{name}.yaml").exists() for folder in folders):
        return
    folders = folders[::-1]  # the user's own before fairseq's, and Hydra's
    near = difflib.get_close_matches(name, [path.stem for folder in folders for path in folder.glob("*.yaml")], 3)
    meant = f"did you mean {', '.join(near)}?" if near else "correct --config-name or --config-dir"
    raise ValueError(f"there is no {name}.yaml in {folders[0]}: {meant}")


@replaces(
    "fairseq_cli.train",
    "add_defaults",
    fairseq="takes its own defaults for the config if --config-name is misspelt",
    here="the name is refused, with those that are near",
    since="fairseq 0.12.3",
)
def refuse_an_unknown_config(original: Any, cfg: Any) -> None:
    check_config_name()
    original(cfg)


# fairseq's programs -> whether they read one shard of --num-shards. eval_lm sees to it itself.
_READS_A_SHARD = {"generate": True, "validate": True, "train": False, "interactive": False}


def check_shards(cfg: Any, program: str) -> Tuple[int, int]:
    """Refuse a shard that does not exist, or that the program would not read.

    Args:
        cfg: fairseq's whole config.
        program: a module of ``fairseq_cli``, without the package.

    Returns:
        the shard, counted from 0, and how many there are.

    Raises:
        ValueError: with what to set.
    """
    shard, shards = cfg.dataset.shard_id, cfg.dataset.num_shards
    if not 0 <= shard < shards:
        raise ValueError(
            f"--shard-id is {shard} and --num-shards {shards}: shards are counted from 0, so the last one is "
            f"{max(shards, 1) - 1}"
        )
    if shards > 1 and not _READS_A_SHARD.get(program, True):
        raise ValueError(f"--num-shards is {shards} and fairseq-{program} reads everything: leave it out")
    return shard, shards


# The shard that this process reads, and how many there are; and whether call_main has said so.
_shard: Tuple[int, int] = (0, 1)
_said = False


def _of_a_shard(main: Any, shard: Tuple[int, int], *args: Any, **kwargs: Any) -> Any:
    """A program that reads one shard; in whatever process it is started."""
    global _shard, _said
    before = _shard, _said
    _shard, _said = shard, True
    try:
        return main(*args, **kwargs)
    finally:
        _shard, _said = before


@replaces(
    "fairseq.distributed.utils",
    "call_main",
    fairseq="reads everything in each shard: fairseq-validate does not look at --num-shards and --shard-id",
    here="it reads its own; programs that read everything refuse the options",
    since="fairseq 0.12.3",
)
def read_one_shard(original: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
    # Not its module, which is __main__ where Python was given the file.
    folder, program = os.path.split(getattr(main, "__globals__", {}).get("__file__") or "")
    program = program.removesuffix(".py")
    if os.path.basename(folder) == "fairseq_cli":
        shard = check_shards(cfg, program)
        main = functools.partial(_of_a_shard, main, shard if program in _READS_A_SHARD else (0, 1))
    return original(cfg, main, **kwargs)


@replaces(
    "fairseq.tasks",
    "setup_task",
    fairseq="translates everything in each shard: fairseq-generate does not look at --num-shards and --shard-id",
    here="it translates its own",
    since="fairseq 0.12.3",
)
def translate_one_shard(original: Any, cfg: Any, **kwargs: Any) -> Any:
    """The one program that does without call_main."""
    global _shard
    from omegaconf import OmegaConf

    if OmegaConf.is_config(cfg) and not kwargs.get("from_checkpoint") and not _said:
        root = cfg._get_root()
        _shard = check_shards(root, "generate") if "num_shards" in (root.get("dataset") or ()) else (0, 1)
    return original(cfg, **kwargs)


@replaces(
    "fairseq.data.iterators.EpochBatchIterator",
    "__init__",
    fairseq="is not told which shard of the data fairseq-generate and fairseq-validate are to read",
    here="they get every so many-th batch",
    since="fairseq 0.12.3",
)
def give_one_shard(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    number, count = _shard
    if count > 1:
        batches = self.frozen_batches
        if len(batches) < count:
            raise ValueError(
                f"--num-shards is {count} and the data makes {len(batches)} batches: take fewer shards, or lower "
                "--batch-size or --max-tokens"
            )
        self._frozen_batches = batches[number::count]


def _lines_of_input(name: str) -> Iterator[str]:
    if name != "-":
        with open(name, "rb") as file:
            yield from Lines(file, name)
    elif hasattr(sys.stdin, "buffer"):
        yield from Lines(sys.stdin.buffer, "the input")
    else:  # no file: whoever runs the program has put something else there
        yield from sys.stdin


def _read(name: str, size: int) -> Iterator[List[str]]:
    """What fairseq-interactive reads, so many lines at a time; ``-`` is the standard input."""
    lines = _lines_of_input(name)
    while buffer := [line.strip() for line in itertools.islice(lines, size)]:
        yield buffer


@replaces(
    "fairseq.distributed.utils",
    "call_main",
    fairseq="ends a line at a lone carriage return in fairseq-interactive: all later translations have other numbers",
    here="a line ends at its line feed",
    since="fairseq 0.12.3",
)
def read_whole_lines_of_input(original: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
    """The program is not imported by others: it sends all logging to standard output."""
    names = getattr(main, "__globals__", {})
    before = names.get("buffered_read")
    if before is None:
        return original(cfg, main, **kwargs)
    names["buffered_read"] = _read
    try:
        return original(cfg, main, **kwargs)
    finally:
        names["buffered_read"] = before


# Around the ones above, the first of which asks for the TPU.
@replaces(
    "fairseq.distributed.utils",
    "call_main",
    fairseq="takes --bf16 for a wish for a TPU",
    here="it is one only where torch_xla is installed",
    since="fairseq 0.12.3",
)
def want_no_tpu(original: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
    from omegaconf import OmegaConf

    if cfg.common.bf16 and cfg.common.tpu and importlib.util.find_spec("torch_xla") is None:
        for options in cfg.values():
            if OmegaConf.is_config(options) and "tpu" in options:
                options.tpu = False
    return original(cfg, main, **kwargs)


@replaces(
    "fairseq.tasks",
    "setup_task",
    fairseq="trains with any optimizer in any mode: Apollo would see pieces of tensors, or half precision",
    here="modes in which Apollo cannot have whole float32 tensors are refused",
    since="fairseq 0.12.3",
)
def refuse_optimizer_modes(original: Any, cfg: Any, **kwargs: Any) -> Any:
    """Training is sure to set up its task before it builds anything."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(cfg) and not kwargs.get("from_checkpoint"):  # whose training is over
        check_optimizer_modes(cfg._get_root())
    return original(cfg, **kwargs)


@replaces(
    "fairseq.tasks",
    "setup_task",
    fairseq="ends with \"KeyError: '_name'\", or a bare name, at a name in a YAML that nobody registered",
    here="the name and its group are named, before the data is loaded",
    since="fairseq 0.12.3",
)
def refuse_unknown_names(original: Any, cfg: Any, **kwargs: Any) -> Any:
    from omegaconf import OmegaConf

    if OmegaConf.is_config(cfg) and not kwargs.get("from_checkpoint"):
        check_names(cfg._get_root())
    return original(cfg, **kwargs)


@replaces(
    "fairseq.trainer.Trainer",
    "__init__",
    fairseq="trains in float16 on a CPU until the first overflow",
    here="--fp16 without a GPU is refused",
    since="fairseq 0.12.3",
)
def refuse_float16(original: Any, self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
    """Only training makes a trainer."""
    check_device(cfg)
    original(self, cfg, *args, **kwargs)


@replaces(
    "fairseq.trainer.Trainer",
    "__init__",
    fairseq="loads the plugin after call_main with fairseq-hydra-train, so that the checks there come too late",
    here="the numbers of processes and of shards are looked at again before training",
    since="fairseq 0.12.3",
)
def refuse_processes_of_hydra(original: Any, self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
    check_processes(cfg)
    check_shards(cfg, "train")
    original(self, cfg, *args, **kwargs)
