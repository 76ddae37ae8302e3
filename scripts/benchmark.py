#!/usr/bin/env python
"""Luna next to softmax attention: time and memory of one attention layer, of training, of generation.

    benchmark.py                         everything, in sizes for two CPU cores (one to two hours)
    benchmark.py attention --threads 1   one part
    benchmark.py --full                  the paper's vocabulary and larger batches
    benchmark.py --report benchmark.json the tables of a finished run, as Markdown

Whatever is compared is timed in turn in one process, after a round to warm up; the medians count, and the
spread is (slowest - fastest) / median. Peak memory of one layer on a CPU is what torch has allocated, of a whole
model what is resident in a process of its own. Before it is timed, every Luna attention is held to a transcription of
the paper's formulas in float64; there is no speed for one that differs. OUTPUT gets benchmark.json, and attention.svg
(which needs: pip install '.[plots]').
"""

import argparse
import copy
import functools
import itertools
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq import models, options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from luna_fairseq.modules.attention import _join_heads as _join
from luna_fairseq.modules.attention import _split_heads as _heads
from luna_fairseq.pictures import load_pyplot
from measuring import allocated_bytes, in_own_process, interleaved, keep_memory, machine, peak_bytes

TRANSLATION = ("transformer_wmt_en_de", "luna_base_tied", "luna_base_untied")
MASKED_LM = ("roberta_base", "luna_base_512", "luna_base_2048")
SIZES: Dict[str, Dict[str, Any]] = {
    "": dict(
        dim=512, heads=8, projection_lengths=(16, 32, 128, 256), tokens=16384, transcription_up_to=2048,
        lengths=(128, 256, 512, 1024, 2048, 4096, 8192, 16384), vocabulary=8000, words=4096,
        document_lengths=(32, 1024, 4096), growing_documents=(4096, 8192, 16384), generation_words=1000,
        blocks={512: "luna_base_512", 2048: "luna_base_2048"}, block_words=2048,
        output_lengths=(25, 250, 2000),
    ),
    "full": dict(
        dim=1024, heads=16, projection_lengths=(16, 32, 128, 256), tokens=65536, transcription_up_to=0,
        lengths=(1024, 2048, 4096, 8192, 16384, 32768, 65536), vocabulary=40600, words=16384,
        document_lengths=(32, 1024, 4096), growing_documents=(4096, 8192, 16384), generation_words=10000,
        blocks={512: "luna_base_512", 2048: "luna_base_2048"}, block_words=16384,
        output_lengths=(25, 250, 2000),
    ),
    "smoke": dict(
        dim=16, heads=2, projection_lengths=(4, 8), tokens=256, transcription_up_to=128, lengths=(64, 128, 256),
        vocabulary=100, words=64, document_lengths=(8, 64), growing_documents=(64, 128),
        blocks={16: "luna_base_512"}, block_words=64, generation_words=20, output_lengths=(10,),
    ),
}  # fmt: skip
# For a smoke run: of the translation models, of the masked-LM models.
SMOKE_SIZES = [
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--decoder-layers 1 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16 --decoder-attention-heads 2".split(),
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2".split(),
]
# Of the largest value. float32: the gradient of P is that of a softmax over all positions, with much to cancel.
TOLERANCE = {torch.float32: 3e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# What is aimed at on two CPU cores, by length: the least speed relative to what stands behind it.
TARGETS: List[Tuple[str, Dict[str, Any], Dict[str, Any], Dict[int, float]]] = [
    (
        "attention",
        {"layer": "Luna", "l": 32, "backward": True},
        {"layer": "softmax", "l": 0},
        {256: 1.5, 1024: 2.7, 4096: 9, 16384: 30},
    ),
    ("attention", {"layer": "Luna", "l": 256, "backward": True}, {"layer": "softmax", "l": 0}, {4096: 2.5}),
    (
        "attention",
        {"layer": "causal Luna", "l": 32, "backward": True},
        {"layer": "causal softmax", "l": 0},
        {256: 1.0, 1024: 1.4, 4096: 3, 16384: 8},
    ),
    (
        "attention",
        {"layer": "causal Luna", "l": 32, "backward": True},
        {"layer": "transcription"},
        {512: 12, 1024: 12, 2048: 12},
    ),
    *(
        ("training", {"arch": arch}, {"arch": "transformer_wmt_en_de"}, {32: 0.85, 1024: 1.2, 4096: 3})
        for arch in TRANSLATION[1:]
    ),
    ("training", {"arch": "luna_base_2048"}, {"arch": "roberta_base"}, {2048: 1.5}),
    *(
        (
            "generation",
            {"arch": arch, "beam": beam},
            {"arch": "transformer_wmt_en_de"},
            {25: 1.0, 250: 1.3, 2000: 3},
        )
        for arch in TRANSLATION[1:]
        for beam in (5, 1)
    ),
]
# The same of --full, which is for a GPU.
FULL_TARGETS: List[Tuple[str, Dict[str, Any], Dict[str, Any], Dict[int, float]]] = [
    (
        "attention",
        {"layer": "Luna", "l": 128, "backward": True},
        {"layer": "softmax", "l": 0},
        {1024: 1.0, 8192: 4, 65536: 25},
    ),
    (
        "attention",
        {"layer": "causal Luna", "l": 128, "backward": True},
        {"layer": "causal softmax", "l": 0},
        {4096: 1.0, 16384: 4},
    ),
]
# A step of decoding is timed so many times in a row, for a beam of so many.
DECODING_STEPS, BEAM = 100, 5
# The growth of one Luna layer takes so many times the rounds.
GROWTH_ROUNDS = 10
# Up to here the reference is differentiated, too.
GRADIENTS_UP_TO = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Mismatch(Exception):
    """An operation that does not compute what the reference does: it gets no speed."""


# ------------------------------------------------------------------------------------------- reference
def transcribed_causal(layer: CausalLunaAttention, x: Tensor, packed: Tensor, block: Optional[int] = None) -> Tensor:
    """Causal Luna attention (paper, section 3.3) with the sums of every position side by side, as published.

    Args:
        layer: whose projections to take.
        x: ``[B, N, D]``.
        packed: P, ``[B, L, D]``.
        block: take so many positions at a time; None for all, as the published code does.
    """
    heads = layer.num_heads
    scale = layer.head_dim**-0.5
    query = _heads(layer.q_proj(x), heads) * scale
    key = value = _heads(layer.c_proj(x), heads) if layer.tie_kv else _heads(layer.k_proj(x), heads)
    if not layer.tie_kv:
        value = _heads(layer.v_proj(x), heads)
    scores = _heads(layer.pc_proj(x), heads) @ (_heads(layer.pq_proj(packed), heads) * scale).mT
    weights = ops.CAUSAL_ACTIVATIONS[layer.activation](scores)
    steps = torch.arange(1, x.size(1) + 1, device=x.device, dtype=x.dtype)[:, None]
    key_sum: Any = 0.0
    value_sum: Any = 0.0
    outs = []
    for part in torch.arange(x.size(1), device=x.device).split(block or x.size(1)):
        key_sums = key_sum + (key[:, :, part, :, None] * weights[:, :, part, None, :]).cumsum(dim=2)
        unpack = torch.softmax(torch.einsum("bhnk,bhnkl->bhnl", query[:, :, part], key_sums) / steps[part], dim=-1)
        value_sums = value_sum + (weights[:, :, part, :, None] * value[:, :, part, None, :]).cumsum(dim=2)
        outs.append(torch.einsum("bhnl,bhnlk->bhnk", unpack, value_sums) / steps[part])
        if block:
            key_sum, value_sum = key_sums[:, :, -1:], value_sums[:, :, -1:]
    return layer.out_proj(_join(torch.cat(outs, dim=2)))


def transcribed(layer: LunaAttention, x: Tensor, packed: Tensor, context: Tensor) -> Tensor:
    """Luna attention (paper, section 3.1) of sentences without padding, with its weights as they are written."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.mT / math.sqrt(query.size(-1)), dim=-1) @ value

    heads, packed_heads = layer.num_heads, layer.num_packed_heads
    pk, pv, k, v = (
        (layer.pc_proj, layer.pc_proj, layer.c_proj, layer.c_proj)
        if layer.tie_kv
        else (layer.pk_proj, layer.pv_proj, layer.k_proj, layer.v_proj)
    )
    y = _join(
        attend(
            _heads(layer.pq_proj(packed), packed_heads),
            _heads(pk(context), packed_heads),
            _heads(pv(context), packed_heads),
        )
    )
    return layer.out_proj(_join(attend(_heads(layer.q_proj(x), heads), _heads(k(y), heads), _heads(v(y), heads))))


def check_attention(layer: nn.Module, *inputs: Tensor) -> None:
    """Hold an attention to the formulas in float64, on the first two sentences; short ones with their gradients.

    Args:
        layer: either Luna attention.
        inputs: query, P and, for :class:`LunaAttention`, the context.

    Raises:
        Mismatch: if it computes something else.
    """
    training = layer.training
    layer.eval()
    exact = copy.deepcopy(layer).double()

    def compute(*own: Tensor) -> Tensor:
        return layer(*own) if isinstance(layer, CausalLunaAttention) else layer(*own)[0]

    def reference(*own: Tensor) -> Tensor:
        if isinstance(exact, CausalLunaAttention):
            return transcribed_causal(exact, *own, block=128)
        assert isinstance(exact, LunaAttention)
        return transcribed(exact, *own)

    differentiate = inputs[0].size(1) <= GRADIENTS_UP_TO
    results = []
    for function, dtype in ((compute, inputs[0].dtype), (reference, torch.float64)):
        own = [x[:2].detach().to(dtype).requires_grad_(differentiate) for x in inputs]
        with torch.set_grad_enabled(differentiate):
            out = function(*own)
            # Not all ones, or the gradient of a softmax is zero.
            slope = torch.linspace(-1, 1, out.numel(), dtype=dtype, device=out.device).view_as(out)
            gradients = torch.autograd.grad(out, own, slope) if differentiate else ()
        results.append([out.detach(), *gradients])
    layer.train(training)
    tolerance = TOLERANCE[inputs[0].dtype]
    output, *gradients = (float(wanted.abs().max()) for wanted in results[1])
    # A gradient that hardly matters next to the others may be off by their rounding.
    scales = [output, *[max(gradients, default=0.0)] * len(gradients)]
    for what, found, wanted, scale in zip(("output", "d query", "d P", "d context"), *results, scales, strict=False):
        if not (error := float((found.double() - wanted).abs().max()) / scale) <= tolerance:
            raise Mismatch(
                f"{type(layer).__name__} at {tuple(inputs[0].shape)}: the {what} is off by {error:.1e}, "
                f"and {tolerance} is allowed: no speed is printed for it"
            )


@contextmanager
def checked(model: nn.Module) -> Iterator[None]:
    """Hold every Luna attention that ``model`` calls meanwhile to the reference."""

    def check(layer: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any], _: Any) -> None:
        hook.pop(layer).remove()  # each once
        named = {**dict(zip(("query", "packed", "context"), args, strict=False)), **kwargs}
        inputs = [named["query"], named["packed"]]
        if isinstance(layer, LunaAttention):
            inputs.append(named["context"])
        check_attention(layer, *inputs)

    hook = {
        layer: layer.register_forward_hook(check, with_kwargs=True)
        for layer in model.modules()
        if isinstance(layer, LunaAttention | CausalLunaAttention)
    }
    yield
    for left in hook.values():
        left.remove()


# ------------------------------------------------------------------------------------------- one layer
class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention by ``scaled_dot_product_attention``.

    Args:
        causal: each position sees itself and the earlier ones.
        dim: D.
        heads: H.
    """

    def __init__(self, causal: bool, dim: int, heads: int) -> None:
        super().__init__()
        self.causal, self.heads = causal, heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        q, k, v = (_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(_join(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)))


class SelfAttention(nn.Module):
    """Luna self-attention of x and P.

    Args:
        dim: D.
        heads: H.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = LunaAttention(dim, heads)

    def forward(self, x: Tensor, packed: Tensor) -> Tensor:
        """``[B, N, D]`` and ``[B, L, D]`` -> ``[B, N, D]``."""
        return self.attention(x, packed, x)[0]


class Transcription(CausalLunaAttention):
    """Causal Luna attention computed as the published code does."""

    def forward(self, query: Tensor, packed: Tensor) -> Tensor:  # type: ignore[override]
        """``[B, N, D]`` and ``[B, L, D]`` -> ``[B, N, D]``."""
        return transcribed_causal(self, query, packed)


def layers(args: argparse.Namespace, length: int) -> List[Tuple[str, int]]:
    """The layers to compare at one length, with their projection lengths; 0 for softmax attention."""
    found = [("softmax", 0), ("causal softmax", 0)]
    found += [(kind, size) for kind in ("Luna", "causal Luna") for size in args.projection_lengths]
    if length <= args.transcription_up_to:
        found += [("transcription", size) for size in args.projection_lengths if size <= 32]
    return found


def build_layer(kind: str, args: argparse.Namespace) -> nn.Module:
    """One attention layer."""
    torch.manual_seed(1)
    layer: nn.Module
    if kind.endswith("softmax"):
        layer = SoftmaxAttention(kind.startswith("causal"), args.dim, args.heads)
    elif kind == "Luna":
        layer = SelfAttention(args.dim, args.heads)
    else:
        layer = (CausalLunaAttention if kind == "causal Luna" else Transcription)(args.dim, args.heads)
    return layer.to(args.device, DTYPES[args.dtype])


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
            compared = layers(args, length)
            steps = {f"{kind} {size}": layer_step(kind, size, length, backward, args) for kind, size in compared}
            seconds = interleaved(steps, args.rounds, args.device)
            for kind, size in compared:
                name = f"{kind} {size}"
                row = {"layer": kind, "l": size, "length": length, "backward": backward}
                most = allocated_bytes(steps[name]) if args.device.type == "cpu" else None
                rows.append(finished(row, seconds[name], "attention", most))
    return rows


# ------------------------------------------------------------------------------------------------ growth
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
    for what, size, step, lengths, rounds in compared:
        steps = {str(length): step(length=length) for length in lengths}
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


# ---------------------------------------------------------------------------------------------- decoding
def stored_bytes(state: Dict[str, Any]) -> int:
    """The size of a decoding state. With tied kv some of its tensors are one."""
    tensors = {x.data_ptr(): x for saved in state.values() for x in saved.values() if x is not None}
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


# ---------------------------------------------------------------------------------------------- training
def dictionary(symbols: int) -> Dictionary:
    """A dictionary of so many symbols."""
    found = Dictionary()
    for number in range(symbols - len(found)):
        found.add_symbol(f"w{number}")
    return found


def build_model(arch: str, positions: int, args: argparse.Namespace) -> Any:
    """The model that ``fairseq-train --arch`` makes, without its data."""
    torch.manual_seed(1)
    masked_lm = arch in MASKED_LM
    symbols = dictionary(args.vocabulary)
    words = ["unused", "--arch", arch, *(SMOKE_SIZES[masked_lm] if args.smoke else [])]
    if masked_lm:
        symbols.add_symbol("<mask>")
        words += ["--task", "masked_lm", "--max-positions", str(positions), "--tokens-per-sample", str(positions)]
    else:
        words += ["--task", "translation", "--share-all-embeddings"]
        words += ["--max-source-positions", str(positions), "--max-target-positions", str(positions)]
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols, dictionary=symbols)
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    return models.build_model(config.model, task).to(args.device)


def random_tokens(*shape: int, args: argparse.Namespace) -> Tensor:
    """Symbols of the dictionary; every row ends."""
    tokens = torch.randint(4, args.vocabulary, shape, generator=torch.Generator().manual_seed(2))
    tokens[:, -1] = Dictionary().eos()
    return tokens.to(args.device)


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
    compared = [(TRANSLATION, length) for length in args.document_lengths]
    compared += [(("roberta_base", arch), length) for length, arch in args.blocks.items()]
    for archs, length in compared:
        steps = {arch: training_step(arch, length, args) for arch in archs}
        seconds = interleaved(steps, args.rounds, args.device)
        del steps
        for arch, found in seconds.items():
            words = examples(arch, length, args) * length
            rows.append(finished({"arch": arch, "length": length, "words": words}, found, "training"))
    return rows


# -------------------------------------------------------------------------------------------- generation
def generation_step(arch: str, length: int, beam: int, args: argparse.Namespace) -> Callable[[], object]:
    """Fairseq's beam search to exactly ``length`` symbols a sentence, from as many."""
    model = build_model(arch, length + 4, args).eval()
    target = dictionary(args.vocabulary)
    # Every hypothesis is as long: the sentence ends when it must.
    generator = SequenceGenerator(
        [model], target, beam_size=beam, min_len=length, max_len_b=length, max_len=length + 1
    )
    tokens = random_tokens(sentences(length, args), length, args=args)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": torch.full(tokens.shape[:1], length)}}

    def generate() -> Any:
        with torch.no_grad(), torch.autocast(args.device.type, DTYPES[args.dtype], enabled=args.dtype != "float32"):
            return generator.generate([model], sample)

    model.make_generation_fast_(need_attn=False)
    if "luna" in arch and not args.memory_of:
        check_generation(model, target, args)
    return generate


def check_generation(model: Any, target: Dictionary, args: argparse.Namespace) -> None:
    """Scores of decoding step by step against those of the whole sentence at once, whose layers are checked.

    Raises:
        Mismatch: if they differ.
    """
    tokens = random_tokens(2, 12, args=args)
    generator = SequenceGenerator([model], target, beam_size=2, min_len=20, max_len_b=20, max_len=21)
    lengths = torch.full((2,), 12)
    with torch.no_grad():
        found = generator.generate([model], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
        for source, hypotheses in zip(tokens, found, strict=True):
            for hypothesis in hypotheses:
                out = hypothesis["tokens"][None]
                with checked(model):
                    logits = model(source[None], lengths[:1], out.roll(1, dims=1))[0]
                scores = torch.log_softmax(logits.float(), dim=-1).gather(-1, out[..., None])[0, :, 0]
                # The symbol that ends a sentence when it must has no score of its own.
                error = float((scores - hypothesis["positional_scores"])[:-1].abs().max())
                if not error <= 1e-3:
                    raise Mismatch(f"decoding step by step is off by {error:.1e} in log-probability: no speed for it")


def sentences(length: int, args: argparse.Namespace) -> int:
    """How many sentences are translated at once."""
    return max(1, args.generation_words // length)


def state_bytes(arch: str, length: int, args: argparse.Namespace) -> Dict[str, int]:
    """What decoding one sentence keeps beside the encoder's output, after a few steps and after ``length``."""
    model = build_model(arch, length + 4, args).eval()
    tokens = random_tokens(1, length, args=args)
    state: Dict[str, Any] = {}
    found = {}
    with torch.no_grad():
        encoder_out = model.encoder(tokens, src_lengths=torch.tensor([length]))
        for step in range(1, length + 1):
            model.decoder(tokens[:, :step], encoder_out=encoder_out, incremental_state=state)
            if step in (8, length):
                found[f"after {'8' if step == 8 else 'all'}"] = stored_bytes(state)
    return found


def measure_generation(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Words per second, peak memory, and the size of the decoder's state."""
    rows = []
    for length in args.output_lengths:
        state = {arch: state_bytes(arch, length, args) for arch in TRANSLATION}
        for beam in (1, 5):
            steps = {arch: generation_step(arch, length, beam, args) for arch in TRANSLATION}
            seconds = interleaved(steps, args.rounds, args.device)
            del steps
            for arch, found in seconds.items():
                words = sentences(length, args) * length
                row = {"arch": arch, "length": length, "beam": beam, "words": words}
                rows.append({**finished(row, found, "generation"), "state": state[arch]})
    return rows


# ----------------------------------------------------------------------------------------------- results
def finished(row: Dict[str, Any], seconds: List[float], part: str, size: Optional[int] = None) -> Dict[str, Any]:
    """A row with its times and its memory (``size``, if that is known), which is said as soon as it is known."""
    median = statistics.median(seconds)
    row = {**row, "seconds": median, "spread": (max(seconds) - min(seconds)) / median}
    row["bytes"] = in_own_process("--memory-of", part, json.dumps(row)) if size is None else size
    numbers = ("seconds", "spread", "bytes", "words", "growth")
    said = " ".join(str(value) for name, value in row.items() if name not in numbers)
    print(f"{part}: {said}: {median:.4g} s, {row['bytes'] / 2**20:,.0f} MiB", file=sys.stderr, flush=True)
    return row


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


def ratio(rows: List[Dict[str, Any]], row: Dict[str, Any], **other: Any) -> str:
    """How many times as fast as another row, and with what part of its memory; "" if that was not run."""
    wanted = {
        **{key: row[key] for key in ("layer", "l", "arch", "length", "beam", "backward") if key in row},
        **other,
    }
    for base in rows:
        if all(base[key] == value for key, value in wanted.items()):
            return f"{base['seconds'] / row['seconds']:.2f}x, {row['bytes'] / max(1, base['bytes']):.2f}x"
    return ""


def table(head: List[str], rows: List[List[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


def targets(found: Dict[str, Any]) -> str:
    """What was aimed at, and what was measured."""
    lines = []
    for part, chosen, base, wanted in FULL_TARGETS if found["sizes"]["dim"] == SIZES["full"]["dim"] else TARGETS:
        rows = found.get(part, [])
        cells = []
        for length, least in wanted.items():
            row = next((row for row in rows if chosen.items() <= row.items() and row["length"] == length), None)
            if row and (measured := ratio(rows, row, **base)):
                cells.append(f"{length:,}: {measured.split('x')[0]} ({least:g})")
        if cells:
            own = ", ".join(f"{key} {value}" for key, value in chosen.items() if key in ("l", "beam"))
            name = f"{chosen.get('layer') or chosen['arch']}{f' ({own})' if own else ''}"
            lines.append([part, name, str(base.get("layer") or base["arch"]), ", ".join(cells)])
    return table(["", "", "against", "length: speed (wanted)"], lines) if lines else ""


def growth(rows: List[Dict[str, Any]]) -> str:
    """How time and memory of a sentence grow from each length to the next."""
    pairs = list(itertools.pairwise(sorted({row["length"] for row in rows})))
    lines = []
    for what, size in dict.fromkeys((row["what"], row["l"]) for row in rows):
        here = {row["length"]: row for row in rows if (row["what"], row["l"]) == (what, size)}
        grown = [
            f"{here[b]['growth']:.2f}x, {here[b]['bytes'] / here[a]['bytes']:.2f}x" if a in here and b in here else ""
            for a, b in pairs
        ]
        lines.append([f"{what}{f', l = {size}' if size else ''}", *grown])
    return table(["", *(f"{a:,} to {b:,}" for a, b in pairs)], lines) if pairs else ""


def report(found: Dict[str, Any]) -> str:
    """The tables of a run."""
    spreads = [row["spread"] for part in PARTS for row in found.get(part, [])]
    parts = [
        f"{found['machine']}; {found['dtype']}, medians of {found['rounds']} rounds. (slowest - fastest) / median: "
        f"half of the rows below {statistics.median(spreads):.1%}, all below {max(spreads):.0%}.\n"
    ]
    if aims := targets(found):
        parts.append("What is aimed at, forward and backward for one layer:\n")
        parts.append(aims)
    rows = found.get("attention", [])
    for backward in sorted({row["backward"] for row in rows}, reverse=True):
        ours = [row for row in rows if row["backward"] == backward and "Luna" in row["layer"]]
        names = list(dict.fromkeys((row["layer"], row["l"]) for row in ours))
        lines = []
        for length in dict.fromkeys(row["length"] for row in ours):
            here = {(row["layer"], row["l"]): row for row in ours if row["length"] == length}
            bases = {"Luna": "softmax", "causal Luna": "causal softmax"}
            lines.append([f"{length:,}", *(ratio(rows, here[name], layer=bases[name[0]], l=0) for name in names)])
        sizes = found["sizes"]
        size = f"d = {sizes['dim']}, {sizes['heads']} heads, {sizes['tokens']:,} tokens a batch"
        passes = "forward and backward" if backward else "forward"
        parts.append(
            f"One attention layer, {passes} ({size}): times the speed of softmax attention, part of its memory.\n"
        )
        parts.append(table(["length", *(f"{layer}, l = {size}" for layer, size in names)], lines))
        lines = [
            [f"{row['length']:,}", str(row["l"]), ratio(rows, row, layer="transcription")]
            for row in ours
            if row["layer"] == "causal Luna" and ratio(rows, row, layer="transcription")
        ]
        if lines:
            wanted = " (wanted for l = 32: at most 0.1x of its memory)" if backward else ""
            parts.append(f"The causal layer, {passes}, next to a plain transcription of the formulas{wanted}.\n")
            parts.append(table(["length", "l", "speed, memory"], lines))
    if grown := growth(found.get("growth", [])):
        size = f"d = {found['sizes']['dim']}, {found['sizes']['heads']} heads"
        parts.append(
            f"Time and memory when one sentence gets twice as long: of a layer ({size}), forward and backward, and "
            "of an update of a whole model (memory: beside parameters and Adam). Times are the median, over "
            f"{found['rounds']} rounds ({found['rounds'] * GROWTH_ROUNDS} for a layer of Luna), of the ratio within "
            "a round. Wanted for Luna from 4,096 on: at most 2.10x.\n"
        )
        parts.append(grown)
    if rows := found.get("decoding", []):
        lengths = list(dict.fromkeys(row["length"] for row in rows))
        lines = []
        for layer, size in dict.fromkeys((row["layer"], row["l"]) for row in rows):
            here = [row for row in rows if (row["layer"], row["l"]) == (layer, size)]
            times = [f"{row['seconds'] * 1e6:,.0f}, {row['bytes'] / 2**20:,.2f}" for row in here]
            lines.append([f"{layer}{f', l = {size}' if size else ''}", *times])
        parts.append(
            f"The next position of one layer after so many (beam {BEAM}): microseconds, and MiB kept of the others.\n"
        )
        parts.append(table(["layer", *(f"{length:,}" for length in lengths)], lines))
    for part, what in (("training", "Training"), ("generation", "Generation")):
        rows = found.get(part, [])
        lines = []
        for row in rows:
            base = next(other["arch"] for other in rows if other["length"] == row["length"])
            line = [row["arch"], f"{row['length']:,}", *([str(row["beam"])] if part == "generation" else [])]
            line += [
                f"{row['words'] / row['seconds']:,.0f}",
                f"{row['bytes'] / 2**20:,.0f}",
                ratio(rows, row, arch=base),
            ]
            if part == "generation":
                line.append(", ".join(f"{size / 2**10:,.0f}" for size in row["state"].values()))
            lines.append(line)
        if lines:
            beam, state = (
                (["beam"], ["decoder state after 8 words, after all, KiB"]) if part == "generation" else ([], [])
            )
            parts.append(f"{what}, vocabulary {found['sizes']['vocabulary']:,}.\n")
            parts.append(table(["model", "length", *beam, "words/s", "memory, MiB", "speed, memory", *state], lines))
    return "\n".join(parts)


def draw(rows: List[Dict[str, Any]], tokens: int, output: Path) -> None:
    """Time and memory of a sentence against its length, forward and backward, both axes logarithmic."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for layer, size in dict.fromkeys((row["layer"], row["l"]) for row in rows):
        line = [row for row in rows if row["backward"] and (row["layer"], row["l"]) == (layer, size)]
        lengths = [row["length"] for row in line]
        style = {"marker": "o", "markersize": 3, "linestyle": "--" if "causal" in layer else "-"}
        for axis, what in zip(axes, ("seconds", "bytes"), strict=True):
            values = [row[what] / max(1, tokens // row["length"]) / (2**20 if what == "bytes" else 1) for row in line]
            axis.loglog(lengths, values, label=f"{layer} {size or ''}", **style)
    axes[0].set(xlabel="length", ylabel="seconds a sentence, forward and backward")
    axes[1].set(xlabel="length", ylabel="MiB a sentence, forward and backward")
    axes[0].legend(fontsize="x-small")
    figure.savefig(output)


PARTS = {
    "attention": measure_attention,
    "growth": measure_growth,
    "decoding": measure_decoding,
    "training": measure_training,
    "generation": measure_generation,
}


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them if none is named")
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--smoke", action="store_true", help="sizes that mean nothing, in a minute")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count; one more warms up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--dtype", choices=DTYPES, help="of a layer; of a model, by autocast (--full: bfloat16)")
    parser.add_argument("--lengths", type=int, nargs="+", help="of one layer's input")
    parser.add_argument(
        "--output", type=Path, default=Path("bench-out"), help="a folder; finished parts are kept there"
    )
    parser.add_argument("--report", type=Path, metavar="JSON", help="print the tables of a finished run")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.report:
        print(report(json.loads(args.report.read_text())), end="")
        return 0
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    args.dtype = args.dtype or ("bfloat16" if args.full else "float32")
    sizes = dict(SIZES["smoke" if args.smoke else "full" if args.full else ""])
    if args.lengths:
        sizes["lengths"] = tuple(args.lengths)
    for name, value in sizes.items():
        setattr(args, name, value)
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.memory_of:
        print(memory_of(args.memory_of[0], json.loads(args.memory_of[1]), args))
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / "benchmark.json"
    found = {"machine": machine(args.device), "dtype": args.dtype, "rounds": args.rounds, "sizes": sizes}
    if results.exists():  # other parts of the same run
        before = json.loads(results.read_text())
        if {**before, **json.loads(json.dumps(found))} == before:
            found = before
    for part in args.parts or PARTS:
        try:
            found[part] = PARTS[part](args)
        except Mismatch as error:
            print(f"benchmark.py: {error}", file=sys.stderr)
            return 1
        results.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found), end="")
    if "attention" in found:
        try:
            draw(found["attention"], sizes["tokens"], args.output / "attention.svg")
        except ValueError as error:
            print(f"benchmark.py: no attention.svg: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    keep_memory()
    sys.exit(main())
