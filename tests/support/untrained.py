"""Checkpoints of tiny models that were never trained, as fairseq saves them."""

from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf


def save_untrained(folder: Path, name: str, task: Any, model: Any) -> Path:
    """Write ``folder/name``, of a model and a task that are given by their options; returns its path."""
    torch.manual_seed(1)
    cfg: Any = OmegaConf.structured(FairseqConfig)
    OmegaConf.set_struct(cfg, False)
    cfg.task, cfg.model = task, model
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    built = tasks.setup_task(cfg.task).build_model(cfg.model)
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 7}
    state = {"args": None, "cfg": cfg, "model": built.state_dict(), "criterion": None, "task_state": {}}
    state.update(optimizer_history=[history], extra_state={"val_loss": 1.5}, last_optimizer_state=None)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**state, "cfg": OmegaConf.to_container(cfg)}, folder / name)
    return folder / name
