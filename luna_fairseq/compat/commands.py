"""Commands that are refused: what trains nothing, trains alone in several processes, or cannot train."""

import importlib.util
import os
from typing import Any

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


# Around the one above, which asks for the TPU.
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
    fairseq="loads the plugin after call_main with fairseq-hydra-train, so that the check there comes too late",
    here="the number of processes is looked at again before training",
    since="fairseq 0.12.3",
)
def refuse_processes_of_hydra(original: Any, self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
    check_processes(cfg)
    original(self, cfg, *args, **kwargs)
