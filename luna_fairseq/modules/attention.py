"""Luna attention as fairseq modules: projections, heads, dropout and decoding state around ``luna_fairseq.ops``.

Tensors are batch x time x channel, which attention splits into heads without copying (fairseq's own layers are
time x batch x channel; the encoder and the decoder convert once). Projections bear the paper's names: ``pq pc
pk pv`` make the queries, tied keys-and-values, keys and values of the pack step, ``q c k v`` those of the
unpack step.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules.attention_base import (
    IncrementalState,
    _join_heads,
    _LunaAttentionBase,
    _split_heads,
    check_heads,
)
from luna_fairseq.modules.weights import LunaWeights, luna_weights


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
        query = _split_heads(ops.linear(self.pq_proj, packed), heads)
        names = ("pc",) if self.tie_kv else ("pk", "pv")
        if fold and (folded := self._to_fold(context, packed.size(1), heads, 2, *names)):
            rate = self.dropout_module.rate
            out = ops.folded_pack(query, context, folded[0], folded[-1], context_mask, rate, bias)
            key_proj = self.pc_proj if self.tie_kv else self.pk_proj
            return _join_heads(out), lambda: ops.attention_weights(
                query, _split_heads(key_proj(context), heads), context_mask, bias
            )
        if self.tie_kv:
            key = value = _split_heads(ops.linear(self.pc_proj, context), heads)
        else:
            key = _split_heads(ops.linear(self.pk_proj, context), heads)
            value = _split_heads(ops.linear(self.pv_proj, context), heads)
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
                key = value = _split_heads(ops.linear(self.c_proj, packed_out), self.num_heads)
            else:
                key = _split_heads(ops.linear(self.k_proj, packed_out), self.num_heads)
                value = _split_heads(ops.linear(self.v_proj, packed_out), self.num_heads)
        assert key is not None and value is not None
        batch, length, _ = query.shape
        rows = ops.rows_per_sentence(batch, key.size(0))
        if not saved and incremental_state is not None:
            packed_mask = ops.additive_mask(packed_mask, key.dtype)  # once, and not in every step
            if key.device.type == "cpu":  # likewise: products copy what is not; a GPU's attention does not
                tied = key is value
                key = key.contiguous()
                value = key if tied else value.contiguous()
            saving = {"key": key, "value": value, "pack_weights": pack_weights, "packed_mask": packed_mask}
            self._save(incremental_state, {**saving, "rows_per_sentence": rows})
        query = query.reshape(key.size(0), rows * length, self.embed_dim)  # all rows of a sentence side by side

        folded: List[ops.Projection] = []
        if not need_weights and incremental_state is None:
            folded = self._to_fold(query, key.size(2), self.num_heads, 2, "q", "out")
        if folded:
            to_q, to_out = folded
            y = ops.folded_unpack(query, to_q, key, value, to_out, packed_mask, self.dropout_module.rate)
        else:
            q = _split_heads(ops.linear(self.q_proj, query), self.num_heads)
            y = ops.linear(
                self.out_proj, _join_heads(ops.attend(q, key, value, packed_mask, self.dropout_module.rate))
            )
        y = y.view(batch, length, self.embed_dim)

        def unpack() -> Tensor:
            return ops.attention_weights(
                _split_heads(ops.linear(self.q_proj, query), self.num_heads) if folded else q, key, packed_mask
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
        decay: the rate at which the first head forgets what lies behind, the others more slowly
            (:mod:`luna_fairseq.ops.decay`); 0 for plain means, as published.
        q_noise, qn_block_size: quantisation noise on the projections (fairseq's ``--quant-noise-pq``).

    Raises:
        ValueError: if ``num_heads`` does not divide ``embed_dim``, or activation or decay are none that there are.
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
        decay: float = 0.0,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout)
        if activation not in ops.CAUSAL_ACTIVATIONS:
            raise ValueError(
                f"--causal-activation is {activation!r}: choose one of {', '.join(ops.CAUSAL_ACTIVATIONS)}"
            )
        ops.check_decay(decay)
        self.activation = activation
        self.decay = float(decay)
        self.tie_kv = tie_kv
        names = ("pq", "pc", "q", "c", "out") if tie_kv else ("pq", "pc", "q", "k", "v", "out")
        self._add_projections(dict.fromkeys(names, embed_dim), bias, q_noise, qn_block_size)

    def _unseen_in_shapes(self) -> Dict[str, Any]:
        return {**super()._unseen_in_shapes(), "activation": self.activation, "causal_decay": self.decay}

    def state(self, incremental_state: Optional[IncrementalState]) -> Optional[ops.CausalState]:
        """What the positions so far have left in a decoding state, or None before the first."""
        saved = self._saved(incremental_state)
        return ops.CausalState(*(saved[name] for name in ops.CausalState._fields)) if saved else None

    def replace_state(self, incremental_state: IncrementalState, state: ops.CausalState) -> None:
        """Go on as if the positions so far had left this; only after the first call with ``incremental_state``."""
        self._save(incremental_state, {**self._saved(incremental_state), **state._asdict()})

    def forward(
        self,
        query: Tensor,
        packed: Optional[Tensor],
        packed_mask: Optional[Tensor] = None,
        padding_mask: Optional[Tensor] = None,
        incremental_state: Optional[IncrementalState] = None,
        carried: Optional[ops.CausalState] = None,
        steps: Optional[ops.Steps] = None,
    ) -> Tensor:
        """Attend from each position to itself and the earlier ones.

        With an ``incremental_state`` the positions follow those of earlier calls, one or several at a time;
        the state is two sums (one, if kv are tied) and an integer count per row, and the queries of P,
        computed once per sentence, with the mask of P. On a GPU the queries are kept with the projection of the
        positions folded into them, too. In a beam search S sentences have B / S consecutive
        rows each; everywhere else S = B.

        Args:
            query: ``[B, N, D]``.
            packed: P, ``[S, L, D]``; may be None after the first call with an ``incremental_state``.
            packed_mask: ``[S, 1, 1, L]`` from :func:`luna_fairseq.ops.key_mask`, or None; likewise.
            padding_mask: ``[B, N]`` bool, True = padding, or None; needed only for padding before a real
                position, since later positions cannot be seen.
            incremental_state: fairseq's decoding state, or None.
            carried: what earlier positions have left, to begin an empty ``incremental_state`` with; not changed.
            steps: the positions, counted for all layers; of the same ``padding_mask``. Or None.

        Returns:
            ``[B, N, D]``.
        """
        saved = self._saved(incremental_state)
        state = self.state(incremental_state)
        folded: Optional[Tensor] = None
        constant: Optional[Tensor] = None
        if saved:
            packed_query, folded, constant, packed_mask = (
                saved[k] for k in ("packed_query", "folded", "constant", "packed_mask")
            )
        else:
            assert packed is not None
            packed_query = _split_heads(ops.linear(self.pq_proj, packed), self.num_heads) * self.head_dim**-0.5
            if incremental_state is not None:
                none = None if steps is None else steps.none()
                state = carried or ops.CausalState.start(packed_query, query.size(0), self.tie_kv, none)
                packed_mask = ops.additive_mask(packed_mask, state.key_sum.dtype)  # once, and not in every step
                packed_query = packed_query.contiguous()  # likewise
                if ops.folding_spares_launches(packed_query, self.embed_dim) and (fold := self._plain("pc")):
                    folded, constant = ops.folded_rows(packed_query, fold[0])

        names = ("q", "c") if self.tie_kv else ("q", "k", "v")
        context: Optional[Tensor] = None
        if incremental_state is None and (joined := self._joined(query, *names, "pc")):
            *projected, context = joined
        else:
            projected = [ops.linear(self.get_submodule(f"{name}_proj"), query) for name in names]
        q, key, *other = (_split_heads(x, self.num_heads) for x in projected)
        value = other[0] if other else key
        rows = ops.rows_per_sentence(query.size(0), packed_query.size(0))
        y, state = ops.causal_luna_attention(
            q,
            key,
            value,
            self._pack_weights(query, packed_query, folded, constant, context),
            packed_mask=packed_mask if state is not None or rows == 1 else _for_rows(packed_mask, rows),
            padding_mask=padding_mask,
            pack_dropout=self.dropout_module.rate,
            unpack_dropout=self.dropout_module.rate,
            state=state,
            steps=steps,
            overwrite=saved.get("overwrite", False),
            decay=self.decay,
        )
        if state is not None:
            saving = {"packed_query": packed_query, "folded": folded, "constant": constant}
            saving = {**saving, "packed_mask": packed_mask, **state._asdict()}
            self._save(incremental_state, {**saving, "rows_per_sentence": rows})
        return ops.linear(self.out_proj, _join_heads(y))

    def _pack_weights(
        self,
        query: Tensor,
        packed_query: Tensor,
        folded: Optional[Tensor],
        constant: Optional[Tensor],
        projected: Optional[Tensor],
    ) -> Tensor:
        """The positive weights of every position, ``[B, H, N, L]``.

        Args:
            query: ``[B, N, D]``.
            packed_query: the queries of P, ``[S, H, L, K]``.
            folded, constant: the same with the projection of the positions folded in, from
                :func:`luna_fairseq.ops.folded_rows`; or None.
            projected: the projection of ``query`` for them, ``[B, N, D]``, if it is there already.
        """
        length, sentences = query.size(1), packed_query.size(0)
        rows = ops.rows_per_sentence(query.size(0), sentences)
        # All rows of a sentence side by side. One P may be that of any batch, whatever one the model is traced with.
        one = sentences == 1 and query.numel() > 0
        context = query if projected is None else projected
        context = context.reshape(sentences, -1 if one else rows * length, self.embed_dim)
        if folded is not None:
            scores = ops.scores_of_folded(context, folded, constant)
        elif projected is None and (fold := self._to_fold(context, packed_query.size(2), self.num_heads, 1, "pc")):
            scores = ops.folded_scores(context, packed_query, fold[0])
        else:
            context = _split_heads(
                ops.linear(self.pc_proj, context) if projected is None else context, self.num_heads
            )
            weights = ops.causal_pack_weights(context, packed_query, self.activation)
            if rows > 1 or one:
                weights = weights.unflatten(2, (-1 if one else rows, length)).transpose(1, 2).flatten(0, 1)
            return weights
        weights = ops.CAUSAL_ACTIVATIONS[self.activation](scores)
        return _split_heads(weights.reshape(query.size(0), length, scores.size(-1)), self.num_heads)


def _for_rows(mask: Optional[Tensor], rows: int) -> Optional[Tensor]:
    """The mask of each sentence for all of its rows."""
    return None if mask is None else mask.repeat_interleave(rows, dim=0)
