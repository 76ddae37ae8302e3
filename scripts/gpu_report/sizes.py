"""The sizes of a report, and those of a smoke run."""

import argparse
from typing import Any, Dict, List, Tuple

import torch

from scripts.bench.sizes import SIZES

# d, l, N: the rows of the table in docs/gpu.md.
ROWS: List[Tuple[int, int, int]] = [(512, 16, 256), (512, 16, 4096), (512, 16, 16384), (512, 32, 4096)]
ROWS += [(1024, 128, 4096), (512, 16, 65536), (1024, 128, 65536)]

_REPORT: Dict[str, Any] = dict(
    rows=ROWS, rounds=5, repeats=10, training_lengths=(32, 256), output_lengths=(25, 250), beam=5, decoding_rounds=2,
    lra_lengths=(1000, 2000, 3000, 4000), lra_rows=(16, 128, 256), batch_size=32, updates=2,
)  # fmt: skip
_SMOKE: Dict[str, Any] = dict(
    rows=[(32, 4, 64)], rounds=1, repeats=1, training_lengths=(8,), output_lengths=(4,), beam=2, decoding_rounds=1,
    lra_lengths=(32,), lra_rows=(4,), batch_size=1, updates=1,
)  # fmt: skip


def chosen(device: str, smoke: bool) -> argparse.Namespace:
    """Sizes as the parts of ``scripts.bench`` take them, and those above.

    Args:
        device: ``cpu`` or ``cuda``.
        smoke: sizes that mean nothing.
    """
    whole = {**SIZES["smoke" if smoke else "full"], **(_SMOKE if smoke else _REPORT)}
    if not smoke:
        whole["tokens"] = 16384
    return argparse.Namespace(
        **whole,
        device=torch.device(device),
        dtype="bfloat16",
        smoke=smoke,
        memory_of=None,
    )
