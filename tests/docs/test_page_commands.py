"""The commands of the documentation run as they stand there, in their order, with small data and tiny models."""

import importlib.util
import random
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List

import pytest

from support.pages import blocks, run, run_python, section, section_commands
from support.running import ROOT, Corpus

FAST = "--cpu --data-buffer-size 0 --num-workers 0"
SMALL_DEMO = "prepare demo text --train 300 --valid 30 --test 30"


def _names(commands: List[str]) -> List[str]:
    """What each command starts, with its sub-command."""
    return [" ".join(command.split()[: 2 if command.startswith("luna-fairseq") else 1]) for command in commands]


def _clone(folder: Path) -> None:
    """What a command from a clone needs there."""
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name)


def _run_all(commands: List[str], changes: Dict[str, str], folder: Path, **environment: str) -> Dict[str, str]:
    """Run commands, made smaller by replacing text; every change must meet one. Returns the outputs by command."""
    text = "\n".join(commands)
    for old in changes:
        assert old in text, f"no command has {old!r} any more"
    outputs = {}
    for command in commands:
        small = command
        for old, new in changes.items():
            small = small.replace(old, new)
        if re.match(r"fairseq-(train|generate|interactive|validate|eval-lm)", small):
            small = re.sub(r"^(fairseq-\S+ \S+)", rf"\1 {FAST}", small)
        outputs[command] = run(small, folder, **environment)
    return outputs


@pytest.mark.long
def test_from_raw_text_to_a_score(tmp_path: Path) -> None:
    title = "From raw text to a score"
    commands = section_commands("docs/translation.md", title)
    assert _names(commands) == [
        "luna-fairseq prepare", "luna-fairseq prepare", "fairseq-train", "luna-fairseq average",
        "fairseq-interactive", "grep", "sacrebleu", "fairseq-generate", "sed", "sacrebleu",
        "luna-fairseq card", "luna-fairseq attention",
    ]  # fmt: skip
    changes = {
        "prepare demo text": SMALL_DEMO,
        "--vocab-size 2000": "--vocab-size 120",
        "-embed-dim 128": "-embed-dim 16",
        "--warmup-updates 300": "--warmup-updates 10",
    }
    if not importlib.util.find_spec("matplotlib"):
        changes["--output attention.svg"] = ""
    outputs = _run_all(commands, changes, tmp_path)
    translations = (tmp_path / "test.out.de").read_text().splitlines()
    assert len(translations) == len((tmp_path / "generate.out.de").read_text().splitlines()) == 30
    assert re.search(
        r'"signature": "nrefs:1\|case:mixed', outputs["sacrebleu text/test.de -i test.out.de -m bleu -w 2"]
    )
    card = (tmp_path / "checkpoints" / "average.md").read_text()
    assert "- demo: BLEU " in card and "nrefs:1" in card
    assert (tmp_path / "attention.svg").exists() or "--output attention.svg" in changes
    (python,) = blocks(section("docs/translation.md", title), "python")
    assert len(run_python(python, tmp_path).strip().splitlines()) >= 2

    # Then what stands below: Hydra, and text of one's own.
    _clone(tmp_path)
    sizes = " ".join(
        f"++model.{side}_{name}={value}"
        for side in ("encoder", "decoder")
        for name, value in {"layers": 1, "embed_dim": 16, "ffn_embed_dim": 16, "attention_heads": 2}.items()
    )
    few = "common.cpu=true optimization.max_epoch=1 dataset.data_buffer_size=0 dataset.num_workers=0"
    (hydra,) = section_commands("docs/translation.md", "With Hydra, and without --user-dir")
    run(f"{hydra} {sizes} {few}", tmp_path)
    assert (tmp_path / "hydra-checkpoints" / "checkpoint_last.pt").exists()
    for language in ("en", "de"):
        lines = (tmp_path / "text" / f"train.{language}").read_text() * 20
        (tmp_path / f"all.{language}").write_text(lines)
    shutil.rmtree(tmp_path / "text")
    for command in section_commands("docs/translation.md", "Your own text"):
        run(command, tmp_path)
    counts = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "text").iterdir()}
    assert counts == {
        f"{split}.{language}": count
        for split, count in {"train": 4000, "valid": 1000, "test": 1000}.items()
        for language in ("en", "de")
    }
    pairs = zip(*[(tmp_path / "text" / f"valid.{x}").read_text().splitlines() for x in ("en", "de")], strict=True)
    originals = zip(*[(tmp_path / f"all.{x}").read_text().splitlines() for x in ("en", "de")], strict=True)
    assert set(pairs) <= set(originals)


@pytest.mark.long
def test_from_raw_text_to_a_perplexity_and_to_a_classifier(tmp_path: Path) -> None:
    title = "From raw text to a perplexity, and to a classifier"
    commands = section_commands("docs/masked-lm.md", title)
    assert _names(commands) == [
        "luna-fairseq prepare", "luna-fairseq prepare", "fairseq-train", "fairseq-validate", "mkdir", "awk", "awk",
        "luna-fairseq prepare", "fairseq-train",
    ]  # fmt: skip
    changes = {
        "prepare demo text": SMALL_DEMO,
        "--vocab-size 2000": "--vocab-size 120",
        "-embed-dim 128": "-embed-dim 16",
        "-embed-dim 512": "-embed-dim 16",
        "--max-epoch 5": "--max-epoch 2",
        "--max-update 300": "--max-update 4",
        "--validate-interval-updates 100": "--validate-interval-updates 2",
    }
    _run_all(commands, changes, tmp_path)
    rows = (tmp_path / "tables" / "SST-2" / "dev.tsv").read_text().splitlines()
    lines = (tmp_path / "text" / "valid.en").read_text().splitlines()
    assert rows == ["sentence\tlabel", *(f"{line}\t{int(line.endswith('?'))}" for line in lines)]
    assert {row[-1] for row in rows[1:]} == {"0", "1"}
    (python,) = blocks(section("docs/masked-lm.md", title), "python")
    output = run_python(python, tmp_path)
    assert len(re.findall(r"^0\.\d{3} The dog sees the", output, re.M)) == 3 and "tensor([[" in output


@pytest.mark.long
def test_from_long_documents_to_an_accuracy(tmp_path: Path) -> None:
    commands = section_commands("docs/long-range-arena.md", "From long documents to an accuracy")
    assert _names(commands) == [
        "luna-fairseq prepare", "mkdir", "for", "luna-fairseq prepare", "fairseq-train", "fairseq-validate",
    ]  # fmt: skip
    changes = {
        "prepare demo sentences --test 8000": "prepare demo sentences --train 400 --test 80 --valid 2",
        "--hold-out 200": "--hold-out 4",
        "-embed-dim 64": "-embed-dim 16",
        "--batch-size 16": "--batch-size 4",
        "--max-epoch 3": "--max-epoch 1",
    }
    _run_all(commands, changes, tmp_path)
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 4


def _write_text(folder: Path) -> None:
    """``train.txt`` and ``valid.txt``, with blank lines between documents, and a folder ``glue/SST-2``."""
    generator = random.Random(2)
    words = "the dog runs over a small green hill and sees one sentence another joy to watch waste of time".split()
    for split, lines in (("train", 120), ("valid", 30)):
        text = [" ".join(generator.choice(words) for _ in range(9)) + "\n" * (1 + (i % 4 == 3)) for i in range(lines)]
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in text))
        (folder / "glue" / "SST-2").mkdir(parents=True, exist_ok=True)
        rows = "".join(f"{line.strip()}\t{i % 2}\n" for i, line in enumerate(text))
        name = {"train": "train.tsv", "valid": "dev.tsv"}[split]
        (folder / "glue" / "SST-2" / name).write_text(f"sentence\tlabel\n{rows}")


@pytest.mark.long
def test_masked_lm_by_configs(tmp_path: Path) -> None:
    _write_text(tmp_path)
    _clone(tmp_path)
    commands = section_commands("docs/masked-lm.md", "By configs, and what was compared")
    commands += section_commands("docs/masked-lm.md", "WikiText-2 and SST-2")
    assert _names(commands) == [
        "luna-fairseq prepare", "scripts/masked_lm.sh", "luna-fairseq prepare", "scripts/masked_lm.sh",
        "scripts/masked_lm.sh", "cut", "luna-fairseq prepare", "TAG=sst",
    ]  # fmt: skip
    changes = {
        "--vocab-size 8000": "--vocab-size 60",
        "masked-lm-out/": "masked-lm-out/smoke/",
        "max_update=6000": "max_update=2",
        "warmup_updates=300": "warmup_updates=1",
    }
    outputs = _run_all(commands, changes, tmp_path, SMOKE="1")
    assert "| luna_tied_32 |" in outputs["scripts/masked_lm.sh table"]


@pytest.mark.long
def test_language_models(tmp_path: Path) -> None:
    _write_text(tmp_path)
    _clone(tmp_path)
    page, title = "docs/language-model.md", "Train, score, sample"
    commands = section_commands(page, title)
    assert _names(commands) == ["luna-fairseq prepare", "fairseq-train", "fairseq-eval-lm"]
    sizes = "--decoder-layers 1 --decoder-embed-dim 16 --decoder-ffn-embed-dim 16 --decoder-attention-heads 2"
    changes = {
        "--vocab-size 8000": "--vocab-size 60",
        "--arch luna_lm_small": f"--arch luna_lm_small {sizes}",
        "--max-update 2000": "--max-update 2",
        "--tokens-per-sample 512": "--tokens-per-sample 32",
    }
    _run_all(commands, changes, tmp_path)
    (python,) = blocks(section(page, title), "python")
    output = run_python(python.replace("/absolute/path/of", str(tmp_path)).replace("100000", "20"), tmp_path)
    assert "tensor([" in output and len(output.splitlines()[-1].split()) == 20

    commands = section_commands(page, "WikiText-2")[1:]
    assert [c.split()[1] for c in commands] == "prepare train score table".split()
    outputs = _run_all(commands, {"/folder/with/wikitext-2": str(tmp_path)}, tmp_path, SMOKE="1", THREADS="1")
    assert outputs["scripts/language_model.sh table"].count("| wikitext2_") >= 3


@pytest.mark.long
def test_the_long_range_arena(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    _clone(tmp_path)
    title = "The Long Range Arena"
    commands = section_commands("docs/long-range-arena.md", title)[1:]
    assert _names(commands) == [
        "scripts/lra.sh", "scripts/lra.sh", "scripts/lra.sh", "luna-fairseq prepare", "fairseq-train",
        "fairseq-validate",
    ]  # fmt: skip
    changes = {
        "--max-update 300": "--max-update 2 --validate-interval-updates 2",
        "--train 2000": "--train 64",
        "--encoder-embed-dim 128": "--encoder-embed-dim 16",
    }
    outputs = _run_all(commands, changes, tmp_path, SMOKE="1", THREADS="1")
    table = outputs["scripts/lra.sh table"].replace(" SMOKE", "")
    assert re.search(r"\| Luna-16 \| not run \| [\d.]+ \| (not run \| ){3}[\d.]+ \|", table)
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 200
    # The paper's figures stand on the page as the script prints them.
    rows = [line.split("|")[1:-1] for line in table.splitlines() if re.match(r"\| (Luna|Transformer).*\d+ \(", line)]
    figures = {row[0].strip(): [cell.split()[0] for cell in row[1:]] for row in rows}
    for name, values in figures.items():
        (line,) = re.findall(rf"^\| {name} \|(.* \(.*)\|$", section("docs/long-range-arena.md", title), re.M)
        assert [cell.split()[0] for cell in line.split("|")] == values
    assert len(figures) == 4


@pytest.mark.long
def test_wmt14(wmt14_archives: Path, tmp_path: Path) -> None:
    _clone(tmp_path)
    title = "WMT'14 English-German"
    commands = section_commands("docs/wmt14.md", title)[1:]
    assert [c.split()[1] for c in commands] == "download prepare train average generate score table".split()
    sources = {"WMT14_SOURCE": str(wmt14_archives), "WMT14_CHECKSUMS": str(wmt14_archives / "SHA256SUMS")}
    outputs = _run_all(commands, {}, tmp_path, SMOKE="1", THREADS="1", WORKERS="1", **sources)
    # The page has the table, with nothing run.
    output = outputs["scripts/wmt14.sh table"]
    rows = [line.replace(" SMOKE", "") for line in output.splitlines() if line.startswith("|")]
    page = section("docs/wmt14.md", title)
    for row in rows:
        assert re.sub(r"\| [\d.]+ \| [\d.]+ \|$", "| not run | not run |", row) in page
    assert len(rows) == 13 and sum(bool(re.search(r"\| [\d.]+ \| [\d.]+ \|$", row)) for row in rows) == 1


@pytest.mark.long
def test_multi30k(tmp_path: Path) -> None:
    _clone(tmp_path)
    run("luna-fairseq prepare demo multi30k --train 400 --valid 40 --test 40", tmp_path)
    for ours, theirs in {"valid": "val", "test": "test_2016_flickr"}.items():
        for language in ("en", "de"):
            (tmp_path / "multi30k" / f"{ours}.{language}").rename(tmp_path / "multi30k" / f"{theirs}.{language}")
    commands = section_commands("docs/multi30k.md", "Multi30k")[1:]
    assert [c.split()[1] for c in commands] == "prepare train score table".split()
    changes = {"/folder/with/multi30k": str(tmp_path / "multi30k")}
    outputs = _run_all(commands, changes, tmp_path, SMOKE="1")
    table = outputs["scripts/multi30k.sh table"]
    assert len(re.findall(r"^\| \S+_adam \|.*\d+\.\d", table, re.M)) == 3


@pytest.mark.long
def test_many_processes(corpus: Corpus, tmp_path: Path) -> None:
    """Two processes on a CPU; what needs GPUs says so, and test_distributed.py runs both scripts."""
    _clone(tmp_path)
    (tmp_path / "data-bin").symlink_to(corpus.data)
    (command,) = section_commands("docs/many-processes.md", "Many processes, many machines")
    run(command, tmp_path, SMOKE="1")
    assert (tmp_path / "run" / "smoke" / ".trained").exists()


def _layer_pages() -> List[Any]:
    return [
        pytest.param(title, block, id=f"{title}-{number}")
        for title in ("In a model of your own", "Causal attention and decoding", "A long-document encoder")
        for number, block in enumerate(blocks(section("docs/layer.md", title), "python"))
    ]


@pytest.mark.parametrize(("title", "block"), _layer_pages())
def test_the_attention_in_a_model_of_ones_own(title: str, block: str) -> None:
    """The blocks hold their own asserts; what stands in their comments as a shape is checked."""
    names: Dict[str, Any] = {}
    exec(compile(block, f"docs/layer.md: {title}", "exec"), names)
    found = re.findall(r"^(\w+)(?:, (\w+))?.* = .*#.*?(\[[\w, ]+\])(?:, (\[[\w, ]+\]))?", block, re.M)
    assert found
    for first, second, shape, other in found:
        for name, text in ((first, shape), (second, other)):
            if text:
                assert list(names[name].shape) == eval(text, dict(names)), f"{name}: {text}"
