"""Decoding steps as one graph, by a stand-in that repeats recorded operations: words and scores of whole searches."""

import itertools
import warnings
from typing import Any, Dict, List

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from luna_fairseq.models import _decoding_graph
from luna_fairseq.ops.proving import Proofs
from support.models import PAD, assert_close, make_batch, make_dictionary, make_model, make_sentences
from support.recorded import Recorded

SOURCES = make_batch(make_sentences([3, 12, 7, 5, 9], seed=3), "left")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in on a CPU, and nothing known of any decoder."""
    monkeypatch.setitem(_decoding_graph.CAPTURES, "cpu", Recorded)
    monkeypatch.setattr(_decoding_graph, "_proofs", Proofs("decoding steps as CUDA graphs", "LUNA_GRAPH=0"))
    monkeypatch.setattr(Recorded, "made", [])
    monkeypatch.setenv("LUNA_GRAPH", "1")


def _model(**changes: Any) -> Any:
    """Words of which differ in how likely they are."""
    model = make_model(**changes).eval()
    with torch.no_grad():
        model.decoder.embed_tokens.weight.mul_(3.0)
    model.make_generation_fast_(need_attn=False)
    return model


def _search(models: List[Any], sources: Tensor = SOURCES, beam: int = 3, **options: Any) -> List[Any]:
    """Fairseq's, to few enough words for hypotheses to end at different steps."""
    generator = SequenceGenerator(models, make_dictionary(), beam_size=beam, max_len_b=9, **options)
    lengths = sources.ne(PAD).sum(dim=1)
    return generator.generate(models, {"net_input": {"src_tokens": sources, "src_lengths": lengths}})


def _ordinary(*args: Any, **options: Any) -> List[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_GRAPH", "0")
        return _search(*args, **options)


def _same(got: List[Any], want: List[Any]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert [one["tokens"].tolist() for one in ours] == [one["tokens"].tolist() for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one["positional_scores"], other["positional_scores"], "scores")


def _replays() -> List[int]:
    return [made.replays for made in Recorded.made]


@pytest.mark.parametrize(
    ("changes", "beam"),
    [
        ({}, 3),
        ({"untie_luna_kv": True, "decoder_normalize_before": True}, 3),
        ({"decoder_learned_pos": True}, 1),
    ],
    ids=str,
)
def test_a_search_is_the_ordinary_one(changes: Dict[str, Any], beam: int) -> None:
    """Five sentences, of which some end before others: all by few graphs, and every step but the first."""
    model = _model(**changes)
    want = _ordinary([model], beam=beam)
    steps = max(len(one["tokens"]) for own in want for one in own)
    _same(_search([model], beam=beam), want)
    assert len(_replays()) <= 2 and sum(_replays()) >= steps - 1
    _same(_search([model], SOURCES[3:], beam), _ordinary([model], SOURCES[3:], beam))  # by the graphs of before
    assert len(_replays()) <= 2
    # Rows that are free are padding: what they count would run out of the table of positions.
    for graph in itertools.chain.from_iterable(_decoding_graph._graphs[model.decoder].found.values()):
        assert graph._tokens[graph._filled :].eq(PAD).all()


def test_two_searches_take_turns_with_one_graph() -> None:
    """An ensemble of a model with itself, whose states read the same buffers one after the other."""
    model = _model()
    _same(_search([model, model]), _ordinary([model, model]))
    assert len(_replays()) <= 2


def test_prefixes_of_several_lengths() -> None:
    """Rows whose words are counted from different places on; padding among the words is none."""
    model = _model()
    prefix = torch.tensor([[5, 6], [7, PAD], [9, 8], [PAD, PAD], [5, PAD]])
    results = []
    for value in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LUNA_GRAPH", value)
            generator = SequenceGenerator([model], make_dictionary(), beam_size=2, max_len_b=7)
            sample = {"net_input": {"src_tokens": SOURCES, "src_lengths": SOURCES.ne(PAD).sum(dim=1)}}
            results.append(generator.generate([model], sample, prefix_tokens=prefix))
    _same(results[1], results[0])
    assert sum(_replays()) > 3


def test_weights_that_have_moved_are_seen() -> None:
    """And those that were changed where they are."""
    model = _model()
    _search([model])
    weight = model.decoder.embed_tokens.weight
    for moved in (False, True):
        with torch.no_grad():
            weight.mul_(0.7)
        if moved:
            weight.data = weight.data * -0.8
        _same(_search([model]), _ordinary([model]))
    assert len(Recorded.made) >= 2


def test_behind_the_table_of_positions() -> None:
    """The table grows there, which no graph does; until then steps are graphs."""
    tokens = torch.randint(4, 20, (5, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 2
    results = []
    for value in ("0", "1"):
        model = _model(max_target_positions=6)
        with torch.no_grad():
            encoded = model.encoder(SOURCES)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LUNA_GRAPH", value)
                state: Dict[str, Any] = {}
                steps = [model.decoder(tokens[:, :n], encoded, state)[0] for n in range(1, 10)]
                results.append(torch.cat(steps, dim=1))
    assert_close(results[1], results[0], "logits")
    assert sum(_replays()) == 6  # one to be compared


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_a_graph_that_is_wrong_is_not_used(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is told of, whatever is asked of the kernels."""
    monkeypatch.setenv("LUNA_KERNELS", kernels)
    model = _model()
    want = _ordinary([model])
    monkeypatch.setattr(Recorded, "replay", lambda self: None)
    with pytest.warns(UserWarning, match=r"CUDA graphs are not used on cpu: off by .*LUNA_GRAPH=0"):
        _same(_search([model]), want)


def test_a_step_that_looks_at_values_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be captured is done as ever."""
    model = _model()
    want = _ordinary([model])
    right = _decoding_graph._compute

    def looking(decoder: Any, tokens: Tensor, saved: Any) -> Any:
        tokens.max().item()
        return right(decoder, tokens, saved)

    monkeypatch.setattr(_decoding_graph, "_compute", looking)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        _same(_search([model]), want)


def test_when_steps_are_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default; where attention is asked for; on a CPU as it is, which says so."""
    model = _model()
    want = _ordinary([model])
    model.decoder.need_attn = True
    before = sum(_replays())
    _search([model])
    monkeypatch.delenv("LUNA_GRAPH")
    model.decoder.need_attn = False
    _search([model])
    assert sum(_replays()) == before
    monkeypatch.setenv("LUNA_GRAPH", "1")
    monkeypatch.delitem(_decoding_graph.CAPTURES, "cpu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        _same(_search([model]), want)
    (text,) = {str(one.message) for one in said}
    assert text == "LUNA_GRAPH is 1, and a cpu device has no graphs: steps are as ever"
    monkeypatch.setenv("LUNA_GRAPH", "yes")
    with pytest.raises(ValueError, match="LUNA_GRAPH is 'yes': set it to 1"):
        _search([model])
