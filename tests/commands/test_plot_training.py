"""scripts/plot_training.py reads fairseq's logs, in every format that says it all."""

import subprocess
import sys
from pathlib import Path

import pytest

from plot_training import lines_of, read_run
from support.running import ROOT, Corpus, train

INNER, VALID = "[2026-01-02][train_inner][INFO] - epoch 001:  ", "[2026-01-02][valid][INFO] - epoch 001"
LOG = f"""{INNER} 100 / 145 loss=9.4, ppl=496.88, wps=1000, ups=0.5, wpb=2000, num_updates=100, lr=1e-05, gnorm=1.5
{VALID} | valid on 'valid' subset | loss 8.4 | ppl 225.76 | wps 5898 | wpb 2 | num_updates 100
{INNER} 200 / 145 loss=nan, ppl=400.88, wps=10, ups=0.25, wpb=2000, num_updates=200, lr=2e-05
{INNER} 200 / 145 loss=9.3, ppl=400.88, wps=10, ups=0.25, wpb=2000, num_updates=200, lr=2e-05
{INNER} 300 / 145 loss=9.3, ppl=400.88, wps=10, ups=0.5, wpb=2000, num_updates=300, lr=3e-05
{VALID} | valid on 'valid' subset | loss 6.4 | ppl 90.5 | accuracy 33.5 | best_loss 6 | num_updates 300
"""


def test_read_run(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG)
    run = read_run(tmp_path)
    assert lines_of(run, "ppl") == [
        ("train", {100: 496.88, 200: 400.88, 300: 400.88}),
        ("valid", {100: 225.76, 300: 90.5}),
    ]
    assert lines_of(run, "accuracy") == [("valid", {300: 33.5})]
    assert lines_of(run, "lr") == [("train", {100: 1e-5, 200: 2e-5, 300: 3e-5})]
    assert lines_of(run, "wps") == [("train", {100: 1000, 200: 10, 300: 10})]  # not validation's
    assert run.train["loss"][200] == 9.3
    assert (run.seconds(), run.seconds(4000.0)) == (2.0, 0.5)
    (tmp_path / "empty.log").write_text("nothing\n")
    with pytest.raises(ValueError, match="says nothing of a training"):
        read_run(tmp_path / "empty.log")


@pytest.mark.parametrize("form", ["json", "tqdm"])
def test_logs_of_fairseq(form: str, corpus: Corpus, tmp_path: Path) -> None:
    """What a real run prints."""
    options = ["--max-update", 3, "--log-interval", 1, "--log-format", form, "--no-save"]
    said = train(corpus, tmp_path / "run", *options)
    (tmp_path / "it.log").write_text(said)
    run = read_run(tmp_path / "it.log")
    for panel in ("loss", "ppl", "lr", "wps"):
        for split, values in lines_of(run, panel):
            assert list(values)[-1] == 3 and values[3] > 0, (panel, split)
    assert [split for split, _ in lines_of(run, "ppl")] == ["train", "valid"]
    assert run.seconds() > 0


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra of the scripts, not of the tests")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").write_text(LOG)
    command = [sys.executable, "scripts/plot_training.py", str(tmp_path / "run"), "--output", str(tmp_path / "a.svg")]
    usual = dict(cwd=ROOT, capture_output=True, text=True, timeout=120)
    done = subprocess.run(command, check=True, **usual)  # type: ignore[call-overload]
    assert "run: loss 6.4, ppl 90.5, accuracy 33.5; 2.00 s an update" in done.stdout and done.stderr == ""
    first = (tmp_path / "a.svg").read_text()
    assert "<svg" in first
    subprocess.run([*command, "--panels", "ppl", "--against", "updates", "minutes"], check=True, **usual)  # type: ignore[call-overload]
    assert (tmp_path / "a.svg").read_text() != first
    done = subprocess.run([*command, "--words-per-second", "1", "2"], check=False, **usual)  # type: ignore[call-overload]
    assert done.returncode == 2 and "2 speeds for 1 runs: give one for each" in done.stderr
