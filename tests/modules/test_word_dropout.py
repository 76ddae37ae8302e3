"""Word dropout: when it does nothing, and when it stays in evaluation."""

import torch

from luna_fairseq.modules import WordDropout


def test_without_probability_words_pass_untouched() -> None:
    x = torch.randn(2, 3, 4)
    assert WordDropout(0.0)(x) is x


def test_retained_dropout_drops_words_in_evaluation() -> None:
    torch.manual_seed(0)
    x, module = torch.ones(20, 20, 4), WordDropout(0.5).eval()
    assert torch.equal(module(x), x)
    module.dropout_module.make_generation_fast_("", retain_dropout=True, retain_dropout_modules=["Other"])
    assert torch.equal(module(x), x)
    module.dropout_module.make_generation_fast_("", retain_dropout=True, retain_dropout_modules=["WordDropout"])
    assert module(x).eq(0).any()
