"""What the language model promises, whatever its weights."""

import itertools
import math
from argparse import Namespace
from typing import Any, Dict, List

import pytest
import torch
from fairseq import models
from omegaconf import OmegaConf
from torch import Tensor

from luna_fairseq.errors import CheckpointMismatch
from luna_fairseq.models.luna_lm import REFUSED, LunaLanguageModel, LunaLanguageModelConfig
from luna_fairseq.modules.carried import Carry, faded
from luna_fairseq.ops import CausalState
from luna_fairseq.ops.decay import SPAN
from support.models import (
    PAD,
    assert_close,
    make_batch,
    make_dictionary,
    make_lm,
    make_sentences,
    make_task,
)

ADAPTIVE = dict(adaptive_input=True, adaptive_input_cutoff="10,30", adaptive_softmax_cutoff="10,30")
VARIANTS: List[Dict[str, Any]] = [
    {},
    {"share_packed_embeddings": True},
    {"untie_luna_kv": True, "share_packed_embeddings": True},
    {"decoder_normalize_before": True, "untie_luna_kv": True},
    {"decoder_normalize_before": True, "no_decoder_final_norm": True, "share_decoder_input_output_embed": True},
    {"decoder_learned_pos": True, "layernorm_embedding": True},
    {"causal_activation": "elu", "no_scale_embedding": True, "no_token_positional_embeddings": True},
    {"causal_decay": 5.0},
    {"causal_decay": 0.3, "untie_luna_kv": True},
    {"projection_length": 1, "decoder_input_dim": 16, "decoder_output_dim": 24},
    {**ADAPTIVE, "tie_adaptive_weights": True, "tie_adaptive_proj": True, "decoder_input_dim": 32},
    {"character_embeddings": True, "character_filters": "[(1, 8), (2, 8)]"},
]


def _name(variant: Dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in variant.items()) or "base"


def _texts(lengths: List[int], side: str = "right") -> Tensor:
    return make_batch(make_sentences(lengths), side)


def _in_blocks(model: LunaLanguageModel, tokens: Tensor, bounds: List[int], **options: Any) -> Tensor:
    """What the model gives for a text in blocks that hand on their state."""
    carry, outs = Carry({}, **options), []
    for start, end in itertools.pairwise([0, *bounds]):
        outs.append(model(tokens[:, start:end], carry=carry)[0])
        carry = carry.next(len(tokens))
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_the_future_does_not_change_the_past(variant: Dict[str, Any]) -> None:
    """Neither later tokens nor the end of the text: how many rows P has does not depend on it either."""
    model = make_lm(**variant).eval()
    tokens = _texts([12, 12])
    want, _ = model(tokens)
    other = tokens.clone()
    other[:, 7:] = 5
    assert torch.equal(model(other)[0][:, :7], want[:, :7])
    for length in (1, 3, 7):
        assert_close(model(tokens[:, :length])[0], want[:, :length], f"the first {length}")


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_neighbours_and_padding_change_nothing(variant: Dict[str, Any]) -> None:
    model = make_lm(**variant).eval()
    texts = make_sentences([3, 12, 7])
    for side in ("left", "right"):
        for extra in (0, 3):
            batch = make_batch(texts, side, extra)
            for got, mask, text in zip(model(batch)[0], batch.ne(PAD), texts, strict=True):
                assert_close(got[mask], model(text.unsqueeze(0))[0][0], f"{side} padding, {extra} extra")


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
@pytest.mark.parametrize("side", ["left", "right"])
def test_step_by_step_is_all_at_once(variant: Dict[str, Any], side: str) -> None:
    """As fairseq decodes, given all tokens with each call; and given the new ones alone."""
    model = make_lm(**variant).eval()
    tokens = _texts([6, 2, 9], side)
    real = tokens.ne(PAD)
    want, _ = model(tokens)
    for bounds in (list(range(1, 10)), [2, 3, 7, 9]):
        state: Dict[str, Any] = {}
        got = [model(tokens[:, :n], incremental_state=state)[0] for n in bounds]
        assert_close(torch.cat(got, 1)[real], want[real], f"calls {bounds}")
        new: Dict[str, Any] = {}
        got = [model.decoder.extend(tokens[:, a:b], new) for a, b in itertools.pairwise([0, *bounds])]
        assert_close(torch.cat(got, 1)[real], want[real], f"new tokens {bounds}")
    with pytest.raises(ValueError, match="all 9 tokens were seen before"):
        model(tokens, incremental_state=state)


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
@pytest.mark.parametrize("side", ["left", "right"])
def test_blocks_with_carried_state_are_one_long_text(variant: Dict[str, Any], side: str) -> None:
    """Padding, wherever it is in a block, is not carried; what an earlier carry holds stays as it is."""
    model = make_lm(**variant).eval()
    tokens = _texts([14, 5, 9], side)
    real = tokens.ne(PAD)
    want, _ = model(tokens)
    for bounds in ([5, 10, 14], [1, 2, 14]):
        assert_close(_in_blocks(model, tokens, bounds)[real], want[real], f"blocks {bounds}")
    carry = Carry({})
    model(tokens[:, :6], carry=carry)
    first, second = carry.next(3), carry.next(2)
    kept = {name: x.clone() for name, x in first.before.items()}
    assert_close(model(tokens[:, 6:], carry=first)[0][real[:, 6:]], want[:, 6:][real[:, 6:]], "three rows")
    assert_close(model(tokens[:2, 6:], carry=second)[0][real[:2, 6:]], want[:2, 6:][real[:2, 6:]], "two rows")
    assert all(torch.equal(first.before[name], x) for name, x in kept.items())


def test_positions_can_begin_again_with_each_block() -> None:
    model = make_lm(decoder_learned_pos=True, max_target_positions=6).eval()
    tokens = _texts([12, 12])
    with pytest.raises(ValueError, match="the text has 12 tokens and the model 6 learned positions"):
        _in_blocks(model, tokens, [6, 12])
    got = _in_blocks(model, tokens, [6, 12], restart=True)
    assert_close(got[:, :6], model(tokens[:, :6])[0], "first block")
    assert (got[:, 6:] - model(tokens[:, 6:])[0]).abs().max() > 0.01  # it knows of the first one
    without = make_lm(no_token_positional_embeddings=True).eval()
    assert_close(_in_blocks(without, tokens, [6, 12], restart=True), without(tokens)[0], "no positions")


def test_a_text_is_longer_than_the_learned_positions() -> None:
    """Padding, which has none, is not counted; a look-up would end in an IndexError."""
    model = make_lm(decoder_learned_pos=True, max_target_positions=6).eval()
    tokens = _texts([7, 3])
    said = "^a text has 7 tokens and the model 6 learned positions: give shorter ones"
    with pytest.raises(ValueError, match=said):
        model(tokens)
    state: Dict[str, Any] = {}
    model(tokens[:, :6], incremental_state=state)
    with pytest.raises(ValueError, match=said):
        model(tokens, incremental_state=state)
    assert model(tokens[1:])[0].isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_what_fades_keeps_its_mean(tied: bool) -> None:
    """By hand: the mean that attention reads is that of the positions, each with the weight of its part."""
    old, new = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)  # sums of 10 and 2 positions, then of 6 new ones
    counts = torch.tensor([10, 2])
    states = [CausalState(old, old if tied else 2 * old, counts), CausalState(3 * old, 3 * old, counts)]
    first, second = faded(states, 4)
    assert first.steps.tolist() == [4, 2] and second.steps is first.steps, "layers share what was counted"
    assert (first.value_sum is first.key_sum) is tied
    mean = (first.key_sum + new) / (first.steps + 6).view(2, 1, 1, 1)
    assert_close(mean[0], (4 * old[0] / 10 + new[0]) / 10, "ten positions count as four")
    assert_close(mean[1], (old[1] + new[1]) / 8, "two count as two")
    assert_close(first.value_sum, first.key_sum * (1 if tied else 2), "both sums alike")
    assert faded(states, 0) is states and counts.tolist() == [10, 2]


def test_what_fades_keeps_the_mean_of_heads_that_forget() -> None:
    """Of 10 positions that count as 4: the sum is that of 4 positions that all are what the mean was."""
    old, count = torch.rand(1, 2, 4, 5), torch.tensor([10])
    (state,) = faded([CausalState(old, old, count)], 4, decay=0.8)
    for head, rate in enumerate((0.8, 0.8 / SPAN)):
        ten, four = (sum(math.exp(-rate * n) for n in range(positions)) for positions in (10, 4))
        assert_close(state.key_sum[0, head], old[0, head] / ten * four, f"head {head}")


@pytest.mark.parametrize("options", [{}, dict(restart=True), dict(at_most=3), dict(restart=True, at_most=2)])
@pytest.mark.parametrize(
    "variant",
    [{}, {"untie_luna_kv": True}, {"share_packed_embeddings": True}, {"causal_decay": 0.4}],
    ids=_name,
)
def test_blocks_token_by_token_are_blocks_at_once(options: Dict[str, Any], variant: Dict[str, Any]) -> None:
    model = make_lm(**variant).eval()
    tokens = _texts([15, 15])
    want, state, got = _in_blocks(model, tokens, [5, 10, 15], **options), {}, []  # type: ignore[var-annotated]
    for i in range(15):
        if i % 5 == 0:
            model.decoder.begin_block(state, **options)
        got.append(model.decoder.extend(tokens[:, i : i + 1], state))
    assert_close(torch.cat(got, 1), want, str(options))


def test_what_fades_is_forgotten() -> None:
    """The more so the less it counts as; the limit that nothing reaches changes nothing."""
    model = make_lm(no_token_positional_embeddings=True).eval()
    tokens = torch.cat([_texts([6, 6]), _texts([24])[[0, 0]]], dim=1)  # other beginnings, the same rest
    bounds = list(range(6, 31, 6))

    def remembered(at_most: int) -> float:
        out = _in_blocks(model, tokens, bounds, at_most=at_most)[:, -6:]
        return float((out[0] - out[1]).abs().max().detach())

    assert 0 < remembered(1) < remembered(6) < remembered(0) == remembered(100)


def test_the_state_does_not_grow() -> None:
    """Nor does anything else that the model keeps, such as a table of positions."""
    model = make_lm().eval()

    def sizes(state: Dict[str, Any]) -> Dict[str, int]:
        tensors = {key: [x for x in saved.values() if isinstance(x, torch.Tensor)] for key, saved in state.items()}
        return {key: sum(x.numel() for x in kept) for key, kept in tensors.items()}

    def kept() -> int:
        return sum(x.numel() for x in model.buffers())

    before, state = kept(), {}  # type: ignore[var-annotated]
    tokens = torch.full((1, 1), 5)
    model.decoder.extend(tokens, state)
    first = sizes(state)
    carry = Carry({})
    model(tokens, carry=carry)
    carried = {name: x.numel() for name, x in carry.after.items()}
    with torch.no_grad():
        for _ in range(3):
            model.decoder.extend(tokens.expand(1, 500), state)
            model(tokens.expand(1, 500), carry=(carry := carry.next(1)))
    assert sizes(state) == first and {name: x.numel() for name, x in carry.after.items()} == carried
    assert kept() == before and int(carry.after["real"]) == 1501


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0], [1], [0, 1, 2, 2, 1, 0]])
@pytest.mark.parametrize("shared", [False, True])
def test_beam_reorder(order: List[int], shared: bool) -> None:
    model = make_lm(share_packed_embeddings=shared).eval()
    tokens, index = _texts([6, 6, 6]), torch.tensor(order)
    want = model(tokens[index])[0][:, 3:]
    state: Dict[str, Any] = {}
    model(tokens[:, :3], incremental_state=state)
    model.decoder.reorder_incremental_state_scripting(state, index)
    assert_close(model(tokens[index], incremental_state=state)[0], want, "after reorder")
    state = {}
    model.decoder.extend(tokens[:, :3], state)
    model.decoder.reorder_incremental_state_scripting(state, index)
    assert_close(model.decoder.extend(tokens[index][:, 3:], state), want, "new tokens after reorder")


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_every_parameter_gets_a_gradient(variant: Dict[str, Any]) -> None:
    """DistributedDataParallel needs no search for others; so it is with carried state, whose own gradient is cut."""
    model = make_lm(**variant)
    tokens = _texts([12, 7])
    symbol = getattr(model.decoder.embed_tokens, "symbol_embeddings", None)  # of an end of sentence in the middle
    for carry in (None, Carry({})):
        model.zero_grad(set_to_none=True)
        logits = model(tokens, carry=carry)[0]
        if carry is not None:
            assert not any(x.requires_grad for x in carry.after.values())
            logits = model(tokens, carry=carry.next(2))[0]
        if model.decoder.adaptive_softmax is not None:
            every = torch.arange(tokens.numel()).view_as(tokens) % 50
            logits, _ = model.decoder.adaptive_softmax(logits, every)
            logits = torch.cat([part.flatten() for part in logits if part is not None])
        logits.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter is symbol or parameter.grad is not None, name
            # One row of P has all of the softmax, whatever its score.
            assert "projection_length" in variant or parameter is symbol or parameter.grad.abs().sum() > 0, name
            if name.endswith("packed_input.embeddings"):  # all rows of P are read, however short the text
                assert "projection_length" in variant or bool((parameter.grad.abs().sum(1) > 0).all()), name


@pytest.mark.parametrize("shared", [False, True])
def test_activation_checkpointing_changes_no_gradient(shared: bool) -> None:
    """With dropout, and with the state of an earlier block, which is read twice."""
    gradients = []
    for checkpoint in (False, True):
        model = make_lm(
            dropout=0.1, attention_dropout=0.1, checkpoint_activations=checkpoint, share_packed_embeddings=shared
        )
        torch.manual_seed(3)
        carry, tokens = Carry({}), _texts([12, 7])
        for _ in range(2):
            model.zero_grad()
            model(tokens, carry=carry)[0].square().sum().backward()
            carry = carry.next(2)
        gradients.append([p.grad for p in model.parameters()])
    for got, want in zip(*gradients, strict=True):
        assert_close(got, want, "gradient", floor=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        dict(dropout=0.2, attention_dropout=0.2, activation_dropout=0.2),
        dict(quant_noise_pq=0.3, quant_noise_pq_block_size=4),
        dict(decoder_layerdrop=0.5, decoder_layers=4),
    ],
)
def test_noise_is_in_training_alone(options: Dict[str, Any]) -> None:
    model = make_lm(**options)
    tokens = _texts([12])
    assert (model(tokens)[0] - model(tokens)[0]).abs().max() > 0.01
    carry = Carry({})
    for _ in range(4):  # whatever layers are left out
        assert torch.isfinite(model(tokens, carry=carry)[0]).all()
        carry = carry.next(1)
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_a_layer_that_is_left_out_keeps_its_state() -> None:
    model = make_lm(decoder_layerdrop=1.0)
    carry, tokens = Carry({}), _texts([5])
    model.eval()(tokens, carry=carry)
    left = carry.next(1)
    model.train()(tokens, carry=left)
    assert int(left.after.pop("real")) == 2 * int(left.before["real"]) == 10
    assert all(
        left.after[name] is left.before[name] or torch.equal(x, left.before[name]) for name, x in left.after.items()
    )
    assert set(left.after) == set(left.before) - {"real"} and len(left.after) == 4


@pytest.mark.parametrize("shared", [False, True])
def test_pruned_checkpoint_loads(shared: bool) -> None:
    """Each P stays with its layer."""
    options = dict(decoder_layers=3, share_packed_embeddings=shared)
    whole = make_lm(**options).eval()
    small = make_lm(**options, decoder_layers_to_keep="0,2").eval()
    config = OmegaConf.create({"_name": "luna_lm", "decoder_layers_to_keep": "0,2"})
    small.load_state_dict(whole.state_dict(), strict=True, model_cfg=config)
    del whole.decoder.layers[1]
    tokens = _texts([9])
    assert torch.equal(small(tokens)[0], whole(tokens)[0])


@pytest.mark.parametrize(
    ("arch", "sizes"),
    [("luna_lm", (6, 512, 2048, 8)), ("luna_lm_small", (4, 256, 1024, 4)), ("luna_lm_gpt", (12, 768, 3072, 12))],
)
def test_sizes(arch: str, sizes: Any) -> None:
    with torch.device("meta"):
        model: Any = models.build_model(Namespace(arch=arch), make_task())
    layers, width, hidden, heads = sizes
    layer = model.decoder.layers[-1]
    assert len(model.decoder.layers) == layers and layer.self_attn.num_heads == heads
    assert layer.fc1.weight.shape == (hidden, width) and model.decoder.embed_tokens.weight.shape == (50, width)
    assert model.max_positions() == 1024 and layer.normalize_before == (arch == "luna_lm_gpt")
    # 32 rows a layer, and five matrices where softmax attention has four.
    own = 32 * width + 5 * (width + 1) * width + (width + 1) * hidden + (hidden + 1) * width + 4 * width
    ends = 2 * 50 * width + (2 * width if layer.normalize_before else 0)
    assert sum(p.numel() for p in model.parameters()) == layers * own + ends


@pytest.mark.parametrize(
    ("here", "there", "message"),
    [
        ({"share_packed_embeddings": True}, {}, "leave out --share-packed-embeddings"),
        ({}, {"share_packed_embeddings": True}, "add --share-packed-embeddings"),
        ({"projection_length": 4}, {}, "--projection-length is 4 here and 8"),
        ({"untie_luna_kv": True}, {}, "tied keys and values"),
        ({"decoder_input_dim": 16}, {}, "--decoder-input-dim is 16 here and 32"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(here: Dict[str, Any], there: Dict[str, Any], message: str) -> None:
    state = make_lm(**there).state_dict()
    with pytest.raises(CheckpointMismatch, match=message):
        make_lm(**here).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 1 if name == "base_layers" else "x"}, "is not available for Luna") for name in REFUSED),
        ({"decoder_attention_heads": 5}, "--decoder-attention-heads is 5"),
        ({"projection_length": 0}, "--projection-length is 0"),
        ({"dropout": 1.5}, "--dropout is 1.5"),
        ({"max_target_positions": 0}, "--max-target-positions is 0"),
        ({"carry_at_most": -1, "carry_state": True}, "--carry-at-most is -1"),
        ({"carry_at_most": 5}, "--carry-at-most is 5, and nothing is carried: add --carry-state"),
        ({"share_decoder_input_output_embed": True, "decoder_output_dim": 8}, "must equal --decoder-input-dim 32"),
        ({"share_decoder_input_output_embed": True, **ADAPTIVE}, "a plain table of embeddings"),
        ({"adaptive_input": True}, "needs --adaptive-input-cutoff"),
        ({**ADAPTIVE, "quant_noise_pq": 0.1}, "must divide the widths 32, 8, 2 of adaptive input"),
        ({"tie_adaptive_weights": True}, "needs --adaptive-input and --adaptive-softmax-cutoff"),
        (
            {**ADAPTIVE, "tie_adaptive_weights": True, "adaptive_softmax_factor": 2.0},
            "--adaptive-input-factor is 4 and --adaptive-softmax-factor 2.0",
        ),
        ({**ADAPTIVE, "tie_adaptive_weights": True, "decoder_output_dim": 8}, "with --tie-adaptive-weights"),
    ],
)
def test_bad_options(changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_lm(**changes)


def test_positions_are_those_of_the_task() -> None:
    task = make_task(make_dictionary())
    for options, positions in (
        (dict(max_target_positions=None, tokens_per_sample=40), 40),
        (dict(max_target_positions=30, tokens_per_sample=40), 30),
        (dict(), 1024),
    ):
        task.cfg = Namespace(**options)
        config = LunaLanguageModelConfig(decoder_layers=1, decoder_embed_dim=16, decoder_attention_heads=2)
        assert LunaLanguageModel.build_model(config, task).max_positions() == positions
