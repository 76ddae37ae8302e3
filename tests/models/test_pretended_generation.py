"""Beam search and the classifiers on a pretended device: the CPU's words, scores and gradients."""

import functools
from collections.abc import Callable
from typing import Any, Dict, List

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from support import gpu_counts, pretended
from support.devices import gradients
from support.models import PAD, assert_close, make_batch, make_dictionary, make_lra, make_model, make_sentences
from support.runs import in_a_child

pytestmark = pytest.mark.long


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """A test in a process of its own: torch forgets no device that it has been told of."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        assert in_a_child(lambda: test(**given)) == 0

    return run


def _search(model: Any, sources: Any, beam: int) -> List[Any]:
    """Fairseq's, with fewer words than the longest sentence may have, so that hypotheses end at different steps."""
    generator = SequenceGenerator([model], make_dictionary(), beam_size=beam, max_len_b=9)
    lengths = sources.ne(PAD).sum(dim=1)
    return generator.generate([model], {"net_input": {"src_tokens": sources, "src_lengths": lengths}})


@pytest.mark.parametrize(
    ("changes", "beam"),
    [
        ({}, 4),
        ({"untie_luna_kv": True}, 4),
        ({"packed_position_bias": 1.0, "causal_decay": 5.0}, 2),
        ({"encoder_normalize_before": True, "decoder_normalize_before": True}, 1),
    ],
    ids=str,
)
@apart
def test_hypotheses_are_those_of_the_cpu(changes: Dict[str, Any], beam: int) -> None:
    """Words, scores and their order, of sentences of several lengths; steps as ever, and as graphs."""
    model = make_model(**changes).eval()
    with torch.no_grad():  # so that words differ in how likely they are
        model.decoder.embed_tokens.weight.mul_(3.0)
    model.make_generation_fast_(need_attn=False)
    sources = make_batch(make_sentences([3, 12, 7]), "left")
    want = _search(model, sources, beam)
    with pretended.device() as counts:
        pretended.sent_module(model)
        got = pretended.back(_search(model, pretended.sent(sources), beam))
        with gpu_counts.graphs(counts):
            by_graph = pretended.back(_search(model, pretended.sent(sources), beam))
        assert counts.launches["graph"] > 3
    for ours, theirs in zip(got + by_graph, want + want, strict=True):
        assert len(ours) == beam
        assert [one["tokens"].tolist() for one in ours] == [one["tokens"].tolist() for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one["positional_scores"], other["positional_scores"], "scores")


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({}, 0),
        ({"tie_kv": True, "sen_rep_type": "mp"}, 0),
        ({"packed_position_bias": 1.0}, 0),
        ({"layer_type": "transformer"}, 2),  # fairseq's encoder looks for padding
    ],
    ids=str,
)
@apart
def test_classifiers_have_the_values_and_gradients_of_the_cpu(changes: Dict[str, Any], waits: int) -> None:
    """Padded documents; no forward or backward pass of Luna waits for the device."""
    model = make_lra(**changes).eval()
    documents = make_batch(make_sentences([5, 12, 7], words=20), "right")
    lengths = torch.tensor([5, 12, 7])
    loss = model(documents, lengths)[0].float().square().mean()
    loss.backward()
    want, wanted = loss.detach(), gradients(model)
    model.zero_grad()
    with pretended.device() as counts:
        pretended.sent_module(model)
        sent = pretended.sent((documents, lengths))
        counts.clear()
        loss = model(*sent)[0].float().square().mean()
        loss.backward()
        waited = dict(counts.waits)
        got, found = pretended.back(loss.detach()), pretended.gradients(model)
    assert_close(got, want, "loss")
    assert found.keys() == wanted.keys()
    for key, grad in found.items():
        assert_close(grad, wanted[key], key)
    assert sum(waited.values()) == waits, waited
