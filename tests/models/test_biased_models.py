"""--packed-position-bias in the three models: batches, padding, decoding, checkpoints, options, memory."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, Dict, List, Set

import pytest
import torch
from torch import Tensor, nn

from luna_fairseq import ops
from luna_fairseq.errors import CheckpointMismatch
from luna_fairseq.models.luna import LunaModel
from support.models import EOS, PAD, assert_close, make_batch, make_bert, make_lra, make_model, make_sentences

BIAS: Dict[str, Any] = {"packed_position_bias": 1.0}
FIXED: Dict[str, Any] = {"fix_projection_length": True}
LENGTHS = [1, 3, 12, 7]  # fewer than the 8 rows of P, and more


def _strong(model: Any) -> Any:
    """With projections that are not near 0, as BERT begins with."""
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight") and parameter.std() < 0.03:
            parameter.data *= 8
    return model.eval()


def _randomly_sloped(model: Any) -> Any:
    """With other slopes than those of the start, as after training."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith("position_slope"):
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5
    return _strong(model)


def _slopes(model: nn.Module) -> Set[str]:
    return {name.rsplit(".", 1)[0] for name, _ in model.named_parameters() if name.endswith("position_slope")}


def _translate(model: Any, sources: List[Tensor], side: str, extra: int) -> List[Tensor]:
    source = make_batch(sources, side, extra)
    return list(
        model(source, None, make_batch(make_sentences([5] * len(sources), seed=2)[:1] * len(sources), "right"))[0]
    )


def _features(model: Any, sources: List[Tensor], side: str, extra: int) -> List[Tensor]:
    """The states of each real position, and what the three heads and the packed sequence say."""
    tokens = make_batch(sources, side, extra)
    states, _ = model(tokens, features_only=True)
    heads = [model(tokens, classification_head_name=name)[0] for name in model.classification_heads]
    return [
        torch.cat([row[real].flatten(), *(head[i] for head in heads)])
        for i, (row, real) in enumerate(zip(states, tokens.ne(PAD), strict=True))
    ]


def _classify(model: Any, sources: List[Tensor], side: str, extra: int) -> List[Tensor]:
    return list(model(make_batch(sources, side, extra))[0])


def _make_bert(**changes: Any) -> Any:
    model = make_bert(**changes)
    for name in ("any", "pooling_classification_head", "attention_classification_head"):
        model.register_classification_head(name, 3)
    return model


FAMILIES: Dict[str, Any] = {
    "translation": (make_model, _translate, [{}, {"untie_luna_kv": True}, {"packed_position_bias_in": "cross"},
                    {"packed_position_bias_in": "encoder"}, {"encoder_projected_attention_heads": 2,
                    "decoder_projected_attention_heads": 8}]),
    "masked LM": (_make_bert, _features, [{}, {"untie_luna_kv": True}]),
    "lra": (make_lra, _classify, [{}, {"sen_rep_type": "mp"}, {"use_p": True, "tie_kv": True},
            {"tie_layer_weights": True}, {"use_p": True, "sen_rep_type": "mp", "encoder_learned_pos": False}]),
}  # fmt: skip
CASES = [
    pytest.param(make, outputs, {**BIAS, **options, **fixed}, id=f"{name} {options} {fixed}")
    for name, (make, outputs, every) in FAMILIES.items()
    for options in every
    for fixed in ({}, FIXED)
]


@pytest.mark.parametrize(("make", "outputs", "options"), CASES)
@pytest.mark.parametrize("folds", [True, False])
@torch.no_grad()
def test_neighbours_and_padding_change_nothing(
    make: Any, outputs: Any, options: Dict[str, Any], folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, in a batch padded on either side, or with padding that nobody needs."""
    monkeypatch.setattr(ops, "folding_pays", lambda *_: folds)
    model = _randomly_sloped(make(**options))
    sources = make_sentences(LENGTHS, words=24)
    alone = [outputs(model, [source], "right", 0)[0] for source in sources]
    for side in ("left", "right"):
        for extra in (0, 15):
            for got, want in zip(outputs(model, sources, side, extra), alone, strict=True):
                assert_close(got, want, f"padded {side}, at least to {extra}")


@pytest.mark.parametrize("make", [make_model, _make_bert, make_lra])
def test_it_matters_and_costs_a_number_a_head(make: Any) -> None:
    """Without it there is no parameter; with slopes of 0 it does nothing."""
    plain, model = make().eval(), _strong(make(**BIAS))
    names = _slopes(model)
    assert _slopes(plain) == set() and names
    own = dict(model.named_parameters())
    assert all(own[f"{name}.position_slope"].tolist() == [1.0] * 4 for name in names)
    assert sum(p.numel() for p in own.values()) == sum(p.numel() for p in plain.parameters()) + 4 * len(names)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("position_slope")}
    plain.load_state_dict(state)
    tokens = make_batch(make_sentences([30, 9], words=24), "right")
    given = (tokens, None, tokens) if isinstance(model, LunaModel) else (tokens,)
    want = plain(*given)[0]
    assert not torch.allclose(model(*given)[0], want, rtol=0, atol=1e-4)
    for name in names:
        own[f"{name}.position_slope"].data.zero_()
    assert_close(model(*given)[0], want, "slopes of 0")


@pytest.mark.parametrize(
    ("place", "kinds"),
    [("both", {"self_attn", "encoder_attn"}), ("encoder", {"self_attn"}), ("cross", {"encoder_attn"})],
)
def test_its_place(place: str, kinds: Set[str]) -> None:
    names = _slopes(make_model(**BIAS, packed_position_bias_in=place))
    assert {name.split(".")[-1] for name in names} == kinds
    assert len(names) == 2 * len(kinds) and not any(name.startswith("decoder") and "self" in name for name in names)


@pytest.mark.parametrize("make", [make_model, _make_bert, make_lra])
def test_places_are_made_once_a_batch(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder and cross-attention have each their own; in decoding they are made once a sentence."""
    asked: List[Any] = []
    original = ops.row_places
    monkeypatch.setattr(ops, "row_places", lambda *args: asked.append(args) or original(*args))
    model = make(**BIAS, **({"decoder_layers": 3} if make is make_model else {})).eval()
    tokens = make_batch(make_sentences([30, 9], words=24), "left")
    if not isinstance(model, LunaModel):
        model(tokens)
        assert len(asked) == 1
        return
    model(tokens, None, tokens)
    assert len(asked) == 2
    asked.clear()
    state: Dict[str, Any] = {}
    encoder_out = model.encoder(tokens)
    for n in (1, 2, 5):
        model.decoder(tokens[:, :n], encoder_out=encoder_out, incremental_state=state)
    assert len(asked) == 2


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0], [0, 1, 2, 2, 1, 0]])
@torch.no_grad()
def test_decoding_with_reordered_rows_is_all_at_once(order: List[int]) -> None:
    model = _randomly_sloped(make_model(**BIAS))
    model.decoder.need_attn = True
    source = make_batch(make_sentences([3, 12, 7]), "left")
    target = make_batch(make_sentences([6, 6, 6], seed=1), "right")
    index, state = torch.tensor(order), dict[str, Any]()
    encoder_out = model.encoder(source)
    model.decoder(target[:, :3], encoder_out=encoder_out, incremental_state=state)
    model.decoder.reorder_incremental_state_scripting(state, index)
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, index)
    steps = [model.decoder(target[index, :n], encoder_out=encoder_out, incremental_state=state) for n in (4, 5, 6)]
    want, extra = model(source[index], None, target[index])
    assert_close(torch.cat([step[0] for step in steps], 1), want[:, 3:], "steps")
    attention = torch.cat([step[1]["attn"][0] for step in steps], 1)
    assert_close(attention, extra["attn"][0][:, 3:], "attention")
    assert_close(attention.sum(-1), torch.ones(len(order), 3), "its rows")
    assert not attention[source[index].eq(PAD)[:, None].expand_as(attention)].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [make_model, _make_bert, make_lra])
def test_a_row_of_padding_is_harmless(make: Any, dtype: torch.dtype) -> None:
    """Finite numbers and gradients; so has a sentence of one word, whose rows are one."""
    model = make(**BIAS).to(dtype)
    tokens = torch.tensor([[PAD] * 6, [7, 8, 9, 10, 11, EOS], [EOS] + [PAD] * 5])
    heads = getattr(model, "classification_heads", {})
    outputs = (
        [model(tokens, None, tokens.clone())[0]]
        if isinstance(model, LunaModel)
        else [model(tokens)[0], *(model(tokens, classification_head_name=name)[0] for name in heads)]
    )
    assert all(torch.isfinite(out).all() for out in outputs)
    sum(out[1:].float().square().sum() for out in outputs).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("options", [{}, FIXED])
@pytest.mark.parametrize("make", [make_model, _make_bert, make_lra])
@torch.no_grad()
def test_half_precision_and_autocast_are_close(make: Any, options: Dict[str, Any]) -> None:
    model = _randomly_sloped(make(**BIAS, **options))
    tokens = make_batch(make_sentences([30, 17], words=24), "right")
    given = (tokens, None, tokens[:, :9]) if isinstance(model, LunaModel) else (tokens,)
    want = model(*given)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(model(*given)[0].float(), want, "autocast", rel=0.05)
    for dtype in (torch.bfloat16, torch.float16):
        assert_close(copy.deepcopy(model).to(dtype)(*given)[0].float(), want, str(dtype), rel=0.05)


@pytest.mark.parametrize("make", [make_model, make_bert, make_lra])
def test_activation_checkpointing_changes_no_gradient(make: Any) -> None:
    tokens = make_batch(make_sentences([12, 9], words=24), "right")
    grads = []
    for checkpoint in (False, True):
        model = make(**BIAS, checkpoint_activations=checkpoint, dropout=0.3, attention_dropout=0.2)
        torch.manual_seed(7)
        given = (tokens, None, tokens) if isinstance(model, LunaModel) else (tokens,)
        model(*given)[0].square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert any(name.endswith("position_slope") and grad.any() for name, grad in grads[0].items())
    for name, grad in grads[0].items():
        assert_close(grads[1][name], grad, name, rel=1e-4)


CHECKPOINTS = [
    (make_model, {}, BIAS, "the checkpoint has no position bias: leave out --packed-position-bias$"),
    (
        make_model,
        BIAS,
        {},
        "a position bias in its encoder and its cross-attention: give --packed-position-bias 1 "
        "--packed-position-bias-in both$",
    ),
    (make_model, {**BIAS, "packed_position_bias_in": "encoder"}, BIAS, "in its encoder alone: give .* encoder$"),
    (make_model, BIAS, {**BIAS, "packed_position_bias_in": "cross"}, "its encoder and its cross-attention: give"),
    (make_model, {**BIAS, "packed_position_bias_in": "cross"}, {}, "its cross-attention alone: give .* cross$"),
    (make_bert, {}, BIAS, "the checkpoint has no position bias: leave out --packed-position-bias$"),
    (make_bert, BIAS, {}, "the checkpoint has a position bias: give --packed-position-bias 1$"),
    (make_lra, {}, BIAS, "the checkpoint has no position bias: leave out --packed-position-bias$"),
    (make_lra, BIAS, {}, "the checkpoint has a position bias: give --packed-position-bias 1$"),
]


@pytest.mark.parametrize(("make", "saved", "own", "message"), CHECKPOINTS)
def test_a_checkpoint_says_what_it_has(
    make: Callable[..., Any], saved: Dict[str, Any], own: Dict[str, Any], message: str
) -> None:
    state = make(**saved).state_dict()
    make(**saved).load_state_dict(dict(state))
    with pytest.raises(CheckpointMismatch, match=message):
        make(**own).load_state_dict(dict(state))


@pytest.mark.parametrize("make", [make_model, make_bert, make_lra])
def test_slopes_are_saved_and_pickled(make: Any) -> None:
    model, other = _randomly_sloped(make(**BIAS)), make(packed_position_bias=2.0, seed=2)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    name = next(name for name in _slopes(model) if "self_attn" in name)
    attention = pickle.loads(pickle.dumps(model.get_submodule(name)))
    assert torch.equal(attention.position_slope, model.get_parameter(f"{name}.position_slope"))
    for name in _slopes(model):
        got, want = (dict(m.named_parameters())[f"{name}.position_slope"] for m in (other, model))
        assert torch.equal(got, want)


@pytest.mark.parametrize("make", [make_model, make_bert, make_lra])
@pytest.mark.parametrize("slope", [-1.0, float("inf"), float("nan")])
def test_bad_slopes(make: Any, slope: float) -> None:
    with pytest.raises(ValueError, match=f"--packed-position-bias is {slope}: it must be at least 0, and finite"):
        make(packed_position_bias=slope)


def test_options_that_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--packed-position-bias-in is cross and there is no bias: add --packed-p"):
        make_model(packed_position_bias_in="cross")
    with pytest.raises(ValueError, match="--packed-position-bias is 1 and needs --layer-type luna, not transformer"):
        make_lra(layer_type="transformer", **BIAS)


def _kept(model: Any, tokens: Tensor) -> List[int]:
    """The sizes of what a forward pass keeps for the backward one, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: List[int] = []

    def note(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in parameters:
            sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model(tokens, None, tokens[:, :9])
    return sorted(sizes)


@pytest.mark.parametrize("lengths", [[200, 200], [200, 150]], ids=["equal", "padded"])
def test_layers_keep_nothing_of_the_size_of_their_scores_for_it(lengths: List[int], monkeypatch: Any) -> None:
    """Where projections are folded."""
    monkeypatch.setattr(ops, "folding_pays", lambda *_: True)
    tokens = make_batch(make_sentences(lengths, words=24), "right")
    plain, biased = (_kept(make_model(**options), tokens) for options in ({}, BIAS))
    scores = 2 * 4 * 8 * 200
    # The masks and the places of a batch are small.
    assert [size for size in biased if size >= scores / 4] == [size for size in plain if size >= scores / 4]
