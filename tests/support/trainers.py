"""fairseq's trainer around a model of eight numbers, for tests of what is repaired in it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import BaseFairseqModel
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.lr_scheduler.fixed_schedule import FixedLRScheduleConfig
from fairseq.trainer import Trainer
from omegaconf import OmegaConf


class TinyModel(BaseFairseqModel):
    """Like an encoder, it returns a dictionary of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> Dict[str, Any]:
        return {"encoder_out": [self.linear(x)]}


def _train_step(sample: Any, model: Any, criterion: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    loss = model(sample["x"])["encoder_out"][0].sum() * sample["scale"]
    optimizer.backward(loss)
    return loss, 1, {"loss": loss.item()}


def make_trainer(folder: Path, **common: Any) -> Trainer:
    """A trainer on the CPU that saves into a folder; ``common`` are options of fairseq's group of that name."""
    cfg = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(FairseqConfig), resolve=False))
    cfg.optimizer = OmegaConf.structured(FairseqAdamConfig(_name="adam", lr=[0.1]))
    cfg.lr_scheduler = OmegaConf.structured(FixedLRScheduleConfig(_name="fixed", lr=[0.1]))
    cfg.common.update({"cpu": True, **common})
    cfg.model, cfg.task = {"_name": None}, {}
    cfg.optimization.lr = [0.1]
    cfg.distributed_training.distributed_world_size = 1
    cfg.checkpoint.save_dir = str(folder)
    task: Any = SimpleNamespace(
        state_dict=dict,
        target_dictionary=None,
        train_step=_train_step,
        optimizer_step=lambda optimizer, **kwargs: optimizer.step(),
        reduce_metrics=lambda logs, criterion: None,
    )
    return Trainer(cfg, task, TinyModel(), FairseqCriterion(task))


def make_sample(scale: float = 1.0) -> Dict[str, Any]:
    """A batch for :meth:`Trainer.train_step`, with what the loss is multiplied by."""
    return {"x": torch.ones(1, 3), "scale": torch.tensor(scale)}


def trained(folder: Path) -> Trainer:
    """A trainer after its first update."""
    trainer = make_trainer(folder)
    trainer.train_step([make_sample()])
    return trainer


def save(trainer: Trainer, path: Path, **extra_state: Any) -> str:
    """A checkpoint after the first epoch, with anything else that it should hold."""
    place = {"version": 2, "epoch": 2, "iterations_in_epoch": 0, "shuffle": True}
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(path), {"train_iterator": place, "val_loss": 1.5, **extra_state})
    return str(path)
