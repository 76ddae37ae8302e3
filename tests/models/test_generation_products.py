"""Decoding on a CPU with laid-out weights and sums that are overwritten: the same as all positions at once."""

from contextlib import nullcontext
from typing import Any, Dict, List

import pytest
import torch
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.modules import CausalLunaAttention
from support.models import PAD, assert_close, make_batch, make_model, make_sentences

WIDE: Dict[str, Any] = dict(
    encoder_embed_dim=128, decoder_embed_dim=128, encoder_ffn_embed_dim=128, decoder_ffn_embed_dim=128
)


def decoded(model: Any, source: Tensor, written: Tensor, states: List[Any]) -> Tensor:
    """Log probabilities of the next words, step by step as fairseq's search takes them.

    Three rows a sentence, of the same words, change places.
    """
    search = EnsembleModel([model])
    order = torch.arange(source.size(0)).repeat_interleave(3)
    encoded = search.forward_encoder({"src_tokens": source, "src_lengths": source.ne(PAD).sum(dim=1)})
    encoded = search.reorder_encoder_out(encoded, order)
    found = []
    for step in range(1, written.size(1) + 1):
        if step > 1:
            order = torch.arange(written.size(0)).view(-1, 3).roll(1, dims=1).flatten()
            search.reorder_incremental_state(states, order)
            encoded = search.reorder_encoder_out(encoded, order)
        found.append(search.forward_decoder(written[:, :step], encoded, states)[0])
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("untied", [False, True])
@torch.no_grad()
def test_steps_with_layouts_are_all_positions_at_once(untied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation after the parameters were changed behind the back of autograd has layouts of its own."""
    model = make_model(untie_luna_kv=untied, **WIDE).eval()
    source = make_batch(make_sentences([3, 12]), "left")
    written = torch.randint(4, 20, (2, 6), generator=torch.Generator().manual_seed(0)).repeat_interleave(3, dim=0)
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(torch.backends.mkldnn, "enabled", False)
            want = model(source.repeat_interleave(3, dim=0), None, written)[0].log_softmax(dim=-1)
        states: List[Any] = [{}]
        assert_close(decoded(model, source, written, states), want, "log probabilities", rel=1.4e-6)
        (weights,) = (saved["laid_out"] for saved in states[0].values() if "laid_out" in saved)
        # Of a layer: queries and outputs of both attentions, the causal one's pc and c (or k and v), fc1 and fc2.
        assert len(weights) == 2 * (9 if untied else 8)
        for parameter in model.parameters():
            parameter.data.mul_(1.1)


@torch.no_grad()
def test_a_short_or_single_generation_lays_nothing_out() -> None:
    model = make_model(**WIDE).eval()
    source = make_batch(make_sentences([5]), "left")
    written = torch.randint(4, 20, (1, 6), generator=torch.Generator().manual_seed(0))
    encoded = model.encoder(source)
    state: Dict[str, Any] = {}
    for step in range(1, 7):
        model.decoder(written[:, :step], encoded, state)
    assert not any("laid_out" in saved for saved in state.values())
    rows, state = written[:, :1].expand(3, -1), {}
    encoded = model.encoder.reorder_encoder_out(encoded, torch.zeros(3, dtype=torch.long))
    model.decoder(rows, encoded, state)
    assert not any("laid_out" in saved for saved in state.values())


@pytest.mark.parametrize("tie_kv", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_a_search_overwrites_its_sums(tie_kv: bool, inference: bool) -> None:
    """And nobody else does: after an order of a search, which goes back to nothing, the sums become the step's."""
    torch.manual_seed(0)
    causal = CausalLunaAttention(8, 2, tie_kv=tie_kv).eval()
    x, packed = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    want = causal(x, packed).detach()
    state: Dict[str, Any] = {}
    with torch.inference_mode(inference), torch.no_grad():
        causal(x[:, :2], packed, None, None, state)
        for position, searched in ((2, True), (3, False), (4, True)):
            with ops.rows_stay_in_sentences() if searched else nullcontext():
                causal.reorder_incremental_state(state, torch.arange(2))
            (before,) = state.values()
            sums = before["key_sum"], before["value_sum"]
            kept = [x.clone() for x in sums]
            got = causal(x[:, position : position + 1], None, None, None, state)
            (after,) = state.values()
            assert_close(got, want[:, position : position + 1], f"position {position}")
            assert (after["key_sum"] is sums[0] and after["value_sum"] is sums[1]) == searched
            assert all(map(torch.equal, sums, kept)) != searched
