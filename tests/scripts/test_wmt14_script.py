"""scripts/wmt14.sh from small archives, with the layout of the real ones, to the table."""

import json
import re
from pathlib import Path

import pytest

from support.running import run_script


@pytest.mark.long
def test_from_archives_to_the_table(wmt14_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published recipe; test_readme.py runs the other one."""
    settings = {"SOURCE": wmt14_archives, "CHECKSUMS": wmt14_archives / "SHA256SUMS"}
    for name, value in {**{f"WMT14_{key}": value for key, value in settings.items()}, "RECIPE": "moses"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("WORKERS", "1")
    script, config = "scripts/wmt14.sh", "wmt14_luna_untied_32_elu"
    assert "run 'scripts/wmt14.sh download' first" in run_script(tmp_path, script, "prepare", code=1)
    assert "commoncrawl: 125 sentence pairs" in run_script(tmp_path, script, "download")
    raw = tmp_path / "smoke" / "raw"
    assert (raw / "test.en").read_text().splitlines()[0] == "the &quot;cat&quot; <b>"
    said = run_script(tmp_path, script, "prepare")
    assert "1 in the held-out sets" in said and "1 empty" in said and "times as long as the other side" in said
    assert "does not exist: run 'scripts/wmt14.sh train" in run_script(tmp_path, script, "average", config, code=1)
    assert "valid on 'valid' subset" in run_script(tmp_path, script, "train", config)
    assert "already trained" in run_script(tmp_path, script, "train", config)
    run_script(tmp_path, script, "average", config)
    monkeypatch.setenv("LENPEN", "1.0")
    run_script(tmp_path, script, "generate", config)
    assert len((tmp_path / "smoke" / f"{config}.moses" / "test.1.0.de").read_text().splitlines()) == 11
    assert '"signature": "nrefs:1|case:mixed' in run_script(tmp_path, script, "score", config)
    card = (tmp_path / "smoke" / f"{config}.moses" / "average.md").read_text()
    assert re.search(
        r"- newstest2014: BLEU [\d.]+, `nrefs:1\|case:mixed.*\n- newstest2014: tokenised-BLEU [\d.]+", card
    )
    table = run_script(tmp_path, script, "table")
    row = next(line for line in table.splitlines() if line.startswith("| Luna-32 untied, elu |"))
    assert "not run" not in row and "| 27.6, 77.6M |" in row and row.count(" SMOKE |") == 2
    assert table.count("not run | not run") == 9 and "nrefs:1" in table
    assert "choose one of" in run_script(tmp_path, script, "train", "nothing", code=1)
    # Scores are those of the average that is there.
    with open(tmp_path / "smoke" / f"{config}.moses" / "average.pt", "ab") as file:
        file.write(b"another")
    assert f"run 'scripts/wmt14.sh generate {config}' first" in run_script(tmp_path, script, "score", config, code=1)
    assert run_script(tmp_path, script, "table").count("not run | not run") == 10


@pytest.mark.long
def test_the_length_penalty_is_tuned(wmt14_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMT14_SOURCE", str(wmt14_archives))
    monkeypatch.setenv("WMT14_CHECKSUMS", str(wmt14_archives / "SHA256SUMS"))
    config = "wmt14_transformer_adam"
    for command in (
        "download",
        "prepare",
        f"train {config}",
        f"average {config}",
        f"tune {config}",
        f"generate {config}",
    ):
        said = run_script(tmp_path, "scripts/wmt14.sh", *command.split())
        if command.startswith("tune"):
            tuned = said
    scores = {
        line.split("length penalty ")[1][:3]: json.loads(line.split(": ", 1)[1])[0]["score"]
        for line in tuned.splitlines()
        if "{" in line
    }
    best = (tmp_path / "smoke" / f"{config}.sentencepiece" / "lenpen").read_text().strip()
    assert sorted(scores) == ["0.4", "0.6", "0.8", "1.0", "1.2"] and scores[best] == max(scores.values())
    assert f"test.{best}.de" in said
