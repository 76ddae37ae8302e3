"""scripts/demo.sh: every step, on a tiny corpus."""

from pathlib import Path

import pytest

from support.running import run_script


@pytest.mark.long
def test_demo(tmp_path: Path) -> None:
    """To a BLEU score and ten translations; a second run trains no more, and says the same."""
    said = run_script(tmp_path, "scripts/demo.sh")
    assert [f"{n}/7" in said for n in range(1, 8)] == [True] * 7
    assert "tok:13a" in said and "The corpus is synthetic" in said
    for kind in ("source", "reference", "translation"):
        assert sum(line.startswith(f"{kind} ") for line in said.splitlines()) == 10
    for name in ("averaged.pt", "averaged.md", "spm.model", "bin/dict.en.txt", "translations.de"):
        assert (tmp_path / name).exists(), name
    progress = said.split("4/7")[1].split("\n== 5/7")[0].splitlines()[1:]
    assert progress and all(line.startswith("update ") for line in progress)
    assert any("validation loss=" in line for line in progress)
    again = run_script(tmp_path, "scripts/demo.sh")
    assert "already done" in again.split("4/7")[1].split("5/7")[0]
    assert "without the training" in again and "without the training" not in said
    assert said.split("7/7")[1].split("corpus  ")[0] == again.split("7/7")[1].split("corpus  ")[0]
