"""scripts/experiment.sh: what the experiment scripts share."""

import json
import os
from pathlib import Path

import pytest

from support.running import ROOT, run_script
from support.shell import run_shell
from support.stub import stubs

VALIDATE = """logged() {
  echo "valid on 'valid' subset | loss 0.6 | accuracy 50.1 | wps 3" > "$1"
  echo "valid on 'valid' subset | loss 0.6 | nll_loss 0.1 | accuracy %s | wps 3" >> "$1"
}
has_gpu() { return 1; }
"""


@pytest.mark.parametrize(("logged", "accuracy"), [("79.7", 79.7), ("53", 53.0)])
@pytest.mark.parametrize("tag", ["", "lr4e-3", 'a"b', "a\\b=c", "two  words\ta tab"])
def test_the_accuracy_is_kept_beside_its_keys(tag: str, logged: str, accuracy: float, tmp_path: Path) -> None:
    """In JSON, of the last line that has one."""
    evaluate = 'evaluate "$1" data valid config=a from=b "tag=$2" -- --task x'
    said = run_shell(f"{VALIDATE % logged}{evaluate}", tmp_path, tag)
    assert said == (tmp_path / "result.json").read_text()
    assert said == json.dumps({"config": "a", "from": "b", "tag": tag, "accuracy": accuracy}) + "\n"


def test_no_accuracy(tmp_path: Path) -> None:
    validate = VALIDATE.replace("accuracy", "ppl") % 3
    said = run_shell(f'{validate}evaluate "$1" data valid config=a -- --task x', tmp_path, code=1)
    assert said == f"it: evaluation failed: no accuracy in {tmp_path}/validate.log\n"
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("0", "none\n"),
        ("2", "2 GPUs\n"),
        ("killed", "it: python did not say whether there is a GPU (exit code 137): see if it can import torch, and "),
        ("ImportError x", "it: python did not say whether there is a GPU (exit code 0, ImportError x): see if it "),
    ],
)
def test_a_question_for_gpus_without_an_answer_is_no_none(answer: str, said: str, tmp_path: Path) -> None:
    """A training would go on the CPU for days."""
    path = f"{stubs(tmp_path / 'stubs')}:{os.environ['PATH']}"
    code = 0 if answer.isdigit() else 1
    ask = 'if has_gpu; then echo "$GPUS GPUs"; else echo none; fi'
    found = run_shell(ask, code=code, PATH=path, GPU=answer)
    assert found.startswith(said) and found.count("\n") == 1


@pytest.mark.parametrize("indent", [None, 1])
def test_a_value_of_a_score(indent: int, tmp_path: Path) -> None:
    scores = [{"name": "BLEU", "score": 26.5, "signature": "nrefs:1|case:mixed"}, {"name": "other", "score": 27}]
    (tmp_path / "score.json").write_text(json.dumps(scores, indent=indent))
    values = "".join(f'json_value "$1/score.json" {key}\n' for key in ("score", "signature", "name"))
    assert run_shell(values, tmp_path) == "26.5\nnrefs:1|case:mixed\nBLEU\n"


@pytest.mark.parametrize(
    "script", ["wmt14", "multi30k", "masked_lm", "language_model", "distill", "documents", "denoising"]
)
def test_anything_else_than_a_command_is_answered_with_the_head_of_the_script(script: str, tmp_path: Path) -> None:
    text = (ROOT / "scripts" / f"{script}.sh").read_text()
    head = text.split("\n", 1)[1].split("\nset -euo")[0]
    usage = "".join(f"{line.removeprefix('#').removeprefix(' ')}\n" for line in head.split("\n"))
    for command in ([], ["nothing"], ["table table"], ["fail"]):
        assert run_script(tmp_path, f"scripts/{script}.sh", *command, code=2) == usage


def test_progress_is_told_at_once(tmp_path: Path) -> None:
    """Into a file or a pipe, too: what updates has read is not kept back until there is more."""
    told = """
      mkfifo "$1/log"
      updates < "$1/log" > "$1/told" &
      exec 3> "$1/log"
      printf 'nothing\n[train_inner] %0200d\n' 7 >&3
      for _ in {1..100}; do [ -s "$1/told" ] && break; sleep 0.05; done
      cat "$1/told"
      exec 3>&-
      wait
    """
    assert run_shell(told, tmp_path) == f"[train_inner] {'0' * 146}\n"


def test_translations_are_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("S-1\tx\nD-10\t-0.1\tthird\nH-2\t-1\tno\nD-2\t-0.3\tsecond\nD-0\t-1\tfirst one\n")
    (tmp_path / "reference").write_text("a\nb\nc\n")
    command = '. scripts/translation.sh; take_translations "$1/log" "$1/reference" "$1/to"'
    assert run_shell(command, tmp_path) == ""
    assert (tmp_path / "to").read_text() == "first one\nsecond\nthird\n"
    (tmp_path / "to").unlink()
    (tmp_path / "reference").write_text("a\nb\n")
    assert run_shell(command, tmp_path, code=1) == f"it: {tmp_path}/log does not hold every translation\n"
    assert not (tmp_path / "to").exists()
