"""What the translation model returns has the form that fairseq's Transformer returns, key by key."""

import copy
import dataclasses
import pickle
from argparse import Namespace
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from fairseq.models.transformer import TransformerConfig, TransformerModelBase
from fairseq.sequence_generator import EnsembleModel, EnsembleModelWithAlignment
from fairseq.sequence_scorer import SequenceScorer
from omegaconf import OmegaConf
from torch import Tensor

from luna_fairseq.models._config import nested_config
from luna_fairseq.models.luna import LunaModel, source_padding
from luna_fairseq.modules import weights as weights_module
from support.models import (
    PAD,
    assert_close,
    make_batch,
    make_config,
    make_dictionary,
    make_model,
    make_sentences,
    make_task,
)

UNPADDED = ([9, 9], [6, 6])
PADDED = ([3, 12], [6, 2])


def _fairseqs(**changes: Any) -> TransformerModelBase:
    """fairseq's Transformer of the same options."""
    config: TransformerConfig = nested_config(make_config(share_all_embeddings=True, **changes))
    return TransformerModelBase.build_model(config, make_task())


def _batch(lengths: Tuple[List[int], List[int]]) -> Tuple[Tensor, Tensor, Tensor]:
    sources, targets = (make_sentences(n, seed=seed) for seed, n in enumerate(lengths))
    source = make_batch(sources, "left")
    return source, source.ne(PAD).sum(1), make_batch(targets, "right")


def _form(value: Any) -> Any:
    """The kinds of a value's parts, and the shapes and dtypes of its tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: _form(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return ("tuple" if isinstance(value, tuple) else "list", *map(_form, value))
    return type(value)


def _same_form(got: Any, want: Any) -> None:
    got, want = _form(got), _form(want)
    if isinstance(want, dict):  # Luna has more
        got = {key: got[key] for key in want}
    assert got == want


def _decode(model: Any, source: Tensor, lengths: Tensor, target: Tensor, **more: Any) -> Any:
    return model.decoder(target, encoder_out=model.encoder(source, lengths), **more)


def _extra(call: Callable[..., Any], **more: Any) -> Callable[..., Any]:
    return lambda model, *batch: call(model, *batch, **more)[1]


CALLS: Dict[str, Callable[..., Any]] = {
    "encoder": lambda model, source, lengths, _: model.encoder(source, lengths),
    "encoder with states": lambda model, source, lengths, _: model.encoder(
        source, src_lengths=lengths, return_all_hiddens=True
    ),
    "encoder of embeddings": lambda model, source, lengths, _: model.encoder(
        source, token_embeddings=model.encoder.embed_tokens(source)
    ),
    "reordered": lambda model, source, lengths, _: model.encoder.reorder_encoder_out(
        model.encoder(source, lengths), torch.tensor([1, 0, 0])
    ),
    "logits": lambda model, *batch: model(*batch)[0],
    "extra": lambda model, *batch: model(*batch)[1],
    "keywords": lambda model, source, lengths, target: model(
        src_tokens=source, src_lengths=lengths, prev_output_tokens=target, return_all_hiddens=True
    ),
    "features": lambda model, *batch: model(*batch, features_only=True),
    "extract_features": lambda model, *batch: model.extract_features(*batch),
    "output_layer": lambda model, *batch: model.output_layer(model.extract_features(*batch)[0]),
    "alignment of a layer": _extra(_decode, alignment_layer=0, alignment_heads=2),
    "log-probabilities": lambda model, *batch: model.get_normalized_probs(model(*batch), log_probs=True),
    "probabilities": lambda model, *batch: model.get_normalized_probs(model(*batch), log_probs=False),
    "step": lambda model, *batch: _decode(model, *batch, incremental_state={})[0][:, -1],
    "alignment of a step": lambda model, *batch: _decode(model, *batch, incremental_state={}, alignment_layer=0)[1][
        "attn"
    ][0][:, -1],
    "max_positions": lambda model, *_: (
        model.max_positions(), model.max_decoder_positions(), model.encoder.max_positions()
    ),
    "targets": lambda model, source, lengths, target: model.get_targets({"target": target}, None),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("lengths", [UNPADDED, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("call", CALLS)
def test_the_form_is_fairseqs(call: str, lengths: Any, training: bool) -> None:
    batch = _batch(lengths)
    got, want = (CALLS[call](model.train(training), *batch) for model in (make_model(), _fairseqs()))
    _same_form(got, want)
    if call == "encoder":
        assert torch.equal(got["encoder_padding_mask"][0], want["encoder_padding_mask"][0])
        assert torch.equal(got["src_lengths"][0], want["src_lengths"][0])
    if call == "max_positions":
        assert got == want


@pytest.mark.parametrize("options", [{}, {"encoder_learned_pos": True, "max_source_positions": 77}], ids=str)
def test_positions_are_fairseqs(options: Dict[str, Any]) -> None:
    assert make_model(**options).max_positions() == _fairseqs(**options).max_positions()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [None, 0])
@pytest.mark.parametrize("change", [{}, {"untie_luna_kv": True, "encoder_projected_attention_heads": 2}], ids=str)
def test_attention_that_is_read_later_is_the_attention(change: Dict[str, Any], layer: Any, training: bool) -> None:
    """With its gradients, and the dropout of the call that it is read from."""
    model = make_model(attention_dropout=0.3, dropout=0.2, decoder_projected_attention_heads=2, **change)
    model.train(training)
    batch = _batch(PADDED)
    found = []
    for need_attn in (False, True):
        model.decoder.need_attn = need_attn
        torch.manual_seed(0)
        extra = model(*batch, alignment_layer=layer)[1]
        drawn = torch.random.get_rng_state()
        attn = extra["attn"][0]
        assert torch.equal(drawn, torch.random.get_rng_state()), "reading draws no random numbers"
        grads = torch.autograd.grad(attn.square().sum(), [*model.parameters()], allow_unused=True)
        found.append([attn, *(grad for grad in grads if grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for later, at_once in zip(*found, strict=True):
        assert_close(later, at_once, "attention or gradient")


def test_attention_is_computed_only_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: List[int] = []
    original = weights_module.luna_weights
    monkeypatch.setattr(weights_module, "luna_weights", lambda *args: [computed.append(1), original(*args)][1])
    model, batch = make_model(), _batch(PADDED)
    for training in (True, False):
        logits, extra = model.train(training)(*batch)
        assert logits.shape[:2] == (2, 6) and "attn" in extra and not computed
    attn = extra["attn"]
    assert attn[0] is attn[-1] is next(iter(attn)) and len(attn) == len(computed) == 1
    with torch.no_grad():
        attn = model(*batch)[1]["attn"]
    for copied in (copy.deepcopy(attn), pickle.loads(pickle.dumps(attn))):
        assert type(copied) is list and torch.equal(copied[0], attn[0])
    assert _decode(model, *batch, incremental_state={})[1]["attn"] == [None]


def test_checkpointed_activations_keep_nothing_to_compute_attention_from() -> None:
    model, batch = make_model(checkpoint_activations=True), _batch(PADDED)
    assert model(*batch)[1]["attn"] == [None]
    assert model(*batch, alignment_layer=1)[1]["attn"][0].requires_grad
    assert model.eval()(*batch)[1]["attn"][0].shape == (2, 6, 12)
    model.train().decoder.need_attn = True
    assert model(*batch)[1]["attn"][0].requires_grad


def test_what_somebody_hides_stays_hidden() -> None:
    """The shortcut for sources without padding knows the mask that it was made for."""
    model, (source, lengths, target) = make_model().eval(), _batch(UNPADDED)
    out = model.encoder(source, lengths)
    assert source_padding(out) is None and source_padding(model.encoder(*_batch(PADDED)[:2])) is not None
    for order in ([0, 1], [0, 0, 1, 1], [1, 0]):
        assert source_padding(model.encoder.reorder_encoder_out(out, torch.tensor(order))) is None
    hidden = {**out, "encoder_padding_mask": [torch.arange(9).expand(2, -1) < 4]}
    attn = model.decoder(target, encoder_out=hidden)[1]["attn"][0]
    assert not attn[:, :, :4].any() and attn.sum(-1).allclose(torch.ones(2, 6))


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1)], ids=["transformer:luna", "luna:transformer", "luna:luna"])
def test_scoring_references_with_an_ensemble(order: Tuple[int, int]) -> None:
    """The attention is the mean over the models."""
    models = [[_fairseqs, make_model][kind]() for kind in order]
    source, lengths, target = _batch(PADDED)
    net_input = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": target}
    with torch.no_grad():
        found = SequenceScorer(make_dictionary()).generate(models, {"net_input": net_input, "target": target})
        want = sum(model.eval()(*net_input.values())[1]["attn"][0] for model in models) / 2
    for row, hypos in enumerate(found):
        assert_close(hypos[0]["attention"], want[row], "attention")


def test_a_generator_that_reads_the_attention_has_a_decoder_of_its_own() -> None:
    """All others, at the same time, decode without it."""
    model, other = make_model(), _fairseqs()
    for ensemble in (EnsembleModelWithAlignment([model]), EnsembleModel([model, other])):
        reader = ensemble.models[0]
        assert reader.decoder.need_attn and not model.decoder.need_attn
        assert reader.encoder is model.encoder and reader.decoder.layers is model.decoder.layers
        assert {*map(id, reader.parameters())} == {*map(id, model.parameters())}
    assert EnsembleModel([model]).models[0] is model and EnsembleModel([model, other]).models[1] is other
    model.decoder.need_attn = True
    assert EnsembleModelWithAlignment([model]).models[0] is model


@pytest.mark.parametrize("method", ["sMoElp", "hMoElp", "hMoEup"])
def test_a_mixture_of_experts_learns_its_prior(method: str) -> None:
    """Of a batch without padding, too: fairseq's gate looks at the padding mask."""
    moe = pytest.importorskip("fairseq.examples.translation_moe.translation_moe_src.translation_moe")
    config = moe.TranslationMoEConfig(
        method=method, num_experts=2, mean_pool_gating_network=True, sentence_avg=True
    )  # fmt: skip
    source_dictionary, target_dictionary = make_dictionary(), make_dictionary()
    task = moe.TranslationMoETask(config, source_dictionary, target_dictionary)
    options = OmegaConf.create({**dataclasses.asdict(make_config(dropout=0.1)), "_name": "luna"})
    model = task.build_model(options)
    criterion = Namespace(compute_loss=lambda model, out, sample, reduce: (_loss(model, out, sample), None))
    for lengths in (UNPADDED, PADDED):
        source, source_lengths, target = _batch(lengths)
        net_input = {"src_tokens": source, "src_lengths": source_lengths, "prev_output_tokens": target}
        sample = {"net_input": net_input, "target": target, "ntokens": 12}
        loss, _, _ = task._get_loss(sample, model, criterion)
        loss.backward()
        assert torch.isfinite(loss)
        if method.endswith("lp"):
            assert model.gating_network.fc1.weight.grad.abs().max() > 0


def _loss(model: LunaModel, out: Any, sample: Dict[str, Any]) -> Tensor:
    scores = model.get_normalized_probs(out, log_probs=True)
    return torch.nn.functional.nll_loss(scores.mT, sample["target"], ignore_index=PAD, reduction="none")
