"""The dropout module: when it drops."""

import torch
from fairseq.modules import FairseqDropout

from luna_fairseq.modules import Dropout


def test_module_drops_in_training_or_if_retained() -> None:
    module = Dropout(0.5, module_name="here")
    x = torch.ones(100)
    assert module(x).eq(0).any() and module.add(x, x).eq(1).any()
    module.eval()
    assert module(x) is x and torch.equal(module.add(x, x), 2 * x)
    module.make_generation_fast_("name", retain_dropout=True, retain_dropout_modules=["elsewhere"])
    assert module.rate == 0.0
    module.make_generation_fast_("name", retain_dropout=True, retain_dropout_modules=["here"])
    assert module.rate == 0.5 and module(x).eq(0).any()


def test_like_takes_over_the_probability_and_the_owner() -> None:
    module = Dropout.like(FairseqDropout(0.3, module_name="owner"))
    assert (module.p, module.module_name) == (0.3, "owner")
