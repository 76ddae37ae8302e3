"""Decoding: ``--replace-unk``, alignments, ensembles, diverse beams."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Dict

import pytest
from fairseq import utils

from support.running import ADAM, TINY, TRAIN, USER_DIR, Corpus, generate, run_command, train


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


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Path]:
    """A Luna and fairseq's own Transformer after one update each."""
    found = {}
    for arch in ("luna", "transformer"):
        save = tmp_path_factory.mktemp(arch)
        sizes = ["--projection-length", "4"]
        tiny = [option for option in TINY if arch == "luna" or option not in sizes]
        run_command(
            *("fairseq-train", corpus.data, "--user-dir", USER_DIR, "--arch", arch, *tiny, *TRAIN, *ADAM),
            *("--save-dir", save, "--max-update", 1, "--disable-validation", "--no-epoch-checkpoints"),
        )
        found[arch] = save / "checkpoint_last.pt"
    return found


@pytest.fixture
def raw(corpus: Corpus, tmp_path: Path) -> Corpus:
    """As text: fairseq-generate has the words of a source nowhere else."""
    for lang in ("en", "de"):
        shutil.copy(corpus.data / f"dict.{lang}.txt", tmp_path)
        shutil.copy(corpus.text / f"test.spm.{lang}", tmp_path / f"test.en-de.{lang}")
    return dataclasses.replace(corpus, data=tmp_path)


UNKNOWN = ["--unkpen", -9, "--max-len-b", 3, "--print-alignment", "--beam", 1]


def test_replace_unk_needs_no_dictionary(corpus: Corpus, raw: Corpus, trained: Dict[str, Path]) -> None:
    """As fairseq documents it; the option last, and before another one."""
    usual = ["-s", "en", "-t", "de", "--dataset-impl", "raw", *UNKNOWN]
    outputs = [
        generate(raw, trained["luna"], *usual, *more) for more in (["--replace-unk"], ["--replace-unk", "--quiet"])
    ]
    hypotheses = [line.split("\t")[2] for line in outputs[0].splitlines() if line.startswith("H-")]
    assert len(hypotheses) == 11 and not any("<unk>" in line for line in hypotheses)
    assert "Generate test with beam=1" in outputs[1]
    source = (corpus.text / "test.spm.en").read_text().splitlines(keepends=True)[0]
    said = run_command(
        *("fairseq-interactive", corpus.data, "--user-dir", USER_DIR, "--path", trained["luna"], "--cpu"),
        *(*UNKNOWN, "--replace-unk"),
        stdin=source,
    )
    hypothesis = next(line.split("\t")[2] for line in said.splitlines() if line.startswith("H-0"))
    assert set(hypothesis.split()) <= {*source.split(), "<eos>"}


@pytest.mark.parametrize("arch", ["luna", pytest.param("transformer", marks=pytest.mark.long)])
def test_diverse_beams(corpus: Corpus, trained: Dict[str, Path], arch: str) -> None:
    """Of 11 sentences in batches of 4; each as if it were alone."""
    usual = ["--beam", 4, "--diverse-beam-groups", 2, "--nbest", 4, "--max-len-b", 9]
    found = [generate(corpus, trained[arch], *usual, "--batch-size", size) for size in (4, 1)]
    texts = [
        sorted((line.split("\t")[0], line.split("\t")[2]) for line in output.splitlines() if line.startswith("H-"))
        for output in found
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 44


def test_validation_may_print_alignments(corpus: Corpus, tmp_path: Path) -> None:
    usual = ["--max-update", 1, "--no-save", "--eval-bleu", "--eval-bleu-print-samples"]
    arguments = '{"beam": 2, "max_len_b": 9, "print_alignment": "hard"}'
    output = train(corpus, tmp_path, *usual, "--eval-bleu-args", arguments)
    assert re.search(r"\| valid \|.* bleu ", output)


@pytest.mark.parametrize(
    "order", [pytest.param("luna:luna", marks=pytest.mark.long), "transformer:luna", "luna:transformer"]
)
def test_an_ensemble_scores_references(corpus: Corpus, trained: Dict[str, Path], order: str) -> None:
    paths = ":".join(str(trained[arch]) for arch in order.split(":"))
    output = run_command(
        *("fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--path", paths, "--cpu", "--num-workers", 0),
        "--score-reference",
    )
    assert len(re.findall(r"^H-", output, re.M)) == 11
