"""The smaller commands of scripts/bench, started as the documentation says: training by length, and of configs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.running import ROOT, Corpus


def _run(module: str, *arguments: Any, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.long
def test_training_by_length() -> None:
    """The memory of each row comes from a process of its own."""
    options = "--batch-size 1 --lengths 32 --projection-lengths 4 --rounds 1 --updates 1 --bias".split()
    output = _run("scripts.bench.length", *options)
    measured = re.findall(r"^(.*), 32 bytes: \d+\.\d+ updates/s, 0\.\d\d GiB$", output, re.M)
    assert measured == ["Transformer", "Luna-4", "Luna-4+bias"]
    assert "| Transformer | 1.00x, 1.00x |" in output and re.search(r"\| Luna-4 \| [\d.]+x, [\d.]+x \|", output)


@pytest.mark.long
def test_training_of_two_configs(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("transformer", "luna_base_tied"):
        sizes = ", ".join(
            f"{side}_layers: 1, {side}_embed_dim: 16, {side}_ffn_embed_dim: 16, {side}_attention_heads: 2"
            for side in ("encoder", "decoder")
        )
        (tmp_path / f"small_{name}.yaml").write_text(
            f"model: {{_name: {name}, {sizes}, share_all_embeddings: true}}\n"
            "task: {_name: translation, source_lang: en, target_lang: de, data: '???'}\n"
            "criterion: {_name: label_smoothed_cross_entropy, label_smoothing: 0.1}\ndataset: {max_tokens: 200}\n"
            "optimization: {lr: [0.001], max_update: 5}\nlr_scheduler: {_name: fixed}\noptimizer: {_name: adam}\n"
            "common: {user_dir: '???'}\ncheckpoint: {save_dir: '???'}\n"
        )
    configs = [tmp_path / "small_transformer.yaml", tmp_path / "small_luna_base_tied.yaml"]
    output = _run("scripts.bench.training_speed", *configs, "--data", corpus.data, "--rounds", 1, "--batches", 2)
    assert "median of 1 rounds of 2 updates" in output
    assert re.search(r"\| small_transformer \| [\d,]+ \| 1\.000 \|", output)
    assert re.search(r"\| small_luna_base_tied \| [\d,]+ \| [\d.]+ \|", output)

    configs[0].write_text(configs[0].read_text().replace("model: {", "model: {max_source_positions: 1, "))
    said = _run("scripts.bench.training_speed", configs[0], "--data", corpus.data, code=2)
    assert said.endswith(
        f"no example of {corpus.data} fits the positions of small_transformer: take another config\n"
    )
