"""Optimizer and schedule of the paper: ``--optimizer apollo``, ``--lr-scheduler milestone``."""

from luna_fairseq import compat

compat.prepare()

from luna_fairseq.optim.apollo import FairseqApollo  # noqa: E402 (fairseq is repaired before it is used)
from luna_fairseq.optim.milestone import MilestoneSchedule  # noqa: E402

__all__ = ["FairseqApollo", "MilestoneSchedule"]
