"""The building blocks shared by every Luna model: one attention, one packed input, one layer of each kind."""

from luna_fairseq import compat

compat.prepare()

from luna_fairseq.modules.attention import CausalLunaAttention, LunaAttention  # noqa: E402 (fairseq is repaired before it is used)
from luna_fairseq.modules.dropout import Dropout  # noqa: E402
from luna_fairseq.modules.layers import LunaDecoderLayer, LunaEncoderLayer, LunaLanguageModelLayer  # noqa: E402
from luna_fairseq.modules.packed_input import PackedInput  # noqa: E402
from luna_fairseq.modules.word_dropout import WordDropout  # noqa: E402

__all__ = [
    "CausalLunaAttention",
    "Dropout",
    "LunaAttention",
    "LunaDecoderLayer",
    "LunaEncoderLayer",
    "LunaLanguageModelLayer",
    "PackedInput",
    "WordDropout",
]
