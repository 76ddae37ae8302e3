"""Time and memory of one attention layer."""

import argparse
from collections.abc import Callable
from typing import Any, Dict, List, Optional

import torch

from luna_fairseq.measuring import allocated_bytes, interleaved
from scripts.bench.checks import checked
from scripts.bench.layers import BIASED, build_layer, layers
from scripts.bench.rows import finished
from scripts.bench.sizes import DTYPES


def layer_step(
    kind: str, size: int, length: int, backward: bool, args: argparse.Namespace, batch: Optional[int] = None
) -> Callable[[], object]:
    """Forward, or forward and backward, of one layer on random numbers; by default ``args.tokens`` positions."""
    layer = build_layer(kind, args)
    generator = torch.Generator(args.device).manual_seed(2)
    batch = batch or max(1, args.tokens // length)
    shapes = [(batch, length, args.dim), (batch, size or 1, args.dim)]
    x, packed = (
        torch.randn(shape, generator=generator, device=args.device, dtype=DTYPES[args.dtype], requires_grad=backward)
        for shape in shapes
    )
    slope = torch.ones(shapes[0], device=args.device, dtype=DTYPES[args.dtype])
    if backward and not args.memory_of:  # once for both; it would take memory of its own
        with checked(layer), torch.no_grad():
            layer(x[:2], packed[:2])

    def forward() -> object:
        with torch.no_grad():
            return layer(x, packed)

    def forward_backward() -> None:
        layer(x, packed).backward(slope)
        for tensor in (x, packed, *layer.parameters()):
            tensor.grad = None

    return forward_backward if backward else forward


def measure_attention(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """One attention layer, forward and forward+backward, at equal tokens a batch."""
    rows = []
    for length in args.lengths:
        for backward in (True, False):
            compared = [*layers(args, length), *((BIASED, size) for size in args.projection_lengths)]
            steps = {f"{kind} {size}": layer_step(kind, size, length, backward, args) for kind, size in compared}
            seconds = interleaved(steps, args.rounds, args.device)
            for kind, size in compared:
                name = f"{kind} {size}"
                row = {"layer": kind, "l": size, "length": length, "backward": backward}
                most = allocated_bytes(steps[name]) if args.device.type == "cpu" else None
                rows.append(finished(row, seconds[name], "attention", most))
    return rows
