"""What the paper's runs cost: operations, memory a GPU and hours, on paper. No hour of it was measured.

    python -m scripts.bench.cost             the rows of the paper's WMT'14 table, on 8 GPUs
    python -m scripts.bench.cost --gpus 2    on 2, with the --update-freq that keeps the batch
    python -m scripts.bench.cost configs/masked_lm/pretrain_*gb.yaml
                                             other configs of translation or masked LM
    python -m scripts.bench.cost --check     also hold the counts to a real step of every model on this CPU

Operations: by the formula in cost_operations.py. Memory: parameters, gradients, optimizer state and whatever a
forward pass of the real model keeps for the backward one, scaled to the batch (in cost_step.py). Hours: updates x
tokens an update x operations a token / (GPUs x what a GPU reaches, which is said below the table). A token is one of
the source and one of the target.
"""

import argparse
import gc
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch

from luna_fairseq import plugin
from scripts.bench.cost_step import CPU, Step
from scripts.bench.measuring import in_own_process, peak_bytes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROG = "python -m scripts.bench.cost"

# Peak rate, dense, in TFLOP/s (the makers' figures), and the part of it that training reaches. fairseq's authors had
# 73,000 words/s of Transformer-base on 4 V100 in float32 and 160,000 in float16 (fairseq issue 940; 30,000 symbols),
# by the formula in cost_operations.py 42 % and 11.5 % of the peak. In half precision memory is the limit, so the
# others are given the V100's speed times that of their memory (900, 2,039 and 3,350 GB/s), and half of it for TF32,
# whose numbers have four bytes. torch uses TF32 only if told to: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 in the
# environment. Half precision is --fp16, and --amp with Apollo; the paper's translation is float32.
GPUS: Dict[str, Tuple[float, float]] = {
    "V100 float32": (15.7, 0.42),
    "A100 TF32": (156, 0.105),
    "H100 TF32": (495, 0.054),
    "V100 half": (125, 0.115),
    "A100 half": (312, 0.105),
    "H100 half": (989, 0.054),
}

# Every tensor on pages of its own, given back when it goes: what is resident is what is in use.
EXACT_MEMORY = "glibc.malloc.mmap_threshold=65536:glibc.malloc.mmap_max=1000000"


def batch(cfg: Any, gpus: int) -> Tuple[int, int, str]:
    """How so many GPUs train with the batch of a config.

    Returns:
        symbols an update, as many as the config has; symbols that a GPU has at a time; and the options.
    """
    name = "max_tokens" if cfg.dataset.max_tokens else "batch_size"
    symbols = 1 if name == "max_tokens" else cfg.task.tokens_per_sample
    parts = cfg.distributed_training.distributed_world_size * cfg.optimization.update_freq[0]
    whole = parts * cfg.dataset[name]
    update_freq = math.ceil(parts / gpus)
    at_once = round(whole / (gpus * update_freq))
    options = f"--update-freq {update_freq}"
    if at_once != cfg.dataset[name]:
        options += f" --{name.replace('_', '-')} {at_once}"
    return whole * symbols, at_once * symbols, options


def row(path: Path, args: argparse.Namespace) -> str:
    """A row of the table."""
    step = Step(path, args)
    gpus = args.gpus or step.cfg.distributed_training.distributed_world_size
    symbols, at_once, options = batch(step.cfg, gpus)
    parameters = sum(p.numel() for p in step.model.parameters())
    each = step.operations()
    run = each * symbols * step.cfg.optimization.max_update
    hours = [run / (gpus * peak * 1e12 * reached) / 3600 for peak, reached in GPUS.values()]
    cells = [
        f"{parameters / 1e6:.1f}M",
        f"{each / 1e9:.3f}",
        f"{run / 1e18:.2f}",
        f"{step.memory(at_once) / 2**30:.1f}",
    ]
    return " | ".join(["", path.stem, *cells, f"{gpus}, `{options}`", *(f"{h:,.0f}" for h in hours), ""]).strip()


def measure(path: Path, args: argparse.Namespace) -> Dict[str, float]:
    """The counts of a small batch next to what a real step takes; in a fresh process."""
    plugin.load()  # its imports are no part of a step
    steps: List[Step] = []

    def train() -> None:
        steps.append(Step(path, args))
        steps[0].train([steps[0].batch])
        for _ in range(2):  # as with --update-freq: the gradients of the first are there during the second
            steps[0].gradients()

    peak = peak_bytes(train, CPU)
    step = steps[0]
    return {
        "operations": step.operations(),
        "measured operations": step.counted_operations(),
        "bytes": step.memory(step.batch["ntokens"]),
        "measured bytes": peak,
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", type=Path, help="YAML files; default: configs/translation/wmt14_*.yaml")
    parser.add_argument("--gpus", type=int, help="default: as many as each config says")
    parser.add_argument("--length", type=int, default=30, help="symbols of a sentence; about as many in WMT'14")
    parser.add_argument("--vocabulary", type=int, help="symbols of the dictionary; default: as in the paper")
    parser.add_argument("--check", action="store_true", help="compare the counts with a real step on this CPU")
    parser.add_argument("--check-tokens", type=int, default=1024, help="in the batch of that step")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("gpus", "length", "check_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: it must be at least 1")

    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return
    configs = args.configs or sorted((CONFIGS / "translation").glob("wmt14_*.yaml"))
    for path in configs:
        if not path.is_file():
            parser.error(f"there is no config {path}: correct its name")
    names = ["parameters", "GFLOP a token", "EFLOP a run", "GiB a GPU", "GPUs and the batch"]
    names += [f"hours, {name}" for name in GPUS]
    print(" | ".join(["| config", *names]) + " |\n|" + "---|" * (1 + len(names)))
    for path in configs:
        print(row(path, args), flush=True)
        gc.collect()
    reached = ", ".join(f"{name} {peak:g} TFLOP/s x {part:.1%}" for name, (peak, part) in GPUS.items())
    print(f"\nOn paper: no hour was measured. Reached by a GPU: {reached}.")
    if args.check:
        os.environ["GLIBC_TUNABLES"] = EXACT_MEMORY
        print("\n| config | GFLOP a token: counted | by torch | MiB: counted | measured |\n|---|---|---|---|---|")
        for path in configs:
            found = in_own_process("--measure", str(path))
            flop, mib = (
                [f"{found[name] / unit:.{digits}f}" for name in (what, f"measured {what}")]
                for what, unit, digits in (("operations", 1e9, 4), ("bytes", 2**20, 0))
            )
            print(" | ".join(["", path.stem, *flop, *mib, ""]).strip(), flush=True)
        print(f"\nA real step of {args.check_tokens} tokens on this CPU.")


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, ValueError) as error:
        sys.exit(f"{PROG}: {error}")
