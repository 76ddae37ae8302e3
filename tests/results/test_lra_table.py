"""``luna-fairseq table lra``: the paper's figures, and what is in the folder."""

import json
from pathlib import Path

import pytest

from luna_fairseq import cli

RUNS = (
    ("listops", "luna_16", "", 37.512),
    ("listops", "luna_16", "3k", 36.1),
    ("text", "luna_16", "", 64.0),
    ("retrieval", "luna_16", "", 79.125),
    ("image", "luna_16", "", 46),
    ("pathfinder", "luna_16", "", 78.333),
    ("image", "luna_256", "other", 40.0),
    ("pathfinder128", "luna_128", "", 50.05),
    ("digits", "transformer", "", 91.2),
    ("digits", "luna_256", "other", 90.0),
    ("digits", "luna_16_bias", "", 95.0),
    ("text", "luna_16_bias", "", 61.0),
    ("text_small", "luna_16", "", 60.0),
)
TABLE = """\
Test accuracy: the paper's figure and (ours).

| | ListOps | Text | Retrieval | Image | Pathfinder | average |
|---|---|---|---|---|---|---|
| Transformer | 37.11 (?) | 65.21 (?) | 79.14 (?) | 42.94 (?) | 71.83 (?) | 59.24 (?) |
| Luna-16 | 37.43 (37.51, 36.10 3k) | 65.74 (64.00) | 79.38 (79.12) | 46.39 (46.00) | 78.36 (78.33) | 61.46 (60.99) |
| Luna-16 with a position bias | - (?) | - (61.00) | - (?) | - (?) | - (?) | - (?) |
| Luna-128 | 38.01 (?) | 65.74 (?) | 79.55 (?) | 47.47 (?) | 78.89 (?) | 61.93 (?) |
| Luna-256 | 37.98 (?) | 65.78 (?) | 79.56 (?) | 47.86 (40.00 other) | 78.55 (?) | 61.95 (?) |

Of these the paper has no figures (Path-X: no model learned anything).

| | Path-X | ListOps, 64 to 256 tokens | Text, 1,000 bytes | Image, few updates | Pathfinder, few updates | digits |
|---|---|---|---|---|---|---|
| Transformer | ? | ? | ? | ? | ? | 91.20 |
| Luna-16 | ? | ? | 60.00 | ? | ? | ? |
| Luna-16 with a position bias | ? | ? | ? | ? | ? | 95.00 |
| Luna-128 | 50.05 | ? | ? | ? | ? | ? |
| Luna-256 | ? | ? | ? | ? | ? | 90.00 other |
""".replace("?", "not run")


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config, layers, tag, accuracy in RUNS:
        folder = tmp_path / f"{config}.{layers}{tag}"
        folder.mkdir()
        result = {"config": config, "layers": layers, "tag": tag, "accuracy": accuracy}
        (folder / "result.json").write_text(json.dumps(result))
    assert cli.main(["table", "lra", str(tmp_path)]) == 0
    assert capsys.readouterr().out == TABLE
