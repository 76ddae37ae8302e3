"""The operations of a training step by a formula."""

import math
from dataclasses import dataclass
from typing import Any

from luna_fairseq.ops.blocks import chunk_length

MASKED = 0.15  # the part of the symbols that masked LM predicts


@dataclass
class Sizes:
    """The sizes of a Transformer or a Luna, the same in encoder and decoder.

    Attributes:
        width: D.
        ffn: F, the width of the feed-forward block.
        heads: H.
        encoder_layers, decoder_layers: 0 if there is no decoder.
        rows: the projection length; 0 for a Transformer.
        kv: u, 1 for tied keys and values and 2 for untied.
        symbols: V.
    """

    width: int
    ffn: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    rows: int
    kv: int
    symbols: int

    @classmethod
    def of(cls, model: Any, symbols: int) -> "Sizes":
        """Those of a built model."""
        encoder = getattr(model.encoder, "sentence_encoder", model.encoder)
        layer = encoder.layers[0]
        return cls(
            width=layer.self_attn.embed_dim,
            ffn=layer.fc1.out_features,
            heads=layer.self_attn.num_heads,
            encoder_layers=len(encoder.layers),
            decoder_layers=len(model.decoder.layers) if hasattr(model, "decoder") else 0,
            rows=encoder.packed_input.length if hasattr(encoder, "packed_input") else 0,
            kv=1 if hasattr(layer.self_attn, "c_proj") else 2,
            symbols=symbols,
        )


def operations(sizes: Sizes, source: int, target: int) -> float:
    """Floating point operations of one sentence (pair) in training, a product and its sum counted as two.

    Multiplications of the forward pass, with L = min(rows, source), for n positions that attend to m::

        softmax attention          (2 n + 2 m) D^2 + 2 n m D
        Luna attention             (2 n + u m + (1 + u) L) D^2 + 2 (n + m) L D
        causal Luna attention      ((3 + u) n + L) D^2 + n L D, and two causal sums
        a causal sum               n n (D + H L) up to 128 positions; n c (D + H L) + 2 n L D in chunks of c,
                                   with tied kv 10/7 n L D instead of 2, forwards and backwards on average
        feed-forward block         2 n D F
        output                     V D a predicted symbol, and D^2 in masked LM

    The backward pass takes twice as many; 2.5 times in a causal sum, which it computes anew. Softmax, norms, dropout
    and the optimizer are not counted. On a CPU Luna folds projections where that takes fewer, on a GPU it does not.

    Args:
        sizes: of the model.
        source: symbols of the source, or of a block of masked LM.
        target: symbols of the target, all of them predicted; 0 for masked LM.
    """
    d, rows, u = sizes.width, min(sizes.rows, source), sizes.kv

    def attention(n: int, m: int) -> float:
        if not rows:
            return (2 * n + 2 * m) * d**2 + 2 * n * m * d
        return (2 * n + u * m + (1 + u) * rows) * d**2 + 2 * (n + m) * rows * d

    def feed_forward(n: int) -> float:
        return 2 * n * d * sizes.ffn

    products = sizes.encoder_layers * (attention(source, source) + feed_forward(source))
    sums = 0.0
    if sizes.decoder_layers:
        causal = attention(target, target)
        if rows:
            causal = ((3 + u) * target + rows) * d**2 + target * rows * d
            each: float = target * target * (d + sizes.heads * rows)
            if target > 128:
                chunk = chunk_length(d // sizes.heads, rows)
                filled = math.ceil(target / chunk) * chunk
                each = filled * (chunk * (d + sizes.heads * rows) + (10 / 7 if u == 1 else 2) * rows * d)
            sums = sizes.decoder_layers * 2 * each
        products += sizes.decoder_layers * (causal + attention(target, source) + feed_forward(target))
        products += target * sizes.symbols * d
    else:
        products += MASKED * source * (sizes.symbols * d + d**2)
    return 2 * (3 * products + 3.5 * sums)
