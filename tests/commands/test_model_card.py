"""The model card beside an averaged checkpoint: true, scored, and never at the cost of somebody's own text."""

import os
import re
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from luna_fairseq.cli import main
from luna_fairseq.model_card import END, START
from luna_fairseq.models.luna import LunaModel
from support.forks import commands
from support.running import Corpus, train


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs."""
    save = tmp_path_factory.mktemp("run")
    train(corpus, save, "--max-epoch", 2, "--dropout", 0.2, arch="luna_base_untied")
    return save


def _average(run: Path, output: Path) -> str:
    assert main(["average", "--inputs", str(run), "--num-epoch-checkpoints", "2", "--output", str(output)]) == 0
    return output.with_suffix(".md").read_text()


def _rows(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (\w[\w ]*) \| (.*) \|$", card.split("fairseq loads it")[0], re.M))


def test_what_the_card_of_an_average_says(run: Path, corpus: Corpus, tmp_path: Path) -> None:
    card = _average(run, tmp_path / "average.pt")
    rows = _rows(card)
    hub = LunaModel.from_pretrained(str(tmp_path), "average.pt", data_name_or_path=str(corpus.data))
    # Weights that the embeddings share count once, and take no more room than in the checkpoints of the run.
    assert rows["parameters"] == f"{sum(p.numel() for p in hub.models[0].parameters()):,}"
    averaged = torch.load(tmp_path / "average.pt")
    shared = [name for name in averaged["model"] if "embed_tokens" in name or "output_projection" in name]
    assert len(shared) == 3 and len({averaged["model"][name].data_ptr() for name in shared}) == 1

    assert rows["architecture"].startswith("`luna_base_untied`, ")
    changed = dict(part.rsplit(" ", 1) for part in rows["architecture"].split(", ")[1:])
    assert changed["projection_length"] == "4" and changed["dropout"] == "0.2"
    assert "untie_luna_kv" not in changed and "activation_fn" not in changed and "max_source_positions" not in changed
    assert rows["task"] == "`translation`, en to de" and rows["data"] == f"`{corpus.data}`"
    assert rows["weights"] == "the mean of the 2 checkpoints below"
    assert "licence" in rows and f"torch {torch.__version__}" in rows["this card"]
    states = [torch.load(run / f"checkpoint{epoch}.pt") for epoch in (2, 1)]
    updates = [state["optimizer_history"][-1]["num_updates"] for state in states]
    losses = [state["extra_state"]["val_loss"] for state in states]
    assert rows["training"].startswith(f"{updates[0]} updates; epoch 2; ")
    assert "at most 200 tokens x update_freq 1 x world size 1; adam, lr [0.01]" in rows["training"]
    assert f"validation loss |\n|---|---|---|---|\n| checkpoint2.pt | 2 | {updates[0]} | {losses[0]} |\n" in card
    assert f"\n| checkpoint1.pt | 1 | {updates[1]} | {losses[1]} |\n" in card
    (config,) = re.findall(r"```yaml\n(.*?)```", card, re.S)
    assert OmegaConf.create(config) == OmegaConf.create(states[0]["cfg"])


def _card(path: Path, *options: Any) -> str:
    assert main(["card", str(path), *map(str, options)]) == 0
    return path.with_suffix(".md").read_text()


def test_scores(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "average.pt"
    empty = _average(run, path)
    assert "None yet" in empty
    (tmp_path / "ref").write_text("ein Hund sieht das alte Haus\nein Mann findet die Katze\n")
    (tmp_path / "hyp").write_text("ein Hund sieht das alte Haus\nein Mann findet rot die\n")
    command = [commands() / "sacrebleu", tmp_path / "ref", "-i", tmp_path / "hyp", "-m"]
    for name, metrics in (("one.json", ["bleu"]), ("two.json", ["bleu", "chrf"])):
        printed = subprocess.run([*command, *metrics], capture_output=True, text=True, check=True).stdout
        (tmp_path / name).write_text(printed)
    once = _card(path, "--score", tmp_path / "one.json", "--test-set", "newstest2014")
    (line,) = re.findall(r"^- .*$", once, re.M)
    assert re.fullmatch(r"- newstest2014: BLEU \d+\.\d+, `nrefs:1\|case:mixed\|eff:no\|tok:13a\|.*version:.*`", line)
    assert "None yet" not in once
    assert _card(path, "--score", tmp_path / "one.json", "--test-set", "newstest2014") == once
    assert _card(path) == once

    both = _card(path, "--score", tmp_path / "two.json", "accuracy 94.3", "--test-set", "newstest2014")
    assert [line.split()[2] for line in re.findall(r"^- .*$", both, re.M)] == ["BLEU", "chrF2", "accuracy"]
    signature = line.split("`")[1]
    more = _card(path, "--score", f"BLEU 1.5 {signature}", "BLEU 2.5 tok:none", "--test-set", "newstest2014")
    more = _card(path, "--score", f"BLEU 3.5 {signature}")
    assert re.findall(r"^- (.*: BLEU .*)$", more, re.M) == [
        f"newstest2014: BLEU 1.5, `{signature}`", "newstest2014: BLEU 2.5, `tok:none`",
        f"test: BLEU 3.5, `{signature}`",
    ]  # fmt: skip
    assert _average(run, path) == empty, "scores of other weights stayed"


def test_what_stands_around_the_card_stays(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "average.pt"
    own = _average(run, path)
    assert own.startswith(START) and own.rstrip().endswith(END)
    (tmp_path / "average.md").write_text(f"# Mine\n\n{own}\nLicence: CC BY 4.0\n")
    card = _card(path, "--score", "BLEU 27.5")
    assert card.startswith(f"# Mine\n\n{START}") and card.endswith(f"{END}\n\nLicence: CC BY 4.0\n")
    assert "- test: BLEU 27.5\n" in card
    assert _average(run, path) == f"# Mine\n\n{own}\nLicence: CC BY 4.0\n"


def test_another_file_is_not_written_over(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "average.md").write_text("my notes\n")
    command = ["average", "--inputs", str(run / "checkpoint1.pt"), "--output", str(tmp_path / "average.pt")]
    assert main(command) == 1
    assert "average.md would become the model card, and has something else in it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["average.md"]
    assert (tmp_path / "average.md").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--score", "27.5"],
            "--score is '27.5': give a file that sacrebleu has printed, or 'METRIC VALUE SIGNATURE'",
        ),
        (["--score", "BLEU high"], "--score is 'BLEU high'"),
        (["--score", "{folder}/no.json"], "no.json holds no score as sacrebleu prints it"),
        (["--score", "BLEU 27.5", "--test-set", "wmt14: test"], "--test-set is 'wmt14: test': give a name without a"),
    ],
)
def test_what_is_no_score_is_refused(
    options: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.json").write_text('{"bleu": 27.5}')
    before = _average(run, tmp_path / "average.pt")
    capsys.readouterr()
    assert main(["card", str(tmp_path / "average.pt"), *(o.format(folder=tmp_path) for o in options)]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "average.md").read_text() == before
    assert main(["card", str(tmp_path / "none.pt")]) == 1
    assert "there is no checkpoint" in capsys.readouterr().err


def test_card_of_a_single_checkpoint_with_a_namespace(run: Path, tmp_path: Path) -> None:
    """Checkpoints of old fairseq hold an argparse.Namespace, and say less."""
    state = torch.load(run / "checkpoint2.pt")
    model, task = state["cfg"].pop("model"), state["cfg"].pop("task")
    options = {**task, **model, "arch": "luna", "task": "translation", "lr": [0.25]}
    del state["extra_state"]["val_loss"], state["last_optimizer_state"]
    torch.save({**state, "args": Namespace(**options), "cfg": None}, tmp_path / "old.pt")
    card = _card(tmp_path / "old.pt")
    rows = _rows(card)
    assert rows["architecture"].startswith("`luna`, ") and "untie_luna_kv True" in rows["architecture"]
    assert rows["task"] == "`translation`, en to de" and rows["weights"] == "of one checkpoint"
    assert re.search(r"^\| old\.pt \| 2 \| \d+ \|  \|$", card, re.M)


def test_a_name_that_is_in_no_encoding(run: Path, tmp_path: Path) -> None:
    """As a folder with an umlaut of a training with LC_ALL=C and PYTHONUTF8=0: the card has the bytes of the name."""
    name = b"gr\xf6\xdfe"
    state = torch.load(run / "checkpoint2.pt")
    state["cfg"]["task"]["data"] = os.fsdecode(name)
    torch.save(state, tmp_path / "x.pt")
    for _ in range(2):  # the second one reads it, too
        assert main(["card", str(tmp_path / "x.pt")]) == 0
    assert name in (tmp_path / "x.md").read_bytes()
