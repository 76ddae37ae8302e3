"""What the classification heads read of a sentence."""

import torch
import torch.nn.functional as F

from luna_fairseq.modules.heads import HEADS, AttentionHead, FirstTokenHead, PoolingHead, first_state
from luna_fairseq.ops.naive import naive_attention
from support.models import assert_close

OPTIONS = dict(activation_fn="tanh", pooler_dropout=0.0, q_noise=0.0, qn_block_size=8)
PACKED_MASK = torch.tensor([[False, False, True], [True, True, True]])  # the second sentence has no row


def test_the_first_token_is_the_first_that_is_no_padding() -> None:
    features = torch.arange(12.0).view(2, 3, 2)
    assert first_state(features, None).tolist() == [[0, 1], [6, 7]]
    padding = torch.tensor([[True, True, False], [False, False, True]])
    assert first_state(features, padding).tolist() == [[4, 5], [6, 7]]


def test_pooling_takes_the_largest_of_the_real_rows() -> None:
    torch.manual_seed(0)
    head = HEADS["pooling_classification_head"](8, 4, 2, num_heads=2, **OPTIONS)
    assert isinstance(head, PoolingHead)
    packed = torch.randn(2, 3, 8)
    projected = F.linear(packed, head.in_proj.weight, head.in_proj.bias)
    got = head.summary(torch.randn(2, 5, 8), packed, None, PACKED_MASK)
    assert_close(got[0], torch.maximum(projected[0, 0], projected[0, 1]), "two rows")
    assert_close(got[1], projected[1].max(dim=0).values, "no row: all of them")


def test_the_first_token_attends_to_the_real_rows() -> None:
    torch.manual_seed(0)
    head = HEADS["attention_classification_head"](8, 4, 2, num_heads=2, **OPTIONS)
    assert isinstance(head, AttentionHead)
    features, packed = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    padding = torch.arange(5) < torch.tensor([[2], [0]])
    got = head.summary(features, packed, padding, PACKED_MASK)
    attn = head.attn
    for i, (first, rows) in enumerate(((2, 2), (0, 3))):  # without a row all of them are read
        projected = (attn.q_proj(features[i, first])[None], attn.k_proj(packed[i]), attn.v_proj(packed[i]))
        query, key, value = (x.unflatten(-1, (2, 4)).transpose(0, 1) for x in projected)
        heads = [naive_attention(query[h], key[h, :rows], value[h, :rows]) for h in range(2)]
        want = F.layer_norm(attn.out_proj(torch.cat(heads, dim=-1))[0], (8,))
        assert_close(got[i], want, f"sentence {i}")


def test_quantisation_noise_reaches_the_attention() -> None:
    head = AttentionHead(8, 4, 2, num_heads=2, **{**OPTIONS, "q_noise": 0.5, "qn_block_size": 4})
    for proj in (head.attn.q_proj, head.attn.k_proj, head.attn.v_proj, head.attn.out_proj):
        assert len(proj._forward_pre_hooks) == 1


def test_who_reads_p() -> None:
    assert [kind.reads_packed for kind in (FirstTokenHead, PoolingHead, AttentionHead)] == [False, True, True]


def test_classes_are_scored_from_the_summary() -> None:
    torch.manual_seed(0)
    features, packed = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    for kind in (FirstTokenHead, PoolingHead, AttentionHead):
        head = kind(8, 4, 3, num_heads=2, **OPTIONS)
        summary = head.summary(features, packed, None, None)
        assert_close(head(features, packed), head.out_proj(torch.tanh(head.dense(summary))), kind.__name__)
        if kind is FirstTokenHead:
            assert torch.equal(summary, features[:, 0])
