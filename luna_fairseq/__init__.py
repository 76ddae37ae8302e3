"""Luna (Linear Unified Nested Attention, NeurIPS 2021) as a fairseq plugin.

``--user-dir $(luna-fairseq user-dir)`` makes fairseq import this package: that registers the models, the
optimizer, the schedule and the criterion, and lets today's torch load fairseq's checkpoints.
"""

from luna_fairseq import compat
from luna_fairseq._version import __version__

# First, so that what is imported next warns of nothing that cannot be helped.
compat.prepare()

from luna_fairseq import optim  # noqa: E402
from luna_fairseq.criterions import lra_cross_entropy  # noqa: E402
from luna_fairseq.models import lra, luna, luna_bert  # noqa: E402
from luna_fairseq.tasks import long_range_arena  # noqa: E402

__all__ = ["__version__", "long_range_arena", "lra", "lra_cross_entropy", "luna", "luna_bert", "optim"]
