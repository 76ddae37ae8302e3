"""What fairseq's commands are to evaluate: mistakes in it are one sentence, and nothing scored is no number."""

import shutil
from pathlib import Path
from typing import Any, List

import pytest
from fairseq.data import Dictionary

from luna_fairseq.compat.evaluation import read_overrides
from support.running import USER_DIR, Corpus, LMCorpus, generate, run_command, train

CPU: List[Any] = ["--user-dir", USER_DIR, "--cpu", "--num-workers", 0, "--data-buffer-size", 0]


def _said(output: str) -> str:
    assert "Traceback" not in output
    return [line for line in output.splitlines() if line.strip()][-1]


@pytest.fixture(scope="module")
def translation(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translation")
    train(corpus, folder, "--max-update", 1)
    return folder / "checkpoint_last.pt"


def _train_lm(data: Any, save: Path, *options: Any) -> Path:
    sizes = "--decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-layers 1 --decoder-attention-heads 1"
    run_command(
        *("fairseq-train", data, *CPU, "--task", "language_modeling", "--arch", "luna_lm", *sizes.split()),
        *("--projection-length", 2, "--optimizer", "adam", "--max-update", 1, "--batch-size", 4, "--save-dir", save),
        *("--tokens-per-sample", 12, "--disable-validation", *options),
    )
    return save / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def language_model(lm_corpus: LMCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train_lm(f"{lm_corpus.folder}/shard0", tmp_path_factory.mktemp("lm"))


def _eval_lm(lm_corpus: LMCorpus, checkpoint: Path, *options: Any, code: int = 0) -> str:
    data = f"{lm_corpus.folder}/shard0"
    return run_command(
        "fairseq-eval-lm", data, *CPU, "--path", checkpoint, "--gen-subset", "valid", *options, code=code
    )


COMMANDS = [pytest.param(name, marks=pytest.mark.long) for name in ("interactive", "validate", "eval-lm")]


@pytest.mark.parametrize("command", ["generate", *COMMANDS])
def test_overrides_that_nobody_understands(
    command: str, request: pytest.FixtureRequest, corpus: Corpus, translation: Path
) -> None:
    """No dictionary, and a name that the checkpoint does not have."""
    data: Any = corpus.data
    options: List[Any] = [*CPU, "--path", translation]
    if command == "eval-lm":
        data = request.getfixturevalue("lm_corpus").folder / "shard0"
        options = [*CPU, "--path", request.getfixturevalue("language_model"), "--tokens-per-sample", 12]
    if command == "validate":
        options += ["--task", "translation", "--max-tokens", 200]

    def said(overrides: str) -> str:
        return _said(run_command(f"fairseq-{command}", data, *options, "--model-overrides", overrides, code=1))

    assert said("{'dropout': ") == (
        f"fairseq-{command}: --model-overrides is {{'dropout': : write a dictionary of options by their names, such "
        "as \"{'decoder_layerdrop': 0.0}\""
    )
    found = said("{'dropuot': 0.1}")
    assert found.startswith(f"fairseq-{command}: --model-overrides names dropuot, which is no option of /")
    assert "checkpoint_last.pt: did you mean dropout" in found


@pytest.mark.parametrize("text", ["[1]", "dropout", "", "{1: 2}", "{'dropout': open('x')}", "{'a': 1}}", "(" * 999])
def test_what_is_no_dictionary_of_options(text: str) -> None:
    with pytest.raises(ValueError, match="write a dictionary of options by their names"):
        read_overrides(text)


@pytest.mark.long
def test_overrides_change_what_is_evaluated(corpus: Corpus, translation: Path) -> None:
    """Of one model of an ensemble, too; what the weights cannot be is refused."""
    both = f"{translation}:{translation}"
    plain = generate(corpus, translation, "--beam", 1, "--max-len-b", 5)
    for path in (translation, both):
        found = generate(corpus, Path(path), "--beam", 1, "--max-len-b", 5, "--model-overrides", "{'dropout': 0.3}")
        assert found.count("\nH-") == plain.count("\nH-") == 11
    options = [corpus.data, *CPU, "--path", both, "--model-overrides"]
    for overrides, said in (
        ("{'encoder_ffn_embed_dim': 8}", "the model that --model-overrides {'encoder_ffn_embed_dim': 8} m"),
        ("{'encoder_layers': 'two'}", "encoder_layers: Value 'two' of type 'str' could not be converted"),
    ):
        found = _said(run_command("fairseq-generate", *options, overrides, code=1))
        assert found.startswith("fairseq-generate: ") and said in found


@pytest.mark.long
def test_a_language_model_of_other_symbols(
    corpus: Corpus, lm_corpus: LMCorpus, translation: Path, language_model: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(corpus.data, tmp_path / "data-bin")
    options = [data, *CPU, "--path", translation, "--lm-path"]

    def said(lm: Any, command: str = "generate") -> str:
        return _said(run_command(f"fairseq-{command}", *options, lm, code=1)).removeprefix(f"fairseq-{command}: ")

    assert said(tmp_path / "none.pt") == f"there is no checkpoint {tmp_path}/none.pt: correct --lm-path"
    assert said(language_model).startswith(f"{data}/dict.txt does not exist, and is where the dict")
    own, target = (len(Dictionary.load(str(path))) for path in (lm_corpus.folder / "dict.txt", data / "dict.de.txt"))
    shutil.copy(data / "dict.de.txt", data / "dict.txt")
    assert said(language_model).startswith(
        f"--lm-path {language_model} was trained with a dictionary of {own} symbols and {data}/dict.txt has {target}"
    )
    shutil.copy(lm_corpus.folder / "dict.txt", data / "dict.txt")
    assert said(language_model).startswith(
        f"{data}/dict.txt has {own} symbols and {data}/dict.de.txt has {target}: --lm-path {language_model} must be"
    )
    assert said(translation).startswith(f"--lm-path {translation} holds a LunaModel and no language model: name one")
    assert said(language_model, "interactive").startswith(f"--lm-path is {language_model} and only fairseq-generate")


@pytest.mark.long
def test_blocks_beyond_the_positions(lm_corpus: LMCorpus, language_model: Path) -> None:
    """fairseq leaves them out, and finds a perplexity of 1, or that of the last block."""
    for options, length in (
        (["--tokens-per-sample", 13], 13), ([], 1024), (["--tokens-per-sample", 13, "--context-window", 4], 13),
    ):  # fmt: skip
        assert _said(_eval_lm(lm_corpus, language_model, *options, code=1)) == (
            f"fairseq-eval-lm: --tokens-per-sample is {length} and the model has 12 positions, so that such blocks "
            "would be left out: give --tokens-per-sample 12"
        )
    said = _said(_eval_lm(lm_corpus, language_model, "--tokens-per-sample", 40, "--carry-state", code=1))
    assert said.endswith("give --tokens-per-sample 12, which loses nothing: with --carry-state each block has all of "
                         "the text before it")  # fmt: skip
    assert "Perplexity: " in _eval_lm(lm_corpus, language_model, "--tokens-per-sample", 12, "--carry-state")


@pytest.mark.long
def test_nothing_to_score(corpus: Corpus, lm_corpus: LMCorpus, translation: Path, language_model: Path) -> None:
    options = [corpus.data, *CPU, "--path", translation, "--skip-invalid-size-inputs-valid-test"]
    options += ["--max-source-positions", 1]
    for command, more, split in (
        ("generate", ["--gen-subset", "test"], "test.en-de.en"),
        ("validate", ["--task", "translation", "--max-tokens", 200], "valid.en-de.en"),
    ):
        said = _said(run_command(f"fairseq-{command}", *options, *more, code=1))
        assert said.startswith(f"fairseq-{command}: there is nothing to score: all 1") and split in said
    options = ["--tokens-per-sample", 12, "--batch-size", 1, "--num-shards", 999, "--shard-id", 998]
    assert _said(_eval_lm(lm_corpus, language_model, *options, code=1)) == (
        "fairseq-eval-lm: no token was scored: name a split with text, or take fewer shards"
    )
