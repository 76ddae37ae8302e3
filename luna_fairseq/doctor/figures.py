"""What docs/gpu.md has on paper, next to what a GPU takes.

``counted.json`` is what ``python -m support.gpu_counts --json`` has counted on a pretended device, with the
milliseconds that an H100 is expected to take.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Optional

from luna_fairseq.doctor import cost
from luna_fairseq.doctor.verdicts import Finding

COUNTED = Path(__file__).with_name("counted.json")
WIDTH, ROWS, TOKENS = 512, 16, 16384
LENGTHS = (256, 4096, 16384)
SECONDS = 0.5  # of measuring at a length, after the first round
CALLS = 10  # in a row
# A ratio to softmax attention is confirmed where it is that of the paper to this factor.
FACTOR = 1.5
PAIRS = {"causal Luna": "causal softmax", "Luna": "softmax"}


@cache
def _counted() -> List[Dict[str, Any]]:
    return list(json.loads(COUNTED.read_text())["layers"])


def on_paper(kind: str, dim: int, rows: int, length: int) -> Optional[Dict[str, Any]]:
    """``milliseconds``, ``launches`` and ``gigabytes`` of a layer, forward and backward; None if it was not counted.

    Args:
        kind: causal Luna, causal softmax, Luna or softmax.
        dim, rows, length: d, l and N.
    """
    wanted = {"layer": kind, "d": dim, "l": rows, "N": length}
    return next((row for row in _counted() if wanted.items() <= row.items()), None)


def _measured(length: int, device: str, kernels: str) -> Dict[str, float]:
    """Milliseconds of every kind, with ``LUNA_KERNELS`` as it is called there."""
    from luna_fairseq.measuring import kernels as kernels_are
    from luna_fairseq.measuring import repeated

    sizes = cost.Sizes(WIDTH, WIDTH // 64, ROWS, max(1, TOKENS // length), "bfloat16")
    steps = {kind: repeated(cost.step(kind, length, device, sizes), CALLS) for kind in cost.KINDS}
    with kernels_are(kernels):
        return {kind: ms / CALLS for kind, ms in cost.milliseconds(steps, device, SECONDS).items()}


def check_figures(device: str) -> Finding:
    """Measure the rows of docs/gpu.md's table that every GPU has memory for; they are only told.

    Args:
        device: where.
    """
    held, others, details, lines = 0, [], {}, []
    for length in LENGTHS:
        plain, fused = (_measured(length, device, mode) for mode in ("torch", "auto"))
        details[length] = {"torch": plain, "auto": fused}
        for kind, softmax in PAIRS.items():
            paper = [on_paper(name, WIDTH, ROWS, length) for name in (kind, softmax)]
            expected = paper[0]["milliseconds"] / paper[1]["milliseconds"]  # type: ignore[index]
            ratio = plain[kind] / plain[softmax]
            if 1 / FACTOR <= ratio / expected <= FACTOR:
                held += 1
            else:
                others.append(f"{kind} at {length:,}: {expected:.2f} on paper, {ratio:.2f} here")
            said = "; ".join(
                f"{name} {plain[name]:.2f} ms, {one['milliseconds']:.2f} on paper"  # type: ignore[index]
                for name, one in zip((kind, softmax), paper, strict=True)
            )
            with_kernels = f"; with kernels {fused[kind]:.2f} ms" if kind == "causal Luna" else ""
            lines.append(f"{length:>6}  {said}{with_kernels}")
    text = (
        f"{held} of {held + len(others)} ratios of Luna's time to softmax attention's that docs/gpu.md has on paper "
        f"hold here to a factor of {FACTOR:g} (width {WIDTH}, l = {ROWS}, bfloat16, forward and backward, no kernels)"
    )
    return Finding(f"{text}{'; not ' if others else ''}{'; '.join(others)}", {"milliseconds": details}, lines)
