"""There is no speed for what computes something else: each Luna attention is held to the formulas in float64."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Dict, Tuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from scripts.bench.transcriptions import transcribed, transcribed_causal

# Of the largest value. float32: the gradient of P is that of a softmax over all positions, with much to cancel.
TOLERANCE = {torch.float32: 3e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}

# Up to here the reference is differentiated, too.
GRADIENTS_UP_TO = 1024


class Mismatch(Exception):
    """An operation that does not compute what the reference does: it gets no speed."""


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
            x, packed = own
            return transcribed_causal(exact, x, packed, block=128)
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
    output, *slopes = (float(wanted.abs().max()) for wanted in results[1])
    # A gradient that hardly matters next to the others may be off by their rounding.
    scales = [output, *[max(slopes, default=0.0)] * len(slopes)]
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

    hook: Dict[nn.Module, RemovableHandle] = {
        layer: layer.register_forward_hook(check, with_kwargs=True)
        for layer in model.modules()
        if isinstance(layer, LunaAttention | CausalLunaAttention)
    }
    yield
    for left in hook.values():
        left.remove()
