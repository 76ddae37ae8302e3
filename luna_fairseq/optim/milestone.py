"""``--lr-scheduler milestone``: linear warm-up, then a decay at each milestone (paper, section 4.2)."""

from dataclasses import dataclass, field
from typing import Any, Dict, List

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II


@dataclass
class MilestoneScheduleConfig(FairseqDataclass):
    """Options of the schedule (published names and defaults)."""

    warmup_updates: int = field(default=1000, metadata={"help": "updates of linear warm-up; 0 for none"})
    warmup_init_lr: float = field(default=-1.0, metadata={"help": "rate at update 0 (default: 0)"})
    lr_decay_rate: float = field(default=0.1, metadata={"help": "factor at each milestone"})
    milestones: List[int] = field(
        default_factory=list, metadata={"help": "updates at which the rate is multiplied by the decay rate"}
    )
    lr: List[float] = II("optimization.lr")


@register_lr_scheduler("milestone", dataclass=MilestoneScheduleConfig)
class MilestoneSchedule(FairseqLRScheduler):
    """The rate as a function of the number of updates and of nothing else.

    So it may be asked for as often as fairseq likes (after an update, at the end of an epoch, twice at a
    resume), and a milestone that is jumped over still counts. The published one decays at every such call.

    Args:
        cfg: the options.
        optimizer: whose rate to set.

    Raises:
        ValueError: for more than one ``--lr``, negative warm-up, or a milestone below 1.
    """

    def __init__(self, cfg: MilestoneScheduleConfig, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        if len(cfg.lr) != 1:
            raise ValueError(f"--lr is {list(cfg.lr)}: the milestone schedule takes one rate")
        if cfg.warmup_updates < 0:
            raise ValueError(f"--warmup-updates is {cfg.warmup_updates}: it must be at least 0")
        if any(milestone < 1 for milestone in cfg.milestones):
            raise ValueError(f"--milestones is {list(cfg.milestones)}: each must be at least 1")
        self.step_update(0)

    @classmethod
    def add_args(cls, parser: Any) -> None:
        # As published, "--milestones 300000 450000"; fairseq would make it one comma-separated value.
        parser.add_argument(
            "--milestones", type=int, nargs="+", default=[], metavar="N", help="updates at which to decay"
        )
        gen_parser_from_dataclass(parser, MilestoneScheduleConfig())

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Nothing but the best validation loss is state; published checkpoints hold a rate instead."""
        self.best = state_dict.get("best")

    def step_update(self, num_updates: int) -> float:
        """Set and return the rate after ``num_updates`` updates."""
        cfg = self.cfg
        lr = cfg.lr[0]
        if num_updates < cfg.warmup_updates:
            start = max(cfg.warmup_init_lr, 0.0)
            lr = start + num_updates * (lr - start) / cfg.warmup_updates
        lr *= cfg.lr_decay_rate ** sum(num_updates >= milestone for milestone in cfg.milestones)
        self.optimizer.set_lr(lr)
        return self.optimizer.get_lr()
