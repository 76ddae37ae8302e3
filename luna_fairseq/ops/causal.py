"""Causal Luna attention in linear time and memory (paper, section 3.3).

Both sums of the method are causal linear attention, ``o_t = sum_{s<=t} (q_t . k_s) v_s``, so one function
serves them. It works chunk by chunk: inside a chunk a masked product, between chunks a running ``k v^T``.
Nothing of size ``N * K * L`` is ever built, and on a CPU nothing that leaves its caches but inputs and results.
"""

import math
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luna_fairseq.ops import fused
from luna_fairseq.ops.blocks import operand_type, wide_type
from luna_fairseq.ops.both_sums import both_sums
from luna_fairseq.ops.decay import decay_rates, decayed_mean, left_after
from luna_fairseq.ops.products import causal_products, wide_scores
from luna_fairseq.ops.tracing import making_a_graph


def _compiling() -> bool:
    """Whether ``torch.compile`` looks on, which is wrong about the layout of the gradients of softplus and elu."""
    return torch.compiler.is_compiling() and not making_a_graph()


def _softplus2(scores: Tensor) -> Tensor:
    if _compiling():
        return torch.logaddexp2(scores, scores.new_zeros(()))
    return F.softplus(scores, beta=math.log(2.0))


def _elu1(scores: Tensor) -> Tensor:
    if _compiling():
        return torch.where(scores > 0, scores + 1.0, scores.clamp(max=0.0).exp())
    return F.elu(scores) + 1.0


# w(.) of the paper: positive, w(0) = 1. softplus with beta = ln 2 is log2(1 + 2^x); 1 + elu is its ablation.
CAUSAL_ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {"softplus": _softplus2, "elu": _elu1}


def causal_pack_weights(context: Tensor, packed_query: Tensor, activation: str) -> Tensor:
    """The positive weights with which each position is packed: ``a_s = w(x_s W_pc (P W_pq)^T / sqrt(K))``.

    In float32 (float64 for float64 input) from the product on: in bfloat16 a score of some hundreds is off by one.

    Args:
        context: ``[B, H, N, K]``, the positions.
        packed_query: ``[B, H, L, K]``, the queries of P, scaled by ``1 / sqrt(K)``.
        activation: a key of ``CAUSAL_ACTIVATIONS``.

    Returns:
        ``[B, H, N, L]``.
    """
    if kernels := fused.kernels(context, packed_query, packed_query, packed_query.size(2)):
        return kernels.causal_pack_weights(context, packed_query, activation)
    with torch.autocast(device_type=context.device.type, enabled=False):
        wide = wide_type(context)
        if packed_query.dtype == context.dtype == operand_type(context) != wide and not making_a_graph():
            scores = wide_scores(context, packed_query)
        else:
            scores = context.to(wide) @ packed_query.to(wide).mT
        return CAUSAL_ACTIVATIONS[activation](scores)


class Counted(NamedTuple):
    """How many positions a mean is taken of.

    Attributes:
        steps: ``[B, N]`` int64, real positions up to and including each.
        mean: their reciprocals, ``[B, 1, N, 1]``, in float32 or wider; 1 where there are none. With a decay those of
            the sums of what is left of them, ``[B, H, N, 1]``.
        last: ``[B]``, the last of ``steps``.
    """

    steps: Tensor
    mean: Tensor
    last: Tensor

    @classmethod
    def of(cls, steps: Tensor, dtype: torch.dtype) -> "Counted":
        """The same of ``steps``."""
        last = steps[:, -1] if steps.size(1) else steps.new_zeros(steps.size(0))
        # Positions before the first real one have nothing to average: any finite divisor will do.
        return cls(steps, steps.clamp(min=1).to(dtype).reciprocal()[:, None, :, None], last)


class Faded(NamedTuple):
    """What decay leaves of what lies behind; each ``[B, H, N or 1, 1]``.

    Attributes:
        since: at every position, of the sums before the first one.
        until: behind the last position, of every one.
        whole: behind the last position, of the sums before the first one.
    """

    since: Tensor
    until: Tensor
    whole: Tensor


class Steps:
    """Counts the positions of a call once for all layers that share them.

    Args:
        batch, length: of the new positions.
        padding_mask: ``[B, N]`` bool, True = padding: it is not counted; or None.
        device: where they are.
        dtype: of the means: float32, or float64 for a model of that.
    """

    def __init__(
        self, batch: int, length: int, padding_mask: Optional[Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._shape = batch, length
        self._padding_mask = padding_mask
        self._device = device
        self._dtype = dtype
        self._none: Optional[Tensor] = None
        self._known: List[Tuple[Optional[Tensor], Counted]] = []
        self._scales: List[Tuple[Tensor, int, Tensor]] = []
        self._rates: Dict[Tuple[float, int], Tensor] = {}
        self._decayed: List[Tuple[Counted, Tensor, Counted]] = []
        self._faded: List[Tuple[Tensor, Tensor, Faded]] = []

    def none(self) -> Tensor:
        """What was counted before the first position, ``[B]``."""
        if self._none is None:
            self._none = torch.zeros(self._shape[0], dtype=torch.long, device=self._device)
        return self._none

    def after(self, before: Optional[Tensor]) -> Counted:
        """The count that goes on from ``before``, ``[B]`` int64; from 0 if it is None."""
        for known, found in self._known:
            if known is before:
                return found
        batch, length = self._shape
        if length == 1 and before is not None:  # one more position needs no count of its own
            steps = before.unsqueeze(1) + (1 if self._padding_mask is None else ~self._padding_mask)
        else:
            if self._padding_mask is not None:
                steps = (~self._padding_mask).cumsum(dim=1)
            else:
                steps = torch.arange(1, length + 1, device=self._device).expand(batch, -1)
            steps = steps if before is None else steps + before.unsqueeze(1)
        found = Counted.of(steps, self._dtype)
        self._known.append((before, found))
        return found

    def rates(self, fastest: float, heads: int) -> Tensor:
        """:func:`luna_fairseq.ops.decay.decay_rates`, ``[H, 1, 1]``."""
        if (fastest, heads) not in self._rates:
            self._rates[fastest, heads] = decay_rates(fastest, heads, self._device, self._dtype)
        return self._rates[fastest, heads]

    def decayed(self, counted: Counted, rates: Tensor) -> Counted:
        """The same count with the means of heads that forget."""
        for plain, of, found in self._decayed:
            if plain is counted and of is rates:
                return found
        found = counted._replace(mean=decayed_mean(rates, counted.steps))
        self._decayed.append((counted, rates, found))
        return found

    def faded(self, before: Tensor, counted: Counted, rates: Tensor) -> Faded:
        """What is left of what lies behind, by the number of real positions in between."""
        for known, of, found in self._faded:
            if known is before and of is rates:
                return found
        last = counted.last[:, None]
        counts = (counted.steps - before[:, None], last - counted.steps, last - before[:, None])
        found = Faded(*(left_after(rates, count) for count in counts))
        self._faded.append((before, rates, found))
        return found

    def scale(self, counted: Counted, head_dim: int) -> Tensor:
        """``1 / (t sqrt(K))`` of every position, ``[B, 1, N, 1]``."""
        for mean, dim, found in self._scales:
            if mean is counted.mean and dim == head_dim:
                return found
        found = counted.mean * head_dim**-0.5
        self._scales.append((counted.mean, head_dim, found))
        return found


class CausalState(NamedTuple):
    """What decoding has to remember of all earlier positions, whatever their number.

    Attributes:
        key_sum: ``[B, H, L, K]``, the sum of ``a_s k_s^T``, in float32 or wider.
        value_sum: ``[B, H, L, K]``, the sum of ``a_s v_s^T``, likewise; where keys are values, the same tensor.
        steps: ``[B]`` int64, how many real positions the sums hold.
    """

    key_sum: Tensor
    value_sum: Tensor
    steps: Tensor

    @classmethod
    def start(cls, packed_query: Tensor, batch: int, tie_kv: bool, steps: Optional[Tensor] = None) -> "CausalState":
        """The state of ``batch`` rows before the first position, for a packed query ``[S, H, L, K]``.

        ``steps``: its zeros, if there are some already.
        """
        dtype = wide_type(packed_query)
        shape = (batch, *packed_query.shape[1:])
        key_sum = packed_query.new_zeros(shape, dtype=dtype)
        value_sum = key_sum if tie_kv else packed_query.new_zeros(shape, dtype=dtype)
        if steps is None:
            steps = torch.zeros(batch, dtype=torch.long, device=packed_query.device)
        return cls(key_sum, value_sum, steps)


def _add(total: Tensor, pack_weights: Tensor, x: Tensor, overwrite: bool, faded: Optional[Faded]) -> Tensor:
    """``total + sum_s a_s x_s^T``; in one pass for one position, and in the place of ``total`` if that is allowed.

    With a decay it is what is left of these.
    """
    if x.size(2) != 1:
        if faded is not None:
            total, pack_weights = total * faded.whole, pack_weights * faded.until
        return total + pack_weights.mT @ x
    if overwrite and not torch.is_grad_enabled() and total.is_inference() == torch.is_inference_mode_enabled():
        total = total if faded is None else total.mul_(faded.whole)
        return total.addcmul_(pack_weights.mT, x)
    return torch.addcmul(total if faded is None else total * faded.whole, pack_weights.mT, x)


class _Behind(NamedTuple):
    """What positions that follow others multiply their products by.

    Attributes:
        scale: of the result, ``[B, 1 or H, N, 1]``.
        faded: by how much the sums before them and they themselves have faded, or None.
        rates: at which they fade, ``[H, 1, 1]``, or None.
    """

    scale: Tensor
    faded: Optional[Faded] = None
    rates: Optional[Tensor] = None


def _continued_products(
    query: Tensor, key: Tensor, value: Tensor, behind: _Behind, before: Tensor, after: Tensor
) -> Tensor:
    """:func:`causal_products` behind earlier positions, whose ``k^T v`` is ``before``; with these it is ``after``."""
    if query.size(2) == 1:  # one step of decoding
        return query @ after * behind.scale
    of_before = behind.scale if behind.faded is None else behind.scale * behind.faded.since
    return query @ before * of_before + causal_products(query, key, value, behind.scale, behind.rates)


def additive_mask(mask: Optional[Tensor], dtype: torch.dtype) -> Optional[Tensor]:
    """A mask from :func:`luna_fairseq.ops.key_mask` as what is added to scores: 0 where it is True, else -inf."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _for_all_rows(mask: Tensor, batch: int) -> Tensor:
    """A mask of P in any of its forms as one that is True where a row of P belongs to the sentence."""
    own = mask == 0 if mask.is_floating_point() else mask
    return own.repeat_interleave(batch // own.size(0), dim=0) if 1 < own.size(0) < batch else own


def _continued_scores(
    query: Tensor,
    key: Tensor,
    pack_weights: Tensor,
    behind: _Behind,
    packed_mask: Optional[Tensor],
    before: Tensor,
    after: Tensor,
) -> Tensor:
    """The scores of rows of P behind earlier positions; -inf for those that do not belong to the sentence."""
    mask = additive_mask(packed_mask, query.dtype)
    if mask is None:
        return _continued_products(query, key, pack_weights, behind, before, after)
    if query.size(2) == 1:
        products, factor = query @ after, behind.scale
    else:
        products = _continued_products(query, key, pack_weights, behind, before, after)
        factor = behind.scale.new_ones(1)
    sentences = mask.size(0), products.size(0) // max(1, mask.size(0))
    by_sentence = products.unflatten(0, sentences)
    if factor.dim() > 1:
        factor = factor.unflatten(0, sentences)
    return torch.addcmul(mask.unsqueeze(1), by_sentence, factor).flatten(0, 1)


def causal_luna_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack_weights: Tensor,
    *,
    packed_mask: Optional[Tensor] = None,
    padding_mask: Optional[Tensor] = None,
    pack_dropout: float = 0.0,
    unpack_dropout: float = 0.0,
    state: Optional[CausalState] = None,
    steps: Optional[Steps] = None,
    overwrite: bool = False,
    decay: float = 0.0,
) -> Tuple[Tensor, Optional[CausalState]]:
    """Causal Luna attention over positions that follow those of ``state``.

    With ``a_s`` the pack weights of position s and t the number of real positions up to and including it::

        p_t = softmax_L( 1/t * sum_{s<=t} (q_t . k_s / sqrt(K)) a_s )
        y_t = 1/t * sum_{s<=t} (p_t . a_s) v_s

    The sums are taken in float32 (float64 for float64 input) whatever the dtype of the model: in half
    precision they overflow after some hundreds of positions.

    Args:
        query: ``[B, H, N, K]``; scaled by ``1 / sqrt(K)`` in here.
        key, value: ``[B, H, N, K]``.
        pack_weights: ``[B, H, N, L]``, positive: the activation of x against P.
        packed_mask: ``[B, 1, 1, L]`` bool, True = a row of P that belongs to the sentence, or None; with a state
            also ``[S, 1, 1, L]``, if every sentence has B / S consecutive rows, and as what is added to scores
            (:func:`additive_mask`).
        padding_mask: ``[B, N]`` bool, True = padding: adds nothing to the sums and is not counted. With a decay it
            lies before or behind the other positions of a sentence, not between them.
        pack_dropout: probability for the pack weights; one mask, shared by both sums.
        unpack_dropout: probability for ``p_t``.
        state: what earlier positions left (:meth:`CausalState.start` before the first), or None if no
            positions will follow.
        steps: the positions, counted for several layers; of the same ``padding_mask``. Counted here if it is None.
        overwrite: the sums of ``state`` are read by nobody else, and may become those of the result.
        decay: the rate at which the first head forgets (:mod:`luna_fairseq.ops.decay`); 0 for plain means.

    Returns:
        ``[B, H, N, K]`` in the dtype of ``value``, and the state after the last position, or None if none
        was given.

    Raises:
        ValueError: if ``state`` was started for keys that are values, and these are not.
    """
    with torch.autocast(device_type=query.device.type, enabled=False):
        wide = wide_type(query)
        out_dtype = value.dtype
        tie_kv = key is value
        if state is not None and state.key_sum is state.value_sum and not tie_kv:
            raise ValueError("the state holds one sum for keys and values: start it with tie_kv=False")
        batch, _, length, head_dim = query.shape
        one_step = state is not None and length == 1  # a few small products
        # Kernels let a state fade by positions, real or not.
        fits = not one_step and not (decay and state is not None and padding_mask is not None)
        if fits and (kernels := fused.kernels(query, key, value, pack_weights.size(-1))):
            mask = None if packed_mask is None else _for_all_rows(packed_mask, batch)
            options = (mask, padding_mask, pack_dropout, unpack_dropout, state, steps, decay)
            return kernels.causal_luna_attention(query, key, value, pack_weights, *options)

        if pack_dropout > 0.0:
            pack_weights = F.dropout(pack_weights, pack_dropout)
        if padding_mask is not None:
            pack_weights = pack_weights.masked_fill(padding_mask[:, None, :, None], 0.0)
        if steps is None:
            steps = Steps(batch, length, padding_mask, query.device, wide)
        counted = steps.after(None if state is None else state.steps)
        rates: Optional[Tensor] = None
        if decay:
            rates = steps.rates(decay, query.size(1))
            counted = steps.decayed(counted, rates)
        mean = counted.mean.to(wide)
        if state is None:
            return both_sums(query, key, value, pack_weights, mean, packed_mask, unpack_dropout, rates), None
        query, key, pack_weights = (t.to(wide) for t in (query, key, pack_weights))
        value = key if tie_kv else value.to(wide)
        faded = None if rates is None else steps.faded(state.steps, counted, rates)
        key_before, value_before = state.key_sum, state.value_sum
        key_sum = _add(key_before, pack_weights, key, overwrite, faded)
        behind = _Behind(steps.scale(counted, head_dim).to(wide), faded, rates)
        scores = _continued_scores(query, key, pack_weights, behind, packed_mask, key_before.mT, key_sum.mT)
        unpack_weights = torch.softmax(scores, dim=-1)
        if unpack_dropout > 0.0:
            unpack_weights = F.dropout(unpack_weights, unpack_dropout)
        value_sum = key_sum if tie_kv else _add(value_before, pack_weights, value, overwrite, faded)
        behind = behind._replace(scale=mean)
        out = _continued_products(unpack_weights, pack_weights, value, behind, value_before, value_sum)
        return out.to(out_dtype), CausalState(key_sum, value_sum, counted.last)
