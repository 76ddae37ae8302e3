"""A model takes its positions from whatever task there is, and builds from a plain Namespace."""

import argparse
from argparse import Namespace
from typing import Any, Dict, List

import pytest
import torch
from fairseq import models, options
from fairseq.dataclass.initialize import add_defaults
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY, LegacyFairseqTask, register_task
from omegaconf import OmegaConf

from luna_fairseq.models.luna import LunaConfig, LunaModel
from support.models import make_dictionary, make_task

SMALL: List[str] = (
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--decoder-layers 1 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16 --decoder-attention-heads 2"
).split()


def _users_own() -> str:
    """A task of argparse's that knows of no positions at all."""
    if "users_own" not in TASK_REGISTRY:

        @register_task("users_own")
        class UsersOwn(LegacyFairseqTask):
            @staticmethod
            def add_args(parser: argparse.ArgumentParser) -> None:
                parser.add_argument("data")

    return "users_own"


def _whole_config(task: str, *args: str) -> Any:
    data = [] if task == "dummy_mt" else ["folder"]
    given = [*data, "--task", task, "--arch", "luna", *SMALL, *args]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), given))


@pytest.mark.parametrize(
    "task",
    [
        *("translation", "denoising", "language_modeling", "translation_multi_simple_epoch"),
        *("online_backtranslation", "dummy_mt", "own"),
    ],
)
def test_one_option_serves_task_and_model(task: str) -> None:
    """With and without a dataclass, with and without these options in it."""
    task = _users_own() if task == "own" else task
    usual = _whole_config(task).model
    assert (usual.max_source_positions, usual.max_target_positions) == (1024, 1024)
    given = _whole_config(task, "--max-source-positions", "40", "--max-target-positions", "30")
    assert (given.model.max_source_positions, given.model.max_target_positions) == (40, 30)
    if hasattr(given.task, "max_source_positions"):
        assert given.task.max_source_positions == 40
    model = models.build_model(given.model, make_task())
    assert model.max_positions() == (40, 30)


def test_one_option_serves_both_under_hydra() -> None:
    cfg = OmegaConf.create({"task": {"_name": "translation", "max_source_positions": 40}, "model": {"_name": "luna"}})
    add_defaults(cfg)
    assert (cfg.model.max_source_positions, cfg.model.max_target_positions) == (40, 1024)
    cfg = OmegaConf.create({"task": {"_name": "language_modeling"}, "model": {"_name": "luna"}})
    add_defaults(cfg)
    assert (cfg.model.max_source_positions, cfg.model.max_target_positions) == (1024, 1024)


def test_options_that_follow_others_are_numbers() -> None:
    """A task of argparse's reads the same Namespace."""
    given = "--max-source-positions 40 --decoder-output-dim 16 --encoder-projected-attention-heads 2".split()
    task = _whole_config("dummy_mt", *given).task
    values = (task.max_source_positions, task.decoder_output_dim, task.encoder_projected_attention_heads)
    assert values == (40, 16, 2)


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("luna", dict(encoder_embed_dim=16, decoder_embed_dim=16, encoder_layers=1, decoder_layers=1)),
        ("luna_base_512", dict(encoder_embed_dim=24, encoder_layers=1)),
        ("luna_lra_imdb", dict(encoder_embed_dim=16, encoder_layers=1)),
    ],
)
def test_a_plain_namespace_builds(arch: str, changes: Dict[str, Any]) -> None:
    """With all options, as fairseq's get_args makes it, and with no others than these."""
    dictionary = make_dictionary()
    dictionary.add_symbol("<CLS>")
    task = make_task(dictionary)
    for args in (options.get_args("folder", arch=arch, **changes), Namespace(arch=arch, **changes)):
        models.build_model(args, task)


def test_a_config_that_is_no_part_of_another_builds() -> None:
    """So do a dataclass, and a DictConfig of some options."""
    task = make_task()
    small = dict(encoder_layers=1, decoder_layers=1, encoder_embed_dim=16, decoder_embed_dim=16)
    model: Any = models.build_model(OmegaConf.create({"_name": "luna", **small}), task)
    assert model.max_positions() == (1024, 1024)
    assert LunaModel.build_model(LunaConfig(**small), task).decoder.output_embed_dim == 16


def test_a_plain_namespace_has_the_positions_of_its_task() -> None:
    args = options.get_args("folder", arch="luna", encoder_layers=1, decoder_layers=1)
    assert not hasattr(args, "max_target_positions") or isinstance(args.max_target_positions, int)
    task = make_task()
    task.cfg = Namespace(max_source_positions=40, max_target_positions=None)
    small = Namespace(arch="luna", encoder_layers=1, decoder_layers=1)
    assert models.build_model(small, task).max_positions() == (40, 1024)
    task.cfg, task.args = None, Namespace(max_source_positions=50)
    assert models.build_model(small, task).max_positions() == (50, 1024)
    small.max_source_positions = 60
    model = models.build_model(small, task)
    assert model.max_positions() == (60, 1024)
    tokens = torch.tensor([[5, 6, 2]])
    assert torch.isfinite(model(tokens, None, tokens)[0]).all()
