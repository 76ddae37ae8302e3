"""What the blocks of a text hand on to the next one: its size does not depend on how long the text is."""

from typing import Dict

from torch import Tensor

# For every row of a batch: "real", [B] int64, how many tokens it has had; and for layer i the CausalState that they
# have left, "i.key_sum", "i.value_sum" (missing where keys are values) and "i.steps".
Carried = Dict[str, Tensor]


class Carry:
    """Given to ``model(tokens, carry=...)``: the tokens follow those that ``before`` knows of.

    ``before`` is only read, so the same block can be computed again; ``after`` is what the next block begins with,
    without a gradient.

    Args:
        before: from an earlier block, for the same rows; empty at the beginning of a text.
        restart: count the positions of each block from 0, instead of going on with them.
    """

    def __init__(self, before: Carried, restart: bool = False) -> None:
        self.before = before
        self.restart = restart
        self.after: Carried = {}

    def next(self, rows: int) -> "Carry":
        """For the next block of the first ``rows`` texts; the others have ended."""
        once = {id(x): x[:rows] for x in self.after.values()}  # layers share what was counted
        return Carry({name: once[id(x)] for name, x in self.after.items()}, self.restart)
