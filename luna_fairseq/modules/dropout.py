"""fairseq's dropout module, computed by :mod:`luna_fairseq.ops`."""

from typing import Optional

from fairseq.modules import FairseqDropout
from torch import Tensor

from luna_fairseq import ops


class Dropout(FairseqDropout):
    """Dropout that honours ``--retain-dropout``, with the residual sum if there is one.

    Args:
        p: probability.
        module_name: what ``--retain-dropout-modules`` calls the owner of this module.
    """

    @classmethod
    def like(cls, module: FairseqDropout) -> "Dropout":
        """The same dropout as one that fairseq has built."""
        return cls(module.p, module_name=module.module_name)

    @property
    def rate(self) -> float:
        """The probability at this moment: 0 in evaluation, unless dropout is retained."""
        return self.p if self.training or self.apply_during_inference else 0.0

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Drop elements of ``x``; ``inplace`` is not read."""
        return ops.add_dropout(None, x, self.rate)

    def add(self, residual: Optional[Tensor], x: Tensor) -> Tensor:
        """``residual`` plus the dropped ``x``."""
        return ops.add_dropout(residual, x, self.rate)
