"""Whole jobs through fairseq's real commands: train, resume, average, generate, interactive, validate."""

import dataclasses
import importlib.util
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

from luna_fairseq.attention_map import attention_map
from luna_fairseq.models.luna import LunaModel
from support.running import ADAM, APOLLO, ROOT, TINY, USER_DIR, Corpus, generate, logged, run_command, train


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for 2 updates, then resumed to 6 (Apollo, milestones at 3 and 5, a save every 2)."""
    save = tmp_path_factory.mktemp("trained")
    args = [*APOLLO, "--save-interval-updates", 2, "--dropout", 0.1]
    first = train(corpus, save, *args, "--max-update", 2)
    assert logged(first, "num_updates") == ["1", "2"]
    output = train(corpus, save, *args, "--max-update", 6)
    assert "Loaded checkpoint" in output
    assert logged(output, "num_updates") == ["3", "4", "5", "6"]
    rates = [float(lr) for lr in logged(first, "lr") + logged(output, "lr")]
    # Rates after updates 1 to 6: warm-up of 2, decays at 3 and 5, each once although a resume lies between.
    assert rates == pytest.approx([0.05, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert "UserWarning" not in output and "FutureWarning" not in output and "DeprecationWarning" not in output
    return save


def _hypotheses(output: str) -> List[str]:
    return sorted(line for line in output.splitlines() if line.startswith("H-"))


def test_generate_translates_every_sentence(corpus: Corpus, trained: Path) -> None:
    """11 sentences in batches of 8: fairseq by itself throws the last 3 away."""
    output = generate(corpus, trained / "checkpoint_last.pt", "--beam", 3, "--batch-size", 8)
    assert len(_hypotheses(output)) == 11
    alone = generate(corpus, trained / "checkpoint_last.pt", "--beam", 3, "--batch-size", 1)
    for got, want in zip(_hypotheses(output), _hypotheses(alone), strict=True):
        (name, score, text), (name1, score1, text1) = got.split("\t"), want.split("\t")
        assert (name, text) == (name1, text1)
        assert float(score) == pytest.approx(float(score1), abs=1e-4)


def test_alignment_is_over_the_source(corpus: Corpus, trained: Path) -> None:
    output = generate(corpus, trained / "checkpoint_last.pt", "--print-alignment", "soft", "--batch-size", 4)
    sources = {int(m[1]): m[2].split() for m in re.finditer(r"^S-(\d+)\t(.*)$", output, re.M)}
    rows = {int(m[1]): m[2] for m in re.finditer(r"^A-(\d+)\t(.*)$", output, re.M)}
    assert set(rows) == set(sources) and len(rows) == 11
    for index, text in rows.items():
        for row in text.split():
            weights = [float(x) for x in row.split(",")]
            assert len(weights) == len(sources[index]) + 1  # and the end symbol
            assert sum(weights) == pytest.approx(1.0, abs=1e-3)
    hard = generate(corpus, trained / "checkpoint_last.pt", "--print-alignment", "--batch-size", 4)
    pairs = re.findall(r"^A-(\d+)\t(.*)$", hard, re.M)
    assert len(pairs) == 11
    for index, text in pairs:
        for pair in text.split():
            assert 0 <= int(pair.split("-")[0]) <= len(sources[int(index)])


def test_average_then_generate(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "average.pt"
    log = run_command(
        "luna-fairseq", "average", "--inputs", trained, "--num-update-checkpoints", 2, "--output", output
    )
    inputs = re.findall(r"^averaging (.*)$", log, re.M)
    updates = sorted(int(name.split("_")[-1][:-3]) for name in map(str, trained.glob("checkpoint_*_*.pt")))
    assert [int(name.split("_")[-1][:-3]) for name in inputs] == updates[:-3:-1]
    states = [torch.load(name)["model"] for name in inputs]
    averaged = torch.load(output)
    assert "last_optimizer_state" not in averaged
    assert averaged["model"]._metadata == torch.load(inputs[0])["model"]._metadata
    for name, value in averaged["model"].items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)
    assert len(_hypotheses(generate(corpus, output))) == 11


def test_validate_and_finetune_from_a_checkpoint(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    output = run_command(
        *("fairseq-validate", corpus.data, "--user-dir", USER_DIR, "--path", trained / "checkpoint_last.pt", "--cpu"),
        *("--task", "translation", "--valid-subset", "valid", "--max-tokens", 500, "--num-workers", 0),
    )
    assert re.search(r"loss [\d.]+", output)
    output = train(
        corpus, tmp_path, "--finetune-from-model", trained / "checkpoint_last.pt", "--max-update", 1, "--no-save"
    )
    assert "loading pretrained model from" in output


def test_finetune_from_a_foreign_namespace_checkpoint(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    """Checkpoints of old fairseq hold an argparse.Namespace instead of a config."""
    state = torch.load(trained / "checkpoint_last.pt")
    model, task = state["cfg"].pop("model"), state["cfg"].pop("task")
    state["args"] = Namespace(**{**task, **model, "arch": "luna", "task": "translation"})
    state["cfg"] = None
    path = tmp_path / "old.pt"
    torch.save(state, path)
    assert len(_hypotheses(generate(corpus, path))) == 11


def test_eval_lm_loads_an_old_style_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    """fairseq's own language model, saved with a Namespace, while the plugin is loaded."""
    prefixes = [f"--{split}pref={corpus.text}/{split}.spm.en" for split in ("train", "valid", "test")]
    run_command("fairseq-preprocess", "--only-source", f"--destdir={tmp_path}/data", *prefixes)
    small = "--decoder-layers 1 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16 --decoder-attention-heads 2".split()
    run_command(
        *("fairseq-train", tmp_path / "data", "--task", "language_modeling", "--arch", "transformer_lm", *small),
        *("--user-dir", USER_DIR, *ADAM, "--max-tokens", 200, "--tokens-per-sample", 16, "--max-update", 1, "--cpu"),
        *("--save-dir", tmp_path, "--data-buffer-size", 0, "--num-workers", 0),
    )
    path = tmp_path / "checkpoint_last.pt"
    state = torch.load(path)
    state["args"] = Namespace(
        **{**state["cfg"]["task"], **state["cfg"]["model"], "arch": "transformer_lm", "task": "language_modeling"}
    )
    state["cfg"] = None
    torch.save(state, path)
    command = ["fairseq-eval-lm", tmp_path / "data", "--path", path, "--cpu", "--num-workers", 0, "--batch-size", 4]
    command += ["--tokens-per-sample", 16]
    assert "Perplexity" in run_command(*command, "--user-dir", USER_DIR)
    assert "Weights only load failed" in run_command(*command, code=1), "torch loads it without the plugin too"


def test_interactive_survives_odd_lines(corpus: Corpus, trained: Path) -> None:
    lines = ["the old cat", "", "☃ ☃☃", "   ", "cat " * 2000, "a red house"]
    output = run_command(
        *("fairseq-interactive", corpus.data, "--user-dir", USER_DIR, "--path", trained / "checkpoint_last.pt"),
        *(
            "--cpu",
            "--bpe",
            "sentencepiece",
            "--sentencepiece-model",
            corpus.spm,
            "--buffer-size",
            2,
            "--batch-size",
            2,
        ),
        *("--max-len-b", 20),
        stdin="".join(line + "\n" for line in lines),
    )
    assert len(re.findall(r"^D-\d+", output, re.M)) == len(lines)
    assert "was cut to 1024" in output


def test_from_pretrained_translates(corpus: Corpus, trained: Path) -> None:
    hub = LunaModel.from_pretrained(
        trained,
        checkpoint_file=Path("checkpoint_last.pt"),
        data_name_or_path=Path(corpus.data),
        bpe="sentencepiece",
        sentencepiece_model=corpus.spm,
    )
    assert isinstance(hub.models[0], LunaModel)
    one = hub.translate("the old cat", beam=2)
    both = hub.translate(["the old cat", "a red house"], beam=2)
    assert isinstance(one, str) and "▁" not in one
    assert len(both) == 2 and both[0] == one


def test_tensorboard(corpus: Corpus, tmp_path: Path) -> None:
    """As in fairseq: a folder of events for every kind of line in the log, with its numbers."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    train(corpus, tmp_path, *"--max-update 3 --log-interval 1 --no-save".split(), "--tensorboard-logdir", tmp_path)
    losses: Dict[str, List[int]] = {}
    for path in tmp_path.glob("*/events*"):
        content = path.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if any(value.tag == "loss" for value in event.summary.value):
                losses.setdefault(path.parent.name, []).append(event.step)
    assert losses["train_inner"] == [1, 2, 3] and losses["train"] == losses["valid"] == [3]


def test_attention_map(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    """The average over the heads is the alignment that fairseq prints; rows are distributions over the source."""
    usual = dict(data_name_or_path=str(corpus.data), bpe="sentencepiece", sentencepiece_model=str(corpus.spm))
    hub = LunaModel.from_pretrained(str(trained), "checkpoint_last.pt", **usual)
    first, last = (attention_map(hub, "the old cat", layer) for layer in (0, -1))
    heads = hub.models[0].decoder.layers[0].encoder_attn.num_heads
    for found in (first, last):
        rows = found.packed.size(1)
        assert found.heads.shape == (heads, len(found.target), len(found.source)) and found.source[-1] == "</s>"
        assert found.packed.shape == (heads, rows, len(found.source)) and rows == min(4, len(found.source))
        for weights in (found.heads, found.packed):
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        assert found.translation == hub.translate("the old cat")
    assert not torch.allclose(first.heads, last.heads)
    printed = hub.generate([hub.encode("the old cat")], print_alignment="soft")[0][0]["attention"]
    torch.testing.assert_close(last.heads.mean(dim=0), printed.T, atol=1e-5, rtol=1e-4)

    options = ["--path", trained / "checkpoint_last.pt", "--data", corpus.data, "--sentencepiece-model", corpus.spm]
    pictures = []
    if importlib.util.find_spec("matplotlib"):  # an extra of the pictures, not of the tests
        pictures = ["it-0.png", "it-1.png"]
        options += ["--output", tmp_path / "it.png"]
    said = run_command("luna-fairseq", "attention", *options, stdin="the old cat\n\na red house\n")
    # No more: importing fairseq sets all loggers to DEBUG, and matplotlib has much to say.
    assert said.startswith(f"the old cat\n{last.translation}\n{last}\n") and "DEBUG" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == pictures
    said = run_command("luna-fairseq", "attention", *options, "--layer", 7, "the old cat", code=1)
    assert said == "luna-fairseq attention: --layer is 7 and the decoder has 2 layers: take 0 to 1, or -1\n"


def test_a_model_with_a_position_bias(corpus: Corpus, tmp_path: Path) -> None:
    """It trains, goes on, translates and shows what it looks at; its slopes learn."""
    bias = ["--packed-position-bias", 1, "--packed-position-bias-in", "cross"]
    for updates in (2, 4):
        train(corpus, tmp_path, *bias, "--max-update", updates)
    state = torch.load(tmp_path / "checkpoint_last.pt")["model"]
    slopes = {name: value for name, value in state.items() if name.endswith("position_slope")}
    assert set(slopes) == {f"decoder.layers.{number}.encoder_attn.position_slope" for number in (0, 1)}
    assert all(((value - 1).abs() > 1e-4).all() for value in slopes.values())
    assert "H-0" in generate(corpus, tmp_path / "checkpoint_last.pt", "--beam", 2, "--print-alignment")
    usual = dict(data_name_or_path=str(corpus.data), bpe="sentencepiece", sentencepiece_model=str(corpus.spm))
    hub = LunaModel.from_pretrained(str(tmp_path), "checkpoint_last.pt", **usual)
    found = attention_map(hub, "the old cat")
    printed = hub.generate([hub.encode("the old cat")], print_alignment="soft")[0][0]["attention"]
    torch.testing.assert_close(found.heads.mean(dim=0), printed.T, atol=1e-5, rtol=1e-4)
    said = train(corpus, tmp_path, "--max-update", 5, code=-1)
    assert "the checkpoint has a position bias in its cross-attention alone: give --packed-position-bias 1" in said


def test_a_model_that_forgets(corpus: Corpus, tmp_path: Path) -> None:
    """It trains, goes on, is averaged, and translates as with all words at once."""
    for updates in (2, 4):
        train(corpus, tmp_path, "--causal-decay", 5, "--max-update", updates)
    run_command(
        "luna-fairseq", "average", "--inputs", tmp_path / "checkpoint_last.pt", "--output", tmp_path / "averaged.pt"
    )
    assert "H-0" in generate(corpus, tmp_path / "averaged.pt", "--beam", 2)
    usual = dict(data_name_or_path=str(corpus.data), bpe="sentencepiece", sentencepiece_model=str(corpus.spm))
    hub = LunaModel.from_pretrained(str(tmp_path), "checkpoint_last.pt", **usual)
    assert {layer.self_attn.decay for layer in hub.models[0].decoder.layers} == {5.0}
    source = hub.encode("the old cat")
    best = hub.generate([source], beam=2)[0][0]
    target = torch.cat([best["tokens"].new_tensor([hub.tgt_dict.eos()]), best["tokens"][:-1]])[None]
    logits = hub.models[0](source[None], torch.tensor([len(source)]), target)[0]
    scores = logits.log_softmax(-1)[0].gather(1, best["tokens"][:, None]).squeeze(1)
    torch.testing.assert_close(scores, best["positional_scores"], atol=1e-5, rtol=1e-5)


def test_replace_unknown_words_by_the_aligned_source_word(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    """Some words made unknown by a negative penalty; the word each attends to most stands in its place."""
    raw = tmp_path / "raw"  # fairseq replaces words only in raw text
    raw.mkdir()
    for lang in ("en", "de"):
        shutil.copy(corpus.data / f"dict.{lang}.txt", raw)
        shutil.copy(corpus.text / f"test.spm.{lang}", raw / f"test.en-de.{lang}")
    corpus = dataclasses.replace(corpus, data=raw)
    options = ["-s", "en", "-t", "de", "--dataset-impl", "raw", "--print-alignment", "--unkpen", -2, "--max-len-b", 8]
    output = generate(corpus, trained / "checkpoint_last.pt", *options, "--replace-unk", "")
    plain = generate(corpus, trained / "checkpoint_last.pt", *options)
    sources = {m[1]: m[2].split() for m in re.finditer(r"^S-(\d+)\t(.*)$", output, re.M)}
    replaced = {m[1]: m[2].split() for m in re.finditer(r"^H-(\d+)\t[^\t]*\t(.*)$", output, re.M)}
    unknown = {m[1]: m[2].split() for m in re.finditer(r"^H-(\d+)\t[^\t]*\t(.*)$", plain, re.M)}
    alignment = {
        m[1]: {int(b): int(a) for a, b in (p.split("-") for p in m[2].split())}
        for m in re.finditer(r"^A-(\d+)\t(.*)$", plain, re.M)
    }
    seen = 0
    for index, words in unknown.items():
        for position, word in enumerate(words):
            if word == "<unk>":
                source = [*sources[index], "<eos>"]
                assert replaced[index][position] == source[alignment[index][position]]
                seen += 1
    assert seen > 0, "no word was unknown"


def _hydra(corpus: Corpus, save: Path, *overrides: Any) -> str:
    return run_command(
        *(
            "fairseq-hydra-train",
            "--config-dir",
            ROOT / "configs" / "translation",
            "--config-name",
            "translation",
        ),
        *(
            f"common.user_dir={USER_DIR}",
            f"task.data={corpus.data}",
            f"checkpoint.save_dir={save}",
            "common.cpu=true",
        ),
        *(f"hydra.run.dir={save}/hydra", "common.seed=3", "dataset.max_tokens=200", "dataset.data_buffer_size=0"),
        *("dataset.num_workers=0", "common.log_interval=1", "optimization.lr=[0.01]"),
        *("lr_scheduler.warmup_updates=4", "optimizer.adam_betas='(0.9,0.999)'", *overrides),
    )


def test_both_command_lines_train_the_same_model_and_resume(corpus: Corpus, tmp_path: Path) -> None:
    options = {}
    for name, value in zip(TINY, [*TINY[1:], None], strict=True):
        if name.startswith("--"):
            options[name[2:].replace("-", "_")] = "true" if value is None or value.startswith("--") else value
    model = [f"++model.{key}={value}" for key, value in options.items()]
    untied = ["model._name=luna_base_untied", *model]

    argparse_log = train(corpus, tmp_path / "argparse", "--max-update", 4, arch="luna_base_untied")
    first = _hydra(corpus, tmp_path / "hydra", *untied, "optimization.max_update=2")
    second = _hydra(corpus, tmp_path / "hydra", *untied, "optimization.max_update=4")
    assert "Loaded checkpoint" in second
    assert logged(argparse_log, "loss") == logged(first, "loss") + logged(second, "loss")
    states = [torch.load(tmp_path / kind / "checkpoint_last.pt") for kind in ("argparse", "hydra")]
    assert states[0]["cfg"]["model"] == states[1]["cfg"]["model"]
    assert states[0]["cfg"]["model"]["untie_luna_kv"] is True
    for name, value in states[0]["model"].items():
        if not name.endswith("version"):
            assert torch.equal(value, states[1]["model"][name]), name
