"""How time and memory grow with the length of one sentence."""

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any, Dict, List, Tuple

from luna_fairseq.measuring import allocated_bytes, interleaved
from scripts.bench.attention import layer_step
from scripts.bench.layers import layers
from scripts.bench.measuring import peak_bytes
from scripts.bench.rows import finished
from scripts.bench.sizes import TRANSLATION
from scripts.bench.training import training_step

# The growth of one Luna layer takes so many times the rounds.
GROWTH_ROUNDS = 10


def measure_growth(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """One sentence, a few lengths in turn: each layer forward and backward, and updates of whole models.

    Lengths that are compared meet in each round: what the machine does besides changes within minutes by more than
    the growth may differ from two.
    """
    rows = []
    compared: List[Tuple[str, int, Callable[..., Callable[[], object]], List[int], int]] = []
    for kind, size in layers(args, length=sys.maxsize):
        step = functools.partial(layer_step, kind, size, backward=True, args=args, batch=1)
        rounds = args.rounds * (1 if kind.endswith("softmax") else GROWTH_ROUNDS)  # softmax takes long
        compared.append((kind, size, step, sorted(args.lengths)[-4:], rounds))
    for arch in TRANSLATION[1:]:
        step = functools.partial(training_step, arch, args=args, documents=1)
        compared.append((f"training {arch}", 0, step, list(args.growing_documents), args.rounds))
    for what, size, make, lengths, rounds in compared:
        steps = {str(length): make(length=length) for length in lengths}
        seconds = interleaved(steps, rounds, args.device)
        before: List[float] = []
        for length in lengths:
            found = seconds[str(length)]
            work = steps[str(length)]
            most = allocated_bytes(work) if args.device.type == "cpu" else peak_bytes(work, args.device)
            row: Dict[str, Any] = {"what": what, "l": size, "length": length}
            if before:
                row["growth"] = statistics.median(b / a for a, b in zip(before, found, strict=True))
            rows.append(finished(row, found, "growth", most))
            before = found
        del steps, work  # a model and its optimizer, before the next ones are made
    return rows
