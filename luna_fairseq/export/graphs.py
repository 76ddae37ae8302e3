"""Models as functions of tensors alone, as a graph wants them.

A translation model is two functions. ``encode`` makes all that decoding reads of the source; it is computed once and
has the same size for every step. ``step`` takes one more target token of each row and the state, and returns
log-probabilities and the parts of the state that have changed: sums whose size does not depend on how many tokens
there were. The rows of a beam search are rows of the batch, each with its own state.
"""

import copy
from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.models.luna import LunaDecoder, LunaModel
from luna_fairseq.models.luna_bert import LunaBertModel
from luna_fairseq.modules.attention import IncrementalState
from luna_fairseq.modules.positions import positions_from

BATCH, SOURCE = "batch", "length"


class Graph(NamedTuple):
    """One function, and what it takes and gives.

    Attributes:
        module: called with the inputs in their order.
        inputs: name -> example.
        dynamic: name -> dimension -> what it is the size of; all others are fixed.
        outputs: their names.
        most: the longest source, or input.
    """

    module: nn.Module
    inputs: Dict[str, Tensor]
    dynamic: Dict[str, Dict[int, str]]
    outputs: List[str]
    most: int


class _State:
    """The decoding state as named tensors.

    ``packed_query_I`` ``[B, H, L, K]``, ``key_I`` and ``value_I`` ``[B, H, L, K]`` (the same, and not there, where
    keys are values) are of the sentence; ``packed_mask`` ``[B, 1, 1, L]`` bool, True = a row that belongs to it.
    ``key_sum_I`` and ``value_sum_I`` ``[B, H, L, K]`` and ``steps`` ``[B]`` int64 change with each step.
    """

    def __init__(self, decoder: LunaDecoder) -> None:
        self.layers: Any = list(decoder.layers)
        self.masked = not decoder.cfg.fix_projection_length
        self.tied = bool(self.layers[0].self_attn.tie_kv)
        parts = ["key"] if self.tied else ["key", "value"]
        layers = range(len(self.layers))
        self.still = [f"{name}_{i}" for i in layers for name in ("packed_query", *parts)]
        self.still += ["packed_mask"] if self.masked else []
        self.moving = [f"{name}_sum_{i}" for i in layers for name in parts] + ["steps"]

    def after_encoding(self, state: IncrementalState, rows: int) -> List[Tensor]:
        """All tensors before the first token; of ``state``, in which a token was decoded, what is of the source."""
        found: Dict[str, Any] = {}
        for i, layer in enumerate(self.layers):
            own, cross = layer.self_attn._saved(state), layer.encoder_attn._saved(state)
            start = ops.CausalState.start(own["packed_query"], rows, self.tied)
            found.update({f"packed_query_{i}": own["packed_query"], f"key_{i}": cross["key"]})
            mask = None if cross["packed_mask"] is None else cross["packed_mask"] == 0  # kept as what is added
            found.update({f"value_{i}": cross["value"], "packed_mask": mask, "steps": start.steps})
            found.update({f"key_sum_{i}": start.key_sum, f"value_sum_{i}": start.value_sum})
        return [found[name].clone() for name in self.still + self.moving]  # no output is another, or a view

    def restore(self, tensors: Dict[str, Tensor]) -> IncrementalState:
        """Fairseq's state of named tensors."""
        state: IncrementalState = {}
        mask = ops.additive_mask(tensors.get("packed_mask"), tensors["key_sum_0"].dtype)
        one: Dict[str, Any] = {"rows_per_sentence": 1, "packed_mask": mask, "folded": None, "constant": None}
        for i, layer in enumerate(self.layers):
            key, total = tensors[f"key_{i}"], tensors[f"key_sum_{i}"]
            sums = {"key_sum": total, "value_sum": tensors.get(f"value_sum_{i}", total), "steps": tensors["steps"]}
            layer.self_attn._save(state, {"packed_query": tensors[f"packed_query_{i}"], **sums, **one})
            values = {"key": key, "value": tensors.get(f"value_{i}", key), "pack_weights": None}
            layer.encoder_attn._save(state, {**values, **one})
        return state

    def after_step(self, state: IncrementalState) -> List[Tensor]:
        """The tensors that have changed."""
        found: Dict[str, Any] = {}
        for i, layer in enumerate(self.layers):
            own = layer.self_attn._saved(state)
            found.update({f"key_sum_{i}": own["key_sum"], f"value_sum_{i}": own["value_sum"], "steps": own["steps"]})
        return [found[name] for name in self.moving]


class _Positions(nn.Module):
    """Positions without fairseq's table, which is kept and grown in a way that torch.export does not follow."""

    def __init__(self, embed: Any, padding_idx: int) -> None:
        super().__init__()
        self.embed = embed
        self.padding_idx = padding_idx

    def forward(self, tokens: Tensor) -> Tensor:
        return positions_from(self.embed, tokens, tokens.new_zeros(tokens.size(0)), self.padding_idx)


def _without_tables(model: LunaModel) -> LunaModel:
    """The same model, of the same weights; the model itself stays as it is."""
    model = copy.copy(model)
    model._modules = dict(model._modules)
    for name in ("encoder", "decoder"):
        side = copy.copy(getattr(model, name))
        side._modules = dict(side._modules)
        if side.embed_positions is not None:
            side._modules["embed_positions"] = _Positions(side.embed_positions, side.padding_idx)
        model._modules[name] = side
    return model


class Logits(nn.Module):
    """A model whose result is its logits alone, without the dictionary beside them: for ``torch.jit.trace``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first of what the model returns."""
        return self.model(*inputs)[0]


class _Encode(nn.Module):
    def __init__(self, model: LunaModel) -> None:
        super().__init__()
        self.model = _without_tables(model)
        self.state = _State(model.decoder)

    def forward(self, src_tokens: Tensor) -> Tuple[Tensor, ...]:
        encoder_out = self.model.encoder(src_tokens)
        state: IncrementalState = {}
        # What the decoder's layers read of the source is made at its first step, whatever the token is.
        token = src_tokens.new_full((src_tokens.size(0), 1), self.model.decoder.dictionary.eos())
        self.model.decoder(token, encoder_out, state, features_only=True)
        return tuple(self.state.after_encoding(state, src_tokens.size(0)))


class _Step(nn.Module):
    def __init__(self, decoder: LunaDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.state = _State(decoder)

    def forward(self, tokens: Tensor, *tensors: Tensor) -> Tuple[Tensor, ...]:
        decoder: Any = self.decoder
        named = dict(zip(self.state.still + self.state.moving, tensors, strict=True))
        state = self.state.restore(named)
        x = decoder._embed(tokens, 1, named["steps"])
        padding_mask = tokens.eq(decoder.padding_idx)
        steps = decoder._steps(tokens, padding_mask)
        for layer in decoder.layers:
            x, _, _ = layer(x, None, None, None, None, padding_mask, state, steps=steps)
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        if decoder.project_out_dim is not None:
            x = decoder.project_out_dim(x)
        log_probs = torch.log_softmax(decoder.output_layer(x).squeeze(1).float(), dim=-1)
        return (log_probs, *self.state.after_step(state))


class _MaskedLM(nn.Module):
    def __init__(self, model: LunaBertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, src_tokens: Tensor) -> Tuple[Tensor, ...]:
        encoder: Any = self.model.encoder
        features, extra = encoder.extract_features(src_tokens)
        scores = [
            head(features, extra["packed_features"], extra["padding_mask"], extra["packed_padding_mask"])
            for head in self.model.classification_heads.values()
        ]
        return (encoder.output_layer(features), features, *scores)


def _example(dictionary: Any, most: int) -> Tensor:
    """Two rows, one of them padded; no size is one that a graph would take for fixed."""
    length = min(7, most)
    rows = torch.arange(2 * length).view(2, length) % len(dictionary)
    rows[1, length - 2 :] = dictionary.pad()
    return rows


def graphs_of(model: nn.Module) -> Dict[str, Graph]:
    """The functions of a model, by the names of their files.

    Args:
        model: a translation model or a masked-LM model; is put in evaluation mode.

    Raises:
        ValueError: for another model, or an option that no graph can have.
    """
    model.eval()
    tokens = {"src_tokens": {0: BATCH, 1: SOURCE}}
    if isinstance(model, LunaBertModel):
        most = int(model.max_positions())
        example = {"src_tokens": _example(model.encoder.dictionary, most)}
        outputs = ["logits", "features", *(f"scores_{name}" for name in model.classification_heads)]
        return {"model": Graph(_MaskedLM(model), example, tokens, outputs, most)}
    if not isinstance(model, LunaModel):
        raise ValueError(
            f"there are no graphs of {type(model).__name__}: export a translation or a masked-LM model, or take "
            "--format safetensors"
        )
    if model.decoder.adaptive_softmax is not None:
        raise ValueError("there are no graphs of a model with --adaptive-softmax-cutoff: take --format safetensors")
    most = int(model.encoder.max_positions())
    encode = _Encode(model)
    example = {"src_tokens": _example(model.encoder.dictionary, most)}
    with torch.no_grad():
        names = encode.state.still + encode.state.moving
        state = dict(zip(names, encode(example["src_tokens"]), strict=True))
    first = torch.full((2, 1), model.decoder.dictionary.eos())
    # The example is shorter than P, which a graph always has whole.
    full = model.encoder.packed_input.length
    state = {name: _filled(x, full) if name != "steps" else x for name, x in state.items()}
    step = {"tokens": first, **state}
    outputs = ["log_probs", *(f"next_{name}" for name in encode.state.moving)]
    return {
        "encode": Graph(encode, example, tokens, names, most),
        "step": Graph(_Step(model.decoder), step, {name: {0: BATCH} for name in step}, outputs, most),
    }


def _filled(x: Tensor, rows: int) -> Tensor:
    """With so many rows of P; what they hold does not matter to a graph."""
    dim = 3 if x.dtype == torch.bool else 2
    fill = rows - x.size(dim)
    shape = [*x.shape]
    shape[dim] = fill
    return torch.cat([x, x.new_zeros(shape)], dim=dim)
