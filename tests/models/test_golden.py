"""Held to numbers that the published implementation computed (tests/golden; float32, dropout 0)."""

from typing import Any, Dict

import pytest
import torch
from torch import Tensor

from luna_fairseq import ops
from luna_fairseq.checkpoint import translate_published_names
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from support.models import assert_close, assert_grads_close, golden_model, golden_names, load_golden


def _collect_grads(module: torch.nn.Module, inputs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    grads.update({f"input:{name}": t.grad for name, t in inputs.items() if getattr(t, "grad", None) is not None})
    return grads


def _leaf_inputs(golden: Dict[str, Any]) -> Dict[str, Any]:
    return {
        name: t.clone().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t
        for name, t in golden["inputs"].items()
    }


@pytest.mark.parametrize("name", golden_names("attn_self") + golden_names("attn_cross"))
def test_luna_attention(name: str) -> None:
    golden = load_golden(name)
    ctor = golden["meta"]["ctor"]
    attention = LunaAttention(
        ctor["embed_dim"], ctor["num_heads"], ctor["num_pheads"], bias=ctor["bias"], tie_kv=ctor["tie_kv"]
    ).eval()
    attention.load_state_dict(golden["state_dict"])
    inputs = _leaf_inputs(golden)
    # The golden modules are time x batch x channel, ours batch x time x channel.
    query, packed = inputs["query"].transpose(0, 1), inputs["pquery"].transpose(0, 1)
    context = query if ctor["self_attention"] else inputs["context"].transpose(0, 1)
    masks = [ops.key_mask(inputs.get(f"{which}_padding_mask")) for which in ("context", "pcontext")]

    y, y_packed, _ = attention(query, packed, context, *masks)
    outputs = golden["outputs"]
    assert_close(y.transpose(0, 1), outputs["attn"], "attn")
    assert_close(y_packed.transpose(0, 1), outputs["pcontext"], "pcontext")
    (y.square().mean() + y_packed.square().mean()).backward()
    assert_grads_close(_collect_grads(attention, inputs), golden["grads"])

    # The published code returns weights over P. Ours are over the context: those times the pack weights.
    again, _, weights = attention(query, packed, context, *masks, need_weights=True)
    assert_close(again, y, "output with weights asked for")
    assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), "rows of the map")
    if "attn_weights_per_head" in outputs:
        pack_weights = attention.pack(packed, context, masks[0])[1]()
        if pack_weights.size(1) != attention.num_heads:
            pack_weights = pack_weights.mean(dim=1, keepdim=True)
        want = outputs["attn_weights_per_head"].transpose(0, 1) @ pack_weights
        assert_close(weights.transpose(0, 1), want, "effective attention map")


@pytest.mark.parametrize("name", golden_names("attn_causal"))
def test_causal_luna_attention(name: str) -> None:
    golden = load_golden(name)
    ctor = golden["meta"]["ctor"]
    attention = CausalLunaAttention(
        ctor["embed_dim"], ctor["num_heads"], bias=ctor["bias"], tie_kv=ctor["tie_kv"]
    ).eval()
    attention.load_state_dict(golden["state_dict"])
    inputs = _leaf_inputs(golden)
    query, packed = inputs["query"].transpose(0, 1), inputs["pquery"].transpose(0, 1)
    packed_mask = ops.key_mask(inputs.get("pkey_padding_mask"))

    y = attention(query, packed, packed_mask)
    outputs = golden["outputs"]
    assert_close(y.transpose(0, 1), outputs["attn"], "attn")
    y.square().mean().backward()
    assert_grads_close(_collect_grads(attention, inputs), golden["grads"])

    state: Dict[str, Any] = {}
    steps = [
        attention(query[:, t : t + 1], packed if t == 0 else None, packed_mask, incremental_state=state)
        for t in range(query.size(1))
    ]
    assert_close(torch.cat(steps, dim=1).transpose(0, 1), outputs["incremental_attn"], "step by step")
    (saved,) = state.values()
    last = outputs["state_after_last_step"]
    assert_close(saved["packed_query"], last["prev_pquery"], "packed query")
    assert_close(saved["key_sum"].mT, last["prev_key_accum_mat"], "key sum")
    assert_close(saved["value_sum"], last["prev_value_accum_mat"], "value sum")
    assert saved["steps"].dtype == torch.int64 and (saved["steps"] == query.size(1)).all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", golden_names("mt_"))
def test_translation_model(name: str, side: str) -> None:
    golden = load_golden(name)
    model, inputs = golden_model(golden), golden["inputs"]
    source, target = inputs[f"{side}_src_tokens"], inputs["target"]
    outputs = golden["outputs"][side]
    pad = golden["meta"]["pad"]
    real_source, real_target = source.ne(pad), target.ne(pad)

    encoder_out = model.encoder(source, src_lengths=inputs["src_lengths"], return_all_hiddens=True)
    for got, want in (
        (encoder_out["encoder_out"][0], outputs["encoder_out"]),
        (encoder_out["encoder_states"][1], outputs["encoder_layer0_out"]),
    ):
        assert_close(got, want, "encoder", mask=real_source.T)
    mask = outputs["encoder_projected_padding_mask"]
    real_packed = None if mask is None else ~mask.T
    assert_close(
        encoder_out["packed_out"][0].transpose(0, 1), outputs["encoder_projected_out"], "packed", mask=real_packed
    )

    logits, _ = model.decoder(inputs["prev_output_tokens"], encoder_out=encoder_out)
    assert_close(logits, outputs["logits"], "logits", mask=real_target)
    log_probs = torch.log_softmax(logits, dim=-1)
    loss = -log_probs.gather(-1, target.unsqueeze(-1))[real_target].mean()
    assert_close(loss, outputs["loss"], "loss")

    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None for g in grads.values()), "a parameter without gradient"
    wanted: Dict[str, Tensor] = dict(golden["grads"])
    translate_published_names(wanted)
    wanted = {n: g for n, g in wanted.items() if n in grads}
    assert len(wanted) >= 5
    assert_grads_close(grads, wanted)

    state: Dict[str, Any] = {}
    steps = [
        model.decoder(inputs["prev_output_tokens"][:, : t + 1], encoder_out=encoder_out, incremental_state=state)[0]
        for t in range(target.size(1))
    ]
    assert_close(torch.cat(steps, dim=1), outputs["incremental_logits"], "step by step", mask=real_target)
