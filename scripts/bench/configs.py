"""What a config makes: its settings, and the model with all that trains it."""

import warnings
from pathlib import Path
from typing import Any, List

import torch
from fairseq import optim, tasks, utils
from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from luna_fairseq import plugin
from luna_fairseq.errors import DataError


def load_config(path: Path, *overrides: str) -> Any:
    """What fairseq-hydra-train makes of a config, up to the point where it builds the model."""
    plugin.load()
    GlobalHydra.instance().clear()
    hydra_init(path.stem)
    with initialize_config_dir(str(path.resolve().parent), version_base="1.1"), warnings.catch_warnings():
        # fairseq gives a config the name of its schema, which Hydra dislikes since 1.1.
        warnings.filterwarnings("ignore", message=r"\s*'.*' is validated against ConfigStore schema")
        cfg = compose(path.stem, overrides=list(overrides))
    # The command checks only the config that it is given against fairseq's schema, so forget the name again.
    del ConfigStore.instance().repo[f"{path.stem}.yaml"]
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


class Run:
    """A model with its task, criterion and optimizer.

    Args:
        path: the config.
        data: the prepared data.
        device: where it trains.
    """

    def __init__(self, path: Path, data: str, device: torch.device) -> None:
        self.name = path.stem
        self.cfg = load_config(path, "common.user_dir=null", f"task.data='{data}'", "checkpoint.save_dir=unused")
        utils.set_torch_seed(self.cfg.common.seed)
        self.task = tasks.setup_task(self.cfg.task)
        self.model = self.task.build_model(self.cfg.model).to(device)
        self.criterion = self.task.build_criterion(self.cfg.criterion)
        self.optimizer = optim.build_optimizer(
            OmegaConf.merge(self.cfg.optimizer, {"lr": self.cfg.optimization.lr}),
            [p for p in self.model.parameters() if p.requires_grad],
        )
        self.optimizer.set_lr(1e-5)

    def batches(self, count: int, device: torch.device) -> List[Any]:
        """Batches of the training split, spread over its lengths.

        Raises:
            DataError: if no example fits the positions of the model.
        """
        self.task.load_dataset("train")
        dataset = self.cfg.dataset
        epoch = self.task.get_batch_iterator(
            self.task.dataset("train"),
            max_tokens=dataset.max_tokens,
            max_sentences=dataset.batch_size,
            max_positions=utils.resolve_max_positions(self.task.max_positions(), self.model.max_positions()),
            ignore_invalid_inputs=True,
            required_batch_size_multiple=dataset.required_batch_size_multiple,
            seed=1,
        ).next_epoch_itr(shuffle=True)
        chosen = [batch for batch, _ in zip(epoch, range(count), strict=False)]
        if not chosen:
            raise DataError(
                f"no example of {self.cfg.task.data} fits the positions of {self.name}: take another config"
            )
        return utils.move_to_cuda(chosen) if device.type == "cuda" else chosen

    def train(self, batches: List[Any]) -> None:
        """One update a batch."""
        self.model.train()
        for number, batch in enumerate(batches):
            self.task.train_step(batch, self.model, self.criterion, self.optimizer, number)
            self.optimizer.clip_grad_norm(self.cfg.optimization.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
