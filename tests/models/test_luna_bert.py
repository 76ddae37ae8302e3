"""The masked-LM model: held to the published numbers, padding, batches, heads, initialisation, options."""

from argparse import Namespace
from typing import Any, Dict, List

import pytest
import torch
import torch.nn.functional as F
from fairseq import options
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from luna_fairseq.checkpoint import translate_published_names
from luna_fairseq.errors import CheckpointMismatch
from luna_fairseq.models._hub import LunaHubInterface
from luna_fairseq.models.luna_bert import LunaBertConfig, LunaBertModel
from support.models import (
    assert_close,
    assert_grads_close,
    golden_bert,
    golden_names,
    load_golden,
    make_bert,
    make_bert_config,
    make_dictionary,
    make_task,
)

HEAD_NAMES = ["sentence_classification_head", "pooling_classification_head", "attention_classification_head"]
PAD = 1


def _tokens(*lengths: int, seed: int = 3, left: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(tokens, lengths, strict=True):
        words = torch.randint(4, 50, (length,), generator=generator)
        words[0], words[-1] = 0, 2
        if left:
            row[len(row) - length :] = words
        else:
            row[:length] = words
    return tokens


def _with_heads(model: LunaBertModel, classes: int = 3) -> LunaBertModel:
    for name in HEAD_NAMES:
        model.register_classification_head(name, classes)
    return model


@pytest.mark.parametrize("name", golden_names("bert_"))
def test_published_numbers(name: str) -> None:
    golden = load_golden(name)
    model = golden_bert(golden)
    meta = golden["meta"]
    assert sum(p.numel() for p in model.parameters()) == meta["num_params_unique_with_heads"]
    for batch, inputs in golden["inputs"].items():
        tokens, masked = inputs["src_tokens"], inputs["masked_tokens"]
        want = golden["outputs"][batch]
        real = tokens.ne(PAD)
        assert_close(model(tokens)[0], want["logits"], f"{batch} logits", mask=real)
        logits, extra = model(tokens, masked_tokens=masked)
        assert_close(logits, want["masked_logits"], f"{batch} masked logits")
        loss = F.cross_entropy(logits, inputs["target"][masked])
        assert_close(loss, want["loss"], f"{batch} loss")
        if batch == "padded":
            loss.backward()
        features, extra = model(tokens, features_only=True)
        assert_close(features, want["features"], f"{batch} features", mask=real)
        packed_padding = want["px_padding_mask"]
        kept = None if packed_padding is None else ~packed_padding
        assert_close(extra["packed_features"], want["packed_features"], f"{batch} packed", mask=kept)
        if packed_padding is not None:
            assert torch.equal(extra["packed_padding_mask"], packed_padding)
        for head in meta["heads"]:
            assert_close(model(tokens, classification_head_name=head)[0], want[f"head_{head}"], f"{batch} {head}")

    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_grads_close(ours, _renamed(golden["grads"]))


def _renamed(values: Dict[str, Tensor]) -> Dict[str, Tensor]:
    renamed: Dict[str, Tensor] = {}
    for name, value in values.items():
        one = {name: value}
        translate_published_names(one)
        renamed.update(one)
    return renamed


@pytest.mark.parametrize("changes", [{}, {"untie_luna_kv": True}, {"encoder_normalize_before": True}])
@pytest.mark.parametrize("lengths", [(9, 5, 1), (12, 12), (3, 2)])
def test_neighbours_and_padding_change_nothing(changes: Dict[str, Any], lengths: List[int]) -> None:
    model = _with_heads(make_bert(**changes)).eval()
    right, left = _tokens(*lengths), _tokens(*lengths, left=True)
    for i, length in enumerate(lengths):
        alone = right[i : i + 1, :length]
        more = torch.cat([alone, torch.full((1, 4), PAD)], dim=1)
        assert_close(model(more)[0][:, :length], model(alone)[0], "with padding")
        assert_close(model(right)[0][i, :length], model(alone)[0][0], "in a batch")
        assert_close(model(left)[0][i, -length:], model(alone)[0][0], "padded on the left")
        for head in HEAD_NAMES:
            want = model(alone, classification_head_name=head)[0][0]
            assert_close(model(right, classification_head_name=head)[0][i], want, f"{head} in a batch")
            assert_close(model(left, classification_head_name=head)[0][i], want, f"{head} padded on the left")


def test_only_masked_positions_are_projected() -> None:
    model = make_bert().eval()
    tokens = _tokens(9, 5)
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    masked[0, 2] = masked[1, 1] = True
    seen: List[Any] = []
    model.encoder.lm_head.dense.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape))
    logits, _ = model(tokens, masked_tokens=masked)
    assert seen == [(2, 32)]
    assert_close(logits, model(tokens)[0][masked], "masked logits")


@pytest.mark.parametrize("length", [1, 2048])
def test_lengths_at_the_limits(length: int) -> None:
    model = _with_heads(make_bert(max_positions=2048, projection_length=256)).eval()
    tokens = _tokens(length)
    x, extra = model(tokens, features_only=True)
    assert x.shape == (1, length, 32) and extra["packed_features"].shape == (1, min(length, 256), 32)
    assert torch.isfinite(x).all()
    for head in HEAD_NAMES:
        assert torch.isfinite(model(tokens, classification_head_name=head)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fully_padded_row_is_harmless(dtype: torch.dtype) -> None:
    model = _with_heads(make_bert()).to(dtype)
    tokens = torch.cat([_tokens(9), torch.full((1, 9), PAD)])
    outputs = [model(tokens)[0], *(model(tokens, classification_head_name=head)[0] for head in HEAD_NAMES)]
    assert all(torch.isfinite(x).all() for x in outputs)
    sum(x[0].float().sum() for x in outputs).backward()  # the row itself is in no loss
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("untied", [False, True])
def test_bert_initialisation_of_everything(untied: bool) -> None:
    model = _with_heads(
        make_bert(encoder_embed_dim=128, encoder_ffn_embed_dim=256, projection_length=64, untie_weights_luna=untied)
    )
    checked = {"encoder.sentence_encoder.packed_input.embeddings", "encoder.lm_head.weight"}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            checked.add(f"{name}.weight")
            if getattr(module, "bias", None) is not None:
                assert not module.bias.any(), name
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in sorted(checked):
        weight = parameters[name]
        if weight.size(0) < 10:
            continue  # too few for statistics
        assert 0.017 < weight.std() < 0.023 and weight.mean().abs() < 0.004, f"{name}: {weight.std()}"
    padding = model.encoder.sentence_encoder.embed_tokens.weight[PAD]
    assert not padding.any()


def test_initialised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code runs the initialisation twice over most of the model."""
    from fairseq.models.roberta import model as roberta

    seen: List[nn.Module] = []
    init = roberta.init_bert_params
    monkeypatch.setattr(roberta, "init_bert_params", lambda module: (seen.append(module), init(module))[1])
    model = make_bert()
    assert {id(m) for m in model.modules()} >= {id(m) for m in seen} and len(seen) == len({id(m) for m in seen})
    assert any(isinstance(m, nn.Linear) for m in seen)


@pytest.mark.parametrize("changes", [{}, {"encoder_normalize_before": True}])
def test_every_trained_parameter_gets_a_gradient(changes: Dict[str, Any]) -> None:
    """So that DistributedDataParallel needs no --find-unused-parameters for pretraining."""
    model = make_bert(**changes)
    model(_tokens(9, 5))[0].square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    norm = model.encoder.sentence_encoder.last_packed_norm()
    assert not norm.weight.requires_grad

    for head in HEAD_NAMES:
        model.register_classification_head(head, 2)
        model.zero_grad()
        model(_tokens(9, 5), classification_head_name=head)[0].square().sum().backward()
        reads_packed = head != HEAD_NAMES[0]
        assert norm.weight.requires_grad == reads_packed == (norm.weight.grad is not None)


@pytest.mark.parametrize(
    ("arch", "counts"),
    [
        ("luna_bert", 131_902_041),
        ("luna_base_512", 131_902_041),
        ("luna_base_tied_512", 131_902_041),
        ("luna_base_untied_512", 146_076_249),
        ("luna_base_2048", 133_179_993),
        ("luna_large_512", 380_783_705),
        # The published one forgets its 2,048 positions: 1,536 rows more here, and 128 more of P.
        ("luna_large_2048", 380_783_705 + (2048 - 512 + 128) * 1024),
    ],
)
def test_parameter_counts(arch: str, counts: int) -> None:
    from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY

    config = MODEL_DATACLASS_REGISTRY[arch]()
    layers, config.encoder_layers = config.encoder_layers, 1
    one = _count(MODEL_REGISTRY[arch], config)
    config.encoder_layers = 2
    assert one + (layers - 1) * (_count(MODEL_REGISTRY[arch], config) - one) == counts


def _count(model: Any, config: LunaBertConfig) -> int:
    task = make_task(make_dictionary(50_265 - 4))
    with FakeTensorMode():  # no numbers are drawn
        return sum(p.numel() for p in model.build_model(config, task).parameters())


@pytest.mark.parametrize(
    ("head", "count"),
    [
        ("anything_else", 592_899),
        ("pooling_classification_head", 1_183_491),
        ("attention_classification_head", 2_956_803),
    ],
)
def test_parameter_counts_of_heads(head: str, count: int) -> None:
    model = make_bert(encoder_embed_dim=768, encoder_ffn_embed_dim=8, encoder_layers=1, encoder_attention_heads=12)
    model.register_classification_head(head, 3)
    assert sum(p.numel() for p in model.classification_heads.parameters()) == count


def test_heads_are_resized_and_loaded_as_in_roberta() -> None:
    source = _with_heads(make_bert(seed=1), classes=2)
    state = source.state_dict()
    # A new run with another head: the rest is loaded, the head is fresh.
    target = make_bert(seed=2)
    target.register_classification_head("mine", 5)
    target.load_state_dict(dict(state), strict=True)
    assert list(target.classification_heads) == ["mine"]
    assert torch.equal(
        target.encoder.sentence_encoder.embed_tokens.weight, source.encoder.sentence_encoder.embed_tokens.weight
    )
    # The same name and another size: the size of the run wins.
    target = make_bert(seed=2)
    target.register_classification_head(HEAD_NAMES[1], 5)
    fresh = target.classification_heads[HEAD_NAMES[1]].in_proj.weight.clone()
    target.load_state_dict(dict(state), strict=True)
    assert torch.equal(target.classification_heads[HEAD_NAMES[1]].in_proj.weight, fresh)
    # Asked for, the heads of the checkpoint come along with their kinds and sizes.
    target = make_bert(seed=2, load_checkpoint_heads=True)
    target.load_state_dict(dict(state), strict=True)
    tokens = _tokens(7, 4)
    for head in HEAD_NAMES:
        got = target.eval()(tokens, classification_head_name=head)[0]
        assert_close(got, source.eval()(tokens, classification_head_name=head)[0], head)


def test_the_names_of_roberta() -> None:
    """Its command lines work: an output matrix of its own, and the norm that is always there."""
    for name in ("untie_weights_luna", "untie_weights_roberta"):
        model = make_bert(**{name: True}, layernorm_embedding=True)
        assert model.encoder.lm_head.weight is not model.encoder.sentence_encoder.embed_tokens.weight
    given = "folder --task masked_lm --arch luna_bert --untie-weights-roberta --layernorm-embedding".split()
    args = options.parse_args_and_arch(options.get_training_parser(), given)
    assert args.untie_weights_roberta and args.layernorm_embedding
    assert make_bert(layernorm_embedding=False).encoder.sentence_encoder.layernorm_embedding is not None


def test_heads_with_spectral_normalisation() -> None:
    """The last matrix has norm 1; a checkpoint says whether it has it."""
    source = _with_heads(make_bert(spectral_norm_classification_head=True))
    tokens = _tokens(7, 4)
    for head in HEAD_NAMES:
        source.classification_heads[head].out_proj.weight_orig.data.mul_(10)
        for _ in range(30):  # of the power iteration
            source(tokens, classification_head_name=head)[0].sum().backward()
        norm = torch.linalg.matrix_norm(source.classification_heads[head].out_proj.weight, 2)
        assert norm.item() == pytest.approx(1.0, abs=1e-3)
    state = source.eval().state_dict()
    loaded = make_bert(seed=2, spectral_norm_classification_head=True, load_checkpoint_heads=True)
    loaded.load_state_dict(dict(state), strict=True)
    for head in HEAD_NAMES:
        got = loaded.eval()(tokens, classification_head_name=head)[0]
        assert_close(got, source(tokens, classification_head_name=head)[0], head)
    with pytest.raises(CheckpointMismatch, match="has spectral normalisation: add --spectral-norm"):
        make_bert(load_checkpoint_heads=True).load_state_dict(dict(state))
    plain = _with_heads(make_bert()).state_dict()
    with pytest.raises(CheckpointMismatch, match="has no spectral normalisation: leave out --spectral-norm"):
        make_bert(spectral_norm_classification_head=True, load_checkpoint_heads=True).load_state_dict(plain)
    target = make_bert(seed=2)
    target.register_classification_head(HEAD_NAMES[0], 5)
    target.load_state_dict(dict(state), strict=True)  # other heads are not asked for, and sizes of the run win


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"max_positions": 32}, "--max-positions"),
        ({"projection_length": 4}, "--projection-length"),
        ({"encoder_embed_dim": 64}, "--encoder-embed-dim"),
        ({"words": 40}, "dictionary"),
        ({"untie_luna_kv": True}, "leave out --untie-luna-kv"),
    ],
)
def test_checkpoint_of_another_model_is_named(changes: Dict[str, Any], what: str) -> None:
    with pytest.raises(CheckpointMismatch, match=what):
        make_bert(**changes).load_state_dict(make_bert().state_dict())


@pytest.mark.parametrize("extra", [{}, {"checkpoint_activations": True}])
def test_options_of_the_transformer_work(extra: Dict[str, Any]) -> None:
    model = _with_heads(
        make_bert(encoder_layerdrop=0.5, quant_noise_pq=0.3, dropout=0.1, pooler_dropout=0.2, **extra)
    )
    for head in [None, *HEAD_NAMES]:
        x, _ = model(_tokens(9, 5), classification_head_name=head)
        assert torch.isfinite(x).all()
        x.sum().backward()


def test_activation_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointed in (False, True):
        model = make_bert(checkpoint_activations=checkpointed)
        model(_tokens(9, 5))[0].square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert_grads_close(grads[1], grads[0])


def test_pruned_checkpoint_loads() -> None:
    state = make_bert(encoder_layers=3).state_dict()
    config = make_bert_config(encoder_layers=3, encoder_layers_to_keep="0,2")
    model = LunaBertModel.build_model(config, make_task())
    model.load_state_dict(state, strict=True, model_cfg=OmegaConf.create({**vars(config), "_name": "luna_bert"}))
    layers = model.encoder.sentence_encoder.layers
    assert len(layers) == 2
    assert torch.equal(layers[1].fc1.weight, state["encoder.sentence_encoder.layers.2.fc1.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    model = _with_heads(make_bert()).eval()
    tokens = _tokens(30, 17)
    with torch.no_grad():
        want = model(tokens)[0]
        assert_close(model.to(dtype)(tokens)[0].float(), want, "logits", rel=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection_length": 0}, "--projection-length is 0"),
        ({"encoder_attention_heads": 5}, "--encoder-attention-heads is 5"),
        ({"encoder_layers": 0}, "--encoder-layers is 0"),
        ({"max_positions": 0}, "--max-positions is 0"),
        ({"dropout": 1.5}, "--dropout is 1.5"),
        ({"pooler_dropout": -1.0}, "--pooler-dropout is -1.0"),
        ({"mha_reg_scale_factor": 0.1}, "--mha-reg-scale-factor is not available for Luna: it prunes the heads"),
        ({"ffn_reg_scale_factor": 0.1}, "--ffn-reg-scale-factor is not available for Luna"),
        (
            {"spectral_norm_classification_head": True, "quant_noise_pq": 0.1},
            "--spectral-norm-classification-head does not go with --quant-noise-pq 0.1",
        ),
    ],
)
def test_bad_options(changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_bert(**changes)


def test_missing_head_is_named() -> None:
    model = _with_heads(make_bert())
    with pytest.raises(ValueError, match=r"no head mnli, its heads are: sentence_classification_head, pooling"):
        model(_tokens(5), classification_head_name="mnli")
    with pytest.raises(ValueError, match="--num-classes is 0"):
        model.register_classification_head("mnli", 0)


def test_the_hub_decodes_a_batch_row_by_row() -> None:
    dictionary = make_dictionary()
    task: Any = Namespace(source_dictionary=dictionary)
    hub = LunaHubInterface(Namespace(bpe=None), task, make_bert())
    hub.bpe = Namespace(encode=str, decode=str)
    rows = torch.tensor([[0, 4, 5, 2], [0, 6, 2, PAD]])
    assert hub.decode(rows) == ["w0 w1", "w2"] and hub.decode(rows[:1]) == ["w0 w1"]
    assert [hub.decode(row) for row in rows] == hub.decode(rows)
    pair = torch.tensor([0, 4, 2, 2, 5, 2])
    assert hub.decode(pair) == ["w0", "w1"] and hub.decode(torch.stack([pair, pair])) == [["w0", "w1"]] * 2
