"""Long Range Arena through fairseq's real commands."""

import copy
import functools
import random
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

from luna_fairseq.errors import DataError
from luna_fairseq.tasks.long_range_arena import PixelDataset
from support.models import assert_close
from support.running import ROOT, USER_DIR, logged, run_command, write_indexed

SPLITS = {"train": 24, "valid": 8, "test": 8}
# What makes a published size train an update in milliseconds.
TINY = "--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2 --classifier-out-dim 8".split()
HERE = "--cpu --data-buffer-size 0 --max-update 2 --batch-size 6 --log-interval 1".split()
EVERY_COMMAND = (
    "--seed 1 --ddp-backend c10d --find-unused-parameters --optimizer adam --adam-betas (0.9,0.98) --clip-norm 0.0 "
    "--encoder-projection-length 16 --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric "
    "--sentence-avg --update-freq 1 --lr-scheduler inverse_sqrt --criterion lra_cross_entropy "
    "--warmup-init-lr 1e-07 --keep-last-epochs 10 --log-format simple --num-workers 0"
).split()
# The published ones, less --fp16, which needs a GPU; where they differ.
PUBLISHED = {
    "luna_lra_listop": "--lr 0.0001 --apply-bert-init --encoder-layers 1 --batch-size 32 --weight-decay 0.0001 "
    "--max-update 5000 --save-interval-updates 20 --warmup-updates 1000 --keep-interval-updates 10",
    "luna_lra_imdb": "--lr 0.00005 --dropout 0.3 --attention-dropout 0.3 --batch-size 32 --weight-decay 0.0001 "
    "--max-update 20000 --save-interval-updates 100 --warmup-updates 8000 --keep-interval-updates 10",
    "luna_lra_aan": "--lr 0.0005 --batch-size 32 --weight-decay 0.0001 --max-update 20000 "
    "--save-interval-updates 2000 --warmup-updates 8000 --keep-interval-updates 10",
    "luna_lra_cifar10": "--attention-dropout 0.1 --lr 0.005 --dropout 0.3 --batch-size 256 --weight-decay 0.0 "
    "--max-update 35000 --warmup-updates 4000",
    "luna_lra_pf32": "--dropout 0.2 --lr 0.001 --batch-size 512 --weight-decay 0.0 --max-update 62500 "
    "--warmup-updates 4000",
}


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one`` and ``two`` documents an example, and ``images``; two classes that the first symbol tells."""
    folder = tmp_path_factory.mktemp("arena")
    generator = random.Random(3)
    words, labels = Dictionary(), Dictionary()
    for dictionary, count in ((words, 256), (labels, 2)):
        for i in range(count):
            dictionary.add_symbol(str(i))
    for name, parts in (("one", ["src-bin"]), ("two", ["src-bin", "src1-bin"])):
        for split, count in SPLITS.items():
            for part in parts:
                rows = [
                    torch.tensor(
                        [4 + i % 2, *(generator.randrange(4, 260) for _ in range(generator.randrange(40))), 2]
                    )
                    for i in range(count)
                ]
                write_indexed(folder / name / part / split, rows, words)
            write_indexed(folder / name / "label-bin" / split, [torch.tensor([4 + i % 2, 2]) for i in range(count)],
                          labels)  # fmt: skip
    for split, count in SPLITS.items():
        images = [[255 * (i % 2)] * 8 + [generator.randrange(256) for _ in range(8)] for i in range(count)]
        _write_images(folder / "images", split, images, [i % 2 for i in range(count)])
    return folder


def _write_images(folder: Path, split: str, images: List[List[int]], labels: List[int]) -> None:
    for name in ("input", "label"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "input" / f"{split}.src").write_text("".join(" ".join(map(str, image)) + "\n" for image in images))
    (folder / "label" / f"{split}.label").write_text("".join(f"{label}\n" for label in labels))


def _train(data: Path, save_dir: Path, arch: str, *args: Any, task: str = "long_range_arena", code: int = 0) -> str:
    return run_command(
        *("fairseq-train", data, "--user-dir", USER_DIR, "--task", task, "--arch", arch, *EVERY_COMMAND),
        *("--save-dir", save_dir, "--tensorboard-logdir", save_dir, *args),
        code=code,
    )


def _validate(data: Path, checkpoint: Path, *args: Any, task: str = "lra-text", code: int = 0) -> str:
    return run_command(
        *("fairseq-validate", data, "--user-dir", USER_DIR, "--task", task, "--path", checkpoint, "--cpu"),
        *("--valid-subset", "test", "--batch-size", "4", "--num-workers", "0", "--data-buffer-size", "0", *args),
        code=code,
    )


@pytest.mark.parametrize(
    "arch",
    [arch if arch in ("luna_lra_aan", "luna_lra_pf32") else pytest.param(arch, marks=pytest.mark.long)
     for arch in PUBLISHED],
)  # fmt: skip
def test_published_command(arena: Path, tmp_path: Path, arch: str) -> None:
    data = arena / ("two" if arch == "luna_lra_aan" else "one")
    classes = ["--sentence-class-num", "2"] if arch == "luna_lra_cifar10" else []
    output = _train(data, tmp_path, arch, *PUBLISHED[arch].split(), *classes, *TINY, *HERE)
    assert "num_updates 2" in output and re.search(r"valid on 'valid' subset.* accuracy \d", output)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_best.pt"))["model"]
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    assert len(layers) == {"luna_lra_imdb": 4, "luna_lra_aan": 4}.get(arch, 1)


def test_both_command_lines_train_the_same_model_and_resume(arena: Path, tmp_path: Path) -> None:
    data = arena / "one"
    adam = "--lr 0.01 --weight-decay 0.0001 --warmup-updates 2".split()
    first = _train(data, tmp_path / "flags", "luna_lra_imdb", *adam, *TINY, *HERE, task="lra-text")
    config = "user_dir=" + USER_DIR
    sizes = zip(TINY[::2], TINY[1::2], strict=True)
    run_command(
        *("fairseq-hydra-train", "--config-dir", ROOT / "configs" / "lra", "--config-name", "text"),
        *(f"common.{config}", f"task.data={data}", f"checkpoint.save_dir={tmp_path}/yaml"),
        *(f"hydra.run.dir={tmp_path}/hydra", "common.cpu=true", "common.fp16=false"),
        *(f"++model.{k[2:].replace('-', '_')}={v}" for k, v in sizes),
        *("model.dropout=0.1", "model.attention_dropout=0.1", "dataset.data_buffer_size=0", "dataset.batch_size=6"),
        *("optimization.max_update=2", "optimization.lr=[0.01]", "lr_scheduler.warmup_updates=2"),
    )
    states = [
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name / "checkpoint_last.pt"))["model"]
        for name in ("flags", "yaml")
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name

    predictions = tmp_path / "predictions.tsv"
    more = _train(
        *(data, tmp_path / "flags", "luna_lra_imdb", *adam, *TINY, *HERE, "--max-update", "4"),
        *("--save-predictions", predictions), task="lra-text",
    )  # fmt: skip
    assert len(predictions.read_text().splitlines()) > 1  # of the training's own evaluation
    assert logged(first, "num_updates")[-1] == "2" and logged(more, "num_updates")[0] == "3"

    output = _validate(
        data, tmp_path / "flags" / "checkpoint_best.pt",
        *("--criterion", "lra_cross_entropy", "--save-predictions", predictions),
    )  # fmt: skip
    accuracy = float(re.findall(r"valid on 'test' subset.* accuracy ([\d.]+)", output)[-1])
    rows = [line.split("\t") for line in predictions.read_text().splitlines()]
    assert sorted(int(row[0]) for row in rows) == list(range(8))
    assert all(row[2] == str(int(row[0]) % 2) for row in rows)
    assert accuracy == pytest.approx(100 * sum(row[1] == row[2] for row in rows) / 8)


def test_images(arena: Path, tmp_path: Path) -> None:
    data = arena / "images"
    output = _train(
        *(data, tmp_path, "luna_lra_pf32", "--lr", "0.01", "--warmup-updates", "1", *TINY, *HERE),
        *("--input-type", "image", "--pixel-normalization", "0.25", "0.125", "--max-update", "30"),
        task="lra-image",
    )
    assert "'pixel_normalization': [0.25, 0.125]" in output
    checked = _validate(data, tmp_path / "checkpoint_best.pt", task="lra-image")
    assert float(re.findall(r"valid on 'test' subset.* accuracy ([\d.]+)", checked)[-1]) == 100
    dataset = PixelDataset(np.array([[0, 255, 51]], dtype=np.uint8), (0.25, 0.125))
    assert_close(dataset[0], torch.tensor([-2.0, 6.0, -0.4]), "normalised pixels")
    said = _train(data, tmp_path / "other", "luna_lra_pf32", "--lr", "0.01", *TINY, *HERE, task="lra-image", code=-1)
    assert "add --input-type image" in said


@functools.cache
def _parsed(*arguments: str) -> Any:
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parser = options.get_training_parser()
    args = options.parse_args_and_arch(
        parser, input_args=["/data", "--optimizer", "adam", "--criterion", "lra_cross_entropy", *arguments]
    )
    return convert_namespace_to_omegaconf(args)


def _load(arena: Path, task: str, arch: str = "luna_lra_pf32", sizes: List[str] = TINY, **options: Any) -> Any:
    """The task with its model, in this process."""
    from fairseq import tasks

    flags = [part for k, v in options.items() for part in (f"--{k.replace('_', '-')}", *str(v).split())]
    cfg = copy.deepcopy(_parsed("--task", task, "--arch", arch, *sizes, *flags))
    cfg.task.data = str(arena)
    loaded = tasks.setup_task(cfg.task)
    loaded.build_model(cfg.model)
    return loaded


def test_what_a_batch_holds(arena: Path) -> None:
    task = _load(arena / "two", "lra-text", "luna_lra_aan", max_positions=20)
    dataset = task.load_dataset("valid")
    batch = dataset.collater([dataset[i] for i in range(8)])
    inputs: Dict[str, torch.Tensor] = batch["net_input"]
    assert (inputs["src_tokens"][:, 0] == task.cls).all() and (inputs["src1_tokens"][:, 0] == task.cls).all()
    assert inputs["src_tokens"].size(1) == 20 and max(dataset.size(i) for i in range(8)) == 20  # cut
    assert batch["target"].view(-1).tolist() == [i % 2 for i in range(8)]
    assert inputs["src_lengths"].tolist() == inputs["src_tokens"].ne(1).sum(1).tolist()
    assert batch["ntokens"] == inputs["src_tokens"].ne(1).sum()
    averaged = _load(arena / "one", "lra-text").load_dataset("valid")
    assert averaged[0]["net_input.src_tokens"][0] == 4  # no <CLS> in front
    order = list(dataset.ordered_indices())
    assert sorted(order) == list(range(8)) and order != list(range(8))


def test_bad_data(arena: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data folder .* does not exist"):
        _load(tmp_path / "nothing", "lra-text")
    with pytest.raises(FileNotFoundError, match="name the folder that holds src-bin and label-bin"):
        _load(arena / "images", "lra-text")
    with pytest.raises(FileNotFoundError, match=r"src-bin/other.bin does not exist: name a split"):
        _load(arena / "one", "lra-text").load_dataset("other")
    with pytest.raises(ValueError, match="pixel-normalization is"):
        _load(arena / "images", "lra-image", input_type="image", pixel_normalization="0.5 0").load_dataset("train")

    with pytest.raises(ValueError, match="--arch roberta_base does not classify long documents"):
        _load(arena / "one", "lra-text", "roberta_base", TINY[:-2])
    shutil.copytree(arena / "two", tmp_path / "mixed")
    lines = (arena / "two" / "src-bin" / "dict.txt").read_text().splitlines()
    (tmp_path / "mixed" / "src1-bin" / "dict.txt").write_text("".join(f"{line}\n" for line in reversed(lines)))
    with pytest.raises(DataError, match="one dictionary in src-bin and another in src1-bin"):
        _load(tmp_path / "mixed", "lra-text", "luna_lra_aan")

    labels = Dictionary()
    for i in range(3):
        labels.add_symbol(str(i))
    words = Dictionary.load(str(arena / "one" / "src-bin" / "dict.txt"))
    for rows, label_rows, message in (
        ([[5, 2]] * 2, [[4, 2], [6, 2]], r"has number 2 .* --sentence-class-num is 2"),
        ([[5, 2]] * 2, [[4, 2]], "has 1 labels for 2 examples"),
        ([[5, 2]] * 2, [[4, 2], [4, 5, 2]], "more or fewer labels than one"),
    ):
        write_indexed(tmp_path / "src-bin" / "train", [torch.tensor(row) for row in rows], words)
        write_indexed(tmp_path / "label-bin" / "train", [torch.tensor(row) for row in label_rows], labels)
        with pytest.raises(DataError, match=message):
            _load(tmp_path, "lra-text").load_dataset("train")
    for images, classes, message in (
        ([[1, 2], [3]], [0, 1], "has 1 pixels and line 1 has 2"),
        ([[1, 2], [3, 256]], [0, 1], "is not a list of grey values"),
        ([[1, 2], [3, 4]], [0, 2], r"has number 2 .* --sentence-class-num is 2"),
        ([[1, 2], [3, 4]], [0], "has 1 labels for 2 examples"),
        ([[1] * 1027], [0], "has 1027 pixels and --max-positions is 1026"),
        ([], [], "is empty"),
    ):
        _write_images(tmp_path / "bad", "train", images, classes)
        with pytest.raises(DataError, match=message):
            _load(tmp_path / "bad", "lra-image", input_type="image").load_dataset("train")


def test_errors_of_the_commands(arena: Path, tmp_path: Path) -> None:
    said = _train(arena / "one", tmp_path, "luna_lra_aan", "--lr", "0.1", *TINY, *HERE, code=-1)
    assert "--documents is 2 and an example of the data has 1" in said
