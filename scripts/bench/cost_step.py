"""A training step of a config on random symbols: what it computes and keeps, by formula and counted."""

import argparse
import tempfile
from pathlib import Path
from typing import Any, Dict

import torch
from fairseq import optim
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, sdpa_backward_flop_count, sdpa_flop_count

from scripts.bench.configs import Run, load_config
from scripts.bench.cost_operations import MASKED, Sizes, operations
from scripts.bench.whole_models import dictionary

CPU = torch.device("cpu")
# Symbols, special ones included: about what the paper's parameter counts come to; those of GPT-2's BPE.
VOCABULARY = {"translation": 40624, "masked_lm": 50265}
UNUSED = ("common.user_dir=null", "task.data=unused", "checkpoint.save_dir=unused")
STATE = {"adam": 2, "apollo": 3}  # numbers that an optimizer keeps for each parameter

# What torch's counter leaves out: products in place, and attention on a CPU.
aten = torch.ops.aten
UNCOUNTED = {
    aten.baddbmm_: lambda _, a, b, *args, **options: bmm_flop(a, b),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **options: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *args, **options: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


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

    def operations(self) -> float:
        """By the formula, a symbol of the source (and one of the target)."""
        return operations(self.sizes, self.length, 0 if self.masked_lm else self.length) / self.length

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
