"""scripts/language_model.sh from raw text to the table, on tiny files; the table alone."""

import json
import random
from pathlib import Path

import pytest

from luna_fairseq.results import language_model
from support.running import ROOT, run_script

WORDS = "the a small old cat dog house man woman sees finds loves red green and".split()
LOG = """\
[fairseq_cli.train] num. shared model params: 4,967,424 (num. trained: 4,967,424)
[train_inner] | epoch 001: loss=5, ppl=1.5, wps=203, lr=1
[train_inner] | epoch 001: loss=5, wps=300.7, lr=1
[train_inner] | epoch 002: loss=5, wps=100, lr=1
[valid] | epoch 001 | valid on 'valid' subset | loss 5 | ppl 120.5 | wps 700
[valid] | epoch 002 | valid on 'valid' subset | loss 5 | ppl 99.75 | wps 700
[valid] | epoch 003 | valid on 'valid' subset | loss 5 | ppl 101.2 | wps 700
"""


def test_table(tmp_path: Path) -> None:
    """Only finished trainings are told of, also under a TAG; a Transformer carries nothing."""
    scores = {"blocks": 99.8, "window": 95.25}
    for name, done in (
        ("wikitext2_transformer", True),
        ("wikitext2_luna_tied_32-hour", True),
        ("wikitext2_luna_tied_32", False),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.log").write_text(LOG)
        if done:
            (folder / ".trained").touch()
    (tmp_path / "wikitext2_transformer" / "perplexity.json").write_text(json.dumps(scores))
    lines = language_model.table(tmp_path, ROOT / "configs" / "language_model").splitlines()
    assert lines[0].startswith("| config | validation perplexity in training | in blocks |")
    assert "| wikitext2_transformer | 99.75 | 99.8 | 95.25 |  |  |  | 4,967,424 | 203 |" in lines
    assert "| wikitext2_luna_tied_32 | not run |  |  |  |  |  |  |  |" in lines
    assert (
        "| wikitext2_luna_tied_32-hour | 99.75 | not run | not run | not run | not run | not run | 4,967,424 | 203 |"
        in lines
    )
    with pytest.raises(ValueError, match=r"has no \*\.yaml"):
        language_model.table(tmp_path, tmp_path)


@pytest.mark.long
def test_from_text_to_the_table(tmp_path: Path) -> None:
    generator = random.Random(4)
    text = tmp_path / "text"
    text.mkdir()
    for split, lines in (("train", 60), ("valid", 20)):
        sentences = (" ".join(generator.choice(WORDS) for _ in range(8)) for _ in range(lines))
        (text / f"{split}.txt").write_text("".join(f"{sentence}\n" for sentence in sentences))
    script = "scripts/language_model.sh"
    said = run_script(tmp_path / "out", script, "train", "wikitext2_transformer", code=1)
    assert "no data in" in said and "prepare FOLDER" in said
    assert "prepared" in run_script(tmp_path / "out", script, "prepare", text)
    assert "already prepared" in run_script(tmp_path / "out", script, "prepare", text)
    names = ["wikitext2_luna_tied_32_carry", "wikitext2_transformer"]
    said = run_script(tmp_path / "out", script, "score", names[0], code=1)
    assert "is not trained" in said
    assert run_script(tmp_path / "out", script, "train", *names).count("num_updates 2") >= 2
    assert "already trained" in run_script(tmp_path / "out", script, "train", names[0])
    run_script(tmp_path / "out", script, "score", *names)
    for name, kinds in zip(names, (list(language_model.KINDS), ["blocks", "window"]), strict=True):
        found = json.loads((tmp_path / "out" / "smoke" / name / "perplexity.json").read_text())
        assert list(found) == kinds and all(10 < value < 200 for value in found.values())
    rows = run_script(tmp_path / "out", script, "table").splitlines()
    assert next(line for line in rows if "luna_tied_32_carry" in line).count(" SMOKE ") == 8
    assert next(line for line in rows if "_transformer |" in line).count(" SMOKE ") == 5
    assert "| wikitext2_luna_untied_32 | not run |" in "\n".join(rows)
    assert "choose one of" in run_script(tmp_path / "out", script, "train", "nothing", code=1)
