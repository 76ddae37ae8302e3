"""Luna with fairseq's other tasks: those that have no dataclass, and denoising."""

from pathlib import Path
from typing import List

import pytest
import torch

from support.running import ADAM, TINY, USER_DIR, Corpus, generate, logged, run_command, train


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
