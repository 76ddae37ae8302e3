"""A checkpoint written by the published code loads as it is and translates as it did there."""

from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
import torch
from fairseq import checkpoint_utils

from support.models import assert_close
from support.running import USER_DIR, run_command


def _hypotheses(text: str) -> Dict[str, List[Tuple[float, str]]]:
    found = defaultdict(list)
    for line in text.splitlines():
        if line.startswith("H-"):
            name, score, words = line.split("\t")
            found[name].append((float(score), words))
    return found


@pytest.mark.parametrize(
    "batch",
    [
        ["--batch-size", "7"],
        pytest.param(["--batch-size", "1"], marks=pytest.mark.long),
        pytest.param(["--max-tokens", "200"], marks=pytest.mark.long),
    ],
)
def test_generates_the_stored_hypotheses(shared_golden: Path, batch: List[str]) -> None:
    got = _hypotheses(
        run_command(
            *(
                "fairseq-generate",
                shared_golden / "mt_data_bin",
                "--user-dir",
                USER_DIR,
                "--cpu",
                "-s",
                "en",
                "-t",
                "de",
            ),
            *("--path", shared_golden / "mt_reference_checkpoint.pt", "--gen-subset", "test", "--num-workers", "0"),
            *("--beam", "4", "--nbest", "4", *batch),
        )
    )
    want = _hypotheses((shared_golden / "mt_reference_generate.txt").read_text())
    assert got.keys() == want.keys() and len(want) == 20
    for name, hypotheses in want.items():
        assert [words for _, words in got[name]] == [words for _, words in hypotheses], name
        for (score, _), (stored, _) in zip(got[name], hypotheses, strict=True):
            assert score == pytest.approx(stored, abs=1e-4)


def test_scores_of_the_targets(shared_golden: Path) -> None:
    golden = torch.load(shared_golden / "mt_reference_checkpoint_outputs.pt", weights_only=True)
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(shared_golden / "mt_reference_checkpoint.pt")],
        arg_overrides={"data": str(shared_golden / "mt_data_bin")},
    )
    inputs, outputs = golden["inputs"], golden["outputs"]
    model = models[0].eval()
    logits, _ = model(inputs["src_tokens"], inputs["src_lengths"], inputs["prev_output_tokens"])
    assert_close(logits[:, :3], outputs["logits_first_3_positions"], "logits")
    target = inputs["target"]
    log_probs = torch.log_softmax(logits, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    assert_close(log_probs, outputs["lprobs_of_target"], "log-probabilities", mask=target.ne(1))
