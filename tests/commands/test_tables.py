"""``luna-fairseq table``: what the scripts leave in their folders, next to the paper's figures."""

import json
from pathlib import Path
from typing import Any, List, Optional

import pytest

from luna_fairseq.commands.table import EXPERIMENTS, main
from luna_fairseq.errors import DataError
from luna_fairseq.results import masked_lm, multi30k, runs
from support.running import ROOT

TRAIN_LOG = """\
[fairseq.tasks] num. shared model params: 1,000 (num. trained: 1,000)
[train_inner] {"epoch": 1} | epoch 001: loss=5, wps=100.5, lr=1
[fairseq_cli.train] num. shared model params: 4,967,424 (num. trained: 4,967,424)
[train_inner] | epoch 001: loss=5, ppl=1.5, wps=203, lr=1
[train_inner] | epoch 002: loss=5, wps=300.7, lr=1
[valid] | epoch 001 | valid on 'valid' subset | loss 5 | ppl 5.50 | wps 700
[valid] | epoch 002 | valid on 'valid' subset | loss 5 | ppl 6.76 | wps 700
"""
GENERATE_LOG = "Translated 9 sentences (90 tokens) in 1s (76.04 sentences/s, 760.4 tokens/s)\n"
SIGNATURE = "nrefs:1|case:mixed|version:2"


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# ---------------------------------------------------------------------------------------------- shared
def test_markdown() -> None:
    assert runs.row(["a", "", "b"]) == "| a |  | b |"
    assert runs.header(["a", "b"]) == "| a | b |\n|---|---|"


def test_logs() -> None:
    assert runs.perplexities(TRAIN_LOG) == ["5.50", "6.76"]
    assert runs.parameters(TRAIN_LOG) == "4,967,424"
    assert (runs.perplexities(""), runs.parameters("")) == ([], "")


def test_results_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        _write(tmp_path / name / "result.json", {"name": name})
    assert [result["name"] for result in runs.read_results(tmp_path)] == ["a", "b", "c"]
    assert runs.read_results(tmp_path / "nothing") == []
    _write(tmp_path / "b" / "result.json", '{"name"')
    with pytest.raises(DataError, match=r"b/result\.json is damaged: remove it"):
        runs.read_results(tmp_path)


@pytest.mark.parametrize("folder", ["out", "smoke"])
def test_a_smoke_run_is_known(folder: str, tmp_path: Path) -> None:
    """By its mark, wherever it lies, or by where scripts write it."""
    for name in ("a", "b"):
        _write(tmp_path / folder / name / "result.json", _result("c", "x", 70.04))
    (tmp_path / folder / "b" / ".smoke").touch()
    results = runs.read_results(tmp_path / folder)
    first = "70.0 SMOKE" if folder == "smoke" else "70.0"
    assert [runs.accuracy(result, 1) for result in results] == [first, "70.0 SMOKE"]


def _lra(task: str) -> Any:
    return {"config": task, "layers": "luna_16", "tag": "", "accuracy": 50}


SMOKE_RUNS = {  # the files, by their names; what the table says of them
    "lra": (
        {f"{task}/result.json": _lra(task) for task in ("listops", "text", "retrieval", "image", "pathfinder")},
        ["| Luna-16 | 37.43 (50.00 SMOKE) | 65.74 (50.00 SMOKE) | 79.38 (50.00 SMOKE) | 46.39 (50.00 SMOKE) "
         "| 78.36 (50.00 SMOKE) | 61.46 (50.00 SMOKE) |"],
    ),
    "masked-lm": (
        {"a/result.json": {"config": "finetune_sst2", "from": "luna.base.tied", "tag": "b", "accuracy": 50},
         "wikitext2_roberta/train.log": TRAIN_LOG, "wikitext2_roberta/.trained": ""},
        ["| the published luna.base.tied | - (50.0 b SMOKE) | - (not run) |",
         "| roberta | 6.76 SMOKE | 4,967,424 SMOKE | not run | not run |"],
    ),
    "multi30k": (
        {f"multi30k_transformer_adam/{name}": content for name, content in (
            ("bleu.json", {"score": 35.5, "signature": SIGNATURE}), ("train.log", TRAIN_LOG),
            ("generate.log", GENERATE_LOG))},
        ["| multi30k_transformer_adam | 35.5 SMOKE | 5.5 SMOKE | 4,967,424 SMOKE | 203 SMOKE | 76.04 SMOKE |"],
    ),
    "wmt14": (
        {"wmt14_transformer_adam.sentencepiece/average.id": "1",
         "wmt14_transformer_adam.sentencepiece/score.json.of": "1",
         "wmt14_transformer_adam.sentencepiece/score.json": [
             {"name": "BLEU", "score": 26.5, "signature": SIGNATURE}, {"name": "tokenised-BLEU", "score": 27.5}]},
        ["| Transformer-base, Adam | 27.8, 64.9M | 27.5 SMOKE | 26.5 SMOKE |"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("experiment", SMOKE_RUNS)
def test_no_figure_of_a_smoke_run_stands_alone(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of ours says SMOKE, and none of the paper's; the same files of a real run say it nowhere."""
    monkeypatch.chdir(ROOT)
    files, expected = SMOKE_RUNS[experiment]
    for out in ("smoke", "real"):
        for name, content in files.items():
            _write(tmp_path / out / name, content)
        assert main("table", [experiment, str(tmp_path / out)]) == 0
        said = capsys.readouterr().out
        lines = expected if out == "smoke" else [line.replace(" SMOKE", "") for line in expected]
        assert all(line in said for line in lines), said
        assert said.count("SMOKE") == "".join(lines).count("SMOKE")


# ------------------------------------------------------------------------------------------- masked LM
def _result(config: str, source: str, accuracy: float, tag: str = "") -> Any:
    return {"config": config, "from": source, "tag": tag, "accuracy": accuracy}


def test_masked_lm_accuracies() -> None:
    results = [_result("a", "x", 70.04), _result("a", "x", 71, "lr"), _result("a", "y", 72), _result("b", "x", 73)]
    assert masked_lm.ours(results, "a", "x") == "70.0, 71.0 lr"
    assert masked_lm.ours(results, "b", "y") == "not run"


def test_masked_lm_paper_table() -> None:
    results = [
        _result("finetune_sst2", "pretrain_luna_tied_128_16gb", 93.26),
        _result("finetune_race", "luna.base.tied", 65.5, "b"),
    ]
    lines = masked_lm.paper_table(results)
    assert lines[0] == "| pretraining | SST-2 | QNLI | QQP | RACE | CSQA |\n|---|---|---|---|---|---|"
    assert lines[1] == "| 16 GB: BERT-base | 92.7 | 88.4 | 89.6 | 64.2 | 53.3 |"
    assert lines[4] == (
        "| 16 GB: Luna-128, tied | 93.1 (93.3) | 91.2 (not run) | 90.8 (not run) | 65.2 (not run) | 53.1 (not run) |"
    )
    assert lines[9].startswith("| the published luna.base.tied | - (not run) |") and "| - (65.5 b) |" in lines[9]
    assert len(lines) == 11


def test_masked_lm_wikitext_table() -> None:
    results = [
        _result("sst2_small_luna_tied_32", "wikitext2_luna_tied_32", 79.7),
        _result("sst2_small_luna_tied_32_bias", "wikitext2_luna_tied_32_bias", 79.8),
        _result("sst2_small_roberta", "scratch", 79.9),
    ]
    assert masked_lm.wikitext_table(results, {"luna_tied_32": TRAIN_LOG})[1:] == [
        "| luna_tied_32 | 6.76 | 4,967,424 | 79.7 | not run |",
        "| luna_tied_32_bias | not run |  | 79.8 | not run |",
        "| luna_untied_32 | not run |  | not run | not run |",
        "| luna_untied_32_bias | not run |  | not run | not run |",
        "| roberta | not run |  | not run | 79.9 |",
    ]


def test_masked_lm_table(tmp_path: Path) -> None:
    """Only finished trainings are told of."""
    for name in ("luna_tied_32", "roberta"):
        _write(tmp_path / f"wikitext2_{name}" / "train.log", TRAIN_LOG)
    (tmp_path / "wikitext2_roberta" / ".trained").touch()
    table = masked_lm.table(tmp_path)
    assert table.startswith(
        "Dev accuracy (RACE: test accuracy), the paper's figure and (ours).\n\n| pretraining | SST"
    )
    assert "(not run) |\n\n| WikiText-2, then SST-2 |" in table
    assert "| luna_tied_32 | not run |" in table and "| roberta | 6.76 | 4,967,424 |" in table


# ----------------------------------------------------------------------------------------------- WMT'14
def _scored(out: Path, name: str, score: float, older: bool = False) -> None:
    scores = [{"name": "BLEU", "score": score, "signature": SIGNATURE}, {"name": "tokenised-BLEU", "score": 27.5}]
    _write(out / name / "score.json", scores)
    _write(out / name / "average.id", "this one")
    _write(out / name / "score.json.of", "an older one" if older else "this one")


def test_wmt14_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runs of one recipe and tag; scores only of the average that is there."""
    _scored(tmp_path, "wmt14_transformer_adam.moses", 26.5)
    _scored(tmp_path, "wmt14_luna_tied_16_elu.moses", 26.0, older=True)
    _scored(tmp_path, "wmt14_luna_tied_32_elu.moses-lr", 25.25)
    _scored(tmp_path, "wmt14_luna_tied_32_elu.sentencepiece", 25.5)

    def rows(*options: str) -> List[str]:
        assert main("table", ["wmt14", str(tmp_path), *options]) == 0
        return capsys.readouterr().out.splitlines()

    found = rows("--recipe", "moses")
    assert found[1:5] == [
        "|---|---|---|---|",
        "| Transformer-base, Adam | 27.8, 64.9M | 27.5 | 26.5 |",
        "| Transformer-base, Apollo | 28.3, 64.9M | not run | not run |",
        "| RFA, k = 256 | 27.2, 66.2M |  |  |",
    ]
    assert found[-2:] == ["", SIGNATURE]
    assert sum("not run | not run" in line for line in found) == 9
    assert "| Luna-32 tied, elu | 27.3, 69.7M | 27.5 | 25.25 |" in rows("--recipe", "moses", "--tag", "lr")
    assert "| Luna-32 tied, elu | 27.3, 69.7M | 27.5 | 25.5 |" in rows()
    assert rows("--tag", "none")[-1] == "", "no signature"


# --------------------------------------------------------------------------------------------- Multi30k
def test_multi30k_cells() -> None:
    assert multi30k.result_cells(35.5, TRAIN_LOG, GENERATE_LOG) == ["35.5", "5.5", "4,967,424", "203", "76.04"]
    for logs in (
        ("", GENERATE_LOG),
        (TRAIN_LOG, ""),
        (TRAIN_LOG.replace("ppl 5", "ppl").split("[valid]")[0], GENERATE_LOG),
    ):
        with pytest.raises(DataError, match="train or score the run again"):
            multi30k.result_cells(35.5, *logs)


@pytest.mark.parametrize("scored", ["luna_adam", "luna_adam-lr", None])
@pytest.mark.parametrize("own", ["multi30k", "documents"])
def test_multi30k_table(own: str, scored: Optional[str], tmp_path: Path) -> None:
    """A row for every config, and for every run with a tag."""
    configs, out = tmp_path / "configs", tmp_path / "out"
    other = "documents" if own == "multi30k" else "multi30k"
    for name in (f"{own}_transformer_adam", f"{own}_luna_adam", "wmt14_luna", f"{other}_luna"):
        _write(configs / f"{name}.yaml", "")
    (out / f"{own}_luna_adam-lr").mkdir(parents=True)
    names = [f"{own}_luna_adam", f"{own}_luna_adam-lr", f"{own}_transformer_adam"]
    scored = scored and f"{own}_{scored}"
    if scored:
        _write(out / scored / "bleu.json", {"score": 35.5, "signature": SIGNATURE})
        _write(out / scored / "train.log", TRAIN_LOG)
        _write(out / scored / "generate.log", GENERATE_LOG)
    lines = multi30k.table(out, configs, own).split("\n")
    done = "| 35.5 | 5.5 | 4,967,424 | 203 | 76.04 |"
    assert lines[2:5] == [f"| {name} {done if name == scored else '| not run | | | | |'}" for name in names]
    assert lines[5:] == (["", SIGNATURE] if scored else [""])


def test_multi30k_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = str(ROOT / "configs" / "translation")
    assert main("it", ["multi30k", str(tmp_path), "--configs", str(tmp_path)]) == 1
    assert "it multi30k: " in (said := capsys.readouterr().err) and "has no multi30k_*.yaml: name" in said
    run = tmp_path / "multi30k_transformer_adam"
    _write(run / "bleu.json", {"score": 35.5, "signature": SIGNATURE})
    _write(run / "generate.log", GENERATE_LOG)
    _write(run / "train.log", "cut")
    assert main("it", ["multi30k", str(tmp_path), "--configs", configs]) == 1
    assert f"{run} has no perplexity or no speed in train.log" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_where_nothing_has_run_or_nothing_is(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in which nothing has run is told from a misspelt one."""
    assert main("table", [experiment, str(tmp_path)]) == 0
    assert "not run" in capsys.readouterr().out
    assert main("table", [experiment, str(tmp_path / "none")]) == 1
    captured = capsys.readouterr()
    said = "does not exist: name the one that the script has written to, its OUT\n"
    assert captured.err == f"table {experiment}: the folder {tmp_path}/none {said}" and not captured.out
