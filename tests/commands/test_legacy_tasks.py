"""Luna trains and translates with fairseq's tasks that have no dataclass."""

from pathlib import Path

import pytest

from support.running import USER_DIR, Corpus, logged, run_command, train


@pytest.mark.long
def test_multilingual_translation_with_language_tokens(corpus: Corpus, tmp_path: Path) -> None:
    """Two directions, one model: the source begins with its language's token, the target with that of its own."""
    task = ["--task", "translation_multi_simple_epoch", "--langs", "en,de", "--lang-pairs", "en-de,de-en"]
    task += ["--encoder-langtok", "src", "--decoder-langtok", "--max-source-positions", "64"]
    output = train(corpus, tmp_path / "run", *task, "--max-update", "4")
    assert len(logged(output, "loss")) == 4 and "valid on 'valid' subset" in output
    output = run_command(
        *("fairseq-generate", corpus.data, "--user-dir", USER_DIR, "--path", tmp_path / "run" / "checkpoint_best.pt"),
        *(*task, "-s", "de", "-t", "en", "--gen-subset", "test", "--beam", "2", "--cpu", "--num-workers", "0"),
        *("--max-len-b", "10", "--batch-size", "8"),
    )
    assert output.count("\nH-") == 11
