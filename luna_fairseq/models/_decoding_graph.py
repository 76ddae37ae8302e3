"""A decoding step as one CUDA graph: ``LUNA_GRAPH=1``, off by default as no GPU has run it.

A step launches some 170 kernels that last a few microseconds each, so that the host is what it waits for. Luna's
decoding state never grows, so the step after the first is the same work at every position: captured once, it is one
launch. What it reads and writes stays where it is: tokens, the state, and the number of words so far, which is a
tensor of the state and not a number of the program.

A graph has room for a power of two of sentences, and serves fewer, down to a quarter: sentences that are done leave
a beam search, and what they leave free is padding. Its first use is compared with the ordinary step. Hooks of modules
run when a step is captured, and not again.
"""

import itertools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Dict, List, Optional, Protocol, Tuple

import torch
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules.attention import CausalLunaAttention, IncrementalState, LunaAttention
from luna_fairseq.ops.proving import TOLERANCE, Proofs
from luna_fairseq.ops.tracing import being_traced

_ROOM = 4  # so many times the sentences at hand
_MOST = 8  # kinds of a state that a decoder has graphs for; the oldest makes room
_ROWS = ops.CausalState._fields  # of the state, one for each row; all else is one for each sentence

_proofs = Proofs("decoding steps as CUDA graphs", "LUNA_GRAPH=0")


class Replayed(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Do it once more, with what now is where it was."""


class _CudaGraph:
    def __init__(self, run: Callable[[], None], device: torch.device) -> None:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # libraries make what they need when they are first called
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                run()

    def replay(self) -> None:
        self._graph.replay()


# How work is captured, by the type of a device.
CAPTURES: Dict[str, Callable[[Callable[[], None], torch.device], Replayed]] = {"cuda": _CudaGraph}


def wanted(device: torch.device) -> bool:
    """Whether ``LUNA_GRAPH`` asks for graphs, and there can be some; says once if not.

    Raises:
        ValueError: if it is neither 1 nor 0.
    """
    value = os.environ.get("LUNA_GRAPH", "0")
    if value not in ("0", "1"):
        raise ValueError(f"LUNA_GRAPH is {value!r}: set it to 1 for decoding steps as CUDA graphs, else to 0")
    if value == "1" and device.type not in CAPTURES:
        warnings.warn(f"LUNA_GRAPH is 1, and a {device.type} device has no graphs: steps are as ever", stacklevel=2)
    return value == "1" and device.type in CAPTURES


Saved = List[Dict[str, Any]]  # of each attention, in the order of the decoder


def _attentions(decoder: nn.Module) -> List[Any]:
    return [module for module in decoder.modules() if isinstance(module, LunaAttention | CausalLunaAttention)]


def _kind(saved: Saved) -> Hashable:
    """What is the same in all states that a graph can serve: all but the number of sentences."""
    seen: Dict[int, int] = {}
    found: List[Hashable] = []
    for name, x in itertools.chain.from_iterable(own.items() for own in saved):
        if isinstance(x, Tensor):  # layers share some
            found.append((name, x.dtype, tuple(x.shape[1:]), seen.setdefault(id(x), len(found))))
        else:
            found.append((name, x))
    return tuple(found)


def _compute(decoder: Any, tokens: Tensor, saved: Saved) -> Tuple[Tensor, Saved]:
    """The step behind any other for ``tokens``, ``[B, 1]``: logits, and what it saves. It looks at no value."""
    state: IncrementalState = {}
    attentions = _attentions(decoder)
    for attention, own in zip(attentions, saved, strict=True):
        attention._save(state, dict(own))
    padding = tokens.eq(decoder.padding_idx)
    before = next(own["steps"] for own in saved if "steps" in own)
    steps = decoder._steps(tokens, padding)
    x = decoder._embed(tokens, 1, before, in_table=True)
    for layer in decoder.layers:
        x, _, _ = layer(x, None, None, padding_mask=padding, incremental_state=state, steps=steps)
    if decoder.layer_norm is not None:
        x = decoder.layer_norm(x)
    if decoder.project_out_dim is not None:
        x = decoder.project_out_dim(x)
    return decoder.output_layer(x), [attention._saved(state) for attention in attentions]


def _copy(pairs: List[Tuple[Tensor, Tensor]]) -> None:
    """The second of each into the first, in a launch for each type."""
    for dtype in {target.dtype for target, _ in pairs}:
        own = [pair for pair in pairs if pair[0].dtype == dtype]
        torch._foreach_copy_([target for target, _ in own], [source for _, source in own])


class _Graph:
    """A captured step.

    Args:
        decoder: whose step.
        saved: a state like those that it will serve; its values are not read.
        room: for so many sentences.
        rows: of each sentence.
    """

    def __init__(self, decoder: Any, saved: Saved, room: int, rows: int) -> None:
        self.room, self._rows, self._filled = room, rows, 0
        self._decoder, self._padding_idx = weakref.ref(decoder), decoder.padding_idx
        self._places: List[Tuple[int, str]] = []  # where each buffer is first in a state
        self._buffers: List[Tensor] = []
        self._state: Saved = []
        known: Dict[int, Tensor] = {}
        for index, own in enumerate(saved):
            self._state.append(dict(own))
            for name, x in own.items():
                if isinstance(x, Tensor):
                    if id(x) not in known:
                        size = room * (rows if name in _ROWS else 1)
                        known[id(x)] = x.new_zeros(size, *x.shape[1:])
                        self._places.append((index, name))
                        self._buffers.append(known[id(x)])
                    self._state[-1][name] = known[id(x)]
        self._tokens = torch.full((room * rows, 1), decoder.padding_idx, device=self._buffers[0].device)
        # The last state, and the parts of the buffers that it reads as its own.
        self._reader: IncrementalState = {}
        self._given: List[Tensor] = []
        device = self._tokens.device
        self._captured = CAPTURES[device.type](self._run, device)

    def _run(self) -> None:
        decoder: Any = self._decoder()
        self._logits, after = _compute(decoder, self._tokens, self._state)
        new = [(buffer, after[i][name]) for buffer, (i, name) in zip(self._buffers, self._places, strict=True)]
        _copy([(buffer, x) for buffer, x in new if x is not buffer])

    def leave(self) -> None:
        """Give whoever reads the buffers numbers of his own."""
        own = {id(x): x.clone() for x in self._given}
        for saved in self._reader.values():
            saved.update({name: own[id(x)] for name, x in saved.items() if id(x) in own})
        self._reader, self._given = {}, []

    def step(self, tokens: Tensor, saved: Saved, state: IncrementalState) -> Tensor:
        """Logits of ``tokens``, ``[B, 1]``; ``saved``, which is in ``state``, becomes what is behind them."""
        rows = tokens.size(0)
        if self._reader is not state:
            self.leave()
        if rows != self._filled:
            self._tokens[rows:].fill_(self._padding_idx)
            self._filled = rows
        now = [saved[index][name] for index, name in self._places]
        parts = [buffer[: x.size(0)] for buffer, x in zip(self._buffers, now, strict=True)]
        given = {id(x) for x in self._given}
        changed = [(part, x) for part, x in zip(parts, now, strict=True) if id(x) not in given]
        _copy([(self._tokens[:rows], tokens), *changed])
        self._captured.replay()
        self._reader, self._given = state, parts
        of_buffer = {id(buffer): part for buffer, part in zip(self._buffers, parts, strict=True)}
        for own, names in zip(saved, self._state, strict=True):
            own.update({name: of_buffer[id(x)] for name, x in names.items() if isinstance(x, Tensor)})
        return self._logits[:rows].clone()


class _Graphs:
    """Those of one decoder, for as long as its parameters stay where they are."""

    def __init__(self, decoder: nn.Module) -> None:
        self.where = self.now(decoder)
        self.found: Dict[Hashable, List[_Graph]] = {}

    @staticmethod
    def now(decoder: nn.Module) -> Tuple[int, ...]:
        """Where the parameters are."""
        return tuple(x.data_ptr() for x in itertools.chain(decoder.parameters(), decoder.buffers()))


_graphs: "weakref.WeakKeyDictionary[nn.Module, _Graphs]" = weakref.WeakKeyDictionary()


def _graph(decoder: Any, saved: Saved, kind: Hashable, sentences: int, rows: int) -> _Graph:
    """One with room for so many sentences; captured if there is none."""
    graphs = _graphs.get(decoder)
    if graphs is None or graphs.where != _Graphs.now(decoder):
        graphs = _graphs[decoder] = _Graphs(decoder)
    found = graphs.found.setdefault(kind, [])
    if len(graphs.found) > _MOST:
        graphs.found.pop(next(iter(graphs.found)))
    fitting = [graph for graph in found if sentences <= graph.room <= _ROOM * sentences]
    if not fitting:
        fitting = [_Graph(decoder, saved, 1 << (sentences - 1).bit_length(), rows)]
        found += fitting
    return min(fitting, key=lambda graph: graph.room)


def _difference(graph: Callable[[Saved], Tensor], plain: Callable[[Saved], Tensor], saved: Saved) -> Optional[str]:
    """What the graph does to a copy of the state next to what the ordinary step does."""
    results: List[List[Tensor]] = []
    for step in (graph, plain):
        own = [dict(values) for values in saved]
        logits = step(own)
        results.append([logits, *(x.clone() for values in own for x in values.values() if isinstance(x, Tensor))])
    allowed = TOLERANCE.get(results[0][0].dtype, 1e-6)
    for got, want in zip(*results, strict=True):
        got, want = (torch.nan_to_num(x.double(), neginf=-1.0) for x in (got, want))  # masks are added to scores
        error = ((got - want).norm() / want.norm().clamp(min=1e-6)).item()
        if not error <= allowed:
            return f"off by {error:.1g}"
    return None


class GraphedSteps(TransformerDecoderBase):
    """A decoder of Luna whose steps may be graphs."""

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[IncrementalState] = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """As fairseq's; with ``LUNA_GRAPH=1`` a step after the first is one CUDA graph, if nothing speaks against it.

        Raises:
            ValueError: as :meth:`extract_features`, and for an unknown ``LUNA_GRAPH``.
        """
        ordinary = partial(super().forward, prev_output_tokens, encoder_out)
        if incremental_state is None or more or options or not wanted(prev_output_tokens.device):
            return ordinary(incremental_state, *more, **options)
        logits = self._by_graph(prev_output_tokens, incremental_state, ordinary)
        if logits is None:
            return ordinary(incremental_state)
        return logits, {"attn": [None], "inner_states": []}

    def _by_graph(self, tokens: Tensor, state: IncrementalState, ordinary: Callable[..., Any]) -> Optional[Tensor]:
        """Logits of the last of ``tokens``, or None if this is not a step for a graph."""
        decoder: Any = self
        seen = decoder._seen(state)
        last = getattr(self.embed_positions, "weights", getattr(self.embed_positions, "weight", None))
        behind = last is not None and tokens.size(1) + self.padding_idx >= last.size(0)
        if not seen or tokens.size(1) != seen + 1 or behind:
            return None
        if self.training or torch.is_grad_enabled() or decoder.need_attn or being_traced():
            return None
        attentions = _attentions(self)
        saved = [attention._saved(state) for attention in attentions]
        for own in saved:
            own.pop("overwrite", None)  # what a graph reads is its own, and what it is compared with stays
        rows = saved[0]["rows_per_sentence"]
        autocast = torch.is_autocast_enabled(tokens.device.type), torch.get_autocast_dtype(tokens.device.type)
        kind = _kind(saved), autocast, threading.get_ident()  # what it writes to is not for two threads
        # Casts that autocast remembers would be the graph's.
        kept = torch.autocast(tokens.device.type, autocast[1], autocast[0], cache_enabled=False)
        with torch.inference_mode(False), torch.no_grad(), kept:
            sentences = tokens.size(0) // rows
            find = partial(_graph, self, saved, kind, sentences, rows)

            def plain(own: Saved) -> Tensor:
                copied = {**state}
                for attention, values in zip(attentions, own, strict=True):
                    attention._save(copied, values)
                logits = ordinary(copied)[0]
                for attention, values in zip(attentions, own, strict=True):
                    values.update(attention._saved(copied))
                return logits

            def by_graph(own: Saved) -> Tensor:
                return find().step(tokens[:, -1:], own, {str(i): values for i, values in enumerate(own)})

            def compare() -> Optional[str]:
                with torch.no_grad():
                    return _difference(by_graph, plain, saved)

            if _proofs.wrong(tokens.device, kind, compare):
                return None
            logits = find().step(tokens[:, -1:], saved, state)
        self.set_incremental_state(state, "seen", {"length": tokens.size(1)})
        return logits
