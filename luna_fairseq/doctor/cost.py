"""Time and memory of both attentions next to torch's softmax attention, at four lengths."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Dict, List, NamedTuple

from luna_fairseq.doctor.verdicts import Finding, Wrong

WIDTH, HEADS, ROWS = 64, 1, 16
LENGTHS = {"cpu": (256, 1024, 2048, 4096), "cuda": (1024, 4096, 16384, 65536)}
SECONDS = 0.6  # of measuring at a length, after the first round
KINDS = ("softmax", "Luna", "causal softmax", "causal Luna")
# By how much more than its length the memory of Luna may grow from the shortest to the longest.
GROWTH = 1.5


class Sizes(NamedTuple):
    """Of an attention and its input.

    Attributes:
        width, heads, rows: D, H and l.
        batch: sequences.
        dtype: the name of torch's.
    """

    width: int
    heads: int
    rows: int
    batch: int
    dtype: str


SIZES = Sizes(WIDTH, HEADS, ROWS, 1, "float32")


def step(kind: str, length: int, device: str, sizes: Sizes) -> Callable[[], None]:
    """Forward and backward of an attention of ``KINDS``, with its projections, on random numbers."""
    import torch

    from luna_fairseq.modules import CausalLunaAttention, LunaAttention

    torch.manual_seed(1)
    width, heads, rows, batch, dtype = sizes
    where: Dict[str, Any] = {"device": device, "dtype": getattr(torch, dtype)}
    layer: Any
    if kind.endswith("softmax"):
        layer = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        # torch wants to see a mask to be told that it is the causal one; this takes no memory.
        mask = torch.zeros(1, 1, **where).expand(length, length) if kind.startswith("causal") else None
    else:
        layer = (CausalLunaAttention if kind.startswith("causal") else LunaAttention)(width, heads)
    layer.to(**where)
    x, packed = (torch.randn(batch, n, width, **where).requires_grad_() for n in (length, rows))
    slope = torch.ones(batch, length, width, **where)

    def both_passes() -> None:
        if kind.endswith("softmax"):
            y = layer(x, x, x, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]
        else:
            y = layer(x, packed) if kind.startswith("causal") else layer(x, packed, x)[0]
        y.backward(slope)
        for tensor in (x, packed, *layer.parameters()):
            tensor.grad = None

    return both_passes


def milliseconds(steps: Mapping[str, Callable[[], None]], device: str, seconds: float) -> Dict[str, float]:
    """The least of some rounds, which take each in turn.

    Args:
        steps: what to measure.
        device: where.
        seconds: what to spend after the first round.
    """
    import torch

    from luna_fairseq.measuring import interleaved

    start = time.perf_counter()
    times = interleaved(steps, 1, torch.device(device))
    a_round = (time.perf_counter() - start) / 2  # it warms up by a round
    more = interleaved(steps, min(10, int(seconds / a_round)), torch.device(device)) if a_round < seconds else {}
    return {kind: 1000 * min(found + more.get(kind, [])) for kind, found in times.items()}


def _measure(length: int, device: str, seconds: float) -> Dict[str, Dict[str, float]]:
    """Milliseconds and MiB of every kind at a length."""
    import torch

    from luna_fairseq.measuring import peak_allocated

    steps = {kind: step(kind, length, device, SIZES) for kind in KINDS}
    # The steps that are measured for their memory warm up, too.
    mebibytes = {kind: peak_allocated(one, torch.device(device)) / 2**20 for kind, one in steps.items()}
    times = milliseconds(steps, device, seconds)
    return {kind: {"ms": times[kind], "MiB": mebibytes[kind]} for kind in KINDS}


def _table(found: Dict[int, Dict[str, Dict[str, float]]]) -> List[str]:
    heads = ["length", *(f"{kind}{f'-{ROWS}' if 'Luna' in kind else ''}" for kind in KINDS)]
    rows = [heads]
    for length, kinds in found.items():
        cells = [f"{kinds[kind]['ms']:.1f} ms {kinds[kind]['MiB']:.1f} MiB" for kind in KINDS]
        rows.append([f"{length}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def check_cost(device: str, seconds: float = SECONDS) -> Finding:
    """Measure at four lengths; times are only told, memory must grow no faster than the length.

    Args:
        device: where.
        seconds: what to spend at a length.

    Raises:
        Wrong: if the memory of a Luna attention grows faster.
    """
    lengths = LENGTHS[device.split(":")[0]]
    found = {length: _measure(length, device, seconds) for length in lengths}
    shortest, longest = lengths[0], lengths[-1]
    for kind in ("Luna", "causal Luna"):
        growth = found[longest][kind]["MiB"] / found[shortest][kind]["MiB"] / (longest / shortest)
        if not growth <= GROWTH:
            raise Wrong(
                f"the memory of {kind} attention grows {growth:.2g} times as fast as the length from {shortest} to "
                f"{longest}, where {GROWTH:g} is allowed"
            )
    said = []
    for kind in ("Luna", "causal Luna"):
        softmax = kind.replace("Luna", "softmax")
        time_of, memory_of = (found[longest][kind][of] / found[longest][softmax][of] for of in ("ms", "MiB"))
        said.append(
            f"{kind} takes {time_of:.2f} of the time and {memory_of:.2f} of the memory of {softmax} attention"
        )
    text = f"at {longest:,} positions {', '.join(said)} (width {WIDTH}, {HEADS} head, float32, forward and backward)"
    return Finding(text, {"lengths": found}, _table(found))
