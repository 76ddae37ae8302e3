"""Optimizer and schedule of the paper: ``--optimizer apollo``, ``--lr-scheduler milestone``."""

from luna_fairseq.optim.apollo import FairseqApollo
from luna_fairseq.optim.milestone import MilestoneSchedule

__all__ = ["FairseqApollo", "MilestoneSchedule"]
