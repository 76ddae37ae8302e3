"""Looks at padding."""

import torch

from luna_fairseq.modules.padding import may_be_true


def test_padding_is_looked_for_where_that_is_free() -> None:
    """A tensor of the meta device has no values to look at."""
    found = torch.tensor([[False, True], [False, False]])
    assert may_be_true(found) and not may_be_true(found[1:])
    assert may_be_true(found[1:].to("meta"))
