"""Bad input to the real commands: one sentence that says what to change, a failure, nothing harmed."""

import re
import shutil
from pathlib import Path
from typing import Any, List

import pytest
import torch

from support.running import ADAM, TINY, TRAIN, USER_DIR, Corpus, generate, run_command, train


def _train(data: Any, save: Path, *args: Any, arch: str = "luna") -> str:
    options = [*TINY, *TRAIN, *ADAM, "--max-update", 1, "--save-dir", save]
    output = run_command("fairseq-train", data, "--user-dir", USER_DIR, "--arch", arch, *options, *args, code=-1)
    assert not list(save.glob("*.pt"))
    return output


def _last_line(output: str) -> str:
    assert "Traceback" not in output
    return [line for line in output.splitlines() if line.strip()][-1]


def test_data_folder_missing(tmp_path: Path) -> None:
    output = _train(tmp_path / "nowhere", tmp_path / "save")
    assert f"data folder {tmp_path}/nowhere does not exist: name one that fairseq-preprocess" in _last_line(output)


def test_data_folder_without_dictionary(corpus: Corpus, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus.data, data)
    (data / "dict.de.txt").unlink()
    output = _train(data, tmp_path / "save")
    assert f"dictionary {data}/dict.de.txt does not exist: run fairseq-preprocess" in _last_line(output)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "give --source-lang and --target-lang" in _last_line(_train(empty, tmp_path / "save"))


def test_shared_embeddings_with_two_dictionaries(corpus: Corpus, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus.data, data)
    with open(data / "dict.de.txt", "a") as dictionary:
        dictionary.write("another 1\n")
    assert "--share-all-embeddings requires a joined dictionary" in _last_line(_train(data, tmp_path / "save"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder-attention-heads", 3], "--encoder-attention-heads is 3: it must be at least 1 and divide"),
        (["--projection-length", 0], "--projection-length is 0: it must be at least 1"),
        (["--cross-self-attention"], "--cross-self-attention is not available for Luna"),
        (["--optimizer", "apollo", "--clip-mode", "every"], "argument --clip-mode: invalid choice"),
    ],
)
def test_bad_option(options: List[Any], message: str, corpus: Corpus, tmp_path: Path) -> None:
    assert message in _last_line(_train(corpus.data, tmp_path / "save", *options))


def test_checkpoint_without_an_optimizer_is_not_gone_on_from(corpus: Corpus, tmp_path: Path) -> None:
    """fairseq would begin the schedule anew in the middle of the training, and say nothing."""
    save = tmp_path / "save"
    train(corpus, save, "--max-update", 2, "--no-save-optimizer-state")
    before = (save / "checkpoint_last.pt").read_bytes()
    said = _last_line(train(corpus, save, "--max-update", 4, code=1))
    assert "checkpoint_last.pt holds no state of an optimizer" in said and "add --reset-optimizer" in said
    assert (save / "checkpoint_last.pt").read_bytes() == before
    said = train(corpus, save, "--max-update", 4, "--reset-optimizer")
    assert "num_updates=4, lr=0.01" in said


def test_unknown_config_key(corpus: Corpus, tmp_path: Path) -> None:
    config = tmp_path / "misspelt.yaml"
    config.write_text(
        f"common: {{user_dir: {USER_DIR}, cpu: true}}\n"
        f"task: {{_name: translation, data: {corpus.data}}}\n"
        "criterion: {_name: cross_entropy}\n"
        "optimizer: {_name: adam}\nlr_scheduler: {_name: fixed}\noptimization: {max_update: 1, lr: [0.1]}\n"
        "dataset: {max_tokens: 200, data_buffer_size: 0, num_workers: 0}\n"
        f"checkpoint: {{save_dir: {tmp_path}/save}}\n"
        "model: {_name: luna_base_tied, projektion_length: 4}\n"
        f"hydra: {{run: {{dir: {tmp_path}/hydra}}}}\n"
    )
    output = run_command("fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "misspelt", code=1)
    assert "Key 'projektion_length' not in 'LunaConfig': did you mean projection_length" in _last_line(output)
    output = run_command(
        *("fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "mispelt", f"hydra.run.dir={tmp_path}"),
        f"common.user_dir={USER_DIR}",
        code=1,
    )
    assert _last_line(output).endswith(f"there is no mispelt.yaml in {tmp_path}: did you mean misspelt?")
    assert not (tmp_path / "save").exists() or not list((tmp_path / "save").iterdir())


def test_save_folder_of_another_architecture(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--max-update", 1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    other = "holds another model: give the options of its training"
    for options, message in (
        (["--arch", "luna_base_untied"], "leave out --untie-luna-kv"),
        (["--packed-position-bias", 1], "the checkpoint has no position bias: leave out --packed-position-bias"),
        (["--causal-decay", 5], f"{other} (--causal-decay 0.0), or name another --save-dir"),
        (["--causal-decay", -1], "--causal-decay is -1.0: it must be 0 (none) or at least 1e-06, and finite"),
        (["--encoder-layers", 1], f"{other} (--encoder-layers 2), or name another --save-dir"),
        (["--encoder-attention-heads", 4], f"{other} (--encoder-attention-heads 2, --encoder-projected-att"),
    ):
        output = train(corpus, tmp_path, "--max-update", 2, *options, code=-1)
        assert message in _last_line(output)
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


def test_a_transformer_is_not_gone_on_with(corpus: Corpus, tmp_path: Path) -> None:
    """Whose options fairseq saves in another way."""
    luna = TINY.index("--projection-length")
    sizes = TINY[:luna] + TINY[luna + 2 :]
    run_command(
        *("fairseq-train", corpus.data, "--user-dir", USER_DIR, "--arch", "transformer_iwslt_de_en", *sizes, *TRAIN),
        *(*ADAM, "--save-dir", tmp_path, "--max-update", 1),
    )
    other = (
        "checkpoint_last.pt holds another model: give the options of its training (--arch transformer_iwslt_de_en)"
    )
    output = train(corpus, tmp_path, "--max-update", 2, code=-1)
    assert _last_line(output).endswith(f"{other}, or name another --save-dir")
    finetune = ["--finetune-from-model", tmp_path / "checkpoint_last.pt"]
    output = train(corpus, tmp_path / "new", "--max-update", 2, *finetune, code=-1)
    assert _last_line(output).endswith(f"{other}, or name another --finetune-from-model")


@pytest.mark.parametrize("precision", [pytest.param([], marks=pytest.mark.long), ["--amp"]], ids=str)
def test_a_run_that_diverges_says_when_and_what_to_try(precision: List[str], corpus: Corpus, tmp_path: Path) -> None:
    """After saving where it stood: with finite weights."""
    options = "--lr 1e37 --lr-scheduler fixed --optimizer adam --clip-norm 0 --max-update 9 --no-epoch-checkpoints"
    output = train(corpus, tmp_path, *options.split(), *precision, code=1)
    found = re.search(r"fairseq-train: training has diverged: the gradient of update (\d+) is not finite", output)
    assert found and 1 < int(found[1]) <= 9, output[-3000:]
    assert f"{tmp_path}/crash.pt holds the weights before it; lower --lr, raise --warmup-updates" in output
    crash = torch.load(tmp_path / "crash.pt", weights_only=True)
    assert crash["optimizer_history"][-1]["num_updates"] == int(found[1]) - 1
    assert all(torch.isfinite(x).all() for x in crash["model"].values())
    restore = [*precision, "--restore-file", tmp_path / "crash.pt"]
    output = train(corpus, tmp_path / "again", "--max-update", 9, *restore, code=1)
    assert "holds the state of another --lr-scheduler: give that one, or --reset-lr-scheduler" in _last_line(output)


def test_truncated_checkpoint_in_the_save_folder(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_last.pt"
    path.write_bytes(b"PK\x03\x04 and no more")
    output = train(corpus, tmp_path, "--max-update", 1, code=-1)
    assert f"{path} (16 bytes) is cut short or damaged" in _last_line(output)
    assert path.read_bytes() == b"PK\x03\x04 and no more"


def test_source_longer_than_the_positions(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--max-update", 1, "--encoder-learned-pos", "--max-source-positions", 12)
    data = tmp_path / "data"
    shutil.copytree(corpus.data, data)
    for lang in ("en", "de"):
        text = (corpus.text / f"test.spm.{lang}").read_text().splitlines()
        text[3] = " ".join([text[3]] * 40) if lang == "en" else text[3]
        (tmp_path / f"long.{lang}").write_text("\n".join(text) + "\n")
    run_command(
        *("fairseq-preprocess", "-s", "en", "-t", "de", "--testpref", tmp_path / "long", "--destdir", data),
        *("--srcdict", corpus.data / "dict.en.txt", "--tgtdict", corpus.data / "dict.de.txt"),
    )
    common = ["--user-dir", USER_DIR, "--path", tmp_path / "checkpoint_last.pt", "--cpu", "--num-workers", 0]
    output = run_command("fairseq-generate", data, *common, code=1)
    assert "skip this example with --skip-invalid-size-inputs-valid-test" in output
    output = run_command("fairseq-generate", data, *common, "--skip-invalid-size-inputs-valid-test")
    translated = [line for line in output.splitlines() if line.startswith("H-")]
    assert 0 < len(translated) < 11 and not any(line.startswith("H-3\t") for line in translated)


def test_interactive_with_fewer_positions_than_the_command_says(corpus: Corpus, tmp_path: Path) -> None:
    limits = ["--max-source-positions", 12, "--max-target-positions", 12]
    train(corpus, tmp_path, "--max-update", 1, *limits)
    output = run_command(
        *(
            "fairseq-interactive",
            corpus.data,
            "--user-dir",
            USER_DIR,
            "--path",
            tmp_path / "checkpoint_last.pt",
            "--cpu",
        ),
        *("-s", "en", "-t", "de"),
        stdin="the cat\n" + "cat " * 40 + "\nthe dog\n",
    )
    assert "an input of 41 symbols was cut to 12" in output
    assert sum(line.startswith("H-") for line in output.splitlines()) == 3


def test_replace_unk_without_alignment(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--max-update", 1)
    for lang in ("en", "de"):
        shutil.copy(corpus.data / f"dict.{lang}.txt", tmp_path)
        shutil.copy(corpus.text / f"test.spm.{lang}", tmp_path / f"test.en-de.{lang}")
    output = run_command(
        *("fairseq-generate", tmp_path, "--user-dir", USER_DIR, "--path", tmp_path / "checkpoint_last.pt", "--cpu"),
        *("-s", "en", "-t", "de", "--dataset-impl", "raw", "--replace-unk", "", "--unkpen", -9, "--max-len-b", 4),
        code=1,
    )
    assert "--replace-unk needs to know which source word to take: add --print-alignment" in _last_line(output)


def test_average_refuses_what_does_not_belong_together(corpus: Corpus, tmp_path: Path) -> None:
    for name, layers in (("a", 1), ("b", 2)):
        train(corpus, tmp_path / name, "--max-update", 1, "--encoder-layers", layers)
    inputs = [tmp_path / name / "checkpoint_last.pt" for name in ("a", "b")]
    out = tmp_path / "out.pt"
    output = run_command("luna-fairseq", "average", "--inputs", *inputs, "--output", out, code=1)
    assert "holds other parameters than" in _last_line(output)
    which = ["--inputs", tmp_path / "a", "--num-epoch-checkpoints", 3]
    output = run_command("luna-fairseq", "average", *which, "--output", out, code=1)
    assert "epoch checkpoints, not 3: ask for fewer" in _last_line(output)
    assert not out.exists()
    before = inputs[1].read_bytes()
    for output_file in (inputs[1], tmp_path / "b" / "checkpoint_best.pt"):
        output = run_command("luna-fairseq", "average", "--inputs", inputs[1], "--output", output_file, code=1)
        assert "is a checkpoint of a run, with its optimizer: name another --output" in _last_line(output)
    assert inputs[1].read_bytes() == before
    (tmp_path / "kept.pt").write_bytes(before)
    (tmp_path / "notes.txt").write_text("mine")
    for other, content in (("kept.pt", before), ("notes.txt", b"mine")):
        output = run_command("luna-fairseq", "average", "--inputs", inputs[1], "--output", tmp_path / other, code=1)
        assert "luna-fairseq average did not make it: name another --output" in _last_line(output)
        assert (tmp_path / other).read_bytes() == content
    assert len(generate(corpus, inputs[1]).splitlines()) > 11
