"""The commands of the README run as they stand there, on a tiny corpus and with a tiny model."""

import importlib.util
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

from support.forks import path_variable
from support.running import ROOT, TINY, Corpus

README = (ROOT / "README.md").read_text()


def _blocks(heading: str, language: str) -> List[str]:
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def _commands(heading: str) -> List[str]:
    """The shell commands of a section, one string each."""
    return [
        re.sub(r"\s*\\\n\s*", " ", command).strip()
        for block in _blocks(heading, "bash")
        for command in re.split(r"\n(?! )", block.strip())
        if command.strip()
    ]


def _without_measuring(commands: List[str]) -> List[str]:
    """Without those that time finished work: their scripts have tests of their own."""
    return [command for command in commands if not re.match(r"python -m scripts\.bench|luna-fairseq plot", command)]


def _run(command: str, folder: Path, **environment: str) -> str:
    """Run a command of the README in a folder; returns its output."""
    path = path_variable()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


def _shrink(command: str) -> str:
    """The command, with a model and a training that take a second."""
    if command.startswith("fairseq-train"):
        small = " ".join(option for option in TINY if option != "--share-all-embeddings")
        return f"{command} {small} --cpu --max-epoch 5 --data-buffer-size 0 --num-workers 0"
    if command.startswith("fairseq-hydra-train"):
        pairs = zip(TINY[::2], TINY[1::2], strict=False)
        sizes = " ".join(f"++model.{k[2:].replace('-', '_')}={v}" for k, v in pairs if v.isdigit())
        run = "common.cpu=true optimization.max_epoch=1 dataset.data_buffer_size=0 dataset.num_workers=0"
        return f"{command} {sizes} {run} checkpoint.save_dir=$PWD/hydra-checkpoints"
    if command.startswith("luna-fairseq attention") and not importlib.util.find_spec("matplotlib"):
        command = command.replace("--output attention.svg", "")
    return command + " --cpu" if command.startswith("fairseq-generate") else command


def test_commands_for_your_own_data(corpus: Corpus, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "valid", "test"):
        for lang in ("en", "de"):
            shutil.copy(corpus.text / f"{split}.spm.{lang}", text / f"{split}.{lang}")
    for folder in ("scripts", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copy(corpus.spm, tmp_path / "spm.model")
    # What begins with CONFIG is for many GPUs; test_distributed.py runs both scripts.
    commands = [_shrink(c) for c in _commands("Your own data") if not c.startswith("CONFIG=")]
    assert [c.split()[0] for c in commands] == [
        "fairseq-preprocess",
        "fairseq-train",
        "luna-fairseq",
        "fairseq-generate",
        "fairseq-hydra-train",
        "luna-fairseq",
        "CPU=1",
    ]
    (python,) = _blocks("Your own data", "python")
    script = python.replace("/absolute/path/of/data-bin", f"{tmp_path}/data-bin")
    (tmp_path / "example.py").write_text(script)
    commands.append("python example.py")
    output = "".join(_run(command, tmp_path, SMOKE="1") for command in commands)
    assert len(re.findall(r"^H-\d+", output, re.M)) == 11
    assert (tmp_path / "run" / "smoke" / ".trained").exists()
    assert (tmp_path / "hydra-checkpoints" / "checkpoint_last.pt").exists()


@pytest.mark.long
def test_commands_for_masked_lm(tmp_path: Path) -> None:
    generator = random.Random(2)
    words = "the dog runs over a small green hill and sees one sentence another joy to watch waste of time".split()
    for split, lines in (("train", 120), ("valid", 30)):
        text = [" ".join(generator.choice(words) for _ in range(9)) + "\n" * (1 + (i % 4 == 3)) for i in range(lines)]
        (tmp_path / f"{split}.txt").write_text("".join(f"{line}\n" for line in text))
        (tmp_path / "glue" / "SST-2").mkdir(parents=True, exist_ok=True)
        rows = "".join(f"{line.strip()}\t{i % 2}\n" for i, line in enumerate(text))
        name = {"train": "train.tsv", "valid": "dev.tsv"}[split]
        (tmp_path / "glue" / "SST-2" / name).write_text(f"sentence\tlabel\n{rows}")
    for folder in ("scripts", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)

    heading = "Masked LM: pretraining and fine-tuning"
    commands = _without_measuring(_commands(heading))
    (python,) = _blocks(heading, "python")
    (tmp_path / "example.py").write_text(
        python.replace("/absolute/path/of", str(tmp_path)).replace("masked-lm-out/", "masked-lm-out/smoke/")
    )
    commands.append("python example.py")
    assert [c.split()[0] for c in commands] == [
        "luna-fairseq", "scripts/masked_lm.sh", "luna-fairseq", "scripts/masked_lm.sh", "scripts/masked_lm.sh",
        "fairseq-train", "fairseq-validate", "cut", "luna-fairseq", "TAG=sst", "python",
    ]  # fmt: skip
    tiny = (
        "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 --cpu "
        "--data-buffer-size 0 --num-workers 0"
    )
    output = ""
    for command in commands:
        command = command.replace("--vocab-size 8000", "--vocab-size 60").replace(
            "masked-lm-out/", "masked-lm-out/smoke/"
        )
        if command.startswith("fairseq-train"):
            command = re.sub(r"--max-update \d+", "--max-update 2", f"{command} {tiny}")
        elif command.startswith("fairseq-validate"):
            command += " --cpu"
        elif command.startswith("TAG=sst"):
            command = re.sub(r"max_update=\d+(.*)warmup_updates=\d+", r"max_update=2\1warmup_updates=1", command)
        output += _run(command, tmp_path, SMOKE="1")
    assert len(re.findall(r"^0\.\d{3} The dog runs over the", output, re.M)) == 3
    assert "| luna_tied_32 |" in output and "tensor([[" in output


@pytest.mark.long
def test_commands_for_the_long_range_arena(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    for folder in ("scripts", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    commands = _without_measuring(_commands("Long Range Arena"))
    assert [c.split()[0] for c in commands] == [
        "export", "scripts/lra.sh", "scripts/lra.sh", "scripts/lra.sh", "luna-fairseq", "fairseq-train",
        "fairseq-validate",
    ]  # fmt: skip
    output = ""
    for command in commands[1:]:
        if command.startswith("fairseq-"):
            command += " --cpu --data-buffer-size 0 --num-workers 0"
        command = re.sub(r"--max-update \d+", "--max-update 2 --validate-interval-updates 2", command)
        command = command.replace("--train 2000", "--train 64").replace(
            "--encoder-embed-dim 128", "--encoder-embed-dim 16"
        )
        output += _run(command, tmp_path, SMOKE="1", THREADS="1")
    output = output.replace(" SMOKE", "")
    assert re.search(r"\| Luna-16 \| not run \| [\d.]+ \| not run \| [\d.]+ \|", output)
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 200
    # The paper's figures stand in the README as the script prints them.
    rows = [line.split("|")[1:-1] for line in output.splitlines() if re.match(r"\| (Luna|Transformer).*\d+ \(", line)]
    figures = {row[0].strip(): [cell.split()[0] for cell in row[1:]] for row in rows}
    for name, values in figures.items():
        (line,) = re.findall(rf"^\| {name} \|(.* \(.*)\|$", README, re.M)
        assert [cell.split()[0] for cell in line.split("|")] == values
    assert len(figures) == 4


@pytest.mark.long
def test_commands_for_wmt14(wmt14_archives: Path, tmp_path: Path) -> None:
    for folder in ("scripts", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    commands = _commands("WMT'14 English-German")
    assert [c.split()[1] for c in commands[1:]] == "download prepare train average generate score table".split()
    sources = {"WMT14_SOURCE": str(wmt14_archives), "WMT14_CHECKSUMS": str(wmt14_archives / "SHA256SUMS")}
    for command in commands[1:]:
        output = _run(command, tmp_path, SMOKE="1", THREADS="1", WORKERS="1", **sources)
    # The README has the table, with nothing run.
    rows = [line.replace(" SMOKE", "") for line in output.splitlines() if line.startswith("|")]
    for row in rows:
        assert re.sub(r"\| [\d.]+ \| [\d.]+ \|$", "| not run | not run |", row) in README
    assert len(rows) == 13 and sum(bool(re.search(r"\| [\d.]+ \| [\d.]+ \|$", row)) for row in rows) == 1


def test_what_the_readme_names_exists() -> None:
    for path in re.findall(r"`((?:luna_fairseq|tests|scripts|configs)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)", README):
        assert f"\n{target}:" in makefile, target
    for config in re.findall(r"\b(multi30k_\w+_(?:adam|apollo|linear))\b", README):
        assert (ROOT / "configs" / "translation" / f"{config}.yaml").exists(), config
