"""The costs on paper: the formula against torch's counter, bytes against a real step, and what is made of them."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import cost
from scripts.bench.configs import load_config
from scripts.bench.cost_step import Step
from support.running import ROOT


def _config(
    folder: Path,
    model: str,
    task: str = "translation",
    optimizer: str = "adam",
    fp16: bool = False,
    width: int = 64,
    head_dim: int = 16,
) -> Path:
    """A config of 500 updates on 2 processes; heads and rows so many that nothing is folded."""
    encoder, decoder = (
        f"{side}_layers: {layers}, {side}_embed_dim: {width}, {side}_ffn_embed_dim: {4 * width}, "
        f"{side}_attention_heads: {width // head_dim}, attention_dropout: 0.1"
        for side, layers in (("encoder", 2), ("decoder", 1))
    )
    decoder = decoder.replace(", attention_dropout: 0.1", "")
    own = {
        "translation": "task: {_name: translation, source_lang: en, target_lang: de, data: '???'}\n"
        "criterion: {_name: label_smoothed_cross_entropy, label_smoothing: 0.1}\ndataset: {max_tokens: 600}\n"
        f"model: {{_name: {model}, {encoder}, {decoder}, share_all_embeddings: true}}\n",
        "masked_lm": "task: {_name: masked_lm, tokens_per_sample: 40, data: '???'}\n"
        "criterion: {_name: masked_lm}\ndataset: {batch_size: 4}\n"
        f"model: {{_name: {model}, {encoder}, max_positions: 40}}\n",
    }[task]
    path = folder / "small.yaml"
    path.write_text(
        f"{own}common: {{user_dir: '???', fp16: {str(fp16).lower()}}}\n"
        "optimization: {lr: [0.001], max_update: 500}\nlr_scheduler: {_name: fixed}\n"
        f"optimizer: {{_name: {optimizer}}}\n"
        "checkpoint: {save_dir: '???'}\ndistributed_training: {distributed_world_size: 2}\n"
    )
    return path


def _args(**changes: Any) -> Namespace:
    return Namespace(**{"vocabulary": 300, "length": 30, "check_tokens": 600, "gpus": None, **changes})


@pytest.mark.parametrize("length", [pytest.param(9, marks=pytest.mark.long), 30, 300])
@pytest.mark.parametrize(
    "model",
    [
        "transformer",
        "luna_base_tied, projection_length: 32",
        "luna_base_untied, projection_length: 32",
    ],
)
def test_operations_of_translation(model: str, length: int, tmp_path: Path) -> None:
    step = Step(_config(tmp_path, model), _args(length=length))
    assert step.operations() == pytest.approx(step.counted_operations(), rel=0.005)


def test_operations_of_longer_chunks(tmp_path: Path) -> None:
    """For wide heads and many packed rows."""
    config = _config(tmp_path, "luna_base_tied, projection_length: 128", width=128, head_dim=64)
    step = Step(config, _args(length=300))
    assert step.operations() == pytest.approx(step.counted_operations(), rel=0.005)


@pytest.mark.parametrize(
    "model", ["roberta_base", "luna_base_tied_512, projection_length: 32", "luna_base_untied_512"]
)
def test_operations_of_masked_lm(model: str, tmp_path: Path) -> None:
    step = Step(_config(tmp_path, model, "masked_lm"), _args())
    assert step.sizes.rows == {"roberta_base": 0, "luna_base_untied_512": 128}.get(model, 32)
    assert step.operations() == pytest.approx(step.counted_operations(), rel=0.005)


@pytest.mark.long
@pytest.mark.parametrize(("optimizer", "fp16"), [("apollo", False), ("adam", True)])
def test_memory(optimizer: str, fp16: bool, tmp_path: Path) -> None:
    """60 MiB of what is measured are the process's own."""
    path = _config(tmp_path, "luna_base_tied, projection_length: 32", optimizer=optimizer, fp16=fp16, width=512)
    options = ["--measure", str(path), "--vocabulary", "20000", "--check-tokens", "600"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.cost", *options],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "GLIBC_TUNABLES": cost.EXACT_MEMORY},
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bytes"] == pytest.approx(found["measured bytes"] - 60 * 2**20, rel=0.05)


def test_the_batch_stays_the_same() -> None:
    filled_in = ["common.user_dir=null", "task.data=unused", "checkpoint.save_dir=unused"]
    wmt = load_config(ROOT / "configs" / "translation" / "wmt14_transformer_adam.yaml", *filled_in)
    for gpus, at_once, options in (
        (8, 8192, "--update-freq 1"),
        (4, 8192, "--update-freq 2"),
        (1, 8192, "--update-freq 8"),
        (3, 7282, "--update-freq 3 --max-tokens 7282"),
        (16, 4096, "--update-freq 1 --max-tokens 4096"),
    ):
        assert cost.batch(wmt, gpus) == (8 * 8192, at_once, options)
    mlm = load_config(ROOT / "configs" / "masked_lm" / "pretrain_roberta_16gb.yaml", *filled_in)
    assert cost.batch(mlm, 8) == (2048 * 512, 16 * 512, "--update-freq 16")
    assert cost.batch(mlm, 2) == (2048 * 512, 16 * 512, "--update-freq 64")


def test_a_row(tmp_path: Path) -> None:
    path = _config(tmp_path, "luna_base_tied, projection_length: 32")
    step = Step(path, _args())
    row = [cell.strip() for cell in cost.row(path, _args(gpus=1)).strip("|").split("|")]
    run = step.operations() * 2 * 600 * 500  # symbols an update, updates
    assert row[0] == "small" and row[5] == "1, `--update-freq 2`"
    assert float(row[2]) == round(step.operations() / 1e9, 3)
    assert float(row[3]) == round(run / 1e18, 2)
    assert float(row[4]) == round(step.memory(600) / 2**30, 1)
    peak, reached = cost.GPUS["V100 float32"]
    assert float(row[6]) == round(run / (peak * 1e12 * reached * 3600))
    two = [cell.strip() for cell in cost.row(path, _args(gpus=2)).strip("|").split("|")]
    assert two[5] == "2, `--update-freq 1`" and two[:5] == row[:5]


def test_another_task_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"digits\.yaml has lra-image: choose a config that has one of translation, masked_lm"
    ):
        Step(ROOT / "configs" / "lra" / "digits.yaml", _args())
