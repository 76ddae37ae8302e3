"""Whether a graph is being made, which must hold for every length and cannot choose by the numbers at hand."""

import torch

# Before torch 2.7 only whether anything is compiled is known.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def making_a_graph() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` looks on.

    Then what depends on the length alone is not decided: the plain form is taken, which is right for any.
    """
    return torch.jit.is_tracing() or bool(_is_exporting())
