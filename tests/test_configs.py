"""Every YAML under configs/ composes, and names an architecture with options that it has."""

import argparse
from pathlib import Path
from typing import Any, Dict

import pytest
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from commands import ROOT
from luna_fairseq.models.luna import LunaConfig

PRIMARY = sorted(path for path in (ROOT / "configs").glob("*/*.yaml"))
FILLED_IN = ["common.user_dir=/plugin", "task.data=/data", "checkpoint.save_dir=/save"]
ARCHITECTURES = ["luna", "luna_base", "luna_base_tied", "luna_base_untied"]


def _compose(path: Path, *overrides: str) -> Any:
    """What fairseq-hydra-train makes of a config, up to the point where it builds the model."""
    GlobalHydra.instance().clear()
    hydra_init(path.stem)
    with initialize_config_dir(str(path.parent), version_base="1.1"):
        cfg = compose(path.stem, overrides=[*FILLED_IN, *overrides])
    # The command checks only the config that it is given against fairseq's schema, so forget the name again.
    del ConfigStore.instance().repo[f"{path.stem}.yaml"]
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


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
    """No overlay lies about unused."""
    text = "".join(path.read_text() for path in PRIMARY)
    for path in (ROOT / "configs").glob("*/*/*.yaml"):
        assert f"{path.parent.name}: {path.stem}\n" in text, path


def _from_command_line(arch: str, *flags: str) -> Dict[str, Any]:
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, input_args=["/data", "--arch", arch, "--optimizer", "adam", *flags])
    assert isinstance(args, argparse.Namespace)
    return OmegaConf.to_container(convert_namespace_to_omegaconf(args).model)


@pytest.mark.parametrize("arch", ARCHITECTURES)
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
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_flag_turns_its_option_on_whatever_the_architecture(arch: str, flag: str) -> None:
    assert _from_command_line(arch, flag)[flag[2:].replace("-", "_")] is True


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
