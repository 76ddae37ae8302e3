"""A long text sampled from a language model: time a token and memory, part by part; on one CPU core.

python -m scripts.bench.sampling CHECKPOINT DATA [--tokens 100000]
"""

import argparse
import time
from pathlib import Path
from typing import Any, List, Tuple

import torch

from scripts.bench.measuring import resident_bytes

PARTS = 10


def sampled(lm: Any, tokens: int) -> List[Tuple[float, int]]:
    """Sample; returns the seconds a token and the resident bytes after each part.

    Args:
        lm: what ``LunaLanguageModel.from_pretrained`` returns.
        tokens: how many to draw, in ``PARTS`` parts.
    """
    stream, found = lm.stream(length=tokens, seed=1), []
    for _ in range(PARTS):
        began = time.perf_counter()
        for _ in range(tokens // PARTS):
            next(stream)
        found.append(((time.perf_counter() - began) / (tokens // PARTS), resident_bytes()))
    return found


def main() -> None:
    """Print a line a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="the folder of its dictionary")
    parser.add_argument("--tokens", type=int, default=100_000)
    args = parser.parse_args()
    if args.tokens < PARTS:
        parser.error(f"--tokens is {args.tokens}: give {PARTS} or more")

    from luna_fairseq import plugin

    plugin.load()
    from luna_fairseq.models.luna_lm import LunaLanguageModel

    torch.set_num_threads(1)
    path = Path(args.checkpoint)
    lm = LunaLanguageModel.from_pretrained(str(path.parent), path.name, str(Path(args.data).absolute())).eval()
    next(lm.stream(length=1))
    print("| tokens so far | ms a token | resident MB |\n|---|---|---|")
    for i, (seconds, memory) in enumerate(sampled(lm, args.tokens), 1):
        print(f"| {i * (args.tokens // PARTS):,} | {seconds * 1e3:.2f} | {memory / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
