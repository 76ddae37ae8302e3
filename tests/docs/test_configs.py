"""Every YAML under configs/ composes, and names an architecture with options that it has."""

import argparse
import copy
import functools
import re
from pathlib import Path
from typing import Any, Dict, List

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from luna_fairseq.models.luna import LunaConfig
from scripts.bench.configs import load_config
from support.running import ROOT

PRIMARY = sorted(path for path in (ROOT / "configs").glob("*/*.yaml"))
FILLED_IN = ["common.user_dir=/plugin", "task.data=/data", "checkpoint.save_dir=/save"]
ARCHITECTURES = ["luna", "luna_base", "luna_base_tied", "luna_base_untied"]


@functools.cache
def _composed(path: Path, *overrides: str) -> Any:
    return load_config(path, *FILLED_IN, *overrides)


def _compose(path: Path, *overrides: str) -> Any:
    return copy.deepcopy(_composed(path, *overrides))


@pytest.mark.parametrize("path", PRIMARY, ids=lambda path: path.stem)
def test_config_composes(path: Path) -> None:
    cfg = _compose(path)
    assert not OmegaConf.missing_keys(cfg)
    if cfg.model._name in MODEL_DATACLASS_REGISTRY:  # fairseq's own transformer has no such list of options
        OmegaConf.merge(MODEL_DATACLASS_REGISTRY[cfg.model._name](), cfg.model)
    assert cfg.optimizer._name in ("adam", "apollo") and cfg.optimization.lr[0] > 0
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("row", "Hardware", "Expected", "Command"):
        assert any(word in line for line in header), f"{path.name} does not say: {word}"


def test_small_files_are_used() -> None:
    """No overlay lies about unused: a config takes it, or says how to."""
    text = "".join(path.read_text() for path in PRIMARY)
    for path in (ROOT / "configs").glob("*/*/*.yaml"):
        group, name = path.parent.name, path.stem
        assert f"{group}: {name}\n" in text or re.search(rf"\b{group}={name}\b", text), path


def _parsed(arch: str, *flags: str) -> argparse.Namespace:
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, input_args=["/data", "--arch", arch, "--optimizer", "adam", *flags])
    assert isinstance(args, argparse.Namespace)
    return args


def _from_command_line(arch: str, *flags: str) -> Dict[str, Any]:
    return OmegaConf.to_container(convert_namespace_to_omegaconf(_parsed(arch, *flags)).model)


def _long_but(archs: List[str], *quick: str) -> List[Any]:
    return [arch if arch in quick else pytest.param(arch, marks=pytest.mark.long) for arch in archs]


@pytest.mark.parametrize("arch", _long_but(ARCHITECTURES, "luna", "luna_base_untied"))
def test_an_architecture_is_the_same_on_both_command_lines(arch: str) -> None:
    sizes = {"encoder_layers": 5, "decoder_embed_dim": 256, "encoder_embed_dim": 256, "dropout": 0.25}
    for changes in ({}, sizes):
        flags = [part for k, v in changes.items() for part in (f"--{k.replace('_', '-')}", str(v))]
        overrides = [f"+model.{k}={v}" for k, v in changes.items()]
        by_flags = _from_command_line(arch, *flags)
        path = ROOT / "configs" / "translation" / "translation.yaml"
        by_yaml = OmegaConf.to_container(
            _compose(path, f"model._name={arch}", "model.share_all_embeddings=false", *overrides).model
        )
        assert by_flags == by_yaml
        assert by_flags["untie_luna_kv"] is (arch == "luna_base_untied")
        assert by_flags["encoder_layers"] == changes.get("encoder_layers", 6)
        assert by_flags["decoder_output_dim"] == changes.get("decoder_embed_dim", 512)
        assert by_flags["projection_length"] == 32 and by_flags["decoder_ffn_embed_dim"] == 2048


@pytest.mark.parametrize("flag", ["--untie-luna-kv", "--fix-projection-length"])
@pytest.mark.parametrize("arch", _long_but(ARCHITECTURES, "luna_base_untied"))
def test_a_flag_turns_its_option_on_whatever_the_architecture(arch: str, flag: str) -> None:
    assert vars(_parsed(arch, flag))[flag[2:].replace("-", "_")] is True


@pytest.mark.parametrize("name", ["transformer", "luna_untied_32_bias"])
def test_documents_have_room(name: str) -> None:
    cfg = _compose(ROOT / "configs" / "translation" / f"documents_{name}.yaml")
    for part in (cfg.task, cfg.model):
        assert (part.max_source_positions, part.max_target_positions) == (4096, 4096)
    assert (cfg.model.encoder_layers, cfg.optimization.max_epoch, cfg.model.dropout) == (3, 12, 0.1)


BIASED = [path for path in PRIMARY if path.stem.endswith("_bias")]


@pytest.mark.parametrize("path", BIASED, ids=lambda path: path.stem)
def test_a_config_with_a_position_bias_is_the_one_beside_it_but_for_that(path: Path) -> None:
    cfg, beside = _compose(path), _compose(path.with_stem(path.stem.removesuffix("_bias")))
    assert (cfg.model.pop("packed_position_bias"), beside.model.pop("packed_position_bias")) == (1, 0)
    assert cfg == beside


DECAYED = [path for path in PRIMARY if path.stem.endswith("_decay")]


@pytest.mark.parametrize("path", DECAYED, ids=lambda path: path.stem)
def test_a_config_whose_heads_forget_is_the_one_beside_it_but_for_that(path: Path) -> None:
    cfg, beside = _compose(path), _compose(path.with_stem(path.stem.removesuffix("_decay")))
    assert (cfg.model.pop("causal_decay"), beside.model.pop("causal_decay")) == (5, 0)
    assert cfg == beside and len(DECAYED) == 8


@pytest.mark.parametrize("arch", ["luna", pytest.param("luna_lm", marks=pytest.mark.long)])
def test_heads_forget_only_if_they_are_told_to(arch: str) -> None:
    given = _from_command_line(arch, "--causal-decay", "0.5")
    default = _from_command_line(arch)
    assert (given.pop("causal_decay"), default.pop("causal_decay")) == (0.5, 0.0) and default == given


def test_layers_with_a_position_bias_are_the_others_but_for_that() -> None:
    path = ROOT / "configs" / "lra" / "listops_small.yaml"
    cfg, beside = _compose(path, "layers=luna_16_bias"), _compose(path)
    assert (cfg.model.pop("packed_position_bias"), beside.model.pop("packed_position_bias")) == (1, 0)
    assert cfg == beside and len(BIASED) == 10


@pytest.mark.parametrize(
    "arch",
    _long_but(
        ["luna", "luna_base_untied", "luna_bert", "luna_base_2048", "lra", "luna_lra_listop"],
        "luna",
        "luna_bert",
        "lra",
    ),
)
def test_the_position_bias_is_off_unless_asked_for(arch: str) -> None:
    given = _from_command_line(arch, "--packed-position-bias", "0.5")
    assert given.pop("packed_position_bias") == 0.5
    default = _from_command_line(arch)
    assert default.pop("packed_position_bias") == 0.0 and default == given
    if arch.startswith("luna") and "packed_position_bias_in" in given:
        place = _from_command_line(arch, "--packed-position-bias-in", "cross")["packed_position_bias_in"]
        assert (given["packed_position_bias_in"], place) == ("both", "cross")
    else:
        assert "bert" in arch or "2048" in arch or "lra" in arch


def test_optimizer_and_schedule_have_the_same_defaults_on_both_command_lines() -> None:
    parser = options.get_training_parser()
    flags = ["/data", "--arch", "luna", "--optimizer", "apollo", "--lr-scheduler", "milestone", "--lr", "0.1"]
    by_flags = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=flags))
    path = ROOT / "configs" / "translation" / "translation.yaml"
    names = ["optimizer._name=apollo", "lr_scheduler._name=milestone", "optimization.lr=[0.1]"]
    removed = ["~optimizer.adam_betas", "~lr_scheduler.warmup_updates"]
    by_yaml = _compose(path, *names, *removed)
    assert by_flags.optimizer == by_yaml.optimizer
    assert by_flags.lr_scheduler == by_yaml.lr_scheduler
    assert by_flags.lr_scheduler.milestones == [] and by_flags.lr_scheduler.warmup_updates == 1000


def test_positions_of_task_and_model_are_one_option() -> None:
    assert _from_command_line("luna", "--max-source-positions", "77")["max_source_positions"] == 77
    path = ROOT / "configs" / "translation" / "translation.yaml"
    cfg = _compose(path, "+task.max_source_positions=77")
    assert cfg.model.max_source_positions == cfg.task.max_source_positions == 77


def test_published_flags_are_all_here() -> None:
    published = (
        "projection_length fix_projection_length untie_luna_kv encoder_projected_attention_heads "
        "decoder_projected_attention_heads word_dropout"
    )
    assert set(published.split()) <= set(LunaConfig.__dataclass_fields__)


def _same_on_both(arch: str, config: str, task: List[str], *removed: str) -> Dict[str, Any]:
    """The options of an architecture, which are the same by flags and by a config without its own sizes."""
    by_flags = _from_command_line(arch, *task)
    path = ROOT / "configs" / f"{config}.yaml"
    composed = _compose(path, f"model._name={arch}", *(f"~model.{name}" for name in removed))
    assert by_flags == OmegaConf.to_container(composed.model)
    return by_flags


BERT_SIZES = {  # encoder_layers, encoder_embed_dim, max_positions, projection_length, untie_luna_kv
    "luna_bert": (12, 768, 512, 128, False),
    "luna_base_512": (12, 768, 512, 128, False),
    "luna_base_tied_512": (12, 768, 512, 128, False),
    "luna_base_untied_512": (12, 768, 512, 128, True),
    "luna_base_2048": (12, 768, 2048, 256, False),
    "luna_large_512": (24, 1024, 512, 128, False),
    "luna_large_2048": (24, 1024, 2048, 256, False),
}


@pytest.mark.parametrize("arch", _long_but(list(BERT_SIZES), "luna_bert", "luna_base_untied_512", "luna_large_2048"))
def test_a_masked_lm_architecture_is_the_same_on_both_command_lines(arch: str) -> None:
    task = ["--task", "masked_lm", "--criterion", "masked_lm"]
    by_flags = _same_on_both(arch, "masked_lm/pretrain_small", task, "projection_length", "max_positions")
    names = "encoder_layers encoder_embed_dim max_positions projection_length untie_luna_kv".split()
    assert tuple(by_flags[name] for name in names) == BERT_SIZES[arch]
    assert by_flags["activation_fn"] == "gelu" and by_flags["pooler_activation_fn"] == "tanh"
    assert by_flags["dropout"] == by_flags["attention_dropout"] == 0.1
    flags = ["--max-positions", "64", "--untie-luna-kv", "--untie-weights-luna", "--fix-projection-length"]
    changed = vars(_parsed(arch, *task, *flags))
    assert changed["max_positions"] == 64 and changed["untie_luna_kv"] and changed["untie_weights_luna"]


def test_the_paper_s_pretraining_settings() -> None:
    for size, updates, warmup, sequences in (("16gb", 250_000, 15_000, 2048), ("160gb", 500_000, 24_000, 8192)):
        for model in ("luna_tied_128", "luna_untied_128", "roberta"):
            cfg = _compose(ROOT / "configs" / "masked_lm" / f"pretrain_{model}_{size}.yaml")
            workers = cfg.distributed_training.distributed_world_size
            assert cfg.dataset.batch_size * cfg.optimization.update_freq[0] * workers == sequences
            assert (cfg.optimization.max_update, cfg.lr_scheduler.total_num_update) == (updates, updates)
            assert (cfg.lr_scheduler.warmup_updates, cfg.optimization.lr[0]) == (warmup, 6e-4)
            assert (cfg.optimizer.weight_decay, cfg.optimization.clip_norm, cfg.optimizer.adam_eps) == (0.01, 1, 1e-6)
            assert cfg.model.max_positions == cfg.task.tokens_per_sample == 512
            assert cfg.model.dropout == cfg.model.attention_dropout == 0.1
    long = _compose(ROOT / "configs" / "masked_lm" / "pretrain_luna_tied_256_2048.yaml")
    assert (long.model.max_positions, long.task.tokens_per_sample, long.model.projection_length) == (2048, 2048, 256)


@pytest.mark.parametrize(
    ("name", "batch", "updates", "warmup", "activation_dropout"),
    [("sst2", 32, 21_050, 1263, 0.0), ("qnli", 32, 65_520, 2000, 0.1), ("qqp", 32, 228_000, 6850, 0.1)],
)
def test_the_paper_s_fine_tuning_settings(
    name: str, batch: int, updates: int, warmup: int, activation_dropout: float
) -> None:
    cfg = _compose(ROOT / "configs" / "masked_lm" / f"finetune_{name}.yaml", "arch=roberta")
    assert cfg.model._name == "roberta_base"
    assert (cfg.dataset.batch_size, cfg.optimization.max_update, cfg.lr_scheduler.warmup_updates) == (
        batch, updates, warmup,
    )  # fmt: skip
    assert cfg.distributed_training.distributed_world_size == 1
    assert cfg.optimization.lr[0] == 1e-5 and cfg.optimizer.weight_decay == 0.1
    assert cfg.model.activation_dropout == activation_dropout and cfg.optimization.clip_norm == 0


# layers, width, FFN, heads, positions, classes, classifier, BERT init, shared layers, documents, pooling
LRA_SIZES = {
    "listop": (6, 512, 2048, 8, 2002, 10, 2048, True, True, 1, "cls"),
    "imdb": (4, 256, 1024, 4, 4002, 2, 1024, True, False, 1, "cls"),
    "aan": (4, 128, 512, 4, 4002, 2, 512, False, False, 2, "cls"),
    "cifar10": (1, 64, 128, 8, 1024, 10, 128, True, False, 1, "cls"),
    "pf32": (1, 128, 128, 4, 1026, 2, 256, False, False, 1, "mp"),
    "pf128": (1, 128, 128, 4, 16386, 2, 256, False, False, 1, "mp"),
}


@pytest.mark.parametrize(
    "arch",
    _long_but(
        [*(f"luna_lra_{size}" for size in LRA_SIZES), *(f"transformer_lra_{size}" for size in list(LRA_SIZES)[:-1])],
        "luna_lra_listop",
        "luna_lra_aan",
        "luna_lra_pf128",
    ),
)
def test_a_long_range_arena_architecture_is_the_same_on_both_command_lines(arch: str) -> None:
    layers, _, size = arch.split("_")
    task = ["--task", "long_range_arena", "--criterion", "lra_cross_entropy"]
    by_flags = _same_on_both(arch, "lra/retrieval", task, "layer_type", "encoder_projection_length")
    names = (
        "encoder_layers encoder_embed_dim encoder_ffn_embed_dim encoder_attention_heads max_positions "
        "sentence_class_num classifier_out_dim apply_bert_init tie_layer_weights documents sen_rep_type"
    ).split()
    assert tuple(by_flags[name] for name in names) == LRA_SIZES[size]
    assert by_flags["layer_type"] == layers and by_flags["encoder_learned_pos"] and not by_flags["tie_kv"]
    assert by_flags["activation_fn"] == "gelu" and by_flags["classifier_activation_fn"] == "relu"
    # A flag means the same whatever the architecture has; published names.
    on = "--apply-bert-init --encoder-learned-pos --use-p --tie-kv".split()
    changed = vars(_parsed(arch, *task, *on, "--sen-rep-type", "first", "--encoder-projection-length", "5"))
    assert changed["apply_bert_init"] and changed["encoder_learned_pos"] and changed["use_p"] and changed["tie_kv"]
    assert (changed["sen_rep_type"], changed["encoder_projection_length"]) == ("first", 5)
    off = vars(_parsed(arch, *task, "--no-apply-bert-init", "--no-encoder-learned-pos"))
    assert not off["apply_bert_init"] and not off["encoder_learned_pos"]


@pytest.mark.parametrize(
    ("name", "lr", "batch", "updates", "warmup", "decay", "dropout", "attention_dropout"),
    [
        ("listops", 1e-4, 32, 5000, 1000, 1e-4, 0.1, 0.1),
        ("text", 5e-5, 32, 20_000, 8000, 1e-4, 0.3, 0.3),
        ("retrieval", 5e-4, 32, 20_000, 8000, 1e-4, 0.1, 0.1),
        ("image", 5e-3, 256, 35_000, 4000, 0.0, 0.3, 0.1),
        ("pathfinder", 1e-3, 512, 62_500, 4000, 0.0, 0.2, 0.1),
    ],
)
@pytest.mark.parametrize(
    "layers", _long_but(["luna_16", "luna_128", "luna_256", "transformer"], "luna_16", "transformer")
)
def test_the_paper_s_long_range_arena_settings(
    name: str, lr: float, batch: int, updates: int, warmup: int, decay: float, dropout: float,
    attention_dropout: float, layers: str,
) -> None:  # fmt: skip
    cfg = _compose(ROOT / "configs" / "lra" / f"{name}.yaml", f"layers={layers}")
    assert (cfg.optimization.lr, cfg.dataset.batch_size, cfg.optimization.max_update) == ([lr], batch, updates)
    assert (cfg.lr_scheduler.warmup_updates, cfg.lr_scheduler.warmup_init_lr) == (warmup, 1e-7)
    assert cfg.optimizer.weight_decay == decay and cfg.optimization.clip_norm == 0 and cfg.optimization.sentence_avg
    options = OmegaConf.merge(MODEL_DATACLASS_REGISTRY[cfg.model._name](), cfg.model)
    assert (options.dropout, options.attention_dropout) == (dropout, attention_dropout)
    assert options.layer_type == layers.split("_")[0]
    if layers != "transformer":
        assert options.encoder_projection_length == int(layers.split("_")[1])
