"""scripts/experiment.sh: what the experiment scripts share."""

import json
from pathlib import Path

import pytest

from support.running import ROOT, run_script
from support.shell import run_shell

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


@pytest.mark.parametrize(("answer", "said"), [(0, "yes\n"), (10, "no\n")])
def test_torch_is_asked_for_a_gpu(answer: int, said: str, tmp_path: Path) -> None:
    assert run_shell(f"python() {{ return {answer}; }}; has_gpu && echo yes || echo no", tmp_path) == said


def test_a_torch_that_cannot_be_asked_has_not_said_no(tmp_path: Path) -> None:
    """One that is killed, or cannot be imported: a run would go to the CPU without a word."""
    said = run_shell("python() { return 137; }; has_gpu || echo no", tmp_path, code=137)
    assert said == "it: torch could not be asked for a GPU, see above (exit code 137): run it again\n"


def test_no_accuracy(tmp_path: Path) -> None:
    validate = VALIDATE.replace("accuracy", "ppl") % 3
    said = run_shell(f'{validate}evaluate "$1" data valid config=a -- --task x', tmp_path, code=1)
    assert said == f"it: evaluation failed: no accuracy in {tmp_path}/validate.log\n"
    assert not (tmp_path / "result.json").exists()


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
