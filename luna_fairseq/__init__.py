"""Luna (Linear Unified Nested Attention, NeurIPS 2021) as a fairseq plugin.

``--user-dir $(luna-fairseq user-dir)`` makes fairseq import this package: that registers the models, the
optimizer and the schedule, and lets today's torch load fairseq's checkpoints.
"""

from luna_fairseq import compat
from luna_fairseq._version import __version__

# First, so that what is imported next warns of nothing that cannot be helped.
compat.prepare()

from luna_fairseq import optim  # noqa: E402
from luna_fairseq.models import luna, luna_bert  # noqa: E402

__all__ = ["__version__", "luna", "luna_bert", "optim"]
