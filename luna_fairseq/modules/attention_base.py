"""What both attentions share: projections, heads, dropout and decoding state."""

import math
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Union

import torch
from fairseq.incremental_decoding_utils import FairseqIncrementalState
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules.dropout import Dropout
from luna_fairseq.ops.tracing import being_traced

# Also whole numbers are kept there, as such: a tensor would have to be looked at.
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
        # Ours from before there was a decay have none; published ones, and what fairseq prunes, do not say.
        before = {"causal_decay": 0.0} if "num_heads" in local_metadata else {}
        for name, value in self._unseen_in_shapes().items():
            saved = local_metadata.get(name, before.get(name, value))
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
        found = self._plain(*names)
        return found if found and ops.folding_pays(x, self.embed_dim, rows, heads, len(names), taken) else []

    def _plain(self, *names: str) -> List[ops.Projection]:
        """The named projections if nothing but them sees what is projected, or none of them."""
        found: List[ops.Projection] = []
        for name in names:
            proj: Any = self.get_submodule(f"{name}_proj")
            if not ops.is_plain(proj):
                return []
            found.append((proj.weight, proj.bias))
        return found

    def _joined(self, x: Tensor, *names: str) -> List[Tensor]:
        """``x`` through the named projections by one product, which reads it once; nothing where that does not pay.

        On a CPU it does not: the weights are copied, and backward the gradients.
        """
        if x.device.type == "cpu" or being_traced() or not (found := self._plain(*names)):
            return []
        weights, biases = zip(*found, strict=True)
        bias = None if biases[0] is None else torch.cat(biases)
        return list(nn.functional.linear(x, torch.cat(weights), bias).chunk(len(names), dim=-1))

    def _saved(self, incremental_state: Optional[IncrementalState]) -> Dict[str, Any]:
        # Called on the class: nn.Module's typing takes any attribute of a module for a tensor.
        return FairseqIncrementalState.get_incremental_state(self, incremental_state, "luna") or {}

    def _save(self, incremental_state: Optional[IncrementalState], values: Dict[str, Any]) -> None:
        FairseqIncrementalState.set_incremental_state(self, incremental_state, "luna", values)

    def reorder_incremental_state(
        self,
        incremental_state: IncrementalState,
        new_order: Union[Tensor, ops.RowOrder],
        selected: Optional[ops.Selected] = None,
    ) -> None:
        """Make row i of everything saved what row ``new_order[i]`` was; any order, any length.

        What depends on the sentence alone stays where it is while rows change within their sentences.

        Args:
            incremental_state: changed in place; its tensors are not, here. In
                :func:`luna_fairseq.ops.rows_stay_in_sentences` they are given to the next step to be overwritten.
            new_order: ``[B']`` int64, or an order that several modules share.
            selected: what was selected for them, shared likewise.
        """
        saved = self._saved(incremental_state)
        if not saved:
            return
        order = new_order if isinstance(new_order, ops.RowOrder) else ops.row_order(new_order)
        now = dict(saved)
        before = now.pop("rows_per_sentence")
        now.pop("overwrite", None)
        sums = {name: now.pop(name) for name in ops.CausalState._fields if name in now}
        sentences = next(x.size(0) for x in now.values() if x is not None)
        kept, after = order.sentences(sentences, before)
        now = ops.select_rows(now, kept)
        changes = order.changes(sentences * before, before)
        now.update(ops.select_rows(sums, order.rows if changes else None, selected))
        self._save(incremental_state, {**now, "rows_per_sentence": after, "overwrite": order.within})
