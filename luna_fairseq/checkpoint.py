"""The published names of parameters, and ours.

Published checkpoints (github: XuezheMax/fairseq-apollo, facebookresearch/mega) misspell a few names. This
table is the one place that knows them; modules have only the names on the right.
"""

import re
from typing import Any, Dict, List, Optional, Tuple

# (published, ours), matched anywhere in a name at a dot; ours None = holds nothing, dropped.
PUBLISHED_NAMES: List[Tuple[str, Optional[str]]] = [
    ("encoder.projected_embeddings", "encoder.packed_input.embeddings"),
    ("encoder.projected_positions", None),
    ("encoder.layernorm_porjected_embedding", "encoder.packed_input.layer_norm"),
    ("encoder.proj_layer_norm", "encoder.packed_layer_norm"),
    ("self_atten_proj_layer_norm", "packed_attn_layer_norm"),
    ("encoder_atten_proj_layer_norm", "packed_attn_layer_norm"),
    # The published pre-norm decoder holds a norm of the last P, which nothing reads.
    ("decoder.proj_layer_norm", None),
]

_RULES = [(re.compile(rf"(^|\.){re.escape(published)}(\.|$)"), ours) for published, ours in PUBLISHED_NAMES]


def translate_published_names(state_dict: Dict[str, Any]) -> None:
    """Rename the parameters of a published checkpoint to ours, in place; other names stay as they are.

    Args:
        state_dict: parameter name -> tensor.
    """
    for name in list(state_dict):
        for pattern, ours in _RULES:
            if pattern.search(name):
                value = state_dict.pop(name)
                if ours is not None:
                    state_dict[pattern.sub(rf"\g<1>{ours}\g<2>", name)] = value
                break
