"""When training ends: what is finished stays as it is, and no run ends well that has saved nothing."""

import importlib
import importlib.util
import logging
import math
import os
from pathlib import Path
from typing import Any, Optional

from luna_fairseq.compat._replace import named, replaces

logger = logging.getLogger(__name__)


def _patience() -> Any:
    """The function that keeps the count, imported late: its module sends all logging to standard output."""
    return importlib.import_module("fairseq_cli.train").should_stop_early


@replaces(
    "fairseq.trainer.Trainer",
    "save_checkpoint",
    fairseq="keeps the count of --patience in the process alone",
    here="a checkpoint holds it too",
    since="fairseq 0.12.3",
)
def save_patience(original: Any, self: Any, filename: str, extra_state: Any) -> Any:
    counted = _patience()
    if hasattr(counted, "best"):  # of a run with patience alone
        extra_state = {**extra_state, "patience": {"best": counted.best, "num_runs": counted.num_runs}}
    return original(self, filename, extra_state)


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq="begins to count --patience again after a restart, or goes on counting for another run of the process",
    here="each run has its count, over all restarts",
    since="fairseq 0.12.3",
)
def load_patience(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    extra_state = original(self, *args, **kwargs)
    asked = named(original, self, *args, **kwargs)
    counted = _patience()
    vars(counted).pop("best", None)
    vars(counted).pop("num_runs", None)
    if self.cfg.checkpoint.patience <= 0:
        return extra_state
    count = (extra_state or {}).get("patience")
    if count and not (asked.get("reset_optimizer") or asked.get("reset_meters")):
        counted.best, counted.num_runs = count["best"], count["num_runs"]
    return extra_state


@replaces(
    "fairseq.trainer.Trainer",
    "load_checkpoint",
    fairseq="counts for --stop-time-hours the hours of the model that a fine-tuning begins with, too",
    here="fine-tuning, and --reset-meters, begin to count anew",
    since="fairseq 0.12.3",
)
def count_its_own_hours(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    extra_state = original(self, *args, **kwargs)
    if named(original, self, *args, **kwargs).get("reset_meters"):
        self._previous_training_time = 0
    return extra_state


def _reached(trainer: Any, epoch: int, seconds: float) -> Optional[str]:
    """Which limit of its training a trainer has reached, for a sentence; None if it has reached none.

    Args:
        trainer: with the options and the number of updates.
        epoch: the next one.
        seconds: that were spent training.
    """
    limits, patience, updates = trainer.cfg.optimization, trainer.cfg.checkpoint.patience, trainer.get_num_updates()
    if updates >= (limits.max_update or math.inf):
        return f"{updates} updates are done and --max-update is {limits.max_update}"
    if epoch > (limits.max_epoch or math.inf):
        return f"{epoch - 1} epochs are done and --max-epoch is {limits.max_epoch}"
    if 0 < limits.stop_time_hours < seconds / 3600:
        return f"{seconds / 3600:.4g} hours were spent and --stop-time-hours is {limits.stop_time_hours}"
    if 0 < patience <= getattr(_patience(), "num_runs", 0):
        runs = _patience().num_runs
        return f"early stop since the last {runs} validations were no better and --patience is {patience}"
    if trainer.get_lr() <= limits.stop_min_lr:
        return f"the learning rate is {trainer.get_lr()} and --stop-min-lr is {limits.stop_min_lr}"
    return None


@replaces(
    "fairseq.checkpoint_utils",
    "load_checkpoint",
    fairseq="compares a training with the best loss of another one before it in the process: no `checkpoint_best.pt`",
    here="each run has its best",
    since="fairseq 0.12.3",
)
def forget_the_best_of_another(original: Any, cfg: Any, trainer: Any, **kwargs: Any) -> Any:
    """Of a sweep (``fairseq-hydra-train -m``), for example. What the run has saved itself is restored here."""
    from fairseq import checkpoint_utils

    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    return original(cfg, trainer, **kwargs)


@replaces(
    "fairseq.checkpoint_utils",
    "load_checkpoint",
    fairseq="makes one more update, and saves it, whenever the command of a finished training is repeated",
    here="what is finished stays as it is, whichever limit has ended it; one that is raised goes on",
    since="fairseq 0.12.3",
)
def stay_finished(original: Any, cfg: Any, trainer: Any, **kwargs: Any) -> Any:
    """A run that would begin at its limit, with nothing in its folder, is refused: it would save nothing."""
    extra_state, batches = original(cfg, trainer, **kwargs)
    reached = _reached(trainer, batches.next_epoch_idx, trainer._previous_training_time)
    if reached is not None:
        if extra_state is None or not any(Path(cfg.save_dir).glob("checkpoint*.pt")):
            raise ValueError(f"nothing would be trained, and nothing saved: {reached}; set another limit")
        logger.info("training is finished, and stays as it is: %s; to go on, set another limit", reached)
        _restore_the_last(cfg, trainer)
        # The loop over the epochs is not entered, and nothing will be validated.
        trainer.cfg.optimization.max_epoch = -1
        trainer.cfg.dataset.disable_validation = True
    return extra_state, batches


def _restore_the_last(cfg: Any, trainer: Any) -> None:
    """A run that was killed between the files of its only save lacks ``checkpoint_last.pt``."""
    from luna_fairseq.checkpoint_files import copy_atomically, newest_checkpoint

    last = os.path.join(cfg.save_dir, "checkpoint_last.pt")
    asked = cfg.restore_file == "checkpoint_last.pt" and not (cfg.no_save or cfg.no_last_checkpoints)
    if asked and trainer.data_parallel_rank == 0 and not trainer.checkpoint_suffix and not os.path.exists(last):
        newest = newest_checkpoint(cfg.save_dir)
        if newest is not None:
            copy_atomically(newest, last)


def check_saving(cfg: Any) -> None:
    """Refuse options with which a run would save nothing, or fail when it is to save.

    Args:
        cfg: fairseq's whole config.

    Raises:
        ValueError: with what to change.
    """
    options = cfg.checkpoint
    if options.write_checkpoints_asynchronously and importlib.util.find_spec("iopath") is None:
        raise ValueError(
            "--write-checkpoints-asynchronously needs the package iopath, without which nothing would be trained or "
            "saved: install it (pip install iopath), or leave the option out"
        )
    if options.save_interval < 1:
        raise ValueError(f"--save-interval is {options.save_interval}: it must be at least 1")
    without_files = (
        options.no_epoch_checkpoints and options.no_last_checkpoints and options.save_interval_updates <= 0
    )
    if without_files and cfg.dataset.disable_validation and not options.no_save:
        raise ValueError(
            "--no-epoch-checkpoints, --no-last-checkpoints and --disable-validation leave no checkpoint to save: "
            "leave one of them out, add --save-interval-updates, or say --no-save"
        )


@replaces(
    "fairseq.distributed.utils",
    "is_master",
    fairseq="ends well, with nothing saved, if --write-checkpoints-asynchronously lacks iopath, or no file is wanted",
    here="options that leave nothing to save are refused at the start",
    since="fairseq 0.12.3",
)
def refuse_to_save_nothing(original: Any, cfg: Any) -> Any:
    """The first thing of fairseq's that training calls with its options, and after it has loaded the plugin."""
    from omegaconf import OmegaConf

    root = cfg._get_root() if OmegaConf.is_config(cfg) else {}
    if "checkpoint" in root and "dataset" in root:
        check_saving(root)
    return original(cfg)


def _is_saved(options: Any, updates: int, epoch: int) -> bool:
    """Whether fairseq saves at the end of an epoch."""
    often = options.checkpoint.save_interval_updates
    by_updates = often > 0 and updates % often == 0 and updates >= options.dataset.validate_after_updates
    return bool(by_updates or epoch % options.checkpoint.save_interval == 0)


@replaces(
    "fairseq.trainer.Trainer",
    "get_train_iterator",
    fairseq="does not tell the trainer which batches it trains on, which has to be saved with it",
    here="the trainer knows them",
    since="fairseq 0.12.3",
)
def remember_the_batches(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    self.batches_of_epoch = original(self, *args, **kwargs)
    return self.batches_of_epoch


@replaces(
    "fairseq.trainer.Trainer",
    "lr_step",
    fairseq="does not save the last epoch, unless --save-interval divides it: a repeated command trains it again",
    here="the last epoch is saved",
    since="fairseq 0.12.3",
)
def save_the_last_epoch(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """With the loss of the validation, or None, it is called when an epoch is over and another may come."""
    from fairseq import checkpoint_utils

    batches = getattr(self, "batches_of_epoch", None)
    if len(args) != 2 or batches is None or _is_saved(self.cfg, self.get_num_updates(), args[0]):
        return original(self, *args, **kwargs)
    last = args[0] >= (self.cfg.optimization.max_epoch or math.inf)
    if last:
        checkpoint_utils.save_checkpoint(self.cfg.checkpoint, self, batches, args[1])
    lr = original(self, *args)
    if not last and lr <= self.cfg.optimization.stop_min_lr:
        # The schedule has heard of the loss: with it in the file it would hear of it again.
        checkpoint_utils.save_checkpoint(self.cfg.checkpoint, self, batches, None)
    return lr


@replaces(
    "fairseq.checkpoint_utils",
    "save_checkpoint",
    fairseq="ends a run well that has saved nothing, if it stops where no option wants a file",
    here="its last state is saved as checkpoint_last.pt, with a warning",
    since="fairseq 0.12.3",
)
def save_something(original: Any, cfg: Any, trainer: Any, epoch_itr: Any, val_loss: Any) -> Any:
    from omegaconf import OmegaConf

    updates, over = trainer.get_num_updates(), epoch_itr.end_of_epoch()
    by_updates = cfg.save_interval_updates > 0 and updates % cfg.save_interval_updates == 0
    by_epoch = not cfg.no_epoch_checkpoints and epoch_itr.epoch % cfg.save_interval == 0
    wanted = val_loss is not None or not cfg.no_last_checkpoints or (by_epoch if over else by_updates)
    if wanted:
        trainer.has_saved = True
    elif not (cfg.no_save or getattr(trainer, "has_saved", False)):
        reached = _reached(trainer, epoch_itr.next_epoch_idx, trainer.cumulative_training_time())
        if reached is not None:
            logger.warning("nothing was saved until the end of training: its last state becomes checkpoint_last.pt")
            cfg = OmegaConf.merge(cfg, {"no_last_checkpoints": False})
    return original(cfg, trainer, epoch_itr, val_loss)
