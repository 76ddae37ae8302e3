"""What a GPU would be asked for, counted on a pretended one: the tables of docs/gpu.md.

    PYTHONPATH=tests:. python -m support.gpu_counts [--json FILE]

Layers run on shapes alone, forward and backward; decoding runs on values. Times follow from the counts: a kernel is
taken to last as long as its bytes at 80 % of an H100's bandwidth, its operations at a part of its peak that is known
to be reached, or its launch, whichever is longest.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

from luna_fairseq.models import _decoding_graph
from luna_fairseq.modules import CausalLunaAttention
from scripts.bench.layers import SelfAttention, SoftmaxAttention
from scripts.bench.whole_models import build_model, random_tokens
from support import pretended, recorded

BANDWIDTH = 0.8 * 3.35e12  # bytes a second
LAUNCH = 5e-6  # seconds
# Operations a second: tensor cores on bfloat16, float32 without them, and what FlashAttention 2 is known to reach.
BFLOAT16, FLOAT32, FLASH = 0.7 * 989e12, 0.7 * 67e12, 0.35 * 989e12
MULTIPROCESSORS = 132

# d, l, N: the rows of the table. A batch has 16,384 tokens, or one sentence.
ROWS = [(512, 16, 256), (512, 16, 4096), (512, 16, 16384), (512, 32, 4096)]
ROWS += [(1024, 128, 4096), (512, 16, 65536), (1024, 128, 65536)]
TOKENS = 16384
KINDS = ("causal Luna", "causal softmax", "Luna", "softmax")


def seconds(kernels: List[pretended.Kernel]) -> float:
    """How long an H100 is expected to take."""
    total = 0.0
    for kernel in kernels:
        rate, operations = FLOAT32 if kernel.dtype == torch.float32 else BFLOAT16, float(kernel.operations)
        if kernel.programs:  # each is on one multiprocessor
            rate = FLASH * min(1.0, kernel.programs / MULTIPROCESSORS)
            operations *= kernel.padding
        total += max(LAUNCH, kernel.moved / BANDWIDTH, operations / rate)
    return total


def layer(kind: str, dim: int, rows: int, length: int) -> Dict[str, Any]:
    """One layer with its projections, bfloat16, forward and backward."""
    heads = dim // 64
    with pretended.device("meta") as counts:
        made: Any
        if kind.endswith("softmax"):
            made = SoftmaxAttention(kind.startswith("causal"), dim, heads)
        else:
            made = (CausalLunaAttention if kind == "causal Luna" else SelfAttention)(dim, heads)
        made = pretended.sent_module(made.bfloat16())
        batch = max(1, TOKENS // length)
        shapes = (batch, length, dim), (batch, rows, dim)
        x, packed = (pretended.sent(torch.empty(s, device="meta", dtype=torch.bfloat16)) for s in shapes)
        out = made(x.requires_grad_(), packed.requires_grad_())
        out.backward(torch.empty_like(out))
        return {
            "launches": len(counts.kernels),
            "fewest programs": min((k.programs for k in counts.kernels if k.programs), default=None),
            "gigabytes": counts.moved / 1e9,
            "gigaoperations": counts.operations / 1e9,
            "milliseconds": 1e3 * seconds(counts.kernels),
        }


class _Graph(recorded.Recorded):
    """A graph that is one launch."""

    counts: pretended.Counts

    def replay(self) -> None:
        """Do it once more; a graph may ask for nothing that waits, and for nothing from the host."""
        before, asked = len(self.counts.kernels), len(self.counts.waits + self.counts.uploads)
        super().replay()
        assert len(self.counts.waits + self.counts.uploads) == asked, self.counts.waits + self.counts.uploads
        self.counts.kernels[before:] = [pretended.Kernel("graph", 0, 0, torch.float32)]


@contextmanager
def graphs(counts: pretended.Counts) -> Iterator[None]:
    """Decoding steps are graphs."""
    _Graph.counts = counts
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_GRAPH", "1")
        patch.setitem(_decoding_graph.CAPTURES, "gpu", _Graph)
        yield


def decoding(arch: str, beam: int = 5, graph: bool = False) -> Dict[str, Any]:
    """One step of 6 layers after two others, by model and by order of rows; rows move within their sentences.

    Args:
        arch: whose.
        beam: rows of a sentence.
        graph: steps are CUDA graphs, one launch each.
    """
    sizes = argparse.Namespace(
        vocabulary=400, projection_length=16, device=torch.device("cpu"), dtype="float32", smoke=False
    )
    model = build_model(arch, 40, sizes).eval()
    model.make_generation_fast_(need_attn=False)
    tokens = random_tokens(2, 9, args=sizes)
    from fairseq.sequence_generator import EnsembleModel

    with pretended.device() as counts, torch.no_grad(), graphs(counts) if graph else nullcontext():
        pretended.sent_module(model)
        search = EnsembleModel([model])
        tokens = pretended.sent(tokens)
        lengths = pretended.sent(torch.full((2,), 9))
        encoded = search.forward_encoder({"src_tokens": tokens, "src_lengths": lengths})
        encoded = search.reorder_encoder_out(encoded, pretended.sent(torch.arange(2).repeat_interleave(beam)))
        states: List[Dict[str, Any]] = [{}]
        written = pretended.sent(torch.full((2 * beam, 6), 7))
        found: Dict[str, Any] = {}
        for step in range(1, 5):
            counts.clear()
            search.forward_decoder(written[:, :step], encoded, states)
            found["step"], found["step waits"] = len(counts.kernels), sum(counts.waits.values())
            counts.clear()
            order = pretended.sent(torch.arange(2 * beam).view(2, beam).flip(1).flatten())
            search.reorder_incremental_state(states, order)
            encoded = search.reorder_encoder_out(encoded, order)
            found["order"], found["order waits"] = len(counts.kernels), sum(counts.waits.values())
        return found


def main() -> None:
    """Count, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    args = parser.parse_args()
    found: Dict[str, Any] = {"layers": [], "decoding": {}}
    for dim, rows, length in ROWS:
        for kind in KINDS:
            found["layers"].append(
                {"layer": kind, "d": dim, "l": rows, "N": length, **layer(kind, dim, rows, length)}
            )
    for arch in ("luna_base_tied", "luna_base_untied", "transformer_wmt_en_de"):
        found["decoding"][arch] = decoding(arch)
        if arch.startswith("luna"):
            found["decoding"][arch]["step as a graph"] = decoding(arch, graph=True)["step"]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
