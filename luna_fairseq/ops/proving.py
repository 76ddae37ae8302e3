"""Nothing that no GPU has run is trusted: a fast form is compared with the plain one before it is used first.

``LUNA_KERNELS`` decides:

    auto    (the default) the fast forms, where they were found to agree; else the plain ones, with one warning
    triton  the same, but an error instead of torch's form of the causal attention where the kernels are missing or
            disagree (:mod:`luna_fairseq.ops.fused`)
    torch   the plain forms
"""

import os
import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Dict, List, Optional

import torch
from torch import Tensor

MODES = ("auto", "triton", "torch")
# The largest error that rounding explains, with a margin, of an output or gradient, in shares of its norm.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}


def mode() -> str:
    """What ``LUNA_KERNELS`` says.

    Raises:
        ValueError: if it is none of ``MODES``.
    """
    value = os.environ.get("LUNA_KERNELS", "auto")
    if value not in MODES:
        raise ValueError(f"LUNA_KERNELS is {value!r}: set it to {', '.join(MODES[:-1])} or {MODES[-1]}")
    return value


def off(got: List[Tensor], want: List[Tensor]) -> Optional[float]:
    """The first error that rounding does not explain, in shares of the norm, or None.

    Args:
        got: output and gradients in the type that is tried.
        want: the same by the plain form, in float32.
    """
    for found, wanted in zip(got, want, strict=True):
        error = ((found.float() - wanted).norm() / wanted.norm()).item()
        if not error <= TOLERANCE[found.dtype]:  # NaN, too
            return error
    return None


class Proofs:
    """What is wrong with a fast form, a configuration at a time, found out once in a process.

    Args:
        name: of the form, for the warning.
        way_out: what is set so that it is not tried.
    """

    def __init__(self, name: str, way_out: str = "LUNA_KERNELS=torch") -> None:
        self._name = name
        self._way_out = way_out
        self._wrong: Dict[Hashable, Optional[str]] = {}  # None, or what is wrong
        self._warned = False
        self._lock = threading.RLock()

    def wrong(
        self, device: torch.device, configuration: Hashable, compare: Callable[[], Optional[str]], tell: bool = True
    ) -> Optional[str]:
        """None if the form is right here, or what is wrong; said once.

        Args:
            device: where.
            configuration: of the inputs.
            compare: finds it out; None if they agree. What it raises is wrong, too.
            tell: warn of it; False if it will be an error.
        """
        key = (device, configuration)
        with self._lock:
            if key not in self._wrong:
                if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                    return "not proven before a CUDA graph was captured"  # nothing else may run now
                self._wrong[key] = wrong = found_wrong(compare)
                if wrong is not None and tell and not self._warned:
                    self._warned = True
                    warnings.warn(
                        f"{self._name} are not used on {device}: {wrong}; please tell us what luna-fairseq doctor "
                        f"prints ({self._way_out} leaves them out without a warning)",
                        stacklevel=2,
                    )
            return self._wrong[key]


def found_wrong(compare: Callable[[], Optional[str]]) -> Optional[str]:
    """What ``compare`` finds, gradients included, or how it fails."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return compare()
    except Exception as error:  # whatever a compiler or a kernel may raise
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
