"""Masked LM and fine-tuning through fairseq's real commands, and the Python interface to the result."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary, data_utils

from luna_fairseq.models.luna_bert import LunaBertModel
from support.models import assert_close
from support.running import (
    CHOICE,
    MASKED_LM,
    PAIRS,
    USER_DIR,
    LMCorpus,
    logged,
    run_command,
    train_bert,
    write_indexed,
)

START_FRESH = "--reset-optimizer --reset-dataloader --reset-meters --reset-lr-scheduler".split()


def _weights(path: Path) -> Any:
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))["model"]


@pytest.fixture(scope="session")
def pretrained(lm_corpus: LMCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of a few updates."""
    folder = tmp_path_factory.mktemp("pretrained")
    train_bert(f"{lm_corpus.folder}/shard0", folder, *MASKED_LM, "--max-update", "20")
    return folder


def _last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


def test_both_command_lines_train_the_same_model_and_resume(lm_corpus: LMCorpus, tmp_path: Path) -> None:
    """Over two shards: 3 epochs of fairseq-train at once are 1 and 2 more after a resume."""
    flags = [*MASKED_LM, "--max-epoch", "3", "--max-update", "0"]
    whole = train_bert(lm_corpus.shards, tmp_path / "whole", *flags)
    loaded = re.findall(r"blocks from: \S*(shard\d)/train", whole)
    assert loaded[:3] == ["shard0", "shard1", "shard0"], loaded  # one a epoch, in turn
    train_bert(lm_corpus.shards, tmp_path / "parts", *flags, "--max-epoch", "1")
    rest = train_bert(lm_corpus.shards, tmp_path / "parts", *flags)
    losses = logged(whole, "loss")
    assert logged(rest, "loss") == losses[len(losses) - len(logged(rest, "loss")) :]
    want = _weights(tmp_path / "whole" / "checkpoint_last.pt")
    assert all(torch.equal(v, want[k]) for k, v in _weights(tmp_path / "parts" / "checkpoint_last.pt").items())

    config = tmp_path / "mlm.yaml"
    config.write_text(f"""
common: {{user_dir: {USER_DIR}, cpu: true, log_format: simple, log_interval: 1, seed: 3}}
task: {{_name: masked_lm, data: '{lm_corpus.shards}', tokens_per_sample: 40}}
criterion: {{_name: masked_lm}}
dataset: {{batch_size: 6, num_workers: 0, data_buffer_size: 0}}
optimization: {{max_epoch: 3, lr: [0.01]}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: inverse_sqrt, warmup_updates: 4}}
model: {{_name: luna_base_512, encoder_embed_dim: 16, encoder_ffn_embed_dim: 32, encoder_layers: 2,
  encoder_attention_heads: 2, projection_length: 4, max_positions: 48}}
checkpoint: {{save_dir: {tmp_path / "hydra"}}}
hydra: {{job: {{chdir: false}}, run: {{dir: {tmp_path / "log"}}}}}
""")
    output = run_command("fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "mlm")
    assert logged(output, "loss") == losses
    assert all(torch.equal(v, want[k]) for k, v in _weights(tmp_path / "hydra" / "checkpoint_last.pt").items())


@pytest.mark.parametrize(
    "mode", ["none", "complete_doc", *(pytest.param(name, marks=pytest.mark.long) for name in ("complete", "eos"))]
)
def test_break_modes_and_whole_words(lm_corpus: LMCorpus, tmp_path: Path, mode: str) -> None:
    words = ["--mask-whole-words", "--bpe", "sentencepiece", "--sentencepiece-model"]
    output = train_bert(
        *(f"{lm_corpus.folder}/shard0", tmp_path, *MASKED_LM, "--sample-break-mode", mode),
        *(*words, lm_corpus.folder / "sentencepiece.model"),
    )
    assert len(logged(output, "loss")) == 2


def test_whole_words_are_masked_whole(lm_corpus: LMCorpus) -> None:
    from fairseq import tasks
    from fairseq.tasks.masked_lm import MaskedLMConfig
    from omegaconf import OmegaConf

    cfg = OmegaConf.create(
        {
            "task": OmegaConf.structured(
                MaskedLMConfig(
                    data=f"{lm_corpus.folder}/shard0", tokens_per_sample=40, mask_whole_words=True, seed=1,
                    leave_unmasked_prob=0.0, random_token_prob=0.0, sample_break_mode="none",
                )
            ),
            "bpe": {"_name": "sentencepiece", "sentencepiece_model": str(lm_corpus.folder / "sentencepiece.model")},
        }
    )  # fmt: skip
    cfg.task._name = "masked_lm"
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    dictionary = task.source_dictionary
    split_words = 0
    for i in range(len(task.dataset("train"))):
        item = task.dataset("train")[i]
        tokens, target = item["net_input.src_tokens"], item["target"]
        masked = target.ne(dictionary.pad())
        whole = torch.where(masked, target, tokens)
        assert tokens[masked].eq(task.mask_idx).all()
        begins = [j <= dictionary.nspecial - 1 or dictionary[j].startswith("▁") for j in whole.tolist()]
        for j in range(1, len(whole)):
            if not begins[j]:
                split_words += 1
                assert masked[j] == masked[j - 1], "part of a word is masked"
    assert split_words > 50, "the test has no words of several pieces"


# fairseq's own head: the long tests have it.
USUAL_HEAD = pytest.param("sentence_classification_head", marks=pytest.mark.long)


@pytest.mark.parametrize(
    "head",
    [
        "attention_classification_head",
        USUAL_HEAD,
        pytest.param("pooling_classification_head", marks=pytest.mark.long),
    ],
)
def test_fine_tune_every_head(lm_corpus: LMCorpus, pretrained: Path, tmp_path: Path, head: str) -> None:
    data = lm_corpus.folder / "pairs"
    flags = [*PAIRS, "--classification-head-name", head, "--restore-file", pretrained / "checkpoint_last.pt"]
    output = train_bert(data, tmp_path, *flags, *START_FRESH, "--best-checkpoint-metric", "accuracy",
                        "--maximize-best-checkpoint-metric")  # fmt: skip
    assert "Loaded checkpoint" in output and len(logged(output, "loss")) == 2
    checkpoint = tmp_path / "checkpoint_best.pt"
    validated = run_command(
        *("fairseq-validate", data, "--user-dir", USER_DIR, "--path", checkpoint, "--cpu", "--batch-size", "4"),
        *(*PAIRS, "--classification-head-name", head, "--num-workers", "0", "--data-buffer-size", "0"),
    )
    accuracy = float(re.findall(r"valid on 'valid' subset \| .*accuracy ([\d.]+)", validated)[-1])
    if head == "pooling_classification_head":
        for wrong, message in (
            (["--classification-head-name", "mnli"], f"it has no head mnli, its heads are: {head}"),
            (["--num-classes", "3"], f"its head {head} has 2 classes and --num-classes is 3"),
        ):
            said = run_command(
                *("fairseq-validate", data, "--user-dir", USER_DIR, "--path", checkpoint, "--cpu", *PAIRS),
                *("--classification-head-name", head, "--batch-size", "4", *wrong),
                code=1,
            )
            assert message in _last_line(said)

    luna = LunaBertModel.from_pretrained(str(tmp_path), "checkpoint_best.pt", str(data))
    inputs = [
        data_utils.load_indexed_dataset(f"{data}/input{i}/valid", Dictionary.load(f"{data}/input0/dict.txt"))
        for i in range(2)
    ]
    answers = data_utils.load_indexed_dataset(f"{data}/label/valid", None)
    start, separator = torch.tensor([0]), torch.tensor([2])
    rows = [torch.cat([start, a, separator, b]) for a, b in zip(*inputs, strict=True)]
    scores = luna.predict(head, rows)
    right = sum(int(row.argmax()) == int(answer[0]) - 4 for row, answer in zip(scores, answers, strict=True))
    assert accuracy == pytest.approx(100 * right / len(rows), abs=0.06)
    assert_close(scores.exp().sum(1), torch.ones(len(rows)), "probabilities")
    with pytest.raises(ValueError, match=f"no head mnli, its heads are: {head}"):
        luna.predict("mnli", rows)
    # From text it needs to know the pieces. A pair has two separators then, as RoBERTa's pairs do.
    alone = shutil.copytree(data, tmp_path / "without" / "pieces" / "pairs")
    with pytest.raises(ValueError, match="no pieces"):
        LunaBertModel.from_pretrained(tmp_path, "checkpoint_best.pt", alone).predict(head, "the cat")
    pieces = lm_corpus.folder / "sentencepiece.model"
    luna = LunaBertModel.from_pretrained(
        str(tmp_path), "checkpoint_best.pt", str(data), bpe="sentencepiece", sentencepiece_model=str(pieces)
    )
    pair = (luna.decode(inputs[0][0]), luna.decode(inputs[1][0]))
    want = luna.predict(head, torch.cat([start, inputs[0][0], separator, inputs[1][0]]), return_logits=True)
    assert_close(luna.predict(head, [pair], return_logits=True), want, "from text")
    found = LunaBertModel.from_pretrained(str(tmp_path), "checkpoint_best.pt", str(data))  # one folder higher
    assert_close(found.predict(head, [pair], return_logits=True), want, "by pieces that were found")


@pytest.mark.parametrize("head", [USUAL_HEAD, pytest.param("attention_classification_head", marks=pytest.mark.long)])
def test_multiple_choice(lm_corpus: LMCorpus, pretrained: Path, tmp_path: Path, head: str) -> None:
    output = train_bert(
        *(lm_corpus.folder / "choice", tmp_path, *CHOICE, *START_FRESH, "--max-option-length", "9"),
        *("--restore-file", pretrained / "checkpoint_last.pt", "--shorten-method", "truncate"),
        *("--ranking-head-name", head),
    )
    assert "accuracy" in output and len(logged(output, "loss")) == 2
    luna = LunaBertModel.from_pretrained(str(tmp_path), "checkpoint_last.pt", str(lm_corpus.folder / "choice"))
    assert list(luna.model.classification_heads) == [head]
    scores = luna.predict(head, [torch.tensor([0, 5, 6, 2]), torch.tensor([0, 7, 2])])
    assert scores.shape == (2, 1) and scores.abs().min() > 0  # a score, not the softmax of one
    validated = run_command(
        *("fairseq-validate", lm_corpus.folder / "choice", "--user-dir", USER_DIR, "--cpu", *CHOICE),
        *("--path", tmp_path / "checkpoint_last.pt", "--num-workers", "0", "--data-buffer-size", "0"),
        *("--batch-size", "4"),
    )
    assert "accuracy" in validated


def test_multilingual_masked_lm(lm_corpus: LMCorpus, tmp_path: Path) -> None:
    for language, shard in (("en", "shard0"), ("de", "shard1")):
        shutil.copytree(lm_corpus.folder / shard, tmp_path / "data" / language)
    shutil.copy(lm_corpus.folder / "dict.txt", tmp_path / "data")
    output = train_bert(
        *(tmp_path / "data", tmp_path / "save", "--task", "multilingual_masked_lm", "--criterion", "masked_lm"),
        *("--tokens-per-sample", "40"),
    )
    assert len(logged(output, "loss")) == 2


def test_python_interface(lm_corpus: LMCorpus, pretrained: Path) -> None:
    luna = LunaBertModel.from_pretrained(str(pretrained), "checkpoint_best.pt", str(lm_corpus.folder))
    text = "the small cat sees a dog"
    tokens = luna.encode(text)
    assert tokens[0] == 0 and tokens[-1] == 2 and luna.decode(tokens) == text

    features, packed = luna.extract_features(tokens, return_packed=True)
    assert features.shape == (1, len(tokens), 16) and packed.shape == (1, 4, 16)
    assert torch.equal(features, luna.extract_features(text))
    hiddens, _ = luna.extract_features(tokens, return_all_hiddens=True, return_packed=True)
    assert len(hiddens) == 3 and torch.equal(hiddens[-1], features)
    batch = luna.extract_features([text, "the cat"])
    assert batch.shape == (2, len(tokens), 16)
    assert_close(batch[0], features[0], "in a batch")
    with pytest.raises(ValueError, match="60 symbols and the model 48 positions"):
        luna.extract_features(torch.full((60,), 5))
    with pytest.raises(ValueError, match="60 symbols and the model 48 positions"):
        luna.model(torch.full((1, 60), 5))
    several = LunaBertModel.from_pretrained(str(pretrained), "checkpoint_best.pt", lm_corpus.shards)
    assert torch.equal(several.extract_features(tokens), features)


def test_fill_mask(lm_corpus: LMCorpus, pretrained: Path) -> None:
    luna = LunaBertModel.from_pretrained(str(pretrained), "checkpoint_best.pt", str(lm_corpus.folder))
    text = "the small <mask> sees a dog"
    guesses = luna.fill_mask(text, topk=3)
    assert len(guesses) == 3
    values = [value for _, value, _ in guesses]
    assert values == sorted(values, reverse=True) and 0 < sum(values) < 1
    for filled, _, piece in guesses:
        assert filled == f"the small{piece} sees a dog" and "<" not in piece  # a piece brings its space along
    # The whole distribution, computed by hand.
    dictionary = luna.task.source_dictionary
    pieces = f"<s> {luna.bpe.encode('the small')} <mask> {luna.bpe.encode(' sees a dog')} </s>"
    tokens = dictionary.encode_line(pieces, append_eos=False, add_if_not_exist=False).long()
    with torch.no_grad():
        want = luna.model(tokens[None])[0][0, tokens.tolist().index(luna.task.mask_idx)].softmax(0)
    want[[0, 1, 2, 3, luna.task.mask_idx]] = 0
    assert values == pytest.approx(want.topk(3).values.tolist(), rel=1e-5)
    both = luna.fill_mask([text, "<mask> dog"], topk=2)
    assert both[0][0][0] == guesses[0][0] and len(both) == 2
    assert both[0][0][1] == pytest.approx(values[0], rel=1e-5)
    assert luna.fill_mask("the<mask> cat")[0][0].startswith("the")
    with pytest.raises(ValueError, match="topk is 99999"):
        luna.fill_mask(text, topk=99999)
    with pytest.raises(ValueError, match="empty list"):
        luna.predict("any", [])
    # Half precision: the control symbols are still those, at any place of a large dictionary.
    luna.model.bfloat16()
    rough = luna.fill_mask(text, topk=3)
    assert [value for _, value, _ in rough] == pytest.approx(values, rel=0.1)
    luna.model.float()
    # A word written <unk> is one symbol, as in the data.
    assert luna.encode("the <unk> cat").tolist().count(luna.task.source_dictionary.unk()) == 1
    padded = torch.cat([luna.encode("the cat"), torch.tensor([1, 1])])
    assert luna.decode(padded) == "the cat"
    with pytest.raises(ValueError, match="holds <mask> 0 times"):
        luna.fill_mask("no gap")


@pytest.mark.long
def test_errors_say_what_to_change(lm_corpus: LMCorpus, pretrained: Path, tmp_path: Path) -> None:
    folder = lm_corpus.folder
    before = (pretrained / "checkpoint_last.pt").read_bytes()

    def fails(data: Any, *args: Any) -> str:
        return _last_line(train_bert(data, tmp_path / "save", *args, code=1))

    assert f"data folder {tmp_path}/none does not exist" in fails(tmp_path / "none", *MASKED_LM)
    assert "shard9 does not exist" in fails(f"{folder}/shard0:{folder}/shard9", *MASKED_LM)
    assert "dict.txt does not exist" in fails(folder / "choice", *MASKED_LM)
    for suffix, message in (("bin", "without its .bin or .idx"), ("idx", "idx is damaged or only half written")):
        shutil.copytree(folder / "shard1", tmp_path / f"no_{suffix}")
        file = tmp_path / f"no_{suffix}" / f"train.{suffix}"
        if suffix == "idx":
            file.write_bytes(file.read_bytes()[:60])
        else:
            file.unlink()
        # Found at once, although the second shard is read only in the second epoch.
        assert message in fails(f"{folder}/shard0:{tmp_path}/no_{suffix}", *MASKED_LM)
    line = fails(folder / "shard0", *MASKED_LM, "--tokens-per-sample", "49")
    assert "--tokens-per-sample is 49 and the model has --max-positions 48" in line
    assert "add --bpe" in fails(folder / "shard0", *MASKED_LM, "--mask-whole-words")
    restore = ["--restore-file", pretrained / "checkpoint_last.pt"]
    other = Dictionary.load(str(folder / "dict.txt"))
    other.add_symbol("more")
    write_indexed(tmp_path / "other" / "train", [torch.tensor([5, 6, 2])] * 9, other)
    write_indexed(tmp_path / "other" / "valid", [torch.tensor([5, 6, 2])] * 9, other)
    line = fails(tmp_path / "other", *MASKED_LM, *restore, *START_FRESH)
    assert re.search(r"the dictionary's number of symbols is \d+ here and \d+ in the checkpoint", line), line
    line = fails(tmp_path / "other", *MASKED_LM, "--sample-break-mode", "complete_doc")
    assert "no blank line between documents" in line
    # Multiple choice.
    assert "--num-classes 5 needs as many candidates" in fails(folder / "choice", *CHOICE, "--num-classes", "5")
    shutil.copytree(folder / "choice", tmp_path / "choice")
    labels = tmp_path / "choice" / "label" / "train.label"
    labels.write_text(labels.read_text().replace("2", "3"))
    line = fails(tmp_path / "choice", *CHOICE)
    assert "train.label has number 3" in line and "--num-classes is 3" in line
    labels.unlink()
    assert "train.label does not exist: training needs labels" in fails(tmp_path / "choice", *CHOICE)
    untied = fails(folder / "shard0", *MASKED_LM, *restore, *START_FRESH, "--untie-luna-kv")
    assert "the checkpoint has tied keys and values: leave out --untie-luna-kv" in untied
    assert (pretrained / "checkpoint_last.pt").read_bytes() == before
    assert not list(tmp_path.glob("save/*.pt"))


@pytest.mark.long
def test_errors_of_fine_tuning(lm_corpus: LMCorpus, pretrained: Path, tmp_path: Path) -> None:
    pairs = lm_corpus.folder / "pairs"
    save = tmp_path / "save"
    train_bert(pairs, save, *PAIRS)
    before = (save / "checkpoint_last.pt").read_bytes()
    # Another number of classes: the optimizer's state does not fit; without it the head is made anew.
    line = _last_line(train_bert(pairs, save, *PAIRS, "--num-classes", "3", "--max-update", "4", code=1))
    assert "another --num-classes?" in line and "--reset-optimizer" in line
    assert (save / "checkpoint_last.pt").read_bytes() == before
    # Another head: other parameters in the optimizer.
    other = ["--classification-head-name", "attention_classification_head", "--max-update", "4"]
    line = _last_line(train_bert(pairs, save, *PAIRS, *other, code=1))
    assert "the optimizer of a model with other parameters: add --reset-optimizer" in line
    restore = ["--restore-file", save / "checkpoint_last.pt", *START_FRESH]
    train_bert(pairs, tmp_path / "resized", *PAIRS, "--num-classes", "3", *restore)
    line = _last_line(train_bert(pairs, tmp_path / "one", *PAIRS, "--num-classes", "1", code=1))
    assert "the label of example" in line and "--num-classes is 1" in line
    assert not list(tmp_path.glob("one/*.pt"))


def test_bf16_from_the_command_line(lm_corpus: LMCorpus, tmp_path: Path) -> None:
    """fairseq takes --bf16 for a wish for a TPU."""
    output = train_bert(f"{lm_corpus.folder}/shard0", tmp_path, *MASKED_LM, "--bf16")
    losses = [float(loss) for loss in logged(output, "loss")]
    assert len(losses) == 2 and all(4 < loss < 8 for loss in losses)


def test_half_written_data_is_named(lm_corpus: LMCorpus, tmp_path: Path) -> None:
    shutil.copytree(lm_corpus.folder / "shard0", tmp_path / "shard")
    data = tmp_path / "shard" / "train.bin"
    data.write_bytes(data.read_bytes()[:-100])
    line = _last_line(train_bert(tmp_path / "shard", tmp_path / "save", *MASKED_LM, code=1))
    assert "train.bin has" in line and "half written" in line


def test_from_pretrained_errors(lm_corpus: LMCorpus, pretrained: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.pt does not exist"):
        LunaBertModel.from_pretrained(str(pretrained))
    with pytest.raises(FileNotFoundError, match=r"dict\.txt does not exist"):
        LunaBertModel.from_pretrained(str(pretrained), "checkpoint_last.pt")


def test_published_checkpoint(shared_golden: Path, tmp_path: Path) -> None:
    """Written by the published code; loads as it is, and gives the numbers that were stored with it."""
    stored = torch.load(shared_golden / "lm_reference_checkpoint_outputs.pt", weights_only=True)
    inputs, outputs = stored["inputs"], stored["outputs"]
    luna = LunaBertModel.from_pretrained(
        str(shared_golden), "lm_reference_checkpoint.pt", str(shared_golden / "lm_data_bin")
    )
    tokens, masked = inputs["src_tokens"], inputs["masked_tokens"]
    real = tokens.ne(1)
    with torch.no_grad():
        logits, _ = luna.model(tokens, masked_tokens=masked)
        assert_close(logits, outputs["logits_at_masked"], "logits")
        assert_close(luna.model(tokens)[0][:, :3], outputs["logits_first_3_positions"], "logits at the start")
        features, packed = luna.extract_features(tokens, return_packed=True)
    assert_close(features, outputs["features"], "features", mask=real)
    rows = torch.arange(packed.size(1)) < real.sum(1, keepdim=True)
    assert_close(packed, outputs["packed_features"], "packed features", mask=rows)
    loss = torch.nn.functional.cross_entropy(logits, inputs["target"][masked])
    assert loss.item() == pytest.approx(outputs["loss"].item(), rel=1e-5)

    dictionary = Dictionary.load(str(shared_golden / "lm_data_bin" / "dict.txt"))
    sentences = [torch.where(inputs["target"].ne(1), inputs["target"], tokens)[i][real[i]][1:] for i in range(6)]
    write_indexed(tmp_path / "data" / "valid", sentences, dictionary)
    output = run_command(
        *("fairseq-validate", tmp_path / "data", "--user-dir", USER_DIR, "--cpu", "--task", "masked_lm"),
        *("--path", shared_golden / "lm_reference_checkpoint.pt", "--num-workers", "0", "--batch-size", "4"),
        *("--criterion", "masked_lm", "--data-buffer-size", "0", "--tokens-per-sample", "64"),
    )
    # The same masks, by hand: bits a masked token.
    luna.task.cfg.data = str(tmp_path / "data")
    luna.task.load_dataset("valid")
    dataset = luna.task.dataset("valid")
    dataset.set_epoch(1)  # part of the seed of the masks
    sample = dataset.collater([dataset[i] for i in range(len(dataset))])
    masked = sample["target"].ne(1)
    with torch.no_grad():
        logits, _ = luna.model(sample["net_input"]["src_tokens"], masked_tokens=masked)
    want = torch.nn.functional.cross_entropy(logits, sample["target"][masked]).item() / math.log(2)
    assert float(re.findall(r"\| loss ([\d.]+)", output)[-1]) == pytest.approx(want, abs=6e-4)
