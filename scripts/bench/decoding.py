"""One step of decoding of one layer, after few positions and after many."""

import argparse
from collections.abc import Callable
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq.measuring import interleaved
from luna_fairseq.modules import CausalLunaAttention
from luna_fairseq.modules.attention import _join_heads as _join
from luna_fairseq.modules.attention import _split_heads as _heads
from scripts.bench.checks import TOLERANCE, Mismatch, checked
from scripts.bench.layers import SoftmaxAttention, build_layer, layers
from scripts.bench.rows import finished
from scripts.bench.sizes import DTYPES

# A step of decoding is timed so many times in a row, for a beam of so many.
DECODING_STEPS, BEAM = 100, 5


def stored_bytes(state: Dict[str, Any]) -> int:
    """The size of a decoding state. With tied kv some of its tensors are one."""
    kept = [x for saved in state.values() for x in saved.values() if isinstance(x, Tensor)]
    tensors = {x.data_ptr(): x for x in kept}
    return sum(x.numel() * x.element_size() for x in tensors.values())


def decoding_step(kind: str, size: int, length: int, args: argparse.Namespace) -> Tuple[Callable[[], object], int]:
    """The next position of one layer after ``length`` others, for a beam; and the bytes of what is kept of them.

    Raises:
        Mismatch: if it differs from that position of the whole sequence at once.
    """
    layer = build_layer(kind, args).eval()
    generator = torch.Generator(args.device).manual_seed(2)
    x, packed = (
        torch.randn(shape, generator=generator, device=args.device, dtype=DTYPES[args.dtype])
        for shape in ((BEAM, length + 1, args.dim), (1, size or 1, args.dim))
    )
    last = x[:, -1:]
    state: Dict[str, Any] = {}
    if isinstance(layer, SoftmaxAttention):
        keys, values = (_heads(proj(x), args.heads).contiguous() for proj in (layer.k_proj, layer.v_proj))

        def compute() -> Tensor:
            keys[:, :, -1:] = _heads(layer.k_proj(last), args.heads)
            values[:, :, -1:] = _heads(layer.v_proj(last), args.heads)
            query = _heads(layer.q_proj(last), args.heads)
            return layer.out_proj(_join(F.scaled_dot_product_attention(query, keys, values)))

        whole, state = layer(x, packed), {"cache": {"keys": keys, "values": values}}
    else:
        assert isinstance(layer, CausalLunaAttention)
        layer(x[:, :-1], packed, incremental_state=state)

        def compute() -> Tensor:
            return layer(last, None, incremental_state=state)

        with checked(layer):
            whole = layer(x, packed.expand(BEAM, -1, -1))
    error = float((compute() - whole[:, -1:]).abs().max() / whole.abs().max())
    if not error <= TOLERANCE[x.dtype]:
        raise Mismatch(f"{kind} at {length}: a step of decoding is off by {error:.1e}: no speed is printed for it")
    return lambda: [compute() for _ in range(DECODING_STEPS)], stored_bytes(state)


def measure_decoding(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """One position of one layer, after few and after many."""
    rows = []
    with torch.no_grad():
        for length in args.lengths:
            compared = [name for name in layers(args, length) if name[0] in ("causal softmax", "causal Luna")]
            steps = {name: decoding_step(*name, length, args) for name in compared}
            timed = {f"{kind} {size}": steps[kind, size][0] for kind, size in compared}
            seconds = interleaved(timed, args.rounds, args.device)
            for kind, size in compared:
                found = [second / DECODING_STEPS for second in seconds[f"{kind} {size}"]]
                row = {"layer": kind, "l": size, "length": length}
                rows.append(finished(row, found, "decoding", steps[kind, size][1]))
    return rows
