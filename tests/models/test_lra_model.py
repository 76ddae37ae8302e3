"""The Long Range Arena classifier: held to the published one, and to what must hold for any."""

import math
from argparse import Namespace
from typing import Any, Dict, List

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions import cross_entropy, label_smoothed_cross_entropy
from fairseq.data import data_utils
from fairseq.logging import metrics
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor

from luna_fairseq.checkpoint import translate_published_names
from luna_fairseq.criterions.lra_cross_entropy import LRACrossEntropyCriterion
from luna_fairseq.errors import CheckpointMismatch
from luna_fairseq.models.lra import LRAConfig, LRAModel, SharedLayers
from support.models import (
    NO_SYMBOLS,
    assert_close,
    assert_grads_close,
    golden_names,
    load_golden,
    make_lra,
    make_lra_config,
    make_task,
)

PAD = 1


def golden_lra(golden: Dict[str, Any]) -> LRAModel:
    meta = golden["meta"]
    assert meta["dict_symbols"][meta["cls"]] == "<CLS>"
    args = meta["args"]
    known = {k: v for k, v in args.items() if k in LRAConfig.__dataclass_fields__}
    model = make_lra(
        words=len(meta["dict_symbols"]) - 5, documents=args["classifier_in_dim"] // args["encoder_embed_dim"], **known
    )
    model.load_state_dict(dict(golden["state_dict"]), strict=True)
    return model.eval()


def golden_inputs(golden: Dict[str, Any]) -> Dict[str, Tensor]:
    inputs = dict(golden["inputs"]["net_input"])
    second = golden["inputs"].get("net_input1", {})
    inputs.update({name.replace("src_", "src1_"): value for name, value in second.items()})
    return inputs


@pytest.mark.parametrize("name", [name for name in golden_names("lra_") if name != "lra_criterion"])
def test_published_model(name: str) -> None:
    golden = load_golden(name)
    model = golden_lra(golden)
    outputs = golden["outputs"]
    logits, extra = model(**golden_inputs(golden))
    assert_close(logits, outputs["logits"], "logits")
    rep = extra["sentence_rep"]
    # With use_p, "sentence_rep" is what the published model computes and does not use.
    want = outputs["packed"].mean(dim=0) if golden["meta"]["args"]["use_p"] else outputs["sentence_rep"]
    assert_close(rep[:, -want.size(1) :], want, "sentence_rep")  # of two documents, the first is stored
    loss = torch.nn.functional.cross_entropy(logits, golden["inputs"]["target"], reduction="sum")
    assert_close(loss, outputs["loss"], "loss")

    loss.backward()
    wanted = dict(golden["grads"])
    translate_published_names(wanted)
    assert_grads_close({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, wanted)
    # What has no gradient in the published model is frozen in ours, and nothing else.
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    without: Dict[str, Any] = dict.fromkeys(golden["meta"]["params_without_grad"])
    translate_published_names(without)
    assert set(frozen) == set(without)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in model.parameters()) == golden["meta"]["num_params_unique"]


def test_published_criterion() -> None:
    golden = load_golden("lra_criterion")
    inputs = golden["inputs"]

    class Fixed(torch.nn.Module):
        def forward(self, logits: Tensor) -> Any:
            return logits, {}

    for sentence_avg, key in ((True, "sentence_avg"), (False, "token_avg")):
        want = golden["outputs"][key]
        logits = inputs["logits"].clone().requires_grad_()
        sample = {
            "net_input": {"logits": logits},
            "target": inputs["target"].unsqueeze(1),
            "ntokens": inputs["ntokens"],
        }
        criterion = LRACrossEntropyCriterion(NO_SYMBOLS, None, sentence_avg)
        loss, sample_size, log = criterion(Fixed(), sample)
        assert loss.item() == pytest.approx(want["loss"].item(), rel=1e-6)
        assert (sample_size, log["ncorrects"], log["nsentences"]) == (
            want["sample_size"], want["ncorrects"], want["nsentences"]
        )  # fmt: skip
        loss.backward()
        assert_close(logits.grad, want["grad_logits"], "gradient")
        with metrics.aggregate() as logged:
            criterion.reduce_metrics([log, log])  # two workers
        assert logged["accuracy"].avg == pytest.approx(100 / 6, abs=0.01)
        assert logged["loss"].avg == pytest.approx(loss.item() / sample_size / math.log(2), abs=1e-3)


POOLINGS = [dict(sen_rep_type="cls"), dict(sen_rep_type="mp"), dict(use_p=True), dict(layer_type="transformer"),
            dict(layer_type="transformer", sen_rep_type="mp"), dict(tie_kv=True, tie_layer_weights=True),
            dict(encoder_learned_pos=False), dict(no_token_positional_embeddings=True)]  # fmt: skip


def documents(lengths: List[int], side: str = "right", seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, 24, (length,), generator=generator) for length in lengths]
    for row in rows:
        row[0] = 24  # <CLS>
    return data_utils.collate_tokens(rows, PAD, left_pad=side == "left")


@pytest.mark.parametrize("options", POOLINGS, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_neighbours_do_not_matter(options: Dict[str, Any], count: int) -> None:
    model = make_lra(documents=count, **options).eval()
    lengths = {"src_tokens": [30, 5, 12], "src1_tokens": [3, 40, 7]}
    for side in ("left", "right"):
        inputs = {name: documents(lengths[name], side) for name in list(lengths)[:count]}
        together, _ = model(**inputs)
        for i in range(3):
            alone = {name: tokens[i : i + 1] for name, tokens in inputs.items()}
            alone = {name: tokens[tokens.ne(PAD)].unsqueeze(0) for name, tokens in alone.items()}
            assert_close(model(**alone)[0], together[i : i + 1], f"document {i}, padded {side}")


@pytest.mark.parametrize("options", POOLINGS, ids=str)
def test_everything_that_learns_has_a_gradient(options: Dict[str, Any]) -> None:
    model = make_lra(**options)
    model(documents([30, 5, 12]))[0].square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert bool(frozen) == (model.args.layer_type == "luna" and not model.args.tie_layer_weights)


def test_the_mean_counts_real_positions_and_rows() -> None:
    model = make_lra(sen_rep_type="mp").eval()
    tokens = documents([30, 5])
    states = model.encoder(tokens)["encoder_out"][0].transpose(0, 1)
    assert_close(model.represent(tokens)[1], states[1, :5].mean(0), "mean of 5 positions")
    model = make_lra(use_p=True).eval()
    packed = model.encoder(documents([30, 5])[1:, 1:5])["packed_out"][0]
    assert packed.size(1) == 4  # <CLS> is none of them
    assert_close(model.represent(documents([30, 5]))[1], packed[0].mean(0), "mean of 4 rows")


@pytest.mark.parametrize("layer_type", ["luna", "transformer"])
def test_pruned_checkpoint_loads(layer_type: str) -> None:
    state = make_lra(encoder_layers=3, layer_type=layer_type).state_dict()
    model = make_lra(encoder_layers=3, encoder_layers_to_keep="0,2", layer_type=layer_type)
    model.load_state_dict(dict(state), model_cfg=OmegaConf.create({**vars(model.args), "_name": "lra"}))
    assert len(model.encoder.layers) == 2
    assert torch.equal(model.encoder.layers[1].fc1.weight, state["encoder.layers.2.fc1.weight"])
    model = make_lra(encoder_layers=3, encoder_layers_to_keep="2", layer_type=layer_type)
    model.load_state_dict(dict(state), model_cfg=OmegaConf.create({**vars(model.args), "_name": "lra"}))
    assert torch.equal(model.encoder.layers[0].fc1.weight, state["encoder.layers.2.fc1.weight"])


def test_sinusoids_do_not_drown_the_symbols() -> None:
    model = make_lra(encoder_learned_pos=False, encoder_embed_dim=64)
    assert model.encoder.embed_scale == model.encoder.packed_input.scale == 8
    assert make_lra().encoder.embed_scale == 1


def test_shared_layers_are_one_layer_applied_again() -> None:
    model = make_lra(tie_layer_weights=True, encoder_layers=3).eval()
    assert isinstance(model.encoder.layers, SharedLayers)
    assert {n.split(".")[2] for n in model.state_dict() if n.startswith("encoder.layers.")} == {"0"}
    plain = make_lra(encoder_layers=3).eval()
    state = model.state_dict()
    for name in list(state):
        if name.startswith("encoder.layers.0"):
            for i in (1, 2):
                state[name.replace("layers.0", f"layers.{i}")] = state[name]
    plain.load_state_dict(state)
    tokens = documents([30, 5, 12])
    assert_close(model(tokens)[0], plain(tokens)[0], "three copies")
    model.train()
    model.encoder.layers.drop = 0.5
    torch.manual_seed(1)
    counts = {sum(1 for _ in model.encoder.layers) for _ in range(50)}
    assert counts == {0, 1, 2, 3}


def test_images_are_real_numbers() -> None:
    model = make_lra(input_type="image", sen_rep_type="mp").eval()
    pixels = torch.rand(3, 49) * 2 - 1
    pixels[0, :10] = 1.0  # the index of the padding symbol, which means nothing here
    logits, _ = model(pixels)
    assert_close(model(pixels[:1])[0], logits[:1], "one image alone")
    shifted = pixels.clone()
    shifted[0, 5] -= 0.1
    assert not torch.equal(model(shifted)[0][0], logits[0])
    # Positions count from the first pixel.
    weight = model.encoder.embed_tokens.weight[:, 0]
    x = pixels.unsqueeze(-1) * weight + model.encoder.embed_tokens.bias
    x = x + model.encoder.embed_positions.weight[PAD + 1 : PAD + 50]
    states = model.encoder.forward_embedding(torch.full((3, 49), 2), model.encoder.embed_tokens(pixels))[0]
    assert_close(states, model.encoder.layernorm_embedding(x), "embedding")
    assert make_lra(input_type="image").bfloat16()(pixels)[0].dtype == torch.bfloat16


def test_16384_positions() -> None:
    published = vars(MODEL_DATACLASS_REGISTRY["luna_lra_pf128"]())
    changes = {**published, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16}
    model = make_lra(words=256, **{k: v for k, v in changes.items() if k != "_name"}).train()
    tokens = torch.randint(4, 260, (1, 128 * 128 + 1))
    loss = model(tokens)[0].square().sum()
    loss.backward()
    assert torch.isfinite(loss) and model.max_positions() == 16386


def test_initialisation() -> None:
    bert = make_lra(apply_bert_init=True, encoder_embed_dim=128)
    for name, parameter in bert.named_parameters():
        if parameter.dim() > 1 and "layer_norm" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name  # the smallest has 120
    plain = make_lra(encoder_embed_dim=128, apply_bert_init=False)
    assert plain.encoder.packed_input.embeddings.std().item() == pytest.approx(128**-0.5, rel=0.1)
    query = plain.encoder.layers[0].self_attn.q_proj.weight
    assert query.abs().max().item() <= math.sqrt(6 / 256 / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(encoder_projection_length=0), "--encoder-projection-length is 0: it must be at least 1"),
        (dict(encoder_attention_heads=5), "--encoder-attention-heads is 5"),
        (dict(max_positions=0), "--max-positions is 0"),
        (dict(classifier_layers=0), "--classifier-layers is 0"),
        (dict(sentence_class_num=1), "--sentence-class-num is 1: it must be at least 2"),
        (dict(act_dropout=1.5), "--act-dropout is 1.5"),
        (dict(documents=3), "--documents is 3"),
        (dict(input_type="image", quant_noise_scalar=0.1), "--quant-noise-scalar is 0.1"),
        (
            dict(tie_layer_weights=True, encoder_layers_to_keep="0"),
            "--encoder-layers-to-keep is 0: layers that share",
        ),
        (dict(use_p=True, layer_type="transformer"), "--use-p needs --layer-type luna"),
    ],
)
def test_bad_options(options: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_lra(**options)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="--documents is 2 and an example of the data has 1"):
        make_lra(documents=2)(documents([5, 7]))
    with pytest.raises(ValueError, match="an input has 65 symbols and --max-positions is 64"):
        make_lra(encoder_learned_pos=False)(documents([5, 65]))
    with pytest.raises(ValueError, match="take --task lra-image"):
        LRAModel.build_model(make_lra_config(input_type="image"), make_task())
    with pytest.raises(ValueError, match="add --input-type image"):
        LRAModel.build_model(make_lra_config(), NO_SYMBOLS)
    state = make_lra().state_dict()
    for changes, message in (
        (dict(tie_kv=True), "untied keys and values: leave out --tie-kv"),
        (dict(layer_type="transformer"), "another --layer-type"),
        (dict(encoder_learned_pos=False), "another --encoder-learned-pos"),
        (dict(input_type="image"), "another --input-type"),
        (dict(tie_layer_weights=True), "another --tie-layer-weights or --encoder-layers"),
        (dict(documents=2), "--documents is 64 here and 32"),
        (dict(encoder_embed_dim=16), "--encoder-embed-dim is 16 here and 32"),
        (dict(encoder_projection_length=4), "--encoder-projection-length is 4 here and 8 in the checkpoint"),
        (dict(max_positions=32), "--max-positions .* is 34 here and 66 in the checkpoint"),
        (dict(sentence_class_num=3), "--sentence-class-num is 3 here and 5"),
    ):
        with pytest.raises(CheckpointMismatch, match=message):
            make_lra(**changes).load_state_dict(dict(state))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fairseqs_own_criteria(smoothing: float) -> None:
    """--criterion cross_entropy and label_smoothed_cross_entropy: the loss over the classes."""
    model = make_lra(sentence_class_num=5)
    task: Any = Namespace(target_dictionary=None)
    criterion: Any = cross_entropy.CrossEntropyCriterion(task, True)
    if smoothing:
        criterion = label_smoothed_cross_entropy.LabelSmoothedCrossEntropyCriterion(task, True, smoothing)
    tokens, target = torch.tensor([[4, 5, 6, 2], [7, 2, PAD, PAD], [8, 9, 2, PAD]]), torch.tensor([[1], [0], [4]])
    sample = {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": 9}
    loss, sample_size, _ = criterion(model, sample)
    scores = model(tokens)[0]
    want = F.cross_entropy(scores, target.view(-1), reduction="sum", label_smoothing=smoothing * 5 / 4)
    assert sample_size == 3
    assert_close(loss, want, "loss")
    log_probs, probs = (model.get_normalized_probs(model(tokens), log_probs=log) for log in (True, False))
    assert_close(log_probs.exp(), probs, "probabilities")
    assert_close(probs.sum(-1), torch.ones(3), "sum")
    loss.backward()
    assert torch.isfinite(loss)
