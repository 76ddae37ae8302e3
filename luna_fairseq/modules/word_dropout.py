"""Word dropout: whole words vanish from the input."""

from fairseq.modules import FairseqDropout
from torch import Tensor, nn


class WordDropout(nn.Module):
    """Zero the whole embedding of randomly chosen tokens, and scale the others by ``1 / (1 - p)``.

    Applied before the positions are added, so a dropped word leaves a gap at its place. (The published
    code drops single channels at one position of all sentences instead.)

    Args:
        p: probability of dropping a token.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        # FairseqDropout honours --retain-dropout.
        self.dropout_module = FairseqDropout(p, module_name=self.__class__.__name__)

    def forward(self, x: Tensor) -> Tensor:
        """Drop words of ``[B, N, D]``; the identity in evaluation mode or with p = 0."""
        if self.dropout_module.p == 0.0:
            return x
        keep = self.dropout_module(x.new_ones(x.shape[:2]))
        return x * keep.unsqueeze(-1)
