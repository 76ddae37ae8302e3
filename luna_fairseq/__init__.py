"""Luna (Linear Unified Nested Attention, NeurIPS 2021) as a fairseq plugin.

``--user-dir $(luna-fairseq user-dir)`` makes fairseq import this package: that registers the models, the
optimizer and the schedule, and lets today's torch load fairseq's checkpoints.
"""

from luna_fairseq import compat

__version__ = "0.1.0"

compat.prepare()

from luna_fairseq import optim  # noqa: E402  (the warnings of what it imports are quietened above)
from luna_fairseq.models import luna  # noqa: E402

__all__ = ["__version__", "luna", "optim"]
