"""The arithmetic of Luna on plain tensors: no fairseq, no parameters, no state of their own.

Dimension letters, used in every docstring of this package (see README.md beside this file):

    B  sentences in a batch          H  attention heads
    N  positions of the queries      K  width of one head
    M  positions of the context      D  model width (H * K)
    L  rows of the packed sequence P ("projection length")
    S  sentences whose rows a beam search has in its batch; B everywhere else

The fast forms are exported here; their slow references live in :mod:`luna_fairseq.ops.naive`.
"""

from luna_fairseq.ops.beams import (
    RowOrder,
    Selected,
    row_order,
    rows_per_sentence,
    rows_stay_in_sentences,
    select_rows,
)
from luna_fairseq.ops.causal import (
    CAUSAL_ACTIVATIONS,
    CausalState,
    Steps,
    additive_mask,
    causal_luna_attention,
    causal_pack_weights,
)
from luna_fairseq.ops.decay import check_decay, decay_rates, decayed_mean
from luna_fairseq.ops.dropout import add_dropout
from luna_fairseq.ops.folded import (
    Projection,
    folded_pack,
    folded_rows,
    folded_scores,
    folded_unpack,
    folding_pays,
    folding_spares_launches,
    scores_of_folded,
)
from luna_fairseq.ops.inference import LaidOutWeights, inference_products, is_plain, linear
from luna_fairseq.ops.position_bias import PositionBias, RowPlaces, add_position_bias, row_places
from luna_fairseq.ops.products import causal_products
from luna_fairseq.ops.softmax import attend, attention_weights, key_mask

__all__ = [
    "CAUSAL_ACTIVATIONS",
    "CausalState",
    "LaidOutWeights",
    "PositionBias",
    "Projection",
    "RowOrder",
    "RowPlaces",
    "Selected",
    "Steps",
    "add_dropout",
    "add_position_bias",
    "additive_mask",
    "attend",
    "attention_weights",
    "causal_luna_attention",
    "causal_pack_weights",
    "causal_products",
    "check_decay",
    "decay_rates",
    "decayed_mean",
    "folded_pack",
    "folded_rows",
    "folded_scores",
    "folded_unpack",
    "folding_pays",
    "folding_spares_launches",
    "inference_products",
    "is_plain",
    "key_mask",
    "linear",
    "row_order",
    "row_places",
    "rows_per_sentence",
    "rows_stay_in_sentences",
    "scores_of_folded",
    "select_rows",
]
