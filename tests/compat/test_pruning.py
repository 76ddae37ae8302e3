"""Pruned training: its checkpoints load, its run goes on, and it can be fine-tuned again."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from omegaconf import OmegaConf

from support.hydra_runs import train_by_hydra
from support.models import make_dictionary, make_sentences
from support.running import (
    ADAM,
    MASKED_LM,
    PAIRS,
    TINY,
    TINY_BERT,
    TRAIN,
    USER_DIR,
    Corpus,
    LMCorpus,
    generate,
    logged,
    run_command,
    write_indexed,
)

HERE = (
    "--cpu --seed 3 --log-format simple --log-interval 1 --data-buffer-size 0 --num-workers 0 --batch-size 6".split()
)


def _layers(checkpoint: Path) -> Tuple[Dict[str, Any], List[str]]:
    """The options, and the names of the layers that the weights are of."""
    state = torch.load(checkpoint)
    found = {".".join(name.split(".fc1.")[0].split(".")[-2:]) for name in state["model"] if ".fc1." in name}
    return OmegaConf.to_container(OmegaConf.create(state["cfg"]["model"])), sorted(found)  # type: ignore[return-value]


def _translation(corpus: Corpus) -> List[Any]:
    return [corpus.data, "--arch", "luna", *TINY, *TRAIN, *ADAM]


@pytest.mark.parametrize("sides", [("encoder", "decoder"), pytest.param(("decoder",), marks=pytest.mark.long)])
def test_translation(sides: Tuple[str, ...], corpus: Corpus, tmp_path: Path) -> None:
    command = ["fairseq-train", *_translation(corpus), "--user-dir", USER_DIR, "--max-update"]
    whole, pruned = (tmp_path / name / "checkpoint_last.pt" for name in ("whole", "pruned"))
    run_command(*command, 1, "--save-dir", whole.parent)
    keep = [word for side in sides for word in (f"--{side}-layers-to-keep", "1")]
    tune = ["--finetune-from-model", whole, *keep, "--lr", 1e-9, "--save-dir", pruned.parent]
    run_command(*command, 1, *tune)
    options, layers = _layers(pruned)
    counts = {side: 1 if side in sides else 2 for side in ("encoder", "decoder")}
    assert {side: options[f"{side}_layers"] for side in counts} == counts
    assert options["encoder_layers_to_keep"] is options["decoder_layers_to_keep"] is None
    assert layers == ["layers.0"] if len(sides) == 2 else ["layers.0", "layers.1"]
    states = [torch.load(path)["model"] for path in (whole, pruned)]
    for side in counts:
        name = f"{side}.layers.{{}}.fc1.weight"
        assert torch.allclose(states[1][name.format(0)], states[0][name.format(2 - counts[side])], atol=1e-6)

    assert "\nH-0\t" in generate(corpus, pruned)
    assert logged(run_command(*command, 2, *tune), "num_updates") == ["2"]
    again = ["--finetune-from-model", pruned, "--save-dir", tmp_path / "again"]
    sizes = [word for side in counts for word in (f"--{side}-layers", counts[side])]
    assert logged(run_command(*command, 1, *sizes, *again), "num_updates") == ["1"]


@pytest.mark.long
def test_translation_with_hydra(corpus: Corpus, tmp_path: Path) -> None:
    def run(name: str, updates: int, *overrides: Any) -> str:
        return train_by_hydra(corpus, tmp_path / name, f"optimization.max_update={updates}", *overrides)

    run("whole", 1)
    keep = [
        f"+checkpoint.finetune_from_model={tmp_path}/whole/checkpoint_last.pt",
        "++model.encoder_layers_to_keep='1'",
    ]
    run("pruned", 1, *keep)
    options, _ = _layers(tmp_path / "pruned" / "checkpoint_last.pt")
    assert (options["encoder_layers"], options["decoder_layers"]) == (1, 2)
    assert logged(run("pruned", 2, *keep), "num_updates") == ["2"]
    assert "\nH-0\t" in generate(corpus, tmp_path / "pruned" / "checkpoint_last.pt")


def _masked_lm(lm_corpus: LMCorpus, folder: Path) -> List[Any]:
    return [f"{lm_corpus.folder}/shard0", "--arch", "luna_base_512", *TINY_BERT, *MASKED_LM]


def _pairs(lm_corpus: LMCorpus, folder: Path) -> List[Any]:
    return [f"{lm_corpus.folder}/pairs", "--arch", "luna_base_512", *TINY_BERT, *PAIRS]


def _lra(lm_corpus: LMCorpus, folder: Path) -> List[Any]:
    for split in ("train", "valid"):
        write_indexed(folder / "src-bin" / split, make_sentences([9] * 12), make_dictionary())
        labels = [torch.tensor([4 + i % 2, 2]) for i in range(12)]
        write_indexed(folder / "label-bin" / split, labels, make_dictionary(2))
    tiny = "--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2 --classifier-out-dim 8"
    task = "--task lra-text --criterion lra_cross_entropy --encoder-layers 2 --max-positions 48"
    return [folder, "--arch", "luna_lra_imdb", *tiny.split(), *task.split()]


@pytest.mark.parametrize("family", [_lra, *(pytest.param(f, marks=pytest.mark.long) for f in (_masked_lm, _pairs))])
def test_encoders(family: Callable[..., List[Any]], lm_corpus: LMCorpus, tmp_path: Path) -> None:
    options = [*family(lm_corpus, tmp_path / "data"), "--user-dir", USER_DIR]
    command = ["fairseq-train", *options, *ADAM, *HERE, "--max-update"]
    whole, pruned = (tmp_path / name / "checkpoint_last.pt" for name in ("whole", "pruned"))
    run_command(*command, 1, "--save-dir", whole.parent)
    tune = ["--finetune-from-model", whole, "--encoder-layers-to-keep", "1", "--save-dir", pruned.parent]
    run_command(*command, 1, *tune)
    saved, layers = _layers(pruned)
    assert (saved["encoder_layers"], saved["encoder_layers_to_keep"], layers) == (1, None, ["layers.0"])
    assert logged(run_command(*command, 2, *tune), "num_updates") == ["2"]
    again = ["--finetune-from-model", pruned, "--encoder-layers", 1, "--save-dir", tmp_path / "again"]
    assert logged(run_command(*command, 1, *again), "num_updates") == ["1"]
    task = options[options.index("--task") :]
    validated = run_command(
        *("fairseq-validate", options[0], "--user-dir", USER_DIR, "--path", pruned, "--cpu", "--batch-size", 6),
        *("--num-workers", 0, "--data-buffer-size", 0, *task[:4]),
    )
    assert "valid on 'valid' subset" in validated


@pytest.mark.long
def test_pruned_before_its_first_update(corpus: Corpus, tmp_path: Path) -> None:
    """With nothing to prune, the model has fewer layers from the start, and so has its checkpoint."""
    command = ["fairseq-train", *_translation(corpus), "--user-dir", USER_DIR, "--save-dir", tmp_path, "--max-update"]
    run_command(*command, 1, "--decoder-layers-to-keep", "1")
    options, _ = _layers(tmp_path / "checkpoint_last.pt")
    assert (options["decoder_layers"], options["decoder_layers_to_keep"]) == (1, None)
    assert "\nH-0\t" in generate(corpus, tmp_path / "checkpoint_last.pt")
    assert logged(run_command(*command, 2, "--decoder-layers-to-keep", "1"), "num_updates") == ["2"]
    said = run_command(
        *command, 2, "--save-dir", tmp_path / "other", "--finetune-from-model", tmp_path / "checkpoint_last.pt",
        "--encoder-layers-to-keep", "5", "--decoder-layers", 1, code=1,
    )  # fmt: skip
    assert "--encoder-layers-to-keep is 5 and the checkpoint has 2 layers" in said.splitlines()[-1]
