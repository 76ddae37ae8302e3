"""Decoding: ``--replace-unk`` with the alignments of ``--print-alignment``."""

import pytest
from fairseq import utils


def test_replace_unk_in_odd_cases() -> None:
    assert utils.replace_unk("a <unk>", "", [], {}, "<unk>") == "a <eos>"
    assert utils.replace_unk("a <unk>", "x y", [(0, 0), (1, 1)], {"y": "z"}, "<unk>") == "a z"
    assert (
        utils.replace_unk(
            "a <unk>", "x y", [["0.9", "0.1", "0"], ["0.2", "0.3", "0.5"], ["0", "0", "1"]], {}, "<unk>"
        )
        == "a y"
    )
    assert utils.replace_unk("a b", "x y", [], {}, "<unk>") == "a b"
    with pytest.raises(ValueError, match="add --print-alignment"):
        utils.replace_unk("<unk>", "x y", [], {}, "<unk>")
    with pytest.raises(ValueError, match="leave out --post-process"):
        utils.replace_unk("<unk>", "x y", [(0, 0), (1, 1), (3, 2)], {}, "<unk>")
