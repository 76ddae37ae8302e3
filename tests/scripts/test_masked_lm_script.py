"""scripts/masked_lm.sh from raw text to the table, on tiny files."""

import json
import random
from pathlib import Path

import pytest

from support.running import run_command, run_script

WORDS = "the a small old cat dog house man woman sees finds loves red green and".split()


@pytest.mark.long
def test_from_text_to_the_table(tmp_path: Path) -> None:
    generator = random.Random(4)

    def sentence() -> str:
        return " ".join(generator.choice(WORDS) for _ in range(8))

    for split, lines in (("train", 150), ("valid", 30)):
        text = "".join(f"{sentence()}\n" + "\n" * (i % 5 == 4) for i in range(lines))
        (tmp_path / f"{split}.txt").write_text(text)
        glue = tmp_path / "glue" / "SST-2"
        glue.mkdir(parents=True, exist_ok=True)
        name = {"train": "train.tsv", "valid": "dev.tsv"}[split]
        rows = "".join(f"{sentence()}\t{i % 2}\n" for i in range(lines))
        (glue / name).write_text(f"sentence\tlabel\n{rows}")
    out = tmp_path / "out"
    corpus, data = tmp_path / "corpus", tmp_path / "sst2"
    run_command(
        *("luna-fairseq", "prepare", "corpus", "--train", tmp_path / "train.txt", "--valid"),
        *(tmp_path / "valid.txt", "--vocab-size", "60", "--shards", "2", "--workers", "1", "--out", corpus),
    )
    run_command(
        *("luna-fairseq", "prepare", "glue", "--task", "SST-2"),
        *("--data", tmp_path / "glue", "--pieces", corpus, "--out", data),
    )
    shards = f"{corpus}/data-bin/shard0:{corpus}/data-bin/shard1"
    output = run_script(out, "scripts/masked_lm.sh", "pretrain", "wikitext2_luna_tied_32", shards)
    assert "num_updates 2" in output
    checkpoint = out / "smoke" / "wikitext2_luna_tied_32" / "checkpoints" / "checkpoint_best.pt"
    again = run_script(out, "scripts/masked_lm.sh", "pretrain", "wikitext2_luna_tied_32", shards)
    assert "already trained" in again

    for source in (checkpoint, "scratch"):
        output = run_script(out, "scripts/masked_lm.sh", "finetune", "sst2_small_luna_tied_32", data, source)
        result = json.loads(output.splitlines()[-1])
        assert result["config"] == "sst2_small_luna_tied_32" and 0 <= result["accuracy"] <= 100
        assert result["from"] == ("scratch" if source == "scratch" else "wikitext2_luna_tied_32")

    # The result of other data or options is not handed out.
    said = run_script(out, "scripts/masked_lm.sh", "finetune", "sst2_small_luna_tied_32", data, "scratch",
                "optimization.lr=[0.5]", code=1)  # fmt: skip
    assert "a run with other data or options" in said and "set TAG" in said
    # The one clear sentence of a failure is shown.
    said = run_script(out, "scripts/masked_lm.sh", "finetune", "sst2_small_luna_untied_32", data, checkpoint, code=1)
    assert "the checkpoint has tied keys and values" in said

    table = run_script(out, "scripts/masked_lm.sh", "table")
    assert "| 16 GB: Luna-128, tied | 93.1 (not run) | 91.2 (not run) |" in table
    row = next(line for line in table.splitlines() if line.startswith("| luna_tied_32 |"))
    assert "not run" not in row and row.count(" SMOKE ") == 4 and "| roberta | not run |" in table
    assert "choose one of" in run_script(out, "scripts/masked_lm.sh", "pretrain", "nothing", "x", code=1)
    assert "does not exist" in run_script(out, "scripts/masked_lm.sh", "pretrain", "pretrain_small", "x", code=1)
