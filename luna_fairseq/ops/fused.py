"""Whether the Triton kernels compute a call, or the torch form: nothing unproven is trusted.

``LUNA_KERNELS`` (:mod:`luna_fairseq.ops.proving`) decides:

    auto    (the default) the kernels, on an NVIDIA GPU from Ampere on, where triton is installed, and where the
            first use of a configuration has shown that they agree with the torch form; else the torch form
    triton  the same, but an error instead of the torch form where they are missing or disagree; also on a CPU under
            TRITON_INTERPRET=1, which is slow, and for tests
    torch   the torch form

Needs torch alone: triton is imported when a kernel is about to be used.
"""

import importlib
import os
import threading
from functools import cache, partial
from types import ModuleType
from typing import List, Optional

import torch
from torch import Tensor

from luna_fairseq.ops.proving import Proofs, found_wrong, mode, off

_proofs = Proofs("the Triton kernels of causal Luna attention")
_here = threading.local()  # .checking: the torch form is wanted, as the kernels are compared with it


@cache
def _launcher() -> ModuleType:
    return importlib.import_module("luna_fairseq.ops.triton.launch")


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernels(query: Tensor, key: Tensor, value: Tensor, rows: int) -> Optional[ModuleType]:
    """:mod:`luna_fairseq.ops.triton.launch` if it is to compute a call with these inputs, or None.

    Args:
        query, key, value: ``[B, H, ..., K]``.
        rows: L.

    Raises:
        ValueError: if ``LUNA_KERNELS`` is unknown.
        RuntimeError: if it is ``triton``, and triton is missing or does not agree with the torch form.
    """
    if query.device.type == "cpu" and not _interpreted():
        return None
    wanted = mode()
    if wanted == "torch" or getattr(_here, "checking", False) or type(query) is not Tensor:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if _interpreted() and not (wanted == "triton" and query.device.type == "cpu"):
        return None
    if not _interpreted() and not (query.is_cuda and _new_enough(query.device)):
        return None
    try:
        launch = _launcher()
    except ImportError:
        if wanted == "triton":
            raise RuntimeError("LUNA_KERNELS is triton, which is not installed: pip install triton") from None
        return None
    if not launch.fits(query, key, value, rows):
        return None
    if not _interpreted():
        configuration = (query.dtype, rows, query.size(-1))
        compared = partial(compare, launch, query.device, *configuration)
        wrong = _proofs.wrong(query.device, configuration, compared, tell=wanted == "auto")
        if wrong is not None:
            if wanted == "triton":
                raise RuntimeError(f"LUNA_KERNELS is triton, whose kernels fail here ({wrong}): set it to torch")
            return None
    return launch


@cache
def _new_enough(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def compare(launch: ModuleType, device: torch.device, dtype: torch.dtype, rows: int, head_dim: int) -> Optional[str]:
    """Hold the kernels to the torch form on a small random case: output and every gradient.

    Args:
        launch: :mod:`luna_fairseq.ops.triton.launch`.
        device, dtype: of the inputs.
        rows: L.
        head_dim: K.

    Returns:
        None if they agree, or what went wrong.
    """
    _here.checking = True
    try:
        return found_wrong(lambda: _differences(launch, device, dtype, rows, head_dim))
    finally:
        _here.checking = False


def _differences(
    launch: ModuleType, device: torch.device, dtype: torch.dtype, rows: int, head_dim: int
) -> Optional[str]:
    for tied, decay in ((True, 0.0), (False, 0.0), (False, 0.7)):
        wrong = _difference(launch, device, dtype, rows, head_dim, tied, decay)
        if wrong is not None:
            return f"{dtype}, l = {rows}, heads of {head_dim}: off by {wrong:.1g}"
    return None


def _difference(
    launch: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    head_dim: int,
    tied: bool,
    decay: float,
) -> Optional[float]:
    from luna_fairseq.ops import causal

    heads, length = 2, 2 * launch.config(dtype).chunk + 5
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, size, head_dim) for size in (length, length, length, rows, length)]
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    slope = drawn.pop()
    activation = "softplus" if tied else "elu"
    packed_mask = torch.ones(2, 1, 1, rows, dtype=torch.bool)
    packed_mask[1, ..., (rows + 1) // 2 :] = False
    packed_mask = packed_mask.to(device)
    results: List[List[Tensor]] = []
    for form, kind in ((launch, dtype), (causal, torch.float32)):
        query, key, value, packed = inputs = [x.to(kind, copy=True).requires_grad_() for x in drawn]
        weights = form.causal_pack_weights(key, packed * head_dim**-0.5, activation)
        options = dict(
            packed_mask=packed_mask, padding_mask=None, pack_dropout=0.0, unpack_dropout=0.0, state=None, decay=decay
        )
        out, _ = form.causal_luna_attention(query, key, key if tied else value, weights, **options)
        grads = torch.autograd.grad(out, inputs, slope.to(kind), allow_unused=True)
        results.append([out, *(grad for grad in grads if grad is not None)])
    return off(*results)
