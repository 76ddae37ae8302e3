"""The transformer encoder and decoder, which at inference on a CPU multiply by :mod:`luna_fairseq.ops.inference`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Dict, List, Optional

import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.modules.attention import IncrementalState

# A layout takes as long as five products of 40 rows spare by it; a second step says that there is a generation.
LAID_OUT_AFTER = 1


def _products(part: nn.Module, weights: Optional[ops.LaidOutWeights] = None) -> AbstractContextManager[None]:
    if torch.compiler.is_compiling():
        return nullcontext()
    return ops.inference_products(next(part.parameters()), weights)


class InferenceEncoder(TransformerEncoderBase):
    """The encoder, with every weight as it is."""

    def forward(self, *args: Any, **kwargs: Any) -> Dict[str, List[Tensor]]:
        """Encode a batch; the arguments and the result are those of ``forward_scriptable``."""
        with _products(self):
            return super().forward(*args, **kwargs)


class InferenceDecoder(TransformerDecoderBase):
    """The decoder: after the first step of a generation of several rows its weights are laid out for the others.

    That is a second copy of them; it is part of the ``incremental_state``, and goes with it.
    """

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Optional[Dict[str, List[Tensor]]] = None,
        incremental_state: Optional[IncrementalState] = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Decode; arguments and result are those of fairseq's decoder."""
        with _products(self, self._laid_out(incremental_state, prev_output_tokens.size(0))):
            return super().forward(prev_output_tokens, encoder_out, incremental_state, *args, **kwargs)

    def output_layer(self, features: Tensor) -> Any:
        """Scores of the vocabulary, or the features for an adaptive softmax."""
        if self.adaptive_softmax is None:
            return ops.linear(self.output_projection, features)
        return super().output_layer(features)

    def _laid_out(self, incremental_state: Optional[IncrementalState], rows: int) -> Optional[ops.LaidOutWeights]:
        """The layouts of this generation, if there are to be some."""
        if incremental_state is None or rows < 2 or self._seen(incremental_state) < LAID_OUT_AFTER:
            return None
        saved: Any = self.get_incremental_state(incremental_state, "weights")
        if saved is None:
            saved = {"laid_out": ops.LaidOutWeights()}
            self.set_incremental_state(incremental_state, "weights", saved)
        laid_out: ops.LaidOutWeights = saved["laid_out"]
        return laid_out

    def _seen(self, incremental_state: IncrementalState) -> int:
        """How many target positions earlier calls have decoded."""
        saved: Any = self.get_incremental_state(incremental_state, "seen")
        return 0 if saved is None else saved["length"]
