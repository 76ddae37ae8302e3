"""``luna-fairseq score`` gives the scores of sacreBLEU's own command."""

import json
import subprocess
from pathlib import Path
from typing import Tuple

import pytest

from luna_fairseq.commands.score import main, read, tokenised
from support.forks import commands
from support.running import run_command


def _sacrebleu(folder: Path, *options: str) -> Tuple[float, str]:
    """The score of ``folder/hyp`` by the command, and its signature."""
    command = [commands() / "sacrebleu", folder / "ref", "-i", folder / "hyp", "-w", "2", *options]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found["score"], found["signature"]


def test_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenised(['Der "Katzen-Hund" läuft, ja.'], "de") == ['Der " Katzen ##AT##-##AT## Hund " läuft , ja .']
    (tmp_path / "ref").write_text("Der Katzen-Hund läuft heute .\nEin Mann und eine Frau .\n")
    (tmp_path / "hyp").write_text("Der Katzen-Mann läuft heute .\nEin Mann und eine Frau .\n")
    assert main("it", [str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found[0]["score"], found[0]["signature"]) == _sacrebleu(tmp_path)
    for name in ("ref", "hyp"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("-", " ##AT##-##AT## "))
    assert found[1]["score"] == _sacrebleu(tmp_path, "--tokenize", "none", "--force")[0] != found[0]["score"]
    (tmp_path / "hyp").write_text("Der Katzen-Hund läuft heute .\n")
    assert main("it", [str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 1
    assert "give a translation of every sentence" in capsys.readouterr().err


def test_a_line_ends_at_its_line_feed_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("Ein\rHund .\r\nEin\u2028Mann .\n".encode())
    assert read(tmp_path / "text") == ["Ein\rHund .", "Ein\u2028Mann ."]


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xfc\n")
    said = run_command("luna-fairseq", "score", tmp_path / "latin", tmp_path / "latin", code=1)
    assert said == f"luna-fairseq score: {tmp_path}/latin is not UTF-8: convert the file\n"
