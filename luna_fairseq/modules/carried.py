"""What the blocks of a text hand on to the next one: its size does not depend on how long the text is."""

from typing import Dict, List, Tuple

import torch
from torch import Tensor

from luna_fairseq.ops import CausalState, decay_rates, decayed_mean

# For every row of a batch: "real", [B] int64, how many tokens it has had; and for layer i the CausalState that they
# have left, "i.key_sum", "i.value_sum" (missing where keys are values) and "i.steps".
Carried = Dict[str, Tensor]


# Options of the language model and of its task; what they say is in attributes of these names, too.
CARRY_OPTIONS = ("carry_state", "carry_positions", "carry_at_most")


def check_carried(carry_state: bool, carry_at_most: int) -> None:
    """Raise ValueError for a limit on what is carried that cannot be, or limits nothing."""
    if carry_at_most < 0:
        raise ValueError(f"--carry-at-most is {carry_at_most}: it must be at least 0, which is no limit")
    if carry_at_most and not carry_state:
        raise ValueError(
            f"--carry-at-most is {carry_at_most}, and nothing is carried: add --carry-state, or leave it out"
        )


def faded(states: List[CausalState], at_most: int, decay: float = 0.0) -> List[CausalState]:
    """The same sums where what they hold counts as at most so many positions.

    Attention reads the mean of all positions so far, to which a new one adds its share. Behind a long text that share
    is next to nothing; behind one that counts as ``at_most`` positions it is not, and what is old fades by
    ``at_most / (at_most + N)`` with every block of N.

    Args:
        states: of the layers, which are not changed; layers that share ``steps`` share the new ones, too.
        at_most: positions, 0 for no limit.
        decay: ``--causal-decay`` of the model; what fades by it counts that much less here, too.
    """
    if at_most <= 0:
        return states
    known: Dict[int, Tuple[Tensor, Tensor]] = {}
    result = []
    for state in states:
        if id(state.steps) not in known:
            steps, sums = state.steps.clamp(max=at_most), state.key_sum
            if decay:
                rates = decay_rates(decay, sums.size(1), sums.device, sums.dtype)
                before, after = (decayed_mean(rates, count[:, None]) for count in (state.steps, steps))
                share = before / after
            else:
                share = (steps / state.steps.clamp(min=1)).view(-1, 1, 1, 1)
            known[id(state.steps)] = steps, share.to(sums.dtype)
        steps, share = known[id(state.steps)]
        key_sum = state.key_sum * share
        value_sum = key_sum if state.value_sum is state.key_sum else state.value_sum * share
        result.append(CausalState(key_sum, value_sum, steps))
    return result


class Carry:
    """Given to ``model(tokens, carry=...)``: the tokens follow those that ``before`` knows of.

    ``before`` is only read, so the same block can be computed again; ``after`` is what the next block begins with,
    without a gradient.

    Args:
        before: from an earlier block, for the same rows; empty at the beginning of a text.
        restart: count the positions of each block from 0, instead of going on with them.
        at_most: all that came before counts as at most this many tokens (:func:`faded`); 0 for no limit.
    """

    def __init__(self, before: Carried, restart: bool = False, at_most: int = 0) -> None:
        self.before = before
        self.restart = restart
        self.at_most = at_most
        self.after: Carried = {}

    def before_on(self, device: torch.device) -> Carried:
        """What is ``before``, on a device; what layers share stays shared."""
        once = {id(x): x.to(device) for x in self.before.values()}
        return {name: once[id(x)] for name, x in self.before.items()}

    def next(self, rows: int) -> "Carry":
        """For the next block of the first ``rows`` texts; the others have ended."""
        once = {id(x): x[:rows] for x in self.after.values()}  # layers share what was counted
        return Carry({name: once[id(x)] for name, x in self.after.items()}, self.restart, self.at_most)
