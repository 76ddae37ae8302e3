"""The building blocks shared by every Luna model: one attention, one packed input, one layer of each kind."""

from luna_fairseq.modules.attention import CausalLunaAttention, LunaAttention
from luna_fairseq.modules.dropout import Dropout
from luna_fairseq.modules.layers import LunaDecoderLayer, LunaEncoderLayer
from luna_fairseq.modules.packed_input import PackedInput
from luna_fairseq.modules.word_dropout import WordDropout

__all__ = [
    "CausalLunaAttention",
    "Dropout",
    "LunaAttention",
    "LunaDecoderLayer",
    "LunaEncoderLayer",
    "PackedInput",
    "WordDropout",
]
