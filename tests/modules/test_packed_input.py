"""The packed sequence P as the first layer gets it."""

import math

import pytest
import torch
from torch import Tensor

from luna_fairseq.modules import PackedInput
from support.models import assert_close


def _tokens(batch: int, width: int) -> Tensor:
    return torch.zeros(batch, width, dtype=torch.int64)


def _padding(*lengths: int, width: int) -> Tensor:
    return torch.arange(width) >= torch.tensor(lengths)[:, None]


def _positions(length: int) -> Tensor:
    """Of width 4, counted from 0."""
    return torch.tensor([[math.sin(i), math.sin(i / 1e4), math.cos(i), math.cos(i / 1e4)] for i in range(length)])


@pytest.mark.parametrize(("width", "rows"), [(3, 3), (6, 6), (9, 6)])
@pytest.mark.parametrize("positions", [True, False])
def test_the_first_rows_are_scaled_and_get_their_positions(width: int, rows: int, positions: bool) -> None:
    module = PackedInput(6, 4, scale=3.0, positions=positions)
    p, mask = module(_tokens(2, width), None)
    want = 3 * module.embeddings[:rows] + (_positions(rows) if positions else 0)
    assert mask is None
    assert_close(p, want.expand(2, -1, -1), "P", rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sentence_has_as_many_rows_as_words(side: str) -> None:
    padding = _padding(5, 2, 0, 4, width=5)
    p, mask = PackedInput(4, 8)(_tokens(4, 5), padding.flip(1) if side == "left" else padding)
    assert p.shape == (4, 4, 8)
    assert mask.tolist() == [[False] * 4, [False, False, True, True], [True] * 4, [False] * 4]


def test_a_fixed_length_is_that_of_every_sentence() -> None:
    module = PackedInput(6, 4, fixed_length=True)
    for width in (3, 9):
        p, mask = module(_tokens(2, width), _padding(width, 1, width=width))
        assert mask is None
        assert_close(p, (module.embeddings + _positions(6)).expand(2, -1, -1), "P", rel=1e-6)


def test_the_norm_stands_behind_the_positions_and_before_the_dropout() -> None:
    torch.manual_seed(0)
    module = PackedInput(6, 4, scale=2.0, layer_norm=True, dropout=0.5)
    want = torch.nn.functional.layer_norm(2 * module.embeddings + _positions(6), (4,))
    p, _ = module(_tokens(50, 6), None)
    kept = p != 0
    assert_close(p, torch.where(kept, 2 * want, 0), "P", rel=1e-3)
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(kept[0], kept[1]), "each sentence loses other numbers"
    assert_close(module.eval()(_tokens(50, 6), None)[0], want.expand(50, -1, -1), "P in evaluation", rel=1e-6)


def test_dropout_is_retained_for_the_owner() -> None:
    module = PackedInput(6, 4, dropout=0.5, module_name="owner").eval()
    module.dropout_module.make_generation_fast_("", retain_dropout=True, retain_dropout_modules=["owner"])
    assert module(_tokens(2, 6), None)[0].eq(0).any()


def test_initialisation() -> None:
    torch.manual_seed(0)
    module = PackedInput(400, 64)
    assert module.embeddings.mean().item() == pytest.approx(0, abs=0.005)
    assert module.embeddings.std().item() == pytest.approx(1 / 8, rel=0.05)
    module.init_like_bert()
    assert module.embeddings.mean().item() == pytest.approx(0, abs=0.001)
    assert module.embeddings.std().item() == pytest.approx(0.02, rel=0.05)


def test_positions_are_no_weights() -> None:
    assert list(PackedInput(6, 4).state_dict()) == ["embeddings"]


def test_at_least_one_row() -> None:
    assert PackedInput(1, 4)(_tokens(2, 6), None)[0].shape == (2, 1, 4)
    with pytest.raises(ValueError, match="--projection-length is 0: it must be at least 1"):
        PackedInput(0, 4)
