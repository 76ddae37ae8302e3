"""Both layers: what the options reach, and what the returned P depends on."""

from typing import Any, List

import pytest
import torch
from torch import nn

from luna_fairseq.modules import Dropout, LunaAttention
from support.models import assert_close, make_model


def _layers(**options: Any) -> List[nn.Module]:
    model = make_model(encoder_layers=1, decoder_layers=1, **options)
    return [model.encoder.layers[0], model.decoder.layers[0]]


def _attentions(layer: nn.Module) -> List[nn.Module]:
    return [layer.self_attn, *([layer.encoder_attn] if hasattr(layer, "encoder_attn") else [])]


def _output(layer: nn.Module, x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    return layer(x, packed, packed)[0] if hasattr(layer, "encoder_attn") else layer(x, packed)[0]


def test_each_dropout_has_its_own_probability() -> None:
    for layer in _layers(dropout=0.1, attention_dropout=0.2, activation_dropout=0.3):
        own = layer.dropout_module, layer.activation_dropout_module
        assert [(type(module), module.p) for module in own] == [(Dropout, 0.1), (Dropout, 0.3)]
        assert {attention.dropout_module.p for attention in _attentions(layer)} == {0.2}


def test_what_a_block_adds_is_dropped_and_not_what_it_is_added_to() -> None:
    """With everything dropped, x and P pass unchanged."""
    torch.manual_seed(0)
    x, packed = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    encoder, decoder = _layers(dropout=1.0, encoder_normalize_before=True, decoder_normalize_before=True)
    got, got_packed = encoder(x, packed)
    assert torch.equal(got, x) and torch.equal(got_packed, packed)
    assert torch.equal(decoder(x, packed, packed)[0], x)


def test_activations_are_dropped() -> None:
    """With all of them dropped, the feed-forward block adds its bias alone."""
    x, packed = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    for layer in _layers(activation_dropout=1.0, encoder_normalize_before=True, decoder_normalize_before=True):
        nn.init.normal_(layer.fc2.bias)
        for attention in _attentions(layer):
            nn.init.zeros_(attention.out_proj.weight)
        assert_close(_output(layer, x, packed), x + layer.fc2.bias, "output")


def test_quantisation_noise_reaches_every_projection() -> None:
    """In blocks of the size that was asked for: of two neighbouring blocks of four, one goes without the other."""
    torch.manual_seed(0)
    for layer in _layers(quant_noise_pq=0.4, quant_noise_pq_block_size=4):
        x, packed = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
        _output(layer, x, packed)
        for attention in _attentions(layer):
            for name, proj in attention.named_children():
                if isinstance(proj, nn.Linear):
                    gone = proj.weight.view(-1, 4).eq(0)
                    assert torch.equal(gone.all(1), gone.any(1)) and 0.3 < gone.float().mean() < 0.5, name
                    assert not torch.equal(gone[::2], gone[1::2]), name


@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_the_parameters_of_p_are_those_that_p_depends_on(untied: bool, before: bool) -> None:
    layer, _ = _layers(untie_luna_kv=untied, encoder_normalize_before=before)
    assert isinstance(layer.self_attn, LunaAttention)
    layer(torch.randn(2, 5, 32), torch.randn(2, 3, 32))[1].square().sum().backward()
    # A norm before the attention reads x; it belongs to x.
    with_gradient = {n for n, p in layer.named_parameters() if p.grad is not None and "self_attn_layer" not in n}
    said = {id(p) for p in layer.packed_parameters()}
    assert with_gradient == {n for n, p in layer.named_parameters() if id(p) in said}


@pytest.mark.parametrize("before", [True, False])
def test_the_last_decoder_layer_returns_no_p(before: bool) -> None:
    """With norms after the blocks it has no norm for it either, and drops the one that a checkpoint brings."""
    torch.manual_seed(0)
    first, last = make_model(decoder_layers=2, decoder_normalize_before=before).decoder.layers
    x, packed = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    y, y_packed, attention = first(x, packed, packed)
    assert (y.shape, y_packed.shape, attention) == (x.shape, packed.shape, None)
    assert last(x, packed, packed)[1] is None
    assert (last.packed_attn_layer_norm is None) == (not before)
    last.load_state_dict(first.state_dict())
    assert_close(last(x, packed, packed)[0], y, "x of the same weights")
