"""Whole models on a GPU give what the CPU gives: forward, backward and beam search."""

import copy
import warnings
from typing import Any, Dict, List

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from luna_fairseq.models import _decoding_graph
from support.devices import EACH, MODELS, gradients, model_inputs, to
from support.models import (
    PAD,
    assert_close,
    assert_grads_close,
    make_batch,
    make_dictionary,
    make_model,
    make_sentences,
)
from support.recorded import Recorded


def _loss(model: Any, name: str, inputs: Any) -> Any:
    """Of the real targets: what stands at the others is read by nobody."""
    out = model(*inputs)[0].float()
    return (out if name.startswith("lra") else out * inputs[-1].ne(PAD).unsqueeze(-1)).square().mean()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("device", EACH)
def test_values_and_gradients(device: str, name: str) -> None:
    """And bfloat16 is near, by autocast."""
    model = MODELS[name]().eval()
    inputs = model_inputs(name)
    want = _loss(model, name, inputs)
    want.backward()
    wanted = gradients(model)
    model.zero_grad()
    model.to(device)
    got = _loss(model, name, to(device, inputs))
    got.backward()
    assert_close(got.detach().cpu(), want.detach(), "loss", rel=1e-5)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    assert_grads_close(found, wanted)
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        assert_close(_loss(model, name, to(device, inputs)).cpu(), want.detach(), "loss in bfloat16", rel=5e-2)


@pytest.mark.parametrize("graph", ["0", "1"])
@pytest.mark.parametrize("changes", [{}, {"untie_luna_kv": True}], ids=["tied", "untied"])
@pytest.mark.parametrize("device", EACH)
def test_hypotheses_of_beam_search(
    device: str, changes: Dict[str, Any], graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words and scores; sentences of several lengths, so that some end before others. Steps may be graphs."""
    monkeypatch.setenv("LUNA_GRAPH", graph)
    if device == "cpu":  # what stands for a graph there
        monkeypatch.setitem(_decoding_graph.CAPTURES, "cpu", Recorded)
    model = make_model(**changes).eval()
    # Random words are nearly as likely as each other: a larger embedding tells them apart on every device.
    with torch.no_grad():
        model.decoder.embed_tokens.weight.mul_(3.0)
    sources = make_batch(make_sentences([3, 12, 7]), "left")
    lengths = sources.ne(PAD).sum(dim=1)

    def search(on: str) -> List[List[Dict[str, Any]]]:
        own = copy.deepcopy(model).to(on)
        generator = SequenceGenerator([own], make_dictionary(), beam_size=4, max_len_b=12)
        sample = {"net_input": to(on, {"src_tokens": sources, "src_lengths": lengths})}
        return generator.generate([own], sample)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a graph that is not used says so
        got = search(device)
    monkeypatch.setenv("LUNA_GRAPH", "0")
    for ours, theirs in zip(got, search("cpu"), strict=True):
        assert [one["tokens"].tolist() for one in ours] == [one["tokens"].tolist() for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one["positional_scores"].cpu(), other["positional_scores"], "scores", rel=1e-4)
