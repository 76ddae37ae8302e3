"""Speed and memory of training whole models."""

import argparse
from collections.abc import Callable
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F

from luna_fairseq.measuring import interleaved
from scripts.bench.checks import checked
from scripts.bench.rows import finished
from scripts.bench.sizes import DTYPES, MASKED_LM, TRANSLATION
from scripts.bench.whole_models import build_model, random_tokens


def examples(arch: str, length: int, args: argparse.Namespace) -> int:
    """How many sentences, documents or blocks an update takes."""
    return max(1, (args.block_words if arch in MASKED_LM else args.words) // length)


def training_step(
    arch: str, length: int, args: argparse.Namespace, documents: Optional[int] = None
) -> Callable[[], object]:
    """An update by Adam on random symbols; of a masked-LM model, 15 % of them are predicted."""
    model = build_model(arch, max(length, 64) + 2, args).train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-5)
    tokens = random_tokens(documents or examples(arch, length, args), length, args=args)
    if arch in MASKED_LM:
        chosen = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)).to(args.device) < 0.15
        wanted = tokens[chosen]
        inputs: Dict[str, Any] = {"src_tokens": tokens, "masked_tokens": chosen}
    else:
        wanted = tokens.flatten()
        lengths = torch.full(tokens.shape[:1], length)
        inputs = {"src_tokens": tokens, "src_lengths": lengths, "prev_output_tokens": tokens.roll(1, dims=1)}

    def update() -> None:
        with torch.autocast(args.device.type, DTYPES[args.dtype], enabled=args.dtype != "float32"):
            logits = model(**inputs)[0]
        F.cross_entropy(logits.flatten(0, -2).float(), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()

    if not args.memory_of:
        with checked(model), torch.no_grad():
            model(**inputs)
    return update


def measure_training(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Whole models: words per second and peak memory of training."""
    rows = []
    compared: List[Tuple[Tuple[str, ...], int]] = [(TRANSLATION, length) for length in args.document_lengths]
    compared += [(("roberta_base", arch), length) for length, arch in args.blocks.items()]
    for archs, length in compared:
        steps = {arch: training_step(arch, length, args) for arch in archs}
        seconds = interleaved(steps, args.rounds, args.device)
        del steps
        for arch, found in seconds.items():
            words = examples(arch, length, args) * length
            rows.append(finished({"arch": arch, "length": length, "words": words}, found, "training"))
    return rows
