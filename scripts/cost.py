#!/usr/bin/env python
"""What the paper's runs cost: operations, memory a GPU and hours, on paper. No hour of it was measured.

    cost.py                                      the rows of the paper's WMT'14 table, on 8 GPUs
    cost.py --gpus 2                             on 2, with the --update-freq that keeps the batch
    cost.py configs/masked_lm/pretrain_*gb.yaml  other configs of translation or masked LM
    cost.py --check                              also hold the counts to a real step of every model on this CPU

Operations: :func:`operations`. Memory: parameters, gradients, optimizer state and whatever a forward pass of the
real model keeps for the backward one, scaled to the batch (:meth:`Step.memory`). Hours: updates x tokens an update x
operations a token / (GPUs x what a GPU of :data:`GPUS` reaches). A token is one of the source and one of the target.
"""

import argparse
import gc
import json
import logging
import math
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from fairseq import optim
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, sdpa_backward_flop_count, sdpa_flop_count

import luna_fairseq.models  # noqa: F401  (registers the models)
from benchmark import dictionary
from benchmark_training import Run, load_config
from luna_fairseq.ops.causal import chunk_length
from measuring import in_own_process, peak_bytes

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CPU = torch.device("cpu")
# Symbols, special ones included: about what the paper's parameter counts come to; those of GPT-2's BPE.
VOCABULARY = {"translation": 40624, "masked_lm": 50265}
UNUSED = ("common.user_dir=null", "task.data=unused", "checkpoint.save_dir=unused")
STATE = {"adam": 2, "apollo": 3}  # numbers that an optimizer keeps for each parameter
MASKED = 0.15  # the part of the symbols that masked LM predicts

# Peak rate, dense, in TFLOP/s (the makers' figures), and the part of it that training reaches. fairseq's authors had
# 73,000 words/s of Transformer-base on 4 V100 in float32 and 160,000 in float16 (fairseq issue 940; 30,000 symbols),
# by `operations` 42 % and 11.5 % of the peak. In half precision memory is the limit, so the others are given the
# V100's speed times that of their memory (900, 2,039 and 3,350 GB/s), and half of it for TF32, whose numbers have
# four bytes. torch uses TF32 only if told to: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 in the environment. Half precision
# is --fp16, and --amp with Apollo; the paper's translation is float32.
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

# What torch's counter leaves out: products in place, and attention on a CPU.
aten = torch.ops.aten
UNCOUNTED = {
    aten.baddbmm_: lambda _, a, b, *args, **options: bmm_flop(a, b),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **options: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *args, **options: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass
class Sizes:
    """The sizes of a Transformer or a Luna, the same in encoder and decoder.

    Attributes:
        width: D.
        ffn: F, the width of the feed-forward block.
        heads: H.
        encoder_layers, decoder_layers: 0 if there is no decoder.
        rows: the projection length; 0 for a Transformer.
        kv: u, 1 for tied keys and values and 2 for untied.
        symbols: V.
    """

    width: int
    ffn: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    rows: int
    kv: int
    symbols: int

    @classmethod
    def of(cls, model: Any, symbols: int) -> "Sizes":
        """Those of a built model."""
        encoder = getattr(model.encoder, "sentence_encoder", model.encoder)
        layer = encoder.layers[0]
        return cls(
            width=layer.self_attn.embed_dim,
            ffn=layer.fc1.out_features,
            heads=layer.self_attn.num_heads,
            encoder_layers=len(encoder.layers),
            decoder_layers=len(model.decoder.layers) if hasattr(model, "decoder") else 0,
            rows=encoder.packed_input.length if hasattr(encoder, "packed_input") else 0,
            kv=1 if hasattr(layer.self_attn, "c_proj") else 2,
            symbols=symbols,
        )


def operations(sizes: Sizes, source: int, target: int, on_cpu: bool = False) -> float:
    """Floating point operations of one sentence (pair) in training, a product and its sum counted as two.

    Multiplications of the forward pass, with L = min(rows, source), for n positions that attend to m::

        softmax attention          (2 n + 2 m) D^2 + 2 n m D
        Luna attention             (2 n + u m + (1 + u) L) D^2 + 2 (n + m) L D
        causal Luna attention      ((3 + u) n + L) D^2 + n L D, and two causal sums
        a causal sum               n n (D + H L) up to 128 positions; n c (D + H L) + 2 n L D in chunks of c
        feed-forward block         2 n D F
        output                     V D a predicted symbol, and D^2 in masked LM

    The backward pass takes twice as many; 2.5 times in a causal sum, which it computes anew. Softmax, norms, dropout
    and the optimizer are not counted. On a CPU Luna folds projections where that takes fewer, on a GPU it does not.

    Args:
        sizes: of the model.
        source: symbols of the source, or of a block of masked LM.
        target: symbols of the target, all of them predicted; 0 for masked LM.
        on_cpu: c is 64 on a GPU; on a CPU it is 32 for few packed rows.
    """
    d, rows, u = sizes.width, min(sizes.rows, source), sizes.kv

    def attention(n: int, m: int) -> float:
        if not rows:
            return (2 * n + 2 * m) * d**2 + 2 * n * m * d
        return (2 * n + u * m + (1 + u) * rows) * d**2 + 2 * (n + m) * rows * d

    def feed_forward(n: int) -> float:
        return 2 * n * d * sizes.ffn

    products = sizes.encoder_layers * (attention(source, source) + feed_forward(source))
    sums = 0.0
    if sizes.decoder_layers:
        causal = attention(target, target)
        if rows:
            causal = ((3 + u) * target + rows) * d**2 + target * rows * d
            each = target * target * (d + sizes.heads * rows)
            if target > 128:
                chunk = chunk_length(d // sizes.heads, rows, on_cpu)
                filled = math.ceil(target / chunk) * chunk
                each = filled * (chunk * (d + sizes.heads * rows) + 2 * rows * d)
            sums = sizes.decoder_layers * 2 * each
        products += sizes.decoder_layers * (causal + attention(target, source) + feed_forward(target))
        products += target * sizes.symbols * d
    else:
        products += MASKED * source * (sizes.symbols * d + d**2)
    return 2 * (3 * products + 3.5 * sums)


class Step(Run):
    """A model of a config with everything that trains it, on random symbols.

    Args:
        path: the config.
        args: of the command.

    Raises:
        ValueError: if it is a config of another task or optimizer.
    """

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        cfg = load_config(path, *UNUSED)
        task, optimizer = cfg.task._name, cfg.optimizer._name
        for name, known in ((task, VOCABULARY), (optimizer, STATE)):
            if name not in known:
                raise ValueError(f"{path} has {name}: choose a config that has one of {', '.join(known)}")
        if not cfg.optimization.max_update:
            raise ValueError(
                f"{path} has no optimization.max_update, so its updates are not known: choose one that has"
            )
        symbols = args.vocabulary or VOCABULARY[task]
        with tempfile.TemporaryDirectory() as folder:
            for name in ("dict.en.txt", "dict.de.txt"):
                dictionary(symbols).save(f"{folder}/{name}")
            dictionary(symbols - 1).save(f"{folder}/dict.txt")  # the task adds <mask>
            super().__init__(path, folder, CPU)
        self.symbols = symbols
        self.masked_lm = self.cfg.task._name == "masked_lm"
        self.length = self.cfg.task.tokens_per_sample if self.masked_lm else args.length
        self.half = bool(self.cfg.common.get("fp16") or self.cfg.common.get("bf16"))
        if self.half:  # bfloat16, which fairseq also trains on a CPU; as many bytes
            self.model.bfloat16()
            half = {"common": {"fp16": False, "bf16": True}, "optimizer": {"lr": self.cfg.optimization.lr}}
            self.optimizer = optim.FP16Optimizer.build_optimizer(
                OmegaConf.merge(self.cfg, half), [p for p in self.model.parameters() if p.requires_grad]
            )
        self.sizes = Sizes.of(self.model, symbols)
        self.batch = self._batch(max(1, args.check_tokens // self.length))

    def _batch(self, sentences: int) -> Dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(4, self.symbols - 1, (sentences, self.length), generator=generator)
        tokens[:, -1] = 2
        inputs = {"src_tokens": tokens, "src_lengths": torch.full((sentences,), self.length)}
        target = tokens
        if self.masked_lm:
            chosen = torch.rand(tokens.shape, generator=generator).argsort(dim=1) < MASKED * self.length
            target = tokens.masked_fill(~chosen, 1)
        else:
            inputs["prev_output_tokens"] = tokens.roll(1, dims=1)
        sample = {"id": torch.arange(sentences), "nsentences": sentences, "ntokens": tokens.numel()}
        return {**sample, "net_input": inputs, "target": target}

    def gradients(self) -> None:
        """Forward and backward, which adds to the gradients that are there."""
        self.model.train()
        self.task.train_step(self.batch, self.model, self.criterion, self.optimizer, 0)

    def operations(self, on_cpu: bool = False) -> float:
        """By the formula, a symbol of the source (and one of the target)."""
        return operations(self.sizes, self.length, 0 if self.masked_lm else self.length, on_cpu) / self.length

    def counted_operations(self) -> float:
        """The same by torch's counter, in a real step."""
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            self.gradients()
        return counter.get_total_flops() / self.batch["ntokens"]

    def kept_bytes(self) -> float:
        """What a forward pass keeps for the backward one, parameters apart, a symbol."""
        parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: Dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.criterion(self.model, self.batch)
        return sum(kept.values()) / self.batch["ntokens"]

    def memory(self, tokens: int) -> float:
        """Bytes on a GPU with a batch of so many symbols.

        Float32: parameters, gradients and :data:`STATE`. Half precision: two bytes each for parameters and gradients,
        and all of the former in float32. Then what is kept for the backward pass, as a CPU keeps it (a GPU keeps
        dropout masks in one byte instead of four, and no attention weights); and the gradients of log-probabilities
        and of logits, which come when all of that is still there. Not counted: what the driver takes, and the second
        copy of the gradients that several GPUs have with --update-freq above 1.
        """
        numbers = 2 + STATE[self.cfg.optimizer._name]
        parameters = sum(p.numel() for p in self.model.parameters()) * (4 * numbers + (4 if self.half else 0))
        predicted = MASKED if self.masked_lm else 1.0
        gradients = predicted * self.symbols * (4 + (2 if self.half else 4))
        return parameters + tokens * (self.kept_bytes() + gradients)


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
    steps: List[Step] = []

    def train() -> None:
        steps.append(Step(path, args))
        steps[0].train([steps[0].batch])
        for _ in range(2):  # as with --update-freq: the gradients of the first are there during the second
            steps[0].gradients()

    peak = peak_bytes(train, CPU)
    step = steps[0]
    return {
        "operations": step.operations(on_cpu=True),
        "measured operations": step.counted_operations(),
        "bytes": step.memory(step.batch["ntokens"]),
        "measured bytes": peak,
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    warnings.filterwarnings("ignore", message=r"\s*'.*' is validated against ConfigStore schema")
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
        sys.exit(f"cost.py: {error}")
