"""Linear layers at inference on a CPU: products of oneDNN, in decoding with weights that are laid out for them.

torch multiplies matrices of float32 by another library, which copies the weights into a layout of its own in every
product; for the few rows of a decoding step that is a good part of the time. Here they are laid out once a
generation. The results are those of ``nn.Linear``, which is the reference, but for rounding.
"""

import functools
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Dict, Iterator, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luna_fairseq.ops.tracing import being_traced

# Of the time of nn.Linear (512 x 512, AMD EPYC): laid out, 40 rows take 0.75 and 5 rows half; as they are, 1,000 rows
# take 0.92, and 25 to 100 as long.
_LEAST_LAID_OUT, _LEAST_AS_THEY_ARE = 2, 256
_LEAST_WEIGHTS = 2**14  # below, a product takes hardly longer than its call


def _lay_out(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _multiply(x: Tensor, weight: Tensor, bias: Optional[Tensor], relu: bool) -> Tensor:
    """``x W^T + b`` of a weight as it is or laid out."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")


class _Entry(NamedTuple):
    """A layout, and what it was made of.

    Attributes:
        weight, version, address: the parameter, and what tells that it holds other numbers now.
        content: what it held; keeps the address from being given to another tensor.
        laid_out: its layout.
    """

    weight: Tensor
    version: int
    address: int
    content: Tensor
    laid_out: Tensor

    def is_of(self, weight: Tensor) -> bool:
        return weight is self.weight and weight._version == self.version and weight.data_ptr() == self.address


class LaidOutWeights:
    """The weights of linear layers in the layout of oneDNN: a second copy of each that is asked for.

    Meant for one generation. A parameter that has changed meanwhile, in place, by ``load_state_dict`` or by
    ``.to()``, is multiplied as it is from then on. (A write to ``parameter.data``, as optimizers do it, leaves no
    trace; the next generation sees it.)

    A copy, also by pickle, is empty, and fills itself anew.
    """

    def __init__(self) -> None:
        self._known: Dict[nn.Module, Optional[_Entry]] = {}

    def __reduce__(self) -> Any:
        return LaidOutWeights, ()

    def __len__(self) -> int:
        """How many layers there is a layout of."""
        return sum(entry is not None for entry in self._known.values())

    def of(self, layer: nn.Linear) -> Optional[Tensor]:
        """The layout of a layer's weight, made at the first call; None if there can be none."""
        weight = layer.weight
        if layer in self._known:
            entry = self._known[layer]
            if entry is not None and not entry.is_of(weight):  # whoever changes it may do so again
                entry = self._known[layer] = None
        elif weight.is_inference():  # whether it has changed cannot be seen
            entry = self._known[layer] = None
        else:
            content = weight.detach()
            entry = _Entry(weight, weight._version, weight.data_ptr(), content, _lay_out(content))
            self._known[layer] = entry
        return None if entry is None else entry.laid_out


class _Products(NamedTuple):
    """How linear layers are computed at the moment: with layouts, or with their weights as they are."""

    weights: Optional[LaidOutWeights]

    def linear(self, layer: nn.Module, x: Tensor, relu: bool) -> Optional[Tensor]:
        """``layer(x)``, or None if it has to be computed by the layer itself."""
        if not is_plain(layer):
            return None
        weight: Any = layer.weight
        rows = x.numel() // max(1, x.size(-1))
        least = _LEAST_AS_THEY_ARE if self.weights is None else _LEAST_LAID_OUT
        if rows < least or weight.numel() < _LEAST_WEIGHTS or not (_fits(weight) and _fits(x)):
            return None
        if self.weights is not None:
            assert isinstance(layer, nn.Linear)
            weight = self.weights.of(layer)
            if weight is None:
                return None
        bias: Any = layer.bias
        return _multiply(x, weight, bias, relu)


def _fits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def is_plain(layer: nn.Module) -> bool:
    """Whether nothing but the weight and the bias of a linear layer sees what goes through it.

    Quantisation noise is a hook; whatever else was put around it wants to see its input, too.
    """
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks)


@functools.cache
def _available() -> bool:
    """Whether this torch has oneDNN's products, and they are right."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1.0, 1.0, 3 * 32).view(3, 32)
    weight, bias = torch.linspace(-1.0, 1.0, 48 * 32).view(48, 32).sin(), torch.linspace(-1.0, 1.0, 48)
    want = F.relu(F.linear(x, weight, bias))
    try:
        for laid_out in (weight, _lay_out(weight)):
            found = _multiply(x, laid_out, bias, relu=True)
            if found.shape != want.shape or not torch.allclose(found, want, rtol=1e-5, atol=1e-5):
                return False
    except (AttributeError, RuntimeError, TypeError):  # these names are torch's own, and may change
        return False
    return True


_current: ContextVar[Optional[_Products]] = ContextVar("products", default=None)


@contextmanager
def inference_products(x: Tensor, weights: Optional[LaidOutWeights] = None) -> Iterator[None]:
    """In here :func:`linear` multiplies by oneDNN where that is faster and possible.

    It is possible without gradients, in float32 on a CPU, unless ``torch.backends.mkldnn`` is switched off.

    Args:
        x: a parameter of the model, or its input.
        weights: layouts to take and to add to; None to take all weights as they are.
    """
    possible = _fits(x) and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if not possible or being_traced() or not torch.backends.mkldnn.enabled:
        yield
        return
    token = _current.set(_Products(weights) if _available() else None)
    try:
        yield
    finally:
        _current.reset(token)


def linear(layer: nn.Module, x: Tensor, relu: bool = False) -> Tensor:
    """``layer(x)``, in :func:`inference_products` by the fastest product that fits.

    Args:
        layer: a linear layer, or what stands in its place.
        x: ``[..., D]``.
        relu: follow it by a ReLU.
    """
    if not torch.compiler.is_compiling():
        products = _current.get()
        if products is not None and not torch.is_grad_enabled():  # a hook within may want gradients of its own
            if x.dim() == 3 and x.stride(0) == 0 and x.size(0) > 1:  # P as it begins is that of all sentences
                return linear(layer, x[:1], relu).expand(x.size(0), -1, -1)
            if (y := products.linear(layer, x, relu)) is not None:
                return y
    y = layer(x)
    return F.relu(y) if relu else y
