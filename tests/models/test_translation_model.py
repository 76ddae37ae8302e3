"""What the translation model promises, whatever its weights."""

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from luna_fairseq.models._config import REFUSED, LunaConfig, check_config
from luna_fairseq.models.luna import LunaModel
from luna_fairseq.modules import CausalLunaAttention, WordDropout
from support.models import (
    EOS,
    PAD,
    assert_close,
    make_batch,
    make_config,
    make_dictionary,
    make_lm,
    make_model,
    make_sentences,
    make_task,
)

VARIANTS: List[Dict[str, Any]] = [
    {},
    {"untie_luna_kv": True},
    {"encoder_normalize_before": True, "decoder_normalize_before": True},
    {"encoder_learned_pos": True, "decoder_learned_pos": True},
    {"layernorm_embedding": True},
    {"causal_activation": "elu", "no_scale_embedding": True},
    {"causal_decay": 5.0},
    {"causal_decay": 0.3, "untie_luna_kv": True},
    {"encoder_projected_attention_heads": 2, "decoder_projected_attention_heads": 8},
    {"projection_length": 1},
    {"no_token_positional_embeddings": True},
    {"share_all_embeddings": False, "decoder_output_dim": 16},
]


def _name(variant: Dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in variant.items()) or "base"


def _pair(sources: List[int], targets: List[int], side: str = "right") -> Tuple[Tensor, Tensor]:
    """Sources with their padding on the left, and targets, of these lengths."""
    return make_batch(make_sentences(sources), "left"), make_batch(make_sentences(targets, seed=1), side)


def _logits(
    model: LunaModel, sources: List[Tensor], targets: List[Tensor], sides: str, extra: int = 0
) -> List[Tensor]:
    """The logits of each sentence at its real target positions."""
    src, tgt = (make_batch(s, side, extra) for s, side in zip((sources, targets), sides.split(), strict=True))
    logits, _ = model(src, src.ne(PAD).sum(1), tgt)
    return [row[mask] for row, mask in zip(logits, tgt.ne(PAD), strict=True)]


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
def test_neighbours_and_padding_change_nothing(variant: Dict[str, Any]) -> None:
    """Alone, in a batch padded left or right, or with padding that nobody needs."""
    model = make_model(**variant).eval()
    sources, targets = make_sentences([3, 12, 7]), make_sentences([6, 2, 9], seed=1)
    alone = [_logits(model, [s], [t], "left right")[0] for s, t in zip(sources, targets, strict=True)]
    for sides in ("left left", "left right", "right left", "right right"):
        for extra in (0, 3):
            for got, want in zip(_logits(model, sources, targets, sides, extra), alone, strict=True):
                assert_close(got, want, f"{sides} padding, {extra} extra")


@pytest.mark.parametrize("variant", VARIANTS, ids=_name)
@pytest.mark.parametrize("side", ["left", "right"])
def test_step_by_step_is_all_at_once(variant: Dict[str, Any], side: str) -> None:
    """One position a call, or several, also behind padding."""
    model = make_model(**variant).eval()
    model.decoder.need_attn = True
    source, target = _pair([3, 12, 7], [6, 2, 9], side)
    encoder_out = model.encoder(source)
    want, extra = model.decoder(target, encoder_out=encoder_out)
    for bounds in (range(1, target.size(1) + 1), (2, 3, 7, 9)):
        state: Dict[str, Any] = {}
        outs = [model.decoder(target[:, :n], encoder_out=encoder_out, incremental_state=state) for n in bounds]
        assert_close(torch.cat([o[0] for o in outs], 1)[target.ne(PAD)], want[target.ne(PAD)], f"calls {bounds}")
        attn = torch.cat([o[1]["attn"][0] for o in outs], 1)
        assert_close(attn[target.ne(PAD)], extra["attn"][0][target.ne(PAD)], "attention")
    with pytest.raises(ValueError, match="all 9 tokens were seen before"):
        model.decoder(target, encoder_out=encoder_out, incremental_state=state)


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0], [1], [0, 1, 2, 2, 1, 0]])
def test_beam_reorder_of_everything(order: List[int]) -> None:
    model = make_model().eval()
    source, target = _pair([3, 12, 7], [6, 6, 6])
    index = torch.tensor(order)
    state: Dict[str, Any] = {}
    encoder_out = model.encoder(source, return_all_hiddens=True)
    model.decoder(target[:, :3], encoder_out=encoder_out, incremental_state=state)
    model.decoder.reorder_incremental_state_scripting(state, index)
    before = {name: [*tensors] for name, tensors in encoder_out.items()}
    again = model.encoder.reorder_encoder_out(encoder_out, index)
    assert all(now is then for name in before for now, then in zip(encoder_out[name], before[name], strict=True))
    encoder_out = again
    got, _ = model.decoder(target[index], encoder_out=encoder_out, incremental_state=state)
    want, _ = model(source[index], None, target[index])
    assert_close(got, want[:, 3:], "after reorder")


def test_a_beam_keeps_each_sentence_once() -> None:
    model = make_model().eval()
    source, target = _pair([3, 12], [6] * 6)
    encoder_out = model.encoder(source)
    beam = model.encoder.reorder_encoder_out(encoder_out, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert beam["packed_out"][0] is encoder_out["packed_out"][0]
    same = model.encoder.reorder_encoder_out(beam, torch.tensor([2, 0, 0, 3, 4, 3]))
    assert same["encoder_out"][0] is encoder_out["encoder_out"][0]
    got, _ = model.decoder(target, encoder_out=same)
    want, _ = model(source.repeat_interleave(3, dim=0), None, target)
    assert_close(got, want, "beam")
    with pytest.raises(ValueError, match="6 targets for 2 sources"):
        model.decoder(target, encoder_out=encoder_out)


@pytest.mark.parametrize("learned", [True, False])
def test_decoding_beyond_the_first_position_table(learned: bool) -> None:
    """More positions than the sinusoidal table holds at first, one at a time."""
    model = make_model(encoder_learned_pos=learned, decoder_learned_pos=learned, max_target_positions=1400).eval()
    source, target = _pair([5], [1200])
    encoder_out = model.encoder(source)
    state: Dict[str, Any] = {}
    model.decoder(target[:, :1000], encoder_out=encoder_out, incremental_state=state)
    steps = [
        model.decoder(target[:, :n], encoder_out=encoder_out, incremental_state=state)[0]
        for n in (1001, 1002, 1100, 1101, 1200)
    ]
    want = model.decoder(target, encoder_out=encoder_out)[0]
    assert_close(torch.cat(steps, 1), want[:, 1000:], "late steps")


def test_no_later_token_is_seen() -> None:
    model = make_model(decoder_layers=3).eval()
    source, target = _pair([5], [9])
    changed = target.clone()
    changed[:, 4:] = (changed[:, 4:] + 7) % 40 + 4
    before, after = model(source, None, target)[0], model(source, None, changed)[0]
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_empty_sentences_give_finite_numbers_and_gradients() -> None:
    model = make_model()
    for sources in ([[PAD] * 4, [5, 6, 7, EOS]], [[PAD] * 4] * 2, [[EOS], [EOS]]):
        source, target = torch.tensor(sources), torch.tensor([[EOS, 5, 6], [EOS, PAD, PAD]])
        logits, _extra = model(source, None, target)
        assert torch.isfinite(logits).all()
        logits.logsumexp(-1).sum().backward()
        for name, p in model.named_parameters():
            assert torch.isfinite(p.grad).all(), name
        assert torch.isfinite(model.eval()(source, None, target, alignment_layer=0)[1]["attn"][0]).all()
        model.train()


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"untie_luna_kv": True},
        {"encoder_normalize_before": True, "decoder_normalize_before": True},
        {"encoder_normalize_before": True},
        {"layernorm_embedding": True, "share_all_embeddings": False},
        {"checkpoint_activations": True},
    ],
    ids=_name,
)
def test_every_parameter_gets_a_gradient(variant: Dict[str, Any]) -> None:
    """So that distributed training needs no --find-unused-parameters."""
    model = make_model(**variant)
    source, target = _pair([9, 12], [6, 2])
    model(source, None, target)[0].logsumexp(-1).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_activation_checkpointing_changes_no_gradient() -> None:
    source, target = _pair([9, 12], [6, 2])
    grads = []
    for checkpoint in (False, True):
        model = make_model(checkpoint_activations=checkpoint, dropout=0.3, attention_dropout=0.2)
        torch.manual_seed(7)
        model(source, None, target)[0].logsumexp(-1).sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert_close(grads[1][name], grad, name)


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_layerdrop": 0.5},
        {"decoder_layerdrop": 0.5},
        {"quant_noise_pq": 0.2},
        {"dropout": 0.1},
        {"attention_dropout": 0.1},
        {"activation_dropout": 0.1},
        {"word_dropout": 0.2},
    ],
    ids=str,
)
def test_noise_of_the_transformer(options: Dict[str, Any]) -> None:
    """Other numbers in each training pass, always the same ones in evaluation."""
    source, target = _pair([9, 12], [6, 2])
    for training in (True, False):
        model = make_model(encoder_layers=3, decoder_layers=3, **options).train(training)
        outs = [model(source, None, target)[0] for _ in range(8)]
        assert all(torch.isfinite(out).all() for out in outs)
        assert any(not torch.equal(out, outs[0]) for out in outs) == training


def test_options_of_the_transformer_work(tmp_path: Path) -> None:
    source, target = _pair([9, 12], [6, 2])
    shared = make_model(share_all_embeddings=True)
    tables = [shared.encoder.embed_tokens, shared.decoder.embed_tokens, shared.decoder.output_projection]
    assert len({id(table.weight) for table in tables}) == 1
    for options, distinct in (
        ({"share_decoder_input_output_embed": True}, 2),
        ({"merge_src_tgt_embed": True}, 1),
        ({}, 3),
    ):
        model = make_model(share_all_embeddings=False, **options)
        assert torch.isfinite(model(source, None, target)[0]).all()
        tables = [model.encoder.embed_tokens, model.decoder.embed_tokens, model.decoder.output_projection]
        assert len({id(table.weight) for table in tables}) == distinct, options

    model = make_model(adaptive_softmax_cutoff=[10, 30], share_all_embeddings=False)
    out, _ = model(source, None, target)
    assert out.size(-1) == 32
    log_probs = model.get_normalized_probs((out, None), log_probs=True, sample=None)
    assert_close(log_probs.exp().sum(-1), torch.ones(target.shape), "adaptive softmax", rel=1e-4)

    model = make_model(encoder_layers_to_keep="1", decoder_layers_to_keep="0")
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (1, 1)
    relu, gelu = (make_model(activation_fn=name) for name in ("relu", "gelu"))
    assert not torch.allclose(relu(source, None, target)[0], gelu(source, None, target)[0])

    path, vector = tmp_path / "vectors", torch.arange(32) / 8
    path.write_text(f"1 32\nw3 {' '.join(map(str, vector.tolist()))}\n")
    model = make_model(share_all_embeddings=False, encoder_embed_path=str(path))
    row = make_dictionary().index("w3")
    assert torch.equal(model.encoder.embed_tokens.weight[row], vector)
    assert not torch.equal(model.decoder.embed_tokens.weight[row], vector)


def test_pruned_checkpoint_loads() -> None:
    """--encoder-layers-to-keep and --decoder-layers-to-keep on a trained model."""
    trained = make_model(encoder_layers=3, decoder_layers=3)
    config = make_config(
        encoder_layers=3, decoder_layers=3, share_all_embeddings=True,
        encoder_layers_to_keep="0,2", decoder_layers_to_keep="1",
    )  # fmt: skip
    pruned = LunaModel.build_model(config, make_task())
    pruned.load_state_dict(
        trained.state_dict(), strict=True, model_cfg=OmegaConf.create({**vars(config), "_name": "luna"})
    )
    assert len(pruned.encoder.layers) == 2 and len(pruned.decoder.layers) == 1
    assert torch.equal(pruned.encoder.layers[1].fc1.weight, trained.encoder.layers[2].fc1.weight)
    assert torch.equal(pruned.decoder.layers[0].fc1.weight, trained.decoder.layers[1].fc1.weight)


@pytest.mark.parametrize(
    "change",
    [{"encoder_attention_heads": 2}, {"decoder_projected_attention_heads": 2}, {"causal_activation": "elu"}],
)
def test_weights_of_another_model_of_the_same_shapes_are_refused(change: Dict[str, Any]) -> None:
    state = make_model().state_dict()
    with pytest.raises(RuntimeError, match=r"is \w+ in the checkpoint and \w+ in this model"):
        make_model(**change).load_state_dict(state)
    make_model().load_state_dict(state)
    make_model(**change).load_state_dict(dict(state))  # nothing said, as in published checkpoints


@pytest.mark.parametrize("make", [make_model, make_lm])
def test_weights_of_a_model_that_forgets_otherwise_are_refused(make: Any) -> None:
    """One of ours that says nothing of it has no decay; of one that says nothing at all nobody knows."""
    plain, decayed, older = make().state_dict(), make(causal_decay=5.0).state_dict(), make().state_dict()
    for own_metadata in older._metadata.values():
        own_metadata.pop("causal_decay", None)
    make(causal_decay=5.0).load_state_dict(decayed)
    for state in (older, dict(plain)):
        make().load_state_dict(state)
    make(causal_decay=5.0).load_state_dict(dict(decayed))  # as pruned or averaged by fairseq
    for state, own, said in (
        (decayed, 0.0, "self_attn.causal_decay is 5.0 in the checkpoint and 0.0 in this model"),
        (decayed, 2.0, "self_attn.causal_decay is 5.0 in the checkpoint and 2.0 in this model"),
        (plain, 5.0, "self_attn.causal_decay is 0.0 in the checkpoint and 5.0 in this model"),
        (older, 5.0, "self_attn.causal_decay is 0.0 in the checkpoint and 5.0 in this model"),
    ):
        with pytest.raises(RuntimeError, match=said):
            make(causal_decay=own).load_state_dict(state)


@pytest.mark.parametrize("make", [make_model, make_lm])
@pytest.mark.parametrize("rate", [-1.0, 1e-45, float("inf"), float("nan")])
def test_bad_decays(make: Any, rate: float) -> None:
    said = rf"--causal-decay is {rate}: it must be 0 \(none\) or at least 1e-06, and finite"
    with pytest.raises(ValueError, match=said):
        make(causal_decay=rate)
    with pytest.raises(ValueError, match=said):
        CausalLunaAttention(8, 2, decay=rate)


@pytest.mark.parametrize("rate", [1e-6, 1e30])
def test_the_least_decay_is_none_and_the_most_leaves_a_position_itself(rate: float) -> None:
    model, plain = make_model(causal_decay=rate), make_model()
    source, target = _pair([9, 12], [6, 2])
    out = model(source, None, target)[0]
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    near = (out - plain(source, None, target)[0]).abs().max() < 1e-3
    other = target.clone()
    other[:, 0] = target[:, 0] + 1
    unmoved = torch.equal(model(source, None, other)[0][0, 1:], out[0, 1:])
    assert (bool(near), unmoved) == ((True, False) if rate < 1 else (False, True))


def test_word_dropout_drops_whole_words_and_only_those() -> None:
    torch.manual_seed(0)
    dropout = WordDropout(0.4)
    x = torch.ones(200, 50, 8)
    y = dropout(x)
    assert ((y == 0).all(-1) | (y == y.max()).all(-1)).all()
    assert (y == 0).all(-1).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert y.max().item() == pytest.approx(1 / 0.6)
    assert not torch.equal((y[0] == 0), (y[1] == 0)), "each sentence loses other words"
    assert torch.equal(dropout.eval()(x), x)


def test_retained_dropout_reaches_attention() -> None:
    model = make_model(attention_dropout=0.5).eval()
    source, target = _pair([9, 12], [6, 2])
    assert torch.equal(model(source, None, target)[0], model(source, None, target)[0])
    for name, module in model.named_modules():
        if hasattr(module, "make_generation_fast_") and module is not model:
            module.make_generation_fast_(name=name, retain_dropout=True)
    assert not torch.equal(model(source, None, target)[0], model(source, None, target)[0])


def test_attention_that_is_trained() -> None:
    """As --load-alignments needs it: with gradients, and the same output."""
    model = make_model()
    source, target = _pair([9, 12], [6, 2])
    want = model(source, None, target)[0]
    model.decoder.need_attn = True
    out, extra = model(source, None, target)
    assert_close(out, want, "output")
    extra["attn"][0].square().sum().backward()
    gradients = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {f"decoder.layers.1.encoder_attn.{name}.weight" for name in ("q_proj", "pq_proj")} <= gradients


# What the published implementation has (vocabulary 37,004), less the norms that never had a gradient.
PARAMETERS = [
    (False, 16, True, 67_832_832),
    (False, 16, False, 105_724_928),
    (False, 32, True, 67_841_024),
    (False, 32, False, 105_733_120),
    (True, 16, True, 75_712_512),
    (True, 16, False, 113_604_608),
    (True, 32, True, 75_720_704),
    (True, 32, False, 113_612_800),
]


@pytest.mark.parametrize(("untied", "length", "shared", "published"), PARAMETERS)
def test_parameter_counts(untied: bool, length: int, shared: bool, published: int) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(LunaConfig)}
    sizes = {k: defaults[k] for k in defaults if k.endswith(("embed_dim", "layers", "attention_heads"))}
    sizes.update(encoder_projected_attention_heads=8, decoder_projected_attention_heads=8)
    config = make_config(**sizes, untie_luna_kv=untied, projection_length=length, share_all_embeddings=shared)
    dictionary = make_dictionary(37_000)
    with torch.device("meta"):
        model = LunaModel.build_model(config, make_task(dictionary, dictionary))
    assert sum(p.numel() for p in model.parameters()) == published - 1_024


@pytest.mark.parametrize("option", REFUSED)
def test_options_without_meaning_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is not available for Luna"):
        check_config(make_config(**{option: 1}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection_length": 0}, "--projection-length is 0"),
        ({"encoder_attention_heads": 5}, "--encoder-attention-heads is 5.*--encoder-embed-dim 32"),
        ({"decoder_projected_attention_heads": 3}, "--decoder-projected-attention-heads is 3"),
        ({"decoder_embed_dim": 16}, "--decoder-embed-dim is 16 and --encoder-embed-dim 32"),
        ({"share_all_embeddings": True, "decoder_output_dim": 16}, "--decoder-output-dim is 16"),
        ({"word_dropout": 1.5}, "--word-dropout is 1.5"),
        ({"decoder_layerdrop": 1.5}, "--decoder-layerdrop is 1.5"),
        ({"decoder_layers": 0}, "--decoder-layers is 0"),
        ({"decoder_input_dim": 8}, "--decoder-input-dim is 8"),
        ({"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 7}, "--quant-noise-pq-block-size is 7"),
    ],
)
def test_bad_options(options: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_shared_embeddings_need_one_dictionary() -> None:
    with pytest.raises(ValueError, match="--share-all-embeddings requires a joined dictionary"):
        LunaModel.build_model(
            make_config(share_all_embeddings=True), make_task(make_dictionary(46), make_dictionary(47))
        )


def test_full_context_alignment_is_refused() -> None:
    model = make_model()
    source, target = _pair([9], [6])
    with pytest.raises(ValueError, match="--full-context-alignment"):
        model.decoder(target, encoder_out=model.encoder(source), full_context_alignment=True)
