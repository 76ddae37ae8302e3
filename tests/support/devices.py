"""Tests that a GPU runs, and a CPU with the same body: so that what nobody could run on a GPU is known to run."""

from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from support.models import make_batch, make_bert, make_lm, make_lra, make_model, make_sentences

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
EACH: List[Any] = ["cpu", GPU]
# Where a CPU takes more than a second.
SLOW_ON_CPU: List[Any] = [pytest.param("cpu", marks=pytest.mark.long), GPU]

MODELS: Dict[str, Any] = {
    "luna": make_model,
    "luna_untied": lambda: make_model(untie_luna_kv=True),
    "luna_biased": lambda: make_model(packed_position_bias=1.0),
    "luna_forgetting": lambda: make_model(causal_decay=5.0),
    "luna_bert": make_bert,
    "luna_lm": make_lm,
    "lra": make_lra,
    "lra_tied": lambda: make_lra(tie_kv=True),
}


def to(device: str, values: Any) -> Any:
    """A copy of tensors, in whatever holds them, on a device."""

    def send(x: Any) -> Any:
        return x.detach().to(device, copy=True).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    return tree_map(send, values)


def model_inputs(name: str) -> Tuple[Any, ...]:
    """What a model of ``MODELS`` is called with: sentences of several lengths, padded on either side."""
    source = make_batch(make_sentences([3, 12, 7], words=20), "left")
    target = make_batch(make_sentences([6, 2, 9], words=20, seed=1), "right")
    if name.startswith("lra"):
        return (make_batch(make_sentences([3, 12, 7], words=20), "right"), torch.tensor([3, 12, 7]))
    return (target,) if name in ("luna_bert", "luna_lm") else (source, None, target)


def gradients(module: nn.Module) -> Dict[str, Tensor]:
    """Of every parameter that has one, on the CPU."""
    return {name: p.grad.detach().cpu() for name, p in module.named_parameters() if p.grad is not None}
