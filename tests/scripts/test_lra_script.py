"""scripts/lra.sh: each config prepared, trained and tested by one command, and the table."""

import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from support.running import run_script


def _published_files(folder: Path, config: str) -> Path:
    """Tiny files in the layout of the published ones."""
    generator = random.Random(2)
    text = [" ".join(generator.choice("a b c dog cat".split()) for _ in range(30)) for _ in range(20)]
    if config == "text":
        for split in ("train", "test"):
            for label in ("pos", "neg"):
                (folder / split / label).mkdir(parents=True)
                for i in range(4):
                    (folder / split / label / f"{i}_7.txt").write_text(text[generator.randrange(20)])
    elif config == "retrieval":
        folder.mkdir()
        for split in ("train", "eval", "test"):
            rows = [f"{i % 2}.0\tid{i}\tid{i + 1}\t{text[i]}\t{text[i + 1]}\n" for i in range(6)]
            (folder / f"new_aan_pairs.{split}.tsv").write_text("".join(rows))
    else:
        folder.mkdir()
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            data = np.random.default_rng(3).integers(0, 256, (4, 3072), dtype=np.uint8)
            with open(folder / name, "wb") as file:
                pickle.dump({b"data": data, b"labels": [0, 1, 2, 9]}, file)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("config", ["listops", "text", "retrieval", "image", "pathfinder"])
def test_a_row_by_one_command(tmp_path: Path, config: str) -> None:
    needs_files = config in ("text", "retrieval", "image")
    layers = "transformer" if config == "pathfinder" else "luna_16"
    if needs_files:
        assert f"{config} needs the folder with the published files" in run_script(
            tmp_path / "out", "scripts/lra.sh", "row", config, layers, code=1
        )
    folder = [_published_files(tmp_path / "published", config)] if needs_files else []
    output = run_script(tmp_path / "out", "scripts/lra.sh", "row", config, layers, *folder)
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    result = json.loads(line)
    assert (result["config"], result["layers"]) == (config, layers) and 0 <= result["accuracy"] <= 100
    if config == "listops":
        again = run_script(tmp_path / "out", "scripts/lra.sh", "row", config, layers)
        assert "already trained" in again and "is newer than" not in again
        (options,) = tmp_path.glob("out/smoke/*/options")
        os.utime(options, (0, 0))
        again = run_script(tmp_path / "out", "scripts/lra.sh", "row", config, layers)
        assert "already trained" in again and f".yaml is newer than {options.parent}" in again
        table = run_script(tmp_path / "out", "scripts/lra.sh", "table")
        assert "| Luna-256 | 37.98 (not run) | 65.78 (not run) |" in table
        assert f"| Luna-16 | 37.43 ({result['accuracy']:.2f} SMOKE) | 65.74 (not run) |" in table
        said = run_script(
            tmp_path / "out", "scripts/lra.sh", "train", config, layers, "optimization.lr=[0.5]", code=1
        )
        assert "a run with other data or options" in said
        assert "choose one of" in run_script(tmp_path / "out", "scripts/lra.sh", "row", config, "luna_17", code=1)
        assert "choose one of" in run_script(tmp_path / "out", "scripts/lra.sh", "row", "nothing", layers, code=1)
        assert "is not trained" in run_script(tmp_path / "out", "scripts/lra.sh", "test", config, "luna_128", code=1)
