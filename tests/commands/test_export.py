"""luna-fairseq export and import: the same parameters bit for bit, and nothing of anybody's written over."""

import json
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from fairseq import checkpoint_utils
from torch import Tensor

from luna_fairseq.cli import main
from luna_fairseq.models.luna import LunaModel
from luna_fairseq.models.luna_bert import LunaBertModel
from support.pages import blocks, run, run_python, section, section_commands
from support.running import MASKED_LM, Corpus, LMCorpus, generate, train, train_bert

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytestmark = pytest.mark.long  # they train


@pytest.fixture(scope="module")
def checkpoint(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("run")
    train(corpus, save, "--max-update", 3, arch="luna_base_untied")
    return save / "checkpoint_best.pt"


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Path:
    out = checkpoint.parent / "exported"
    assert main(["export", str(checkpoint), "--format", "safetensors", "--out", str(out)]) == 0
    return out


def _same_bits(one: Dict[str, Tensor], other: Dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, x in one.items():
        assert x.dtype == other[name].dtype and x.numpy().tobytes() == other[name].numpy().tobytes(), name


def _groups(state: Dict[str, Tensor]) -> set[frozenset[str]]:
    """Which parameters are one."""
    return {frozenset(n for n, y in state.items() if y.data_ptr() == x.data_ptr()) for x in state.values()}


def test_a_translation_model_comes_back(
    checkpoint: Path, exported: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(path.name for path in exported.iterdir())
    assert files == [
        "README.md", "config.json", "dict.de.txt", "dict.en.txt", "model.safetensors", "sentencepiece.bpe.model",
    ]  # fmt: skip
    assert (exported / "sentencepiece.bpe.model").read_bytes() == corpus.spm.read_bytes()
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["luna_base_untied"]
    assert config["luna_fairseq"]["cfg"]["model"]["projection_length"] == 4

    back = tmp_path / "checkpoint.pt"
    assert main(["import", str(exported), "--out", str(back)]) == 0
    before, after = (checkpoint_utils.load_checkpoint_to_cpu(str(path)) for path in (checkpoint, back))
    _same_bits(before["model"], after["model"])
    assert _groups(before["model"]) == _groups(after["model"])
    assert dict(before["model"]._metadata) == dict(after["model"]._metadata)
    assert before["cfg"] == after["cfg"] and before["extra_state"]["val_loss"] == after["extra_state"]["val_loss"]
    assert "last_optimizer_state" not in after

    pieces: Any = dict(bpe="sentencepiece", sentencepiece_model=str(exported / "sentencepiece.bpe.model"))
    hub = LunaModel.from_pretrained(str(tmp_path), "checkpoint.pt", str(exported), **pieces)
    was = LunaModel.from_pretrained(str(checkpoint.parent), checkpoint.name, str(exported), **pieces)
    assert hub.translate("the dog sees a cat") == was.translate("the dog sees a cat")

    said = [generate(corpus, path, "--beam", 2, "--max-len-b", 8).splitlines() for path in (checkpoint, back)]
    translated = [[line for line in lines if line.startswith("H-")] for lines in said]
    assert translated[0] == translated[1] and len(translated[0]) == 11

    # An earlier export is replaced; a checkpoint is not.
    assert (
        main(["export", str(back), "--format", "safetensors", "--out", str(exported), "--data", str(exported)]) == 0
    )
    assert sorted(path.name for path in exported.iterdir()) == files
    assert main(["import", str(exported), "--out", str(back)]) == 1
    assert "name another --out" in capsys.readouterr().err


def test_other_folders_stay(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert main(["export", str(checkpoint), "--format", "safetensors", "--out", str(tmp_path / "mine")]) == 1
    assert "config.json that luna-fairseq export did not write" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]
    assert main(["import", str(tmp_path / "mine"), "--out", str(tmp_path / "x.pt")]) == 1
    assert "is not a folder that luna-fairseq export wrote" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "other", "option"])
def test_damaged_folders_are_named(
    exported: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    if damage == "cut":
        (folder / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes()[:-9])
    elif damage == "other":
        config["luna_fairseq"]["names"].append("another")
    else:
        config["luna_fairseq"]["cfg"]["model"]["dropout"] = "${oc.env:HOME}"
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["import", str(folder), "--out", str(tmp_path / "x.pt")]) == 1
    said = capsys.readouterr().err
    assert {"cut": "is damaged", "other": "do not belong together", "option": "dropout"}[damage] in said
    assert not (tmp_path / "x.pt").exists()


def test_a_masked_lm_model_comes_back(lm_corpus: LMCorpus, tmp_path: Path) -> None:
    train_bert(lm_corpus.folder / "shard0", tmp_path, *MASKED_LM)
    before = tmp_path / "checkpoint_last.pt"
    arguments: Any = [str(before), "--format", "safetensors", "--out", str(tmp_path / "exported")]
    assert main(["export", *arguments]) == 0
    assert main(["import", str(tmp_path / "exported"), "--out", str(tmp_path / "back" / "model.pt")]) == 0
    hub = LunaBertModel.from_pretrained(str(tmp_path / "back"), data_name_or_path=str(tmp_path / "exported"))
    _same_bits(torch.load(before)["model"], hub.model.state_dict())
    assert hub.fill_mask("the <mask> cat")


def test_the_page_runs_as_it_stands(checkpoint: Path, corpus: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "average.pt").write_bytes(checkpoint.read_bytes())
    page = "docs/export.md"
    for title in ("Weights, options and tokenizer files", "ONNX and torch.export"):
        for command in section_commands(page, title):
            assert command.startswith(("luna-fairseq export", "luna-fairseq import"))
            run(command, tmp_path)
    assert (tmp_path / "again.pt").is_file()
    assert sorted(path.name for path in (tmp_path / "exported-pt2").glob("*.pt2")) == ["encode.pt2", "step.pt2"]
    (example,) = blocks(section(page, "ONNX and torch.export"), "python")
    said = run_python(example, tmp_path).split("translation: ")[1].strip()
    torch_says = LunaModel.from_pretrained(
        str(checkpoint.parent), checkpoint.name, str(corpus.data), bpe="sentencepiece",
        sentencepiece_model=str(corpus.spm),
    ).translate("the dog sees a cat", beam=1, max_len_b=100)  # fmt: skip
    assert said == torch_says.strip()
