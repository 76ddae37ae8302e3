"""A pretended second device: a tensor that holds CPU data (or none, on ``meta``) and says that it is on ``gpu:0``.

Data are real, so what depends on them (a beam search) runs as it would. Where devices mix it raises, as CUDA does. It
counts what a device would be asked for: kernels, waits for it, copies to it, bytes read and written, operations. With
meta tensors inside, shapes alone are computed, and 65,536 positions cost nothing.

What it cannot show: times, the kernels that CUDA has for softmax attention, and anything that asks for CUDA by name.
"""

import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration, flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from luna_fairseq.ops import parts
from luna_fairseq.ops.blocks import WIDE_PRODUCTS
from support.runs import in_a_child

aten: Any = torch.ops.aten

# What looks at values, or at how many there are.
_WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim"}
_WAITS |= {"repeat_interleave", "bincount"}
# No kernels; views are known by their schemas.
_FREE = {"_local_scalar_dense", "_unsafe_view", "is_same_size", "lift_fresh", "set_", "resize_"}
_FREE |= {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach"}
# What reads of its first argument no more than it writes.
_LOOK_UPS = {"index_select", "gather", "embedding", "index", "slice", "select"}
_COPIES = {"aten::_to_copy", "aten::copy_"}


class MixedDevicesError(RuntimeError):
    """Tensors of the pretended device met others."""


class Kernel(NamedTuple):
    """One launch.

    Attributes:
        name: of torch's operation.
        moved: bytes read and written.
        operations: of floating point, a product and its sum counted as two.
        dtype: of what it multiplies.
        programs: of an attention kernel: one for each sentence, head and 64 queries; in its backward pass, 64 keys.
        padding: how much more it computes, in blocks of 64 queries and 64 keys, than it is asked for.
    """

    name: str
    moved: int
    operations: int
    dtype: torch.dtype
    programs: int = 0
    padding: float = 1.0


class Counts:
    """What was asked of the device.

    Attributes:
        kernels: in order.
        waits: times that the host waited for the device, by what waited and where.
        uploads: copies from the host to the device, likewise.
    """

    def __init__(self) -> None:
        self.kernels: List[Kernel] = []
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()

    @property
    def launches(self) -> "Counter[str]":
        """Kernels by name."""
        return Counter(kernel.name for kernel in self.kernels)

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum(kernel.moved for kernel in self.kernels)

    @property
    def operations(self) -> int:
        """Of floating point."""
        return sum(kernel.operations for kernel in self.kernels)

    def clear(self) -> None:
        """Begin anew."""
        self.__init__()  # type: ignore[misc]


_counts: List[Counts] = []  # of the device that is there, if one is
_kind: List[str] = []  # what its tensors hold, cpu or meta


def _here(depth: int = 2) -> str:
    """Where the program is, outside of torch: ``file:line`` of so many callers."""
    found, frame = [], sys._getframe(1)
    while frame is not None and len(found) < depth:  # type: ignore[redundant-expr]
        name = frame.f_code.co_filename
        if name != __file__ and "/torch/" not in name and not name.startswith("<"):
            found.append(f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device.

    Args:
        inner: its data.
    """

    _inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("gpu:0"),
            requires_grad=False,
        )
        made._inner = inner
        return made

    def __repr__(self, **unused: Any) -> str:
        return f"DeviceTensor({self._inner})"

    def tolist(self) -> Any:
        _counts[-1].waits[f"tolist at {_here()}"] += 1
        return self._inner.tolist()

    def numpy(self, *unused: Any, **also_unused: Any) -> Any:
        raise TypeError("a tensor of the pretended device has no numpy: copy it to the CPU first")

    def data_ptr(self) -> int:
        return self._inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes tensors where they are asked for."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes two seconds in every test

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class _FusedAttention(TorchFunctionMode):
    """Takes one of CUDA's kernels for softmax attention, which torch would take apart here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and isinstance(args[0], DeviceTensor):
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:-1], key.size(-2))
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    found = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal
    )
    return found[0]


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write


def _bytes(x: Tensor) -> int:
    """Those that are there: a dimension that is expanded is one."""
    numbers = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        numbers *= size if stride or not size else 1
    return numbers * x.element_size()


def _count(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
    """One kernel: its name, bytes and operations."""
    written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    given: Dict[str, Any] = {a.name: x for a, x in zip(func._schema.arguments, args, strict=False)} | kwargs
    results = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
    if name == "_scaled_dot_product_efficient_attention":
        results = results[:2]  # a mask is made anew from a random state, here it is kept
    given.pop("philox_seed", None)
    most = sum(map(_bytes, results))
    seen: Dict[int, Tensor] = {}
    for argument, value in given.items():
        only_written = argument in written and (argument == "out" or name in ("copy_", "zero_", "fill_"))
        only_written |= name.startswith("new_") or name.endswith("s_like") or name == "full_like"
        if not only_written:
            seen |= {id(x): x for x in tree_flatten(value)[0] if isinstance(x, Tensor)}
    read = [_bytes(x) for x in seen.values()]
    if name in _LOOK_UPS and read:
        read[0] = min(read[0], most)
    counted = _operations.get(func) or flop_counter.flop_registry.get(func.overloadpacket)
    operations = 0 if counted is None else counted(*args, **kwargs, out_val=out)
    if given.get("is_causal"):
        operations //= 2
    floats = [x.dtype for x in (*seen.values(), *results) if x.is_floating_point()]
    programs, padding = 0, 1.0
    if name.startswith("_scaled_dot_product"):
        query, key = given["query"], given["key"]
        blocks = [-(-x.size(2) // 64) for x in (query, key)]
        programs = query.size(0) * query.size(1) * blocks[name.endswith("backward")]
        padding = 64**2 * math.prod(blocks) / (query.size(2) * key.size(2))
    dtype = floats[0] if floats else torch.int64
    _counts[-1].kernels.append(Kernel(name, sum(read) + most, operations, dtype, programs, padding))


def _mixed(name: str, args: Any, on_cpu: List[Tensor]) -> None:
    """Refuse CPU tensors beside those of the device, but for single numbers and for indices into the latter."""
    bad = [x for x in on_cpu if x.dim() > 0]
    if name in ("index", "index_put_", "_index_put_impl_") and isinstance(args[0], DeviceTensor):
        if bad:
            _counts[-1].uploads[f"an index for {name} at {_here()}"] += 1
        return
    if bad:
        raise MixedDevicesError(
            f"{name}: {', '.join(str(tuple(x.shape)) for x in bad)} on the CPU among those of the device, {_here(4)}"
        )


def _looks(name: str, args: Any) -> bool:
    """Whether the host has to know values before it can go on."""
    if name in _WAITS:
        return True
    if name not in ("index", "index_put_", "_index_put_impl_"):
        return False
    by_mask = any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    # One number at all places of a mask is filled in without counting them.
    return by_mask and not (name != "index" and args[2].numel() == 1)


def _dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    full = func._schema.name
    name = full.split("::")[1]
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    mine = [x for x in tensors if isinstance(x, DeviceTensor)]
    asked = kwargs.get("device")
    to_device = bool(mine) if asked is None else torch.device(asked).type == "gpu"
    if not mine and not to_device:
        return func(*args, **kwargs)
    counts = _counts[-1]
    copying = full in _COPIES
    if copying:
        source, target = (args[1], isinstance(args[0], DeviceTensor)) if name == "copy_" else (args[0], to_device)
        if isinstance(source, DeviceTensor) != target:
            (counts.uploads if target else counts.waits)[f"{name} at {_here()}"] += 1
    elif mine:
        _mixed(name, args, [x for x in tensors if not isinstance(x, DeviceTensor)])
    if mine and _looks(name, args):
        counts.waits[f"{name} at {_here()}"] += 1

    inner_args, inner_kwargs = tree_map(lambda x: x._inner if isinstance(x, DeviceTensor) else x, (args, kwargs))
    if inner_kwargs.get("device") is not None:
        inner_kwargs["device"] = torch.device(_kind[-1] if to_device else "cpu")
    inner_kwargs.pop("pin_memory", None)
    out = _EMULATED.get(func, func)(*inner_args, **inner_kwargs)
    if not (_is_view(func) or name in _FREE or "sym_" in name):
        _count(func, name, inner_args, inner_kwargs, out)

    written = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if written and not _is_view(func):  # in place, or out=: give back what was given
        same = [args[i] if i < len(args) else kwargs.get(func._schema.arguments[i].name) for i in written]
        returns = len(func._schema.returns)
        return None if returns == 0 else same[0] if returns == 1 else tuple(same)
    if full == "aten::_to_copy" and not to_device:
        return out
    return tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, out)


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Optional[Tensor],
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Optional[float] = None,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """One of CUDA's kernels for softmax attention, here with its dropout mask in the place of its random state."""
    scores = _attention_scores(query, key, attn_bias, is_causal, scale)
    weights = scores.softmax(dim=-1)
    kept = torch.empty_like(weights).bernoulli_(1 - dropout_p) if dropout_p else weights.new_ones(())
    out = (weights * kept / (1 - dropout_p)) @ value.to(weights)
    heads_last = out.to(query).transpose(1, 2).contiguous().transpose(1, 2)
    sums = functional.pad(scores.logsumexp(dim=-1), (0, -query.size(2) % 32), value=math.inf)
    return heads_last, sums, kept, kept.new_zeros((), dtype=torch.int64)


def _attention_scores(
    query: Tensor, key: Tensor, bias: Optional[Tensor], is_causal: bool, scale: Optional[float]
) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).mT * (query.size(-1) ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), float("-inf"))
    return scores


def _efficient_attention_backward(
    grad_out_: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Optional[Tensor],
    out: Tensor,
    logsumexp: Tensor,
    philox_seed: Tensor,
    philox_offset: Tensor,
    dropout_p: float,
    grad_input_mask: List[bool],
    is_causal: bool = False,
    *,
    scale: Optional[float] = None,
) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    factor = query.size(-1) ** -0.5 if scale is None else scale
    sums = logsumexp[..., : query.size(2), None]
    weights = (_attention_scores(query, key, attn_bias, is_causal, scale) - sums).exp()
    drop = philox_seed / (1 - dropout_p)
    grad = grad_out_.to(weights)
    d_value = (weights * drop).mT @ grad
    # Of the output, as the kernel does: the weights at hand may be a part of those that it was made with.
    inner = (grad * out.to(weights)).sum(dim=-1, keepdim=True)
    d_scores = weights * ((grad @ value.to(weights).mT) * drop - inner)
    d_query, d_key = d_scores @ key.to(weights) * factor, d_scores.mT @ query.to(weights) * factor
    d_bias = None
    if grad_input_mask[3] and attn_bias is not None:
        d_bias = d_scores.sum_to_size(attn_bias.shape).to(attn_bias)
    return d_query.to(query), d_key.to(key), d_value.to(value), d_bias


def _bmm_wide(x: Tensor, y: Tensor, out_dtype: torch.dtype) -> Tensor:
    """CUDA's product with sums in float32 that stay so."""
    return torch.bmm(x.to(out_dtype), y.to(out_dtype))


def _baddbmm_wide(total: Tensor, x: Tensor, y: Tensor, out_dtype: torch.dtype, **factors: Any) -> Tensor:
    return torch.baddbmm(total.to(out_dtype), x.to(out_dtype), y.to(out_dtype), **factors)


def _bmm_wide_into(x: Tensor, y: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    return torch.bmm(x.to(out_dtype), y.to(out_dtype), out=out)


def _baddbmm_wide_into(total: Tensor, x: Tensor, y: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    return torch.baddbmm(total, x.to(out_dtype), y.to(out_dtype), out=out)


# What a CPU has not, or has otherwise.
_EMULATED: Dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_efficient_attention.default: _efficient_attention,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_attention_backward,
}
if hasattr(aten.bmm, "dtype"):
    _EMULATED |= {aten.bmm.dtype: _bmm_wide, aten.bmm.dtype_out: _bmm_wide_into}
    _EMULATED |= {aten.baddbmm.dtype: _baddbmm_wide, aten.baddbmm.dtype_out: _baddbmm_wide_into}


def _product(x: Tensor, y: Tensor) -> int:
    return 2 * x.size(0) * x.size(1) * x.size(2) * y.size(2)


_operations: Dict[Any, Callable[..., int]] = {}
if hasattr(aten.bmm, "dtype"):
    _operations = {
        **dict.fromkeys((aten.bmm.dtype, aten.bmm.dtype_out), lambda x, y, *_, **__: _product(x, y)),
        **dict.fromkeys((aten.baddbmm.dtype, aten.baddbmm.dtype_out), lambda _, x, y, *__, **___: _product(x, y)),
    }


class _StandIn:
    """For one of Triton's kernels: each tensor that it is given is moved once, those that it changes twice."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: Tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            tensors = [x for x in back(args) if isinstance(x, Tensor)]
            seen = {(x.untyped_storage()._cdata, x.storage_offset()): x for x in reversed(tensors)}
            moved = sum(map(_bytes, seen.values())) * (2 if self.name == "running_sums" else 1)
            _counts[-1].kernels.append(Kernel(self.name, moved, 0, tensors[0].dtype))

        return launch


def count_kernels(monkeypatch: pytest.MonkeyPatch, module: Any, names: Iterable[str]) -> None:
    """Let Triton's kernels of these names in ``module`` be counted instead of run, for as long as the test lasts."""
    for name in names:
        monkeypatch.setattr(module, name, _StandIn(name))


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """A test in a process of its own: torch forgets no device that it has been told of, and others look for one."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        assert in_a_child(lambda: test(**given)) == 0

    return run


def _register() -> None:
    """Tell torch of the device; once in a process, and nothing takes it back."""
    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        pytest.skip(f"torch {torch.__version__} lets no Python program pretend a device")
    if not hasattr(torch, "gpu"):
        setup("gpu")
        for like_cuda in (WIDE_PRODUCTS, parts.DEVICES):
            like_cuda.add("gpu")
        torch.gpu.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]  # type: ignore[attr-defined]


@contextmanager
def device(kind: str = "cpu") -> Iterator[Counts]:
    """The pretended device is there.

    Args:
        kind: what its tensors hold: ``cpu`` for values, ``meta`` for shapes alone.
    """
    _register()
    _counts.append(Counts())
    _kind.append(kind)
    try:
        # One thread: those that torch begins for a device do not end with the program.
        with _FusedAttention(), _Mode(), torch.autograd.set_multithreading_enabled(False):
            yield _counts[-1]
    finally:
        _counts.pop()
        _kind.pop()


def sent(values: Any) -> Any:
    """A copy of tensors, in whatever holds them, on the device."""

    def send(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, DeviceTensor):
            return x
        return DeviceTensor(x.detach().to(_kind[-1], copy=True)).requires_grad_(x.requires_grad)

    return tree_map(send, values)


def sent_module(module: nn.Module) -> nn.Module:
    """The module itself, with its parameters and buffers on the device; those that were one stay one."""
    known: Dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(sent(parameter.detach()), parameter.requires_grad)
                part._parameters[name] = known[id(parameter)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = sent(buffer)
    return module


def back(values: Any) -> Any:
    """The data of tensors, in whatever holds them; counted nowhere."""
    return tree_map(lambda x: x._inner if isinstance(x, DeviceTensor) else x, values)


def gradients(module: nn.Module) -> Dict[str, Tensor]:
    """Of every parameter that has one."""
    return {name: back(p.grad) for name, p in _named(module) if p.grad is not None}


def _named(module: nn.Module) -> Iterable[Tuple[str, nn.Parameter]]:
    return module.named_parameters()
