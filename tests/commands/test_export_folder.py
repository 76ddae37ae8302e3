"""What ``luna-fairseq export`` looks for and writes, without a training."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from luna_fairseq.errors import DataError, PreparationError
from luna_fairseq.export.folder import PIECES, find_belongings
from luna_fairseq.export.weights import WEIGHTS, write_weights
from luna_fairseq.models._hub import find_pieces


@pytest.mark.parametrize("data", ["corpus", "corpus/data-bin", "corpus/data-bin/shard0"])
@pytest.mark.parametrize("relative", [False, True])
def test_pieces_are_found_where_prepare_leaves_them(
    data: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the export and by ``from_pretrained`` alike; those of another folder are left alone."""
    folder = tmp_path / data
    folder.mkdir(parents=True)
    (folder / "dict.txt").write_text("a 1\n")
    (tmp_path / "sentencepiece.model").write_text("another's")
    (tmp_path / "corpus" / "sentencepiece.model").write_text("ours")
    monkeypatch.chdir(tmp_path)
    named = data if relative else str(folder)
    found = find_belongings(tmp_path / "run" / "x.pt", f"{named}{os.pathsep}another", None, None)
    assert found.files[PIECES].read_text() == "ours" and found.data == Path(named)
    options = find_pieces(named, {})
    assert Path(options["sentencepiece_model"]).read_text() == "ours" and options["bpe"] == "sentencepiece"
    assert find_pieces(named, dict(bpe="gpt2")) == dict(bpe="gpt2")


def test_gpt2s_files_are_found_there_too(tmp_path: Path) -> None:
    folder = tmp_path / "data-bin" / "shard0"
    folder.mkdir(parents=True)
    (folder / "dict.txt").touch()
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).touch()
    found = find_belongings(tmp_path / "run" / "x.pt", str(folder), None, None)
    assert sorted(found.files) == ["dict.txt", "encoder.json", "vocab.bpe"]
    options = find_pieces(str(folder), {})
    assert options["bpe"] == "gpt2" and options["gpt2_vocab_bpe"] == str(tmp_path / "vocab.bpe")


def test_a_dictionary_that_is_not_there_is_named_with_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "x.pt"
    with pytest.raises(PreparationError) as refused:
        find_belongings(checkpoint, "data-bin", None, None)
    assert f"in {tmp_path / 'data-bin'}, which the checkpoint names as data-bin, nor beside" in str(refused.value)
    assert str(refused.value).endswith("as --data")
    assert find_belongings(checkpoint, "images", None, None, has_dictionary=False).data is None
    assert find_belongings(checkpoint, "", None, None).data is None, "a task without data"


def test_another_file_is_no_sentencepiece_model(tmp_path: Path) -> None:
    for name in ("dict.txt", "text"):
        (tmp_path / name).write_text("no model\n")
    with pytest.raises(DataError, match="text is not a SentencePiece model: name the one"):
        find_belongings(tmp_path / "x.pt", str(tmp_path), None, str(tmp_path / "text"))


def test_everybody_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    config: Any = {"luna_fairseq": {}}
    before = os.umask(0o027)
    try:
        write_weights(tmp_path, {"model": {"x": torch.ones(2)}}, config)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / WEIGHTS).stat().st_mode) == 0o640
