"""luna-fairseq plot reads fairseq's logs, in every format that says it all."""

from pathlib import Path

import pytest

from luna_fairseq.commands.plot import lines_of, read_run
from support.running import Corpus, run_command, train

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
    command = ["plot", tmp_path / "run", "--output", tmp_path / "a.svg"]
    said = run_command("luna-fairseq", *command)
    assert said == f"run: loss 6.4, ppl 90.5, accuracy 33.5; 2.00 s an update\nwrote {tmp_path}/a.svg\n"
    first = (tmp_path / "a.svg").read_text()
    assert "<svg" in first
    run_command("luna-fairseq", *command, "--panels", "ppl", "--against", "updates", "minutes")
    assert (tmp_path / "a.svg").read_text() != first
    said = run_command("luna-fairseq", *command, "--words-per-second", "1", "2", code=2)
    assert "2 speeds for 1 runs: give one for each" in said


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra of the scripts, not of the tests")
    (tmp_path / "valid.log").write_text(LOG.splitlines()[1])
    output = ["--output", tmp_path / "a.svg"]
    for name, message in (
        ("none.log", f"{tmp_path}/none.log does not exist: name one that does"),
        ("valid.log", "the log of valid says no ups of a training: name one with more updates"),
    ):
        said = run_command("luna-fairseq", "plot", tmp_path / name, *output, "--against", "minutes", code=1)
        assert said == f"luna-fairseq plot: {message}\n"
        assert not (tmp_path / "a.svg").exists()
    said = run_command("luna-fairseq", "plot", tmp_path / "valid.log", *output)
    assert said.endswith(f"\nwrote {tmp_path}/a.svg\n") and "s an update" not in said
