"""Run fairseq's commands and ours, and the scripts, as a user does."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List

from fairseq.data import Dictionary, indexed_dataset
from torch import Tensor

from luna_fairseq.cli import user_dir
from support.forks import REAL, commands, path_variable

USER_DIR = str(user_dir())
ROOT = Path(__file__).resolve().parents[2]

WORDS_EN = "the a small old cat dog house man woman sees finds loves red green and".split()
WORDS_DE = "die ein kleine alte Katze Hund Haus Mann Frau sieht findet liebt rot grün und".split()

# A model that trains an update in milliseconds. No loader threads: a test run ends in the middle of an epoch.
TINY: List[str] = (
    "--encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32 "
    "--encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 2 --decoder-attention-heads 2 "
    "--share-all-embeddings --projection-length 4"
).split()
TRAIN: List[str] = (
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 200 --cpu --seed 3 "
    "--log-format simple --log-interval 1 --data-buffer-size 0 --num-workers 0"
).split()
ADAM: List[str] = "--optimizer adam --lr 0.01 --lr-scheduler inverse_sqrt --warmup-updates 4".split()
APOLLO: List[str] = (
    "--optimizer apollo --lr 0.1 --clip-norm 0.1 --clip-mode each --lr-scheduler milestone --warmup-updates 2 "
    "--milestones 3 5"
).split()


@dataclass
class Corpus:
    """Where the test corpus lies."""

    text: Path
    data: Path
    spm: Path


@dataclass
class LMCorpus:
    """Where the data for masked LM and fine-tuning lies: ``shard0 shard1 pairs choice dict.txt`` and the pieces."""

    folder: Path

    @property
    def shards(self) -> str:
        return f"{self.folder}/shard0:{self.folder}/shard1"


def write_indexed(path: Path, rows: List[Tensor], dictionary: Dictionary) -> None:
    """Write a binarised split, and its dictionary beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    builder = indexed_dataset.make_builder(f"{path}.bin", impl="mmap", vocab_size=len(dictionary))
    for row in rows:
        builder.add_item(row)
    builder.finalize(f"{path}.idx")
    dictionary.save(str(path.parent / "dict.txt"))


def run_command(
    command: str, *args: Any, code: int = 0, stdin: str = "", real: bool = False, **environment: str
) -> str:
    """Run a command of this Python's environment; returns stdout and stderr together.

    Args:
        command: its name.
        args: its arguments.
        code: the exit code to expect; -1 for any failure.
        stdin: its input.
        real: in a new interpreter, not in a fork of one (see forks.py).
        environment: variables to add.
    """
    path = (REAL if real else commands()) / command
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **environment}
    done = subprocess.run(
        [str(path), *map(str, args)], input=stdin, capture_output=True, text=True, env=env, timeout=300, check=False
    )
    output = done.stdout + done.stderr
    failed = done.returncode == 0 if code == -1 else done.returncode != code
    assert not failed, f"{command} {' '.join(map(str, args))}: exit code {done.returncode}\n{output[-6000:]}"
    return output


def run_script(out: Path, *args: Any, code: int = 0) -> str:
    """Run a script of ``scripts/`` as a smoke run that writes under ``out``; returns stdout and stderr together.

    Args:
        out: its ``OUT``.
        args: its path from the root of the repository, and its arguments.
        code: the exit code to expect.
    """
    done = subprocess.run(
        [*map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OUT": str(out), "SMOKE": "1", "THREADS": "1", "PATH": path_variable()},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(
    corpus: Corpus,
    save_dir: Path,
    *args: Any,
    arch: str = "luna",
    code: int = 0,
    real: bool = False,
    **environment: str,
) -> str:
    """``fairseq-train`` on the test corpus with a tiny model and Adam unless ``args`` name another optimizer."""
    optimizer = [] if "--optimizer" in args else ADAM
    return run_command(
        *("fairseq-train", corpus.data, "--user-dir", USER_DIR, "--arch", arch, *TINY, *TRAIN, *optimizer),
        *("--save-dir", save_dir, *args),
        code=code,
        real=real,
        **environment,
    )


# A masked-LM model that trains an update in milliseconds.
TINY_BERT: List[str] = (
    "--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-layers 2 --encoder-attention-heads 2 "
    "--projection-length 4 --max-positions 48"
).split()
MASKED_LM: List[str] = "--task masked_lm --criterion masked_lm --tokens-per-sample 40".split()
PAIRS: List[str] = (
    "--task sentence_prediction --criterion sentence_prediction --num-classes 2 --init-token 0 --separator-token 2"
).split()
CHOICE: List[str] = (
    "--task sentence_ranking --criterion sentence_ranking --num-classes 3 --init-token 0 --separator-token 2"
).split()


def train_bert(data: Any, save_dir: Path, *args: Any, arch: str = "luna_base_512", code: int = 0) -> str:
    """``fairseq-train`` with a tiny masked-LM model and Adam."""
    return run_command(
        *("fairseq-train", data, "--user-dir", USER_DIR, "--arch", arch, *TINY_BERT, *ADAM, "--save-dir", save_dir),
        *("--batch-size", "6", "--cpu", "--seed", "3", "--log-format", "simple", "--log-interval", "1"),
        *("--data-buffer-size", "0", "--num-workers", "0", "--max-update", "2", *args),
        code=code,
    )


def generate(corpus: Corpus, checkpoint: Path, *args: Any, real: bool = False) -> str:
    """``fairseq-generate`` on the test split."""
    return run_command(
        *("fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--path", checkpoint, "--cpu"),
        *("--gen-subset", "test", "--num-workers", "0", *args),
        real=real,
    )


def logged(output: str, key: str) -> List[str]:
    """The values of ``key`` in the lines that fairseq's simple log writes for each update."""
    lines = [line for line in output.splitlines() if "train_inner" in line and f"{key}=" in line]
    return [line.split(f"{key}=")[1].split(",")[0].split()[0] for line in lines]
