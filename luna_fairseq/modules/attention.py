"""Luna attention as fairseq modules: projections, heads, dropout and decoding state around ``luna_fairseq.ops``.

Tensors are batch x time x channel, which attention splits into heads without copying (fairseq's own layers are
time x batch x channel; the encoder and the decoder convert once). Projections bear the paper's names: ``pq pc
pk pv`` make the queries, tied keys-and-values, keys and values of the pack step, ``q c k v`` those of the
unpack step.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from fairseq.incremental_decoding_utils import FairseqIncrementalState
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules.dropout import Dropout
from luna_fairseq.modules.weights import LunaWeights, luna_weights

IncrementalState = Dict[str, Dict[str, Optional[Tensor]]]


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, N, D]`` -> ``[B, H, N, K]``, a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    """``[B, H, N, K]`` -> ``[B, N, D]``."""
    return x.transpose(1, 2).flatten(2)


def check_heads(embed_dim: int, num_heads: int, what: str) -> int:
    """The width of one head.

    Raises:
        ValueError: if ``num_heads`` does not divide ``embed_dim``; ``what`` is the option to change.
    """
    if num_heads < 1 or embed_dim % num_heads != 0:
        raise ValueError(f"{what} is {num_heads}: it must be at least 1 and divide the model width {embed_dim}")
    return embed_dim // num_heads


class _LunaAttentionBase(FairseqIncrementalState, nn.Module):
    """Projections, dropout and decoding state for both attentions below."""

    if TYPE_CHECKING:  # torch.jit reads annotations, and knows no types of modules
        # Which of these exist is said to _add_projections.
        pq_proj: nn.Module
        pc_proj: nn.Module
        pk_proj: nn.Module
        pv_proj: nn.Module
        q_proj: nn.Module
        c_proj: nn.Module
        k_proj: nn.Module
        v_proj: nn.Module
        out_proj: nn.Module
        dropout_module: Dropout

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = check_heads(embed_dim, num_heads, "the number of attention heads")
        self.dropout_module = Dropout(dropout, module_name=self.__class__.__name__)

    def _add_projections(self, in_dims: Dict[str, int], bias: bool, q_noise: float, qn_block_size: int) -> None:
        """Create ``<name>_proj`` for each name, Xavier uniform (gain 1/sqrt(2); 1 for ``out``)."""
        for name, in_dim in in_dims.items():
            linear = nn.Linear(in_dim, self.embed_dim, bias=bias)
            nn.init.xavier_uniform_(linear.weight, gain=1.0 if name == "out" else 1.0 / math.sqrt(2.0))
            if name == "out" and bias:
                nn.init.zeros_(linear.bias)
            self.add_module(f"{name}_proj", quant_noise(linear, q_noise, qn_block_size))

    def _unseen_in_shapes(self) -> Dict[str, Any]:
        """What makes another attention of the same parameters; saved with them, and checked when loading."""
        return {"num_heads": self.num_heads}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination._metadata[prefix[:-1]].update(self._unseen_in_shapes())

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: List[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        error_msgs = lists[-1]
        for name, value in self._unseen_in_shapes().items():
            saved = local_metadata.get(name, value)  # published checkpoints do not say
            if saved != value:
                error_msgs.append(f"{prefix}{name} is {saved} in the checkpoint and {value} in this model")

    def _to_fold(self, x: Tensor, rows: int, heads: int, taken: int, *names: str) -> List[ops.Projection]:
        """The named projections if it pays to fold them into ``rows`` rows of P, or none of them.

        Args:
            x: ``[B, N, D]``, what each of them is spared.
            rows: L.
            heads: H.
            taken: see :func:`luna_fairseq.ops.folding_pays`.
            names: whose products are spared.
        """
        found: List[ops.Projection] = []
        for name in names:
            proj = self.get_submodule(f"{name}_proj")
            # Quantisation noise is a hook; whatever else was put around a projection wants to see x, too.
            hooks = (proj._forward_hooks, proj._forward_pre_hooks, proj._backward_hooks, proj._backward_pre_hooks)
            if type(proj) is not nn.Linear or "forward" in vars(proj) or any(hooks):
                return []
            found.append((proj.weight, proj.bias))
        return found if ops.folding_pays(x, self.embed_dim, rows, heads, len(names), taken) else []

    def _saved(self, incremental_state: Optional[IncrementalState]) -> Dict[str, Optional[Tensor]]:
        # Called on the class: nn.Module's typing takes any attribute of a module for a tensor.
        return FairseqIncrementalState.get_incremental_state(self, incremental_state, "luna") or {}

    def _save(self, incremental_state: Optional[IncrementalState], values: Dict[str, Optional[Tensor]]) -> None:
        FairseqIncrementalState.set_incremental_state(self, incremental_state, "luna", values)

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Union[Tensor, ops.RowOrder]
    ) -> None:
        """Make row i of everything saved what row ``new_order[i]`` was; any order, any length.

        What depends on the sentence alone stays where it is while rows change within their sentences.

        Args:
            incremental_state: changed in place; its tensors are not.
            new_order: ``[B']`` int64, or an order that several modules share.
        """
        saved = self._saved(incremental_state)
        if not saved:
            return
        order = new_order if isinstance(new_order, ops.RowOrder) else ops.RowOrder(new_order)
        now = dict(saved)
        rows_per_sentence = now.pop("rows_per_sentence")
        sums = {name: now.pop(name) for name in ops.CausalState._fields if name in now}
        sentences = next(x.size(0) for x in now.values() if x is not None)
        before = int(rows_per_sentence)  # type: ignore[arg-type]
        kept, after = order.sentences(sentences, before)
        now = ops.select_rows(now, kept)
        now.update(ops.select_rows(sums, order.rows if order.changes(sentences * before) else None))
        self._save(incremental_state, {**now, "rows_per_sentence": torch.tensor(after)})


class LunaAttention(_LunaAttentionBase):
    """Luna attention (paper, section 3.1): P packs the context, the queries unpack it; linear in both lengths.

    Args:
        embed_dim: D, the width of queries, P and output.
        num_heads: heads of the unpack step.
        num_packed_heads: heads of the pack step ("projected attention heads"); default ``num_heads``.
        context_dim: width of the context; default D.
        dropout: probability for the pack weights and for the unpack weights.
        bias: give every projection a bias.
        tie_kv: one matrix for the keys and values of the pack step, and one for those of the unpack step.
        q_noise, qn_block_size: quantisation noise on the projections (fairseq's ``--quant-noise-pq``).
        position_bias: what the slopes of :mod:`luna_fairseq.ops.position_bias` start from, one learned slope for each
            head of the pack step; 0 for none, as published.

    Raises:
        ValueError: if a number of heads does not divide ``embed_dim``.
    """

    if TYPE_CHECKING:
        position_slope: Optional[nn.Parameter]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_packed_heads: Optional[int] = None,
        *,
        context_dim: Optional[int] = None,
        dropout: float = 0.0,
        bias: bool = True,
        tie_kv: bool = True,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        position_bias: float = 0.0,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout)
        self.num_packed_heads = num_heads if num_packed_heads is None else num_packed_heads
        check_heads(embed_dim, self.num_packed_heads, "the number of projected attention heads")
        self.tie_kv = tie_kv
        context_dim = embed_dim if context_dim is None else context_dim
        in_dims = {"pq": embed_dim, "q": embed_dim}
        if tie_kv:
            in_dims.update(pc=context_dim, c=embed_dim)
        else:
            in_dims.update(pk=context_dim, pv=context_dim, k=embed_dim, v=embed_dim)
        self._add_projections({**in_dims, "out": embed_dim}, bias, q_noise, qn_block_size)
        slope = nn.Parameter(torch.full((self.num_packed_heads,), float(position_bias))) if position_bias else None
        self.register_parameter("position_slope", slope)

    def _unseen_in_shapes(self) -> Dict[str, Any]:
        return {**super()._unseen_in_shapes(), "num_packed_heads": self.num_packed_heads}

    def pack(
        self,
        packed: Tensor,
        context: Tensor,
        context_mask: Optional[Tensor],
        packed_mask: Optional[Tensor] = None,
        places: Optional[ops.RowPlaces] = None,
        fold: bool = True,
    ) -> Tuple[Tensor, Callable[[], Tensor]]:
        """Pack: P reads the context.

        Args:
            packed: P, ``[B, L, D]``.
            context: ``[B, M, D_context]``.
            context_mask: ``[B, 1, 1, M]`` from :func:`luna_fairseq.ops.key_mask`, or None.
            packed_mask: ``[B, 1, 1, L]`` likewise, or None; read with a position bias alone.
            places: of the batch, from :func:`luna_fairseq.ops.row_places`; made here if there are none and it needs
                them.
            fold: fold the projections of the context into P where that is less work without the weights.

        Returns:
            ``[B, L, D]``, before any output projection, and what computes the weights, ``[B, H', L, M]`` float32.
        """
        heads = self.num_packed_heads
        bias: Optional[ops.PositionBias] = None
        if self.position_slope is not None:
            if places is None:
                places = ops.row_places(packed.size(1), heads, context, context_mask, packed_mask)
            bias = ops.PositionBias(self.position_slope, places)
        query = _split_heads(self.pq_proj(packed), heads)
        names = ("pc",) if self.tie_kv else ("pk", "pv")
        if fold and (folded := self._to_fold(context, packed.size(1), heads, 2, *names)):
            rate = self.dropout_module.rate
            out = ops.folded_pack(query, context, folded[0], folded[-1], context_mask, rate, bias)
            key_proj = self.pc_proj if self.tie_kv else self.pk_proj
            return _join_heads(out), lambda: ops.attention_weights(
                query, _split_heads(key_proj(context), heads), context_mask, bias
            )
        if self.tie_kv:
            key = value = _split_heads(self.pc_proj(context), heads)
        else:
            key = _split_heads(self.pk_proj(context), heads)
            value = _split_heads(self.pv_proj(context), heads)
        out = ops.attend(query, key, value, context_mask, self.dropout_module.rate, bias)
        return _join_heads(out), partial(ops.attention_weights, query, key, context_mask, bias)

    def forward(
        self,
        query: Tensor,
        packed: Optional[Tensor],
        context: Optional[Tensor],
        context_mask: Optional[Tensor] = None,
        packed_mask: Optional[Tensor] = None,
        incremental_state: Optional[IncrementalState] = None,
        need_weights: bool = False,
        weights_later: bool = False,
        places: Optional[ops.RowPlaces] = None,
    ) -> Tuple[Tensor, Optional[Tensor], Union[Tensor, LunaWeights, None]]:
        """Pack, then unpack.

        What depends only on P and the context is computed at the first call with an ``incremental_state``
        and read from there afterwards, as are the masks; later calls may pass None for all of them. In a beam
        search S sentences have B / S consecutive rows each; everywhere else S = B.

        Args:
            query: ``[B, N, D]``.
            packed: P, ``[S, L, D]``.
            context: ``[S, M, D_context]``; the query itself in self-attention.
            context_mask: ``[S, 1, 1, M]`` from :func:`luna_fairseq.ops.key_mask`, or None.
            packed_mask: ``[S, 1, 1, L]`` likewise, or None.
            incremental_state: fairseq's decoding state, or None.
            need_weights: return the effective attention map; with an ``incremental_state``, ask from the
                first call on.
            weights_later: return what computes the map when it is wanted; not with an ``incremental_state``.
            places: where P looks, for a position bias; see :meth:`pack`.

        Returns:
            Y_X ``[B, N, D]``; Y_P ``[S, L, D]`` before any output projection, or None when it was not
            computed; and, if asked for, the map, ``[H, B, N, M]`` (:func:`luna_weights`), or what computes it.

        Raises:
            ValueError: if the rows of ``query`` are not a multiple of those of P, or the weights are asked
                for too late.
        """
        saved = self._saved(incremental_state)
        if saved:
            key, value, pack_weights, packed_mask = (
                saved[k] for k in ("key", "value", "pack_weights", "packed_mask")
            )
            packed_out = pack = None
        else:
            assert packed is not None and context is not None
            packed_out, pack = self.pack(packed, context, context_mask, packed_mask, places, not need_weights)
            pack_weights = pack() if need_weights else None
            pack = pack if weights_later else None  # it holds keys
            if self.tie_kv:
                key = value = _split_heads(self.c_proj(packed_out), self.num_heads)
            else:
                key = _split_heads(self.k_proj(packed_out), self.num_heads)
                value = _split_heads(self.v_proj(packed_out), self.num_heads)
        assert key is not None and value is not None
        batch, length, _ = query.shape
        rows = ops.rows_per_sentence(batch, key.size(0))
        if not saved:
            saving = {"key": key, "value": value, "pack_weights": pack_weights, "packed_mask": packed_mask}
            self._save(incremental_state, {**saving, "rows_per_sentence": torch.tensor(rows)})
        query = query.reshape(key.size(0), rows * length, self.embed_dim)  # all rows of a sentence side by side

        folded: List[ops.Projection] = []
        if not need_weights and incremental_state is None:
            folded = self._to_fold(query, key.size(2), self.num_heads, 2, "q", "out")
        if folded:
            to_q, to_out = folded
            y = ops.folded_unpack(query, to_q, key, value, to_out, packed_mask, self.dropout_module.rate)
        else:
            q = _split_heads(self.q_proj(query), self.num_heads)
            y = self.out_proj(_join_heads(ops.attend(q, key, value, packed_mask, self.dropout_module.rate)))
        y = y.view(batch, length, self.embed_dim)

        def unpack() -> Tensor:
            return ops.attention_weights(
                _split_heads(self.q_proj(query), self.num_heads) if folded else q, key, packed_mask
            )

        if need_weights:
            if pack_weights is None:
                raise ValueError("need_weights was False at the first decoding step: ask for it from there on")
            return y, packed_out, luna_weights(unpack(), pack_weights, batch)
        return y, packed_out, LunaWeights(unpack, pack, batch) if pack is not None else None


class CausalLunaAttention(_LunaAttentionBase):
    """Causal Luna self-attention of the decoder (paper, section 3.3), linear in time and memory.

    Args:
        embed_dim: D.
        num_heads: H.
        dropout: probability for the pack weights and for the unpack weights.
        bias: give every projection a bias.
        tie_kv: one matrix for keys and values.
        activation: ``softplus`` or ``elu``, what keeps the pack weights positive.
        q_noise, qn_block_size: quantisation noise on the projections (fairseq's ``--quant-noise-pq``).

    Raises:
        ValueError: if ``num_heads`` does not divide ``embed_dim``, or the activation is unknown.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        tie_kv: bool = True,
        activation: str = "softplus",
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout)
        if activation not in ops.CAUSAL_ACTIVATIONS:
            raise ValueError(
                f"--causal-activation is {activation!r}: choose one of {', '.join(ops.CAUSAL_ACTIVATIONS)}"
            )
        self.activation = activation
        self.tie_kv = tie_kv
        names = ("pq", "pc", "q", "c", "out") if tie_kv else ("pq", "pc", "q", "k", "v", "out")
        self._add_projections(dict.fromkeys(names, embed_dim), bias, q_noise, qn_block_size)

    def _unseen_in_shapes(self) -> Dict[str, Any]:
        return {**super()._unseen_in_shapes(), "activation": self.activation}

    def state(self, incremental_state: Optional[IncrementalState]) -> Optional[ops.CausalState]:
        """What the positions so far have left in a decoding state, or None before the first."""
        saved = self._saved(incremental_state)
        return ops.CausalState(*(saved[name] for name in ops.CausalState._fields)) if saved else None  # type: ignore[arg-type]

    def forward(
        self,
        query: Tensor,
        packed: Optional[Tensor],
        packed_mask: Optional[Tensor] = None,
        padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[IncrementalState] = None,
        carried: Optional[ops.CausalState] = None,
    ) -> Tensor:
        """Attend from each position to itself and the earlier ones.

        With an ``incremental_state`` the positions follow those of earlier calls, one or several at a time;
        the state is two sums (one, if kv are tied) and an integer count per row, and the queries of P,
        computed once per sentence, with the mask of P. In a beam search S sentences have B / S consecutive
        rows each; everywhere else S = B.

        Args:
            query: ``[B, N, D]``.
            packed: P, ``[S, L, D]``; may be None after the first call with an ``incremental_state``.
            packed_mask: ``[S, 1, 1, L]`` from :func:`luna_fairseq.ops.key_mask`, or None; likewise.
            padding_mask: ``[B, N]`` bool, True = padding, or None; needed only for padding before a real
                position, since later positions cannot be seen.
            incremental_state: fairseq's decoding state, or None.
            carried: what earlier positions have left, to begin an empty ``incremental_state`` with; not changed.

        Returns:
            ``[B, N, D]``.
        """
        saved = self._saved(incremental_state)
        state = self.state(incremental_state)
        if saved:
            packed_query, packed_mask = saved["packed_query"], saved["packed_mask"]
        else:
            assert packed is not None
            packed_query = _split_heads(self.pq_proj(packed), self.num_heads) * self.head_dim**-0.5
            if incremental_state is not None:
                packed_query = packed_query.contiguous()  # once, and not in the product of every step
                state = carried or ops.CausalState.start(packed_query, query.size(0), self.tie_kv)
        assert packed_query is not None

        q = _split_heads(self.q_proj(query), self.num_heads)
        projections = (self.c_proj,) if self.tie_kv else (self.k_proj, self.v_proj)
        key, *other = (_split_heads(proj(query), self.num_heads) for proj in projections)
        value = other[0] if other else key
        length, rows = query.size(1), ops.rows_per_sentence(query.size(0), packed_query.size(0))
        # All rows of a sentence side by side. One P may be that of any batch, whatever one the model is traced with.
        one = packed_query.size(0) == 1 and query.numel() > 0
        context = query.reshape(packed_query.size(0), -1 if one else rows * length, self.embed_dim)
        if folded := self._to_fold(context, packed_query.size(2), self.num_heads, 1, "pc"):
            scores = _split_heads(ops.folded_scores(context, packed_query, folded[0]), self.num_heads)
            pack_weights = ops.CAUSAL_ACTIVATIONS[self.activation](scores)
        else:
            context = _split_heads(self.pc_proj(context), self.num_heads)
            pack_weights = ops.causal_pack_weights(context, packed_query, self.activation)
        if rows > 1 or one:
            pack_weights = pack_weights.unflatten(2, (-1 if one else rows, length)).transpose(1, 2).flatten(0, 1)
        row_mask = packed_mask if packed_mask is None or rows == 1 else packed_mask.repeat_interleave(rows, dim=0)
        y, state = ops.causal_luna_attention(
            q,
            key,
            value,
            pack_weights,
            packed_mask=row_mask,
            padding_mask=padding_mask,
            pack_dropout=self.dropout_module.rate,
            unpack_dropout=self.dropout_module.rate,
            state=state,
        )
        if state is not None:
            saving = {"packed_query": packed_query, "packed_mask": packed_mask, **state._asdict()}
            self._save(incremental_state, {**saving, "rows_per_sentence": torch.tensor(rows)})
        return self.out_proj(_join_heads(y))
