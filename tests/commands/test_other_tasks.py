"""Luna with fairseq's other tasks: those that have no dataclass, and denoising."""

import shutil
from pathlib import Path
from typing import Any, List

import fairseq
import pytest
import torch

from support.running import ADAM, TINY, TRAIN, USER_DIR, Corpus, generate, logged, run_command, train

# fairseq's package has it beside its modules, as a user dir of its own.
MIXTURES = Path(fairseq.__file__).parent / "examples" / "translation_moe" / "translation_moe_src"


def _translate(data: Path, run: Path, *task: Any) -> None:
    output = run_command(
        *("fairseq-generate", data, "--user-dir", USER_DIR, "--path", run / "checkpoint_best.pt", *task),
        *("--gen-subset", "test", "--beam", "2", "--cpu", "--num-workers", "0", "--max-len-b", "10"),
    )
    assert output.count("\nH-") == 11


@pytest.mark.long
def test_multilingual_translation_with_language_tokens(corpus: Corpus, tmp_path: Path) -> None:
    """Two directions, one model: the source begins with its language's token, the target with that of its own."""
    task = ["--task", "translation_multi_simple_epoch", "--langs", "en,de", "--lang-pairs", "en-de,de-en"]
    task += ["--encoder-langtok", "src", "--decoder-langtok", "--max-source-positions", "64"]
    output = train(corpus, tmp_path / "run", *task, "--max-update", "4")
    assert len(logged(output, "loss")) == 4 and "valid on 'valid' subset" in output
    output = run_command(
        *("fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--path", tmp_path / "run" / "checkpoint_best.pt"),
        *(*task, "-s", "de", "-t", "en", "--gen-subset", "test", "--beam", "2", "--cpu", "--num-workers", "0"),
        *("--max-len-b", "10", "--batch-size", "8"),
    )
    assert output.count("\nH-") == 11


@pytest.mark.long
@pytest.mark.parametrize(
    "learned", [[], ["--encoder-learned-pos", "--decoder-learned-pos"]], ids=["fixed", "learned"]
)
def test_fine_tuning_from_denoising(learned: List[str], corpus: Corpus, tmp_path: Path) -> None:
    """The dictionary of the pretraining has one symbol more, and fewer positions."""
    prefixes = [f"--{split}pref={corpus.text}/{split}.spm.de" for split in ("train", "valid")]
    dictionary = f"--srcdict={corpus.data}/dict.de.txt"
    run_command("fairseq-preprocess", "--only-source", dictionary, f"--destdir={tmp_path}/text", *prefixes)
    run_command(
        *("fairseq-train", tmp_path / "text", "--user-dir", USER_DIR, "--arch", "luna", *TINY, *ADAM, *learned),
        *("--task", "denoising", "--mask", "0.3", "--mask-length", "span-poisson", "--poisson-lambda", "3"),
        *("--permute-sentences", "0", "--rotate", "0", "--replace-length", "1", "--tokens-per-sample", "32"),
        *("--max-source-positions", "32", "--max-target-positions", "32", "--criterion", "cross_entropy", "--cpu"),
        *("--batch-size", "8", "--max-update", "2", "--save-dir", tmp_path / "pretrained", "--num-workers", "0"),
        *("--data-buffer-size", "0"),
    )
    checkpoint = tmp_path / "pretrained" / "checkpoint_last.pt"
    options = ["--max-source-positions", "40", "--max-target-positions", "24", "--max-update", "2", *learned]
    output = train(corpus, tmp_path / "run", "--finetune-from-model", checkpoint, "--lr", "1e-9", *options)
    assert "the last symbol of the checkpoint, <mask>, is left out" in output
    assert ("has 34 rows in the checkpoint, 42 here: the first 34 are taken" in output) is bool(learned)
    before, after = (torch.load(path)["model"] for path in (checkpoint, tmp_path / "run" / "checkpoint_last.pt"))
    key = "encoder.embed_tokens.weight"
    assert len(before[key]) == len(after[key]) + 1 and torch.allclose(before[key][:-1], after[key], atol=1e-6)
    assert (
        generate(corpus, tmp_path / "run" / "checkpoint_last.pt", "--beam", 2, "--max-len-b", 8).count("\nH-") == 11
    )
    # Not without being asked: a dictionary may be another one.
    said = train(corpus, tmp_path / "other", "--restore-file", checkpoint, "--reset-optimizer", *options, code=1)
    assert not list((tmp_path / "other").glob("*.pt")), said


@pytest.mark.long
def test_translation_from_pretrained_bart(corpus: Corpus, tmp_path: Path) -> None:
    """A language's token ends the source, and the target as well."""
    task = ["--task", "translation_from_pretrained_bart", "--langs", "en,de"]
    assert len(logged(train(corpus, tmp_path, *task, "--max-update", 2), "loss")) == 2
    _translate(corpus.data, tmp_path, *task)


PAIRS_OF_LANGUAGES = ["--lang-pairs", "en-de,de-en"]
ONE_WAY = ["-s", "de", "-t", "en"]


@pytest.mark.long
@pytest.mark.parametrize(
    "shared", [[], ["--share-encoders", "--share-decoders", "--encoder-langtok", "tgt"]], ids=str
)
def test_a_model_for_each_pair_of_languages(shared: List[str], corpus: Corpus, tmp_path: Path) -> None:
    task = ["--task", "multilingual_translation", *PAIRS_OF_LANGUAGES, *shared[2:]]
    options = [*task, *shared[:2], "--untie-luna-kv", "--max-update"]
    said = train(corpus, tmp_path / "whole", *options, 4, arch="multilingual_luna")
    assert len(logged(said, "loss")) == 4
    train(corpus, tmp_path / "parts", *options, 2, arch="multilingual_luna")
    train(corpus, tmp_path / "parts", *options, 4, arch="multilingual_luna")
    whole, parts = (torch.load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    same = torch.equal(*(whole[f"models.{pair}.encoder.layers.0.fc1.weight"] for pair in ("en-de", "de-en")))
    assert same is bool(shared)
    _translate(corpus.data, tmp_path / "whole", *task, *ONE_WAY)
    refused = train(corpus, tmp_path / "other", *task, "--max-update", 1, code=1)
    assert "--arch is luna and --task multilingual_translation trains a model for each pair" in refused
    tied = [*task, *shared[:2], "--max-update", 5]
    assert "add --untie-luna-kv" in train(corpus, tmp_path / "whole", *tied, arch="multilingual_luna", code=1)


@pytest.mark.long
def test_back_translation_and_denoising_beside_translation(corpus: Corpus, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus.data, data)
    for language in ("en", "de"):  # text of one language
        for end in ("bin", "idx"):
            shutil.copy(data / f"train.en-de.{language}.{end}", data / f"train.{language}-None.{language}.{end}")
    task = ["--task", "semisupervised_translation", *PAIRS_OF_LANGUAGES]
    options = ["--lambda-otf-bt-config", "1.0", "--lambda-denoising-config", "0.5"]
    said = run_command(
        *("fairseq-train", data, "--user-dir", USER_DIR, "--arch", "multilingual_luna", *TINY, *TRAIN, *ADAM),
        *(
            *task,
            *options,
            "--share-encoders",
            "--share-decoders",
            "--max-update",
            "2",
            "--save-dir",
            tmp_path / "run",
        ),
    )
    assert len(logged(said, "loss")) == 2
    _translate(data, tmp_path / "run", *task, *ONE_WAY)


@pytest.mark.long
@pytest.mark.parametrize("method", ["sMoElp", "sMoEup", "hMoElp", "hMoEup"])
def test_mixtures_of_experts(method: str, corpus: Corpus, tmp_path: Path) -> None:
    """Its task is in a user dir of fairseq's examples."""
    task = ["--user-dir", MIXTURES, "--task", "translation_moe", "--method", method, "--num-experts", "2"]
    task += ["--mean-pool-gating-network"] if method.endswith("lp") else []
    said = run_command(
        *("luna-fairseq", "run", "fairseq-train", corpus.data, *task, "--arch", "luna", *TINY, *TRAIN, *ADAM),
        *("--max-update", "2", "--save-dir", tmp_path),
    )
    assert len(logged(said, "loss")) == 2 and "posterior" in said
    found = [
        run_command(
            *("luna-fairseq", "run", "fairseq-generate", corpus.data, *task, "--gen-expert", expert, "--beam", "2"),
            *("--path", tmp_path / "checkpoint_last.pt", "--cpu", "--num-workers", "0", "--max-len-b", "10"),
        )
        for expert in ("0", "1")
    ]
    assert all(output.count("\nH-") == 11 for output in found)
