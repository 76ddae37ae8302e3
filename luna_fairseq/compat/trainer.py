"""The trainer: divergence, mixed precision, and several processes on a CPU."""

import functools
import os
from typing import Any

from luna_fairseq.compat._replace import replaces, replaces_value


@replaces(
    "fairseq.trainer.Trainer",
    "train_step",
    fairseq='ends with "gradients are Nan/Inf" when a run diverges',
    here="the error says at which update, where the weights before it are, and what to try",
    since="fairseq 0.12.3",
)
def explain_divergence(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(self, *args, **kwargs)
    except FloatingPointError as error:
        if "inconsistent" in str(error):  # another reason, of which fairseq says what to try
            raise
        scaled = ", with the smallest loss scale" if "loss scale" in str(error) else ""
        raise FloatingPointError(
            f"training has diverged: the gradient of update {self.get_num_updates() + 1} is not finite{scaled}; "
            f"{os.path.join(self.cfg.checkpoint.save_dir, 'crash.pt')} holds the weights before it; lower --lr, "
            "raise --warmup-updates or set --clip-norm, and go on from an earlier checkpoint with --restore-file"
        ) from error


@replaces_value(
    "fairseq.trainer",
    "NanDetector",
    fairseq="ends with a StopIteration when it looks for the NaN in a backward pass through an encoder",
    here="it looks at forward passes only, and the divergence is the error that is seen",
    since="torch 2.13",
)
def look_at_forward_passes(original: Any) -> Any:
    """The backward hook of a module that returns a dictionary, as every encoder does, raises it in torch."""
    return functools.partial(original, backward=False)


@replaces(
    "fairseq.optim.AMPOptimizer",
    "step",
    fairseq="divides gradients by the loss scale twice with --amp: once to clip them, once for the step",
    here="they are divided once",
    since="fairseq 0.12.3",
)
def unscale_once(original: Any, self: Any) -> None:
    """It unscales for its torch optimizer, and steps with its own wrapper around that: another one to torch.

    So all gradients are 128 times too small, and more as the scale grows. Adam hides it, Apollo does not.
    """
    self.scaler.step(self.optimizer)
    self.scaler.update()


@replaces(
    "fairseq.optim.AMPOptimizer",
    "next_loss_scale",
    fairseq="asks by how much to lower the loss scale at a NaN with --amp, also on a CPU, where there is none",
    here="the run ends at the NaN, as divergence",
    since="fairseq 0.12.3",
)
def end_without_a_scale(original: Any, self: Any) -> float:
    return float(original(self)) if self.scaler.is_enabled() else 0.0


@replaces_value(
    "fairseq.models.distributed_fairseq_model",
    "DistributedDataParallel",
    fairseq="always names a GPU to torch's DistributedDataParallel, the default --ddp-backend",
    here="on a CPU it names none, and several processes train",
    since="fairseq 0.12.3",
)
def train_on_a_cpu(original: Any) -> Any:
    def on_its_device(module: Any, **options: Any) -> Any:
        if next(module.parameters()).device.type == "cpu":
            options.update(device_ids=None, output_device=None)
        return original(module, **options)

    return on_its_device


@replaces(
    "fairseq.distributed.utils",
    "_infer_torch_distributed_launch_init",
    fairseq="divides by the number of GPUs in each process of a torchrun: fairseq-train ends where there is none",
    here="the processes train on the CPU",
    since="fairseq 0.12.3",
)
def number_processes_of_a_cpu(original: Any, cfg: Any) -> None:
    import torch

    if torch.cuda.device_count() > 0:
        original(cfg)
        return
    cfg.distributed_init_method = "env://"
    cfg.distributed_world_size, cfg.distributed_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    cfg.device_id, cfg.distributed_no_spawn = 0, True


@replaces(
    "fairseq.trainer.Trainer",
    "consolidate_optimizer",
    fairseq="saves what the first process has, and of the task's own state knows no other",
    here="a task with a `gather_state` hears of every save in every process",
    since="fairseq 0.12.3",
)
def let_tasks_gather(original: Any, self: Any) -> None:
    """Fairseq calls it in all processes before the first one saves."""
    original(self)
    gather = getattr(self.task, "gather_state", None)
    if gather is not None:
        gather()
