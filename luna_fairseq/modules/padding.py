"""Whether padding has to be looked for."""

import torch
from torch import Tensor


def may_be_true(found: Tensor) -> bool:
    """Whether something in a mask may be True, and it has to be applied: a look at its values where that is free.

    Elsewhere every look waits for the device, and a graph (``torch.compile``, ``torch.export``, ``torch.jit.trace``)
    cannot depend on one: there the answer is True. A mask in which nothing is True changes no result.

    Args:
        found: bool, any shape.
    """
    return found.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing() or bool(found.any())
