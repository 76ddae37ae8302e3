"""scripts/plot_perplexity.py reads fairseq's log."""

import subprocess
import sys
from pathlib import Path

import pytest

from commands import ROOT
from plot_perplexity import read_log

LINE = "[2026-01-02 03:04:05,678]"
LOG = f"""{LINE}[train_inner][INFO] - epoch 001:    100 / 145 loss=9.4, ppl=496.88, wps=1000, ups=0.5, wpb=2000, bsz=8
{LINE}[valid][INFO] - epoch 001 | valid on 'valid' subset | loss 8.4 | ppl 225.76 | wps 5898 | wpb 2 | num_updates 100
{LINE}[train_inner][INFO] - epoch 001:    200 / 145 loss=9.3, ppl=400.88, wps=10, ups=0.25, wpb=2000, bsz=8
{LINE}[train_inner][INFO] - epoch 001:    300 / 145 loss=9.3, ppl=400.88, wps=10, ups=0.5, wpb=2000, bsz=8
{LINE}[valid][INFO] - epoch 002 | valid on 'valid' subset | loss 6.4 | ppl 90.5 | best_loss 6 | num_updates 300
"""


def test_read_log(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG)
    assert read_log(tmp_path / "train.log", 0.0) == ([100, 300], [225.76, 90.5], 2.0)
    assert read_log(tmp_path / "train.log", 4000.0)[2] == 0.5
    (tmp_path / "empty.log").write_text("nothing\n")
    with pytest.raises(ValueError, match="train first"):
        read_log(tmp_path / "empty.log", 0.0)


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra of the scripts, not of the tests")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").write_text(LOG)
    command = [
        sys.executable,
        ROOT / "scripts" / "plot_perplexity.py",
        tmp_path / "run",
        "--output",
        tmp_path / "a.svg",
    ]
    subprocess.run(command, check=True, timeout=120)
    assert "<svg" in (tmp_path / "a.svg").read_text()
