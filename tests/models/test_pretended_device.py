"""Models on a pretended second device: the CPU's numbers, and no more launches, bytes and waits than today."""

from typing import Any, Dict, List

import pytest
import torch
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.modules.carried import Carry
from support import gpu_counts, pretended
from support.models import PAD, assert_close, make_batch, make_bert, make_lm, make_model, make_sentences
from support.pretended import apart


def _loss(model: Any, *inputs: Any) -> Any:
    """Of the real targets: what stands at the others is read by nobody, and is another on a device."""
    return (model(*inputs)[0].float() * inputs[-1].ne(PAD).unsqueeze(-1)).square().mean()


@pytest.mark.parametrize("name", ["luna", "luna_untied", "luna_bert", "luna_lm"])
@apart
def test_values_and_gradients_are_those_of_the_cpu(name: str) -> None:
    """Padding on either side; the only waits are those of whoever reads the loss."""
    made: Dict[str, Any] = {
        "luna": make_model,
        "luna_untied": lambda: make_model(untie_luna_kv=True),
        "luna_bert": make_bert,
        "luna_lm": make_lm,
    }
    model = made[name]().eval()
    source, target = (
        make_batch(make_sentences([3, 12, 7]), "left"),
        make_batch(make_sentences([6, 2, 9], seed=1), "right"),
    )
    inputs = (source, None, target) if name in ("luna", "luna_untied") else (target,)
    loss = _loss(model, *inputs)
    loss.backward()
    want, wanted = loss.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with pretended.device() as counts:
        pretended.sent_module(model)
        loss = _loss(model, *pretended.sent(inputs))
        assert not counts.waits, counts.waits
        loss.backward()
        assert not counts.waits, counts.waits
        got, found = pretended.back(loss.detach()), pretended.gradients(model)
    assert_close(got, want, "loss")
    assert found.keys() == wanted.keys()
    for key, grad in found.items():
        assert_close(grad, wanted[key], key)


@apart
def test_what_is_carried_follows_the_tokens() -> None:
    """It comes from a checkpoint, or from a batch that was not on the device yet (fairseq-eval-lm)."""
    model = make_lm().eval()
    tokens = make_batch(make_sentences([9, 9]), "right")
    first = Carry({})
    with torch.no_grad():
        model(tokens[:, :5], carry=first)
        want, _ = model(tokens[:, 5:], carry=first.next(2))
        with pretended.device():
            pretended.sent_module(model)
            got, _ = model(pretended.sent(tokens[:, 5:]), carry=first.next(2))
            assert_close(pretended.back(got), want, "second block")


@pytest.mark.parametrize("untied", [False, True])
@apart
def test_decoding_in_a_beam_is_that_of_the_cpu(untied: bool) -> None:
    """Three rows for each of two sentences, which change places within them, and one sentence that leaves."""
    model = make_model(untie_luna_kv=untied).eval()
    source = make_batch(make_sentences([3, 12]), "left")
    written = torch.randint(4, 20, (6, 4), generator=torch.Generator().manual_seed(0))
    orders = [torch.tensor(order) for order in ([0, 0, 2, 5, 4, 3], [4, 3, 3])]

    def decode(source: Tensor, written: Tensor, orders: List[Tensor], rows: Tensor) -> List[Tensor]:
        search, states = EnsembleModel([model]), [{}]
        lengths = source.ne(PAD).sum(dim=1)
        encoded = search.forward_encoder({"src_tokens": source, "src_lengths": lengths})
        encoded = search.reorder_encoder_out(encoded, rows)
        found = []
        for step in range(1, 5):
            found.append(search.forward_decoder(written[:, :step], encoded, states)[0])
            if orders and step > 1:
                order, *orders = orders
                written = written.index_select(0, order)
                search.reorder_incremental_state(states, order)
                encoded = search.reorder_encoder_out(encoded, order)
        return found

    given = (source, written, orders, torch.arange(2).repeat_interleave(3))
    with torch.no_grad():
        want = decode(*given)
        with pretended.device():
            pretended.sent_module(model)
            got = pretended.back(decode(*pretended.sent(given)))
    for step, pair in enumerate(zip(got, want, strict=True)):
        assert_close(*pair, f"step {step}")


@apart
def test_tensors_of_two_devices_do_not_meet() -> None:
    model = make_model().eval()
    source = make_batch(make_sentences([3, 12]), "left")
    with pretended.device():
        pretended.sent_module(model)
        with pytest.raises(pretended.MixedDevicesError):
            model(source, None, source)


@pytest.mark.parametrize("tied", [True, False])
@apart
def test_bfloat16_errs_hardly_more_than_its_rounding(tied: bool) -> None:
    """Outputs by at most twice what rounding them does, gradients by 2.5 times; no flips, no cumsum of floats."""
    batch, heads, length, dim, rows = 2, 2, 200, 64, 16
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, length, heads, dim)] * 4 + [(batch, rows, heads, dim), (batch, length, heads, dim)]
    drawn = [torch.randn(shape, generator=generator).bfloat16().transpose(1, 2) for shape in shapes]

    def run(query: Tensor, key: Tensor, value: Tensor, x: Tensor, packed: Tensor, slope: Tensor) -> List[Tensor]:
        given = [t.requires_grad_() for t in ((query, key, x, packed) if tied else (query, key, value, x, packed))]
        weights = ops.causal_pack_weights(x, packed * dim**-0.5, "softplus")
        out, _ = ops.causal_luna_attention(query, key, key if tied else value, weights)
        return [out.detach(), *torch.autograd.grad(out, given, slope)]

    want = run(*(x.double() for x in drawn))
    with pretended.device() as counts:
        got = pretended.back(run(*pretended.sent(drawn)))
    for index, (found, exact) in enumerate(zip(got, want, strict=True)):
        error, rounding = ((x.double() - exact).norm().item() for x in (found, exact.bfloat16()))
        assert found.dtype == torch.bfloat16
        assert error <= (2.5 if index else 2) * rounding, (index, error / rounding)
    assert not {"flip", "cumsum"} & set(counts.launches)
    assert "bmm" in {k.name for k in counts.kernels if k.dtype == torch.bfloat16}


# Kind, length, launches, gigabytes; counted with torch's own operations, without the Triton kernels, which need a
# real GPU. In one process: torch imports its compiler to compute shapes alone.
COSTS = [
    ("causal Luna", 4096, 102, 2.35),
    ("causal Luna", 65536, 113, 9.45),
    ("Luna", 4096, 35, 0.71),
    ("Luna", 65536, 39, 2.8),
]


@apart
def test_a_layer_costs_no_more() -> None:
    """d = 512, l = 16, bfloat16, 16,384 tokens or one text, forward and backward with the projections.

    Of one long text, too, every kernel of softmax attention has more programs than a GPU has multiprocessors.
    """
    for kind, length, launches, gigabytes in COSTS:
        found = gpu_counts.layer(kind, 512, 16, length)
        assert found["launches"] <= launches and found["gigabytes"] <= gigabytes, (kind, length, found)
        assert length < 65536 or (found["fewest programs"] or 256) >= 256, found


@pytest.mark.parametrize(
    ("arch", "launches", "order", "waits"),
    [("luna_base_tied", 163, 7, 0), pytest.param("luna_base_untied", 175, 13, 0, marks=pytest.mark.long)],
)
@apart
def test_a_decoding_step_costs_no_more(arch: str, launches: int, order: int, waits: int) -> None:
    """Six layers, beam 5; fairseq's Transformer has 172 launches, 16 for the order, and waits once."""
    found = gpu_counts.decoding(arch)
    assert found["step"] <= launches and found["order"] <= order, found
    assert found["step waits"] == 0 and found["order waits"] <= waits, found


@pytest.mark.long
@apart
def test_a_decoding_step_as_a_graph_is_few_launches() -> None:
    """What changed is copied to where the graph reads it, a launch for each type; nothing in it waits."""
    for arch in ("luna_base_tied", "luna_base_untied"):
        found = gpu_counts.decoding(arch, graph=True)
        assert found["step"] <= 6 and found["step waits"] == 0, found
