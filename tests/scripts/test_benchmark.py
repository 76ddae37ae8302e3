"""python -m scripts.bench: a wrong operation gets no speed; every part runs; the tables are those of the numbers."""

import argparse
import dataclasses
import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch

from luna_fairseq import ops
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from luna_fairseq.ops import both_sums
from luna_fairseq.ops.blocks import Blocks
from scripts.bench import __main__ as command
from scripts.bench import growth, rows
from scripts.bench.checks import Mismatch, check_attention
from scripts.bench.report import report
from support.running import ROOT


@pytest.mark.parametrize("tie_kv", [True, False])
@pytest.mark.parametrize("length", [5, 300])
def test_what_is_right_passes(length: int, tie_kv: bool) -> None:
    torch.manual_seed(0)
    x, packed = torch.randn(1, length, 16), torch.randn(1, 4, 16)
    check_attention(LunaAttention(16, 2, tie_kv=tie_kv), x, packed, x)
    check_attention(LunaAttention(16, 2, 4, tie_kv=tie_kv, position_bias=1.5), x, packed, x)
    check_attention(CausalLunaAttention(16, 2, tie_kv=tie_kv), x, packed)


def test_what_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the output, and in the gradient alone."""
    torch.manual_seed(0)
    x, packed = torch.randn(1, 300, 16), torch.randn(1, 4, 16)
    right = ops.folded_pack
    monkeypatch.setattr(ops, "folded_pack", lambda *args: right(*args) * 1.01)
    with pytest.raises(Mismatch, match=r"LunaAttention at .* the output is off by"):
        check_attention(LunaAttention(16, 2), x, packed, x)
    monkeypatch.undo()
    places = ops.row_places

    def elsewhere(*args: Any) -> ops.RowPlaces:
        found = places(*args)
        return dataclasses.replace(found, centre=found.centre + 1)

    monkeypatch.setattr(ops, "row_places", elsewhere)
    with pytest.raises(Mismatch, match=r"LunaAttention at .* the output is off by"):
        check_attention(LunaAttention(16, 2, position_bias=1.0), x, packed, x)
    running = Blocks.running
    monkeypatch.setattr(Blocks, "running", lambda *args, **named: [x * 1.01 for x in running(*args, **named)])
    with pytest.raises(Mismatch, match=r"CausalLunaAttention at .* the output is off by"):
        check_attention(CausalLunaAttention(16, 2), x, packed)
    monkeypatch.undo()
    backward = both_sums._BothSums.backward

    def wrong(*args: Any) -> Tuple[Any, ...]:
        query, key, *others = backward(*args)
        return query, key * 1.01, *others

    monkeypatch.setattr(both_sums._BothSums, "backward", wrong)
    with pytest.raises(Mismatch, match=r"the d .* is off by"):
        check_attention(CausalLunaAttention(16, 2), x, packed)


@pytest.mark.long
def test_every_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A smoke run; memory is measured in this process, which is quicker, but for one row."""
    given = ["--smoke", "--rounds", "1", "--threads", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scripts.bench", *given])
    asked = []

    def in_this_process(option: str, part: str, row: str) -> int:
        asked.append([*given, option, part, row])
        return len(asked)

    monkeypatch.setattr(rows, "in_own_process", in_this_process)
    monkeypatch.setattr(logging, "disable", lambda _: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert command.main() == 0
    tables = capsys.readouterr().out
    found = json.loads((tmp_path / "benchmark.json").read_text())
    models = found["training"] + found["generation"]
    assert [row["bytes"] for row in models] == list(range(1, len(asked) + 1))
    # Attention: softmax, causal softmax, each Luna at two projection lengths, one of them also with a position bias;
    # forward and with backward, at three lengths; the transcription at two of those.
    assert len(found["attention"]) == 2 * (3 * 8 + 2 * 2)
    biased, plain = (
        next(row for row in found["attention"] if (row["layer"], row["l"], row["length"]) == (layer, 8, 256))
        for layer in ("Luna with bias", "Luna")
    )
    compared = f"{plain['seconds'] / biased['seconds']:.2f}x, {biased['bytes'] / plain['bytes']:.2f}x"
    assert compared in tables.split("Luna with a position bias, forward and backward, next to Luna without")[1]
    row = next(row for row in found["attention"] if row["layer"] == "causal Luna" and row["length"] == 128)
    base = next(
        base
        for base in found["attention"]
        if (base["layer"], base["length"], base["backward"]) == ("causal softmax", 128, row["backward"])
    )
    assert f"{base['seconds'] / row['seconds']:.2f}x, {row['bytes'] / base['bytes']:.2f}x" in tables
    # Six layers at three lengths, two models at two; from each length to the next.
    assert len(found["growth"]) == 6 * 3 + 2 * 2
    for before, row in itertools.pairwise(found["growth"]):
        if "growth" in row:
            assert f"{row['growth']:.2f}x, {row['bytes'] / before['bytes']:.2f}x" in tables.split("twice as long")[1]
    assert sum("growth" in row for row in found["growth"]) == 6 * 2 + 2
    # The state of Luna does not grow, softmax attention's does.
    for row in found["generation"]:
        grows = row["state"]["after all"] > row["state"]["after 8"]
        assert grows == row["arch"].startswith("transformer")
    # So do the keys and values of one layer; what Luna keeps does not grow.
    kept = {(row["layer"], row["l"], row["length"]): row["bytes"] for row in found["decoding"]}
    for layer, size, length in kept:
        assert (kept[layer, size, length] > kept[layer, size, 64]) == (layer == "causal softmax" and length > 64)
    assert "| causal Luna, l = 8 |" in tables.split("The next position")[1]
    # The report of the file is the same.
    monkeypatch.setattr(sys, "argv", ["scripts.bench", "--report", str(tmp_path / "benchmark.json")])
    assert command.main() == 0
    assert capsys.readouterr().out == tables

    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench", *asked[0]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 0


@pytest.mark.parametrize("name", ["benchmark.json", "growth.json"])
def test_the_documentation_has_the_report_of_the_run(name: str) -> None:
    found = json.loads((ROOT / "docs" / name).read_text())
    page = (ROOT / "docs" / "speed.md").read_text()
    assert report(found) in page, f"run: python -m scripts.bench --report docs/{name}"


def test_growth_is_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slower in one round than in the next does not change it."""
    args = argparse.Namespace(
        rounds=3, lengths=(16, 8, 32), device=torch.device("cpu"), growing_documents=(), projection_lengths=(4,)
    )
    args.transcription_up_to = 0
    asked = []

    def timed(steps: Dict[str, Any], rounds: int, _: torch.device) -> Dict[str, List[float]]:
        asked.append(rounds)
        # The machine slows down within the third round, so the medians are of different rounds: their ratio is 3.
        slow = {length: (1, 3, 2 if length == "8" else 9) for length in steps}
        return {length: [int(length) * slow[length][i % 3] for i in range(rounds)] for length in steps}

    monkeypatch.setattr(growth, "interleaved", timed)
    monkeypatch.setattr(growth, "layer_step", lambda *args, **named: None)
    monkeypatch.setattr(growth, "allocated_bytes", lambda _: 7)
    monkeypatch.setattr(growth, "TRANSLATION", ())
    measured = growth.measure_growth(args)
    assert asked == [3, 3, 30, 30]
    assert [row.get("growth") for row in measured] == [None, 2.0, 2.0] * 4
