"""The parts of the benchmark by their names, and those whose memory is measured in a process of its own."""

import argparse
from collections.abc import Callable
from typing import Any, Dict, Tuple

from scripts.bench.attention import layer_step, measure_attention
from scripts.bench.decoding import measure_decoding
from scripts.bench.generation import generation_step, measure_generation
from scripts.bench.growth import measure_growth
from scripts.bench.measuring import peak_bytes
from scripts.bench.training import measure_training, training_step

PARTS = {
    "attention": measure_attention,
    "growth": measure_growth,
    "decoding": measure_decoding,
    "training": measure_training,
    "generation": measure_generation,
}

# What one row of a part does, and the columns that say which.
STEPS: Dict[str, Tuple[Callable[..., Callable[[], object]], Tuple[str, ...]]] = {
    "attention": (layer_step, ("layer", "l", "length", "backward")),
    "training": (training_step, ("arch", "length")),
    "generation": (generation_step, ("arch", "length", "beam")),
}


def memory_of(part: str, row: Dict[str, Any], args: argparse.Namespace) -> int:
    """The peak memory of a row in this process, which has done nothing else."""
    build, names = STEPS[part]
    step = build(*(row[name] for name in names), args)
    return peak_bytes(lambda: [step() for _ in range(1 if part == "generation" else 2)], args.device)
