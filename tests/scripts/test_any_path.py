"""The scripts work wherever the clone and the data lie, whatever the folder is called."""

import os
import string
import subprocess
from pathlib import Path
from typing import Any

import pytest

from luna_fairseq.data.demo.corpus import generate
from support.forks import path_variable
from support.running import ROOT

# All that can stand in a name, but for what check_path in experiment.sh refuses.
NAME = "".join(character for character in string.printable if character.isprintable() and character not in "/:")
ODD = f"a {NAME} jürgen\t[x]* $y \\' ' \\"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What stands for a clone in such a folder, with the text of Multi30k."""
    folder = tmp_path / ODD
    (folder / "text").mkdir(parents=True)
    for name in ("scripts", "configs", "luna_fairseq"):
        (folder / name).symlink_to(ROOT / name)
    pairs = generate(460, 1)
    for split, count in (("train", 430), ("val", 20), ("test_2016_flickr", 10)):
        for language in ("en", "de"):
            text = "".join(f"{getattr(pair, language)}\n" for pair in pairs[:count])
            (folder / "text" / f"{split}.{language}").write_text(text, encoding="utf-8")
        pairs = pairs[count:]
    return folder


def _run(clone: Path, *arguments: Any, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [str(clone / arguments[0]), *map(str, arguments[1:])],
        cwd=clone, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OUT": "out", "SMOKE": "1", "THREADS": "1", "PATH": path_variable(), **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.long
def test_translation(clone: Path) -> None:
    """Prepared, trained, averaged, translated and scored; a second training knows the first by its options."""
    script, name = "scripts/multi30k.sh", "multi30k_luna_tied_16_adam"
    assert f"prepared: {clone}/out/smoke/data-bin" in _run(clone, script, "prepare", "text")
    assert "valid on 'valid' subset" in _run(clone, script, "train", name)
    assert f"already trained: {clone}/out/smoke/{name}" in _run(clone, script, "train", name)
    assert f"{name}: BLEU " in _run(clone, script, "score", name)
    row = next(line for line in _run(clone, script, "table").splitlines() if line.startswith(f"| {name} |"))
    assert row.count(" SMOKE |") == 5
    assert (clone / "out" / "smoke" / name / "hydra" / ".hydra").is_dir()
    assert not {path.name for path in clone.iterdir()} - {"scripts", "configs", "luna_fairseq", "text", "out"}

    # The same sentences, joined into documents.
    long = {"OUT": "long", "FROM": "out", "LENGTH": "100"}
    assert f"prepared: {clone}/long/smoke/data-bin" in _run(clone, "scripts/documents.sh", "prepare", **long)
    assert "already prepared" in _run(clone, "scripts/documents.sh", "prepare", **long)
    said = _run(clone, "scripts/documents.sh", "prepare", code=1, **{**long, "LENGTH": "50"})
    assert "holds data made with LENGTH=100, and not with LENGTH=50: set OUT to another folder" in said
    lengths = [
        len(line.split()) for line in (clone / "long" / "smoke" / "text" / "train.en").read_text().splitlines()
    ]
    assert len(lengths) < 200 and 80 < max(lengths) < 100

    # Pretrained by denoising, and fine-tuned on a few of the pairs.
    few = {"OUT": "few", "FROM": "out", "PAIRS": "50"}
    (clone / "more").mkdir()
    (clone / "more" / "train.txt").write_text("the cat sees\n\nthe dog runs\n" * 20)
    script = "scripts/denoising.sh"
    assert f"prepared: {clone}/few/smoke/data-bin" in _run(clone, script, "prepare", "more", **few)
    assert "already prepared" in _run(clone, script, "prepare", "more", **few)
    said = _run(clone, script, "finetune", "luna_tied_16", code=1, **few)
    assert "denoising_luna_tied_16 is not trained: run " in said
    for command in ("pretrain", "scratch", "finetune"):
        assert "valid on 'valid' subset" in _run(clone, script, command, "luna_tied_16", **few)
    log = (clone / "few" / "smoke" / "pairs_luna_tied_16-denoised" / "train.log").read_text()
    assert "loading pretrained model from" in log and "is left out" not in log
    said = _run(clone, script, "score", "luna_tied_16", **few)
    assert "pairs_luna_tied_16: BLEU " in said and "pairs_luna_tied_16-denoised: BLEU " in said
    assert "| pairs_luna_tied_16-denoised | " in _run(clone, script, "table", **few)
    (text,) = (clone / "few" / "smoke" / "text").glob("train.en")
    assert len(text.read_text().splitlines()) == 50

    # Another model learns from its translations.
    distill = {"OUT": "distilled", "FROM": "out", "FILTER_OPTIONS": "--ratio 1000"}
    assert "part 2 of 2" in _run(clone, "scripts/distill.sh", "translate", name, **distill)
    assert "translating" not in _run(clone, "scripts/distill.sh", "translate", name, **distill)
    said = _run(clone, "scripts/distill.sh", "filter", **distill)
    assert "translations kept" in said and f"prepared: {clone}/distilled/smoke/data-bin" in said
    other = {**distill, "FILTER_OPTIONS": ""}
    assert "holds data made with FILTER_OPTIONS=--ratio 1000, and" in _run(
        clone, "scripts/distill.sh", "filter", code=1, **other
    )
    folders = [clone / out / "smoke" / "data-bin" / "dict.de.txt" for out in ("out", "distilled")]
    assert folders[0].read_bytes() == folders[1].read_bytes()
    _run(clone, "scripts/distill.sh", "train", "multi30k_luna_untied_16_adam", **distill)
    said = _run(clone, "scripts/distill.sh", "score", "multi30k_luna_untied_16_adam", **distill)
    assert "multi30k_luna_untied_16_adam: BLEU " in said
    assert "| multi30k_luna_untied_16_adam | " in _run(clone, "scripts/distill.sh", "table", **distill)
    with open(clone / "out" / "smoke" / name / "average.pt", "ab") as model:
        model.write(b"x")
    assert "holds translations of another teacher" in _run(
        clone, "scripts/distill.sh", "translate", name, code=1, **distill
    )


@pytest.mark.long
def test_classification(clone: Path) -> None:
    pytest.importorskip("sklearn", reason="of the extra lra")
    said = _run(clone, "scripts/lra.sh", "row", "digits", "luna_16")
    assert '{"config": "digits", "layers": "luna_16", "tag": "", "accuracy": ' in said


@pytest.mark.long
def test_several_processes(clone: Path) -> None:
    """By torchrun.sh."""
    _run(clone, "scripts/multi30k.sh", "prepare", "text")
    environment = {"CONFIG": "translation/translation", "DATA": "out/smoke/data-bin", "CPU": "1", "PROCESSES": "1"}
    done = subprocess.run(
        [str(clone / "scripts" / "torchrun.sh")], cwd=clone, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OUT": "run", "SMOKE": "1", "PATH": path_variable(), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "run" / "smoke" / "checkpoints" / "checkpoint_last.pt").exists()
