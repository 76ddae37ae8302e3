"""fairseq's commands with the language model: training, scoring with and without carried state, sampling, fusion."""

import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
import torch
from fairseq.data import data_utils

from luna_fairseq.models.luna_lm import LunaLanguageModel
from luna_fairseq.modules.carried import Carry
from support.running import ADAM, ROOT, USER_DIR, Corpus, LMCorpus, generate, logged, run_command, train
from support.runs import assert_same

TINY_LM: List[str] = (
    "--decoder-embed-dim 16 --decoder-ffn-embed-dim 32 --decoder-layers 2 --decoder-attention-heads 2"
).split()
LUNA: List[str] = [*TINY_LM, "--projection-length", "4"]
BLOCKS: List[str] = "--task language_modeling --tokens-per-sample 12".split()
QUIET: List[str] = (
    "--cpu --seed 3 --log-format simple --log-interval 1 --data-buffer-size 0 --num-workers 0 --batch-size 6"
).split()


def _train(data: Any, save: Path, *args: Any, arch: str = "luna_lm", code: int = 0) -> str:
    sizes = [*TINY_LM, "--decoder-input-dim", 16, "--decoder-output-dim", 16] if arch == "transformer_lm" else LUNA
    return run_command(
        *("fairseq-train", data, "--user-dir", USER_DIR, "--arch", arch, *sizes, *BLOCKS, *ADAM, *QUIET),
        *("--save-dir", save, *args),
        code=code,
    )


def _eval(data: Any, checkpoint: Path, *args: Any, code: int = 0) -> str:
    return run_command(
        *("fairseq-eval-lm", data, "--user-dir", USER_DIR, "--path", checkpoint, "--gen-subset", "valid", "--cpu"),
        *("--num-workers", "0", *args),
        code=code,
    )


def _bits(output: str) -> float:
    return float(re.findall(r"Loss \(base 2\): ([\d.]+)", output)[-1])


@pytest.fixture(scope="module")
def data(lm_corpus: LMCorpus) -> str:
    return f"{lm_corpus.folder}/shard0"


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints of a small training."""
    folder = tmp_path_factory.mktemp("language-model")
    output = _train(data, folder, "--max-update", "12", "--max-target-positions", 64)
    losses = [float(loss) for loss in logged(output, "loss")]
    assert len(losses) == 12 and losses[-1] < losses[0] and "valid on 'valid' subset" in output
    return folder


def _hub(folder: Path, lm_corpus: LMCorpus) -> Any:
    return LunaLanguageModel.from_pretrained(folder, Path("checkpoint_last.pt"), lm_corpus.folder)


def _text(hub: Any, data: str) -> torch.Tensor:
    """All of the validation text."""
    lines = data_utils.load_indexed_dataset(f"{data}/valid", hub.src_dict)
    return torch.cat([lines[i] for i in range(len(lines))]).long()


def _bits_at_once(model: Any, text: torch.Tensor) -> float:
    """Bits a token of the whole text as one."""
    source = torch.cat([torch.tensor([2]), text[:-1]])
    with torch.no_grad():
        scores = model.get_normalized_probs(model(source.unsqueeze(0)), log_probs=True)[0]
    return -float(scores.gather(1, text.unsqueeze(1)).mean()) / math.log(2)


def test_scores_with_carried_state_are_those_of_one_long_text(data: str, trained: Path, lm_corpus: LMCorpus) -> None:
    checkpoint = trained / "checkpoint_last.pt"
    hub = _hub(trained, lm_corpus)
    text, model = _text(hub, data), hub.models[0]
    want = _bits_at_once(model, text)
    got = _bits(_eval(data, checkpoint, "--tokens-per-sample", 12, "--carry-state"))
    assert got == pytest.approx(want, abs=2e-4)
    blocks = _bits(_eval(data, checkpoint, "--tokens-per-sample", 12))
    assert abs(blocks - want) > 2e-3, "the state matters"


@pytest.mark.long
def test_scores_of_other_blocks_with_carried_state(data: str, trained: Path, lm_corpus: LMCorpus) -> None:
    """Sentences are blocks too, which each begin behind an end of a sentence; several rows, positions from 0."""
    checkpoint = trained / "checkpoint_last.pt"
    hub = _hub(trained, lm_corpus)
    want = _bits_at_once(hub.models[0], _text(hub, data))

    def score(*options: Any) -> float:
        return _bits(_eval(data, checkpoint, "--tokens-per-sample", 12, "--carry-state", *options))

    alone = score()
    assert alone == score("--batch-size", 1) == pytest.approx(want, abs=2e-4)
    assert abs(score("--carry-positions", "restart") - alone) > 5e-4
    assert 0 < abs(score("--batch-size", 4) - alone) < 0.1
    assert score("--sample-break-mode", "eos") == pytest.approx(want, abs=2e-4)


def test_eval_lm_with_a_context_window(data: str, trained: Path, lm_corpus: LMCorpus) -> None:
    """Each block is scored behind the end of the one before: as by hand."""
    hub = _hub(trained, lm_corpus)
    text, model = _text(hub, data), hub.models[0]
    source = torch.cat([torch.tensor([2]), text[:-1]])
    total = 0.0
    for start in range(0, len(text), 8):  # blocks of 12 - 4 behind 4
        first = max(0, start - 4)
        with torch.no_grad():
            out = model(source[first : start + 8].unsqueeze(0))
            scores = model.get_normalized_probs(out, log_probs=True)[0, start - first :]
        total -= float(scores.gather(1, text[start : start + 8].unsqueeze(1)).sum())
    output = _eval(data, trained / "checkpoint_last.pt", "--tokens-per-sample", 12, "--context-window", 4)
    assert _bits(output) == pytest.approx(total / len(text) / math.log(2), abs=2e-4)


LATER = [pytest.param(mode, marks=pytest.mark.long) for mode in ("none", "complete_doc", "eos")]


@pytest.mark.parametrize("mode", ["complete", *LATER])
def test_every_way_to_break_a_text(mode: str, data: str, trained: Path) -> None:
    output = _eval(data, trained / "checkpoint_last.pt", "--sample-break-mode", mode, "--tokens-per-sample", 12,
                   "--batch-size", 4)  # fmt: skip
    assert 3 < _bits(output) < 7


@pytest.mark.long
def test_what_cannot_carry_is_refused(data: str, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoint_last.pt"
    said = _eval(data, checkpoint, "--carry-state", "--context-window", 4, code=1)
    assert "--context-window and --carry-state both give a block what comes before" in said
    said = _eval(data, checkpoint, "--carry-state", "--add-bos-token", code=1)
    assert "--add-bos-token begins a new one with each block" in said
    said = _train(data, tmp_path, "--carry-state", arch="transformer_lm", code=1)
    assert "--carry-state needs a model whose state has one size, luna_lm" in said
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.long
@pytest.mark.parametrize("carry", [[], ["--carry-state"]], ids=["blocks", "carry"])
def test_a_resumed_training_is_the_same(carry: List[str], data: str, tmp_path: Path) -> None:
    """Stopped within an epoch, and gone on with after it; with dropout, bit for bit."""
    often = ["--save-interval-updates", "1", "--keep-interval-updates", "1", "--validate-interval", "9", *carry]
    often += ["--attention-dropout", "0.1", "--max-epoch", "2"]
    whole = _train(data, tmp_path / "whole", *often)
    updates = len(logged(whole, "loss"))
    assert updates >= 8 and "no state is known" not in whole
    for stop in (3, updates // 2 + 2, updates):
        output = _train(data, tmp_path / "parts", *often, "--max-update", stop)
        assert "no state is known" not in output
    states = [torch.load(tmp_path / folder / "checkpoint_last.pt") for folder in ("parts", "whole")]
    for part in ("model", "last_optimizer_state"):
        assert_same(*(state[part] for state in states), part)


@pytest.mark.long
def test_carried_training_reads_the_text_in_its_order(data: str, tmp_path: Path) -> None:
    """The first update is that of the same blocks without state; the second one is not."""
    options = ["--max-update", 3, "--lr", "1e-9", "--dropout", 0]
    carried = logged(_train(data, tmp_path / "carried", *options, "--carry-state"), "loss")
    restarted = logged(
        _train(data, tmp_path / "restart", *options, "--carry-state", "--carry-positions", "restart"), "loss"
    )
    assert carried[0] == restarted[0] and carried[1:] != restarted[1:]


def test_the_hub_samples_and_scores(data: str, trained: Path, lm_corpus: LMCorpus) -> None:
    hub = _hub(trained, lm_corpus)
    sampled = hub.sample("the small dog", beam=2, max_len_b=8)
    assert sampled.startswith("the small dog")
    text = "the small old cat sees a dog"
    scores = hub.score(text)["positional_scores"]
    tokens = hub.encode(text)
    bits = _bits_at_once(hub.models[0], tokens[:-1])  # fairseq scores a text without its end
    assert float(-scores.mean() / math.log(2)) == pytest.approx(bits, abs=1e-5)


@pytest.mark.long
def test_a_long_sample_is_timed_part_by_part(trained: Path, lm_corpus: LMCorpus) -> None:
    """As docs/language-model.md has it."""
    command = [sys.executable, "-m", "scripts.bench.sampling", str(trained / "checkpoint_last.pt")]
    command += [f"{lm_corpus.folder}/shard0", "--tokens", "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = re.findall(r"^\| (\d+) \| \d+\.\d\d \| \d+\.\d \|$", done.stdout, re.M)
    assert rows == [str(n) for n in range(5, 51, 5)]


def test_the_hub_streams(trained: Path, lm_corpus: LMCorpus) -> None:
    """The same seed gives the same text; without chance it is the best token each time."""
    hub = _hub(trained, lm_corpus)
    first = list(itertools.islice(hub.stream("the small", seed=3), 40))
    assert first == list(hub.stream("the small", length=40, seed=3)) != list(hub.stream("the small", 40, seed=4))
    assert isinstance(hub.decode(torch.tensor(first)), str) and hub.tgt_dict.pad() not in first
    best = list(hub.stream("the small", length=6, topk=1))
    tokens = torch.cat([torch.tensor([2]), hub.encode("the small")[:-1]])
    with torch.no_grad():
        for token in best:
            scores = hub.models[0](tokens.unsqueeze(0))[0][0, -1]
            scores[hub.tgt_dict.pad()] = float("-inf")
            assert token == int(scores.argmax())
            tokens = torch.cat([tokens, torch.tensor([token])])
    for temperature in (1e-4, 1e-300):
        assert best == list(hub.stream(hub.encode("the small")[:-1], length=6, temperature=temperature, seed=1))
    for options, said in (
        (dict(temperature=0.0), "temperature is 0"),
        (dict(length=-1), "length is -1"),
        (dict(prompt=torch.tensor([[4]])), r"prompt is torch.int64 \[1, 1\]: give a text, or symbols"),
        (dict(prompt=["a"]), "prompt is list: give a text"),
        (dict(prompt=torch.tensor([10**6])), "prompt has symbols from 1000000 to 1000000: the dictionary has 0 to"),
    ):
        with pytest.raises(ValueError, match=said):
            hub.stream(**options)


def test_the_hub_streams_in_blocks_as_in_training(trained: Path, lm_corpus: LMCorpus, tmp_path: Path) -> None:
    """A prompt of several blocks included; with what ``from_pretrained`` is told."""
    how = dict(carry_state=True, carry_positions="restart", carry_at_most=5)
    state = torch.load(trained / "checkpoint_last.pt")
    for name in how:  # as a checkpoint of before there were these options
        del state["cfg"]["model"][name], state["cfg"]["task"][name]
    torch.save(state, tmp_path / "old.pt")
    hub = LunaLanguageModel.from_pretrained(tmp_path, "old.pt", lm_corpus.folder, **how)
    with pytest.raises(ValueError, match="--carry-positions is 'again': choose continue or restart"):
        LunaLanguageModel.from_pretrained(tmp_path, "old.pt", lm_corpus.folder, carry_positions="again")
    block = hub.task.args.tokens_per_sample
    prompt = torch.randint(4, len(hub.src_dict), (2 * block + 3,), generator=torch.Generator().manual_seed(1))
    got = torch.cat([torch.tensor([2]), prompt, torch.tensor(list(hub.stream(prompt, length=block, topk=1)))])
    carry, outs = Carry({}, restart=True, at_most=5), []
    with torch.no_grad():
        for part in got.split(block):
            outs.append(hub.models[0](part.unsqueeze(0), carry=carry)[0])
            carry = carry.next(1)
    scores = torch.cat(outs, dim=1)[0]
    scores[:, hub.tgt_dict.pad()] = float("-inf")
    assert scores.argmax(dim=1)[len(prompt) : -1].tolist() == got[len(prompt) + 1 :].tolist()
    with pytest.raises(ValueError, match="topk is 4000"):
        hub.stream("a", topk=4000)


def test_adaptive_input_and_softmax_and_the_other_options(data: str, tmp_path: Path) -> None:
    """The criterion adaptive_loss, weights tied, LayerDrop, checkpointed activations, noise."""
    output = _train(
        data, tmp_path, "--max-update", 3, "--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp",
        *"--adaptive-input --adaptive-input-cutoff 12,24 --adaptive-softmax-cutoff 12,24".split(),
        *"--adaptive-input-factor 2 --adaptive-softmax-factor 2".split(),
        *"--tie-adaptive-weights --tie-adaptive-proj --decoder-layerdrop 0.2 --checkpoint-activations".split(),
        *"--quant-noise-pq 0.1 --quant-noise-pq-block-size 4 --share-packed-embeddings --carry-state".split(),
    )  # fmt: skip
    assert len(logged(output, "loss")) == 3
    assert 2 < _bits(_eval(data, tmp_path / "checkpoint_last.pt", "--tokens-per-sample", 12)) < 9


def test_both_command_lines_train_the_same_model(data: str, tmp_path: Path) -> None:
    options = "embed_dim=16 ffn_embed_dim=32 layers=2 attention_heads=2 input_dim=16 output_dim=16".split()
    output = run_command(
        *("fairseq-hydra-train", "--config-dir", ROOT / "configs" / "language_model"),
        *("--config-name", "wikitext2_luna_tied_32_carry", f"common.user_dir={USER_DIR}", f"task.data={data}"),
        *(f"checkpoint.save_dir={tmp_path}/hydra", f"hydra.run.dir={tmp_path}/log", "common.cpu=true"),
        *(f"++model.decoder_{option}" for option in options),
        *("model.projection_length=4", "task.tokens_per_sample=12", "dataset.batch_size=6", "dataset.num_workers=0"),
        *("dataset.data_buffer_size=0", "optimization.max_update=3", "common.log_interval=1", "common.seed=3"),
    )
    flags = "--decoder-normalize-before --share-decoder-input-output-embed --attention-dropout 0.1 --carry-state"
    by_flags = run_command(
        *("fairseq-train", data, "--user-dir", USER_DIR, "--arch", "luna_lm", *LUNA, *BLOCKS, *QUIET, *flags.split()),
        *("--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--adam-eps", "1e-6", "--weight-decay", "0.01"),
        *(
            "--lr",
            "0.001",
            "--lr-scheduler",
            "polynomial_decay",
            "--warmup-updates",
            "200",
            "--total-num-update",
            "3",
        ),
        *(
            "--clip-norm",
            "1.0",
            "--max-update",
            "3",
            "--save-dir",
            tmp_path / "flags",
            "--criterion",
            "cross_entropy",
        ),
    )
    assert logged(output, "loss") == logged(by_flags, "loss") and len(logged(output, "loss")) == 3
    states = [torch.load(tmp_path / kind / "checkpoint_last.pt") for kind in ("flags", "hydra")]
    assert states[0]["cfg"]["model"] == states[1]["cfg"]["model"]
    assert states[0]["cfg"]["model"]["carry_state"] is True
    # fairseq-validate goes by the task's.
    assert all(state["cfg"]["task"]["carry_state"] is True for state in states)
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


@pytest.mark.long
def test_translation_with_a_language_model(corpus: Corpus, tmp_path: Path) -> None:
    """--lm-path: a model of the target's text, with its dictionary, which fairseq looks for beside the data."""
    folder = shutil.copytree(corpus.data, tmp_path / "data-bin")
    shutil.copy(folder / "dict.de.txt", folder / "dict.txt")
    corpus = Corpus(corpus.text, folder, corpus.spm)
    train(corpus, tmp_path / "translation", "--max-update", 2)
    prefixes = [f"--{split}pref={corpus.text}/{split}.spm.de" for split in ("train", "valid")]
    dictionary = f"--srcdict={corpus.data}/dict.de.txt"
    run_command("fairseq-preprocess", "--only-source", dictionary, f"--destdir={tmp_path}/text", *prefixes)
    _train(f"{tmp_path}/text", tmp_path / "lm", "--max-update", 2)
    checkpoint = tmp_path / "translation" / "checkpoint_last.pt"
    alone = generate(corpus, checkpoint, "--beam", 2, "--max-len-b", 8)
    fused = generate(
        corpus, checkpoint, "--beam", 2, "--max-len-b", 8, "--lm-path", tmp_path / "lm" / "checkpoint_last.pt",
        "--lm-weight", "0.5",
    )  # fmt: skip
    assert fused.count("\nH-") == alone.count("\nH-") == 11 and fused != alone


@pytest.mark.long
def test_damaged_data_and_missing_folders_are_named(data: str, tmp_path: Path) -> None:
    said = _train(tmp_path / "nothing", tmp_path / "save", code=1)
    assert "nothing does not exist" in said.splitlines()[-1]
    folder = tmp_path / "shard"
    folder.mkdir()
    for name in ("train.bin", "train.idx", "valid.bin", "valid.idx", "dict.txt"):
        content = (Path(data) / name).read_bytes()
        (folder / name).write_bytes(content[:-60] if name == "train.bin" else content)
    said = _train(f"{data}:{folder}", tmp_path / "save", code=1)
    assert "half written" in said.splitlines()[-1]
