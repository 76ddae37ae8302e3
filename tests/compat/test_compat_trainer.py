"""The trainer: ``--patience`` counts over restarts."""

from pathlib import Path

from support.running import Corpus, logged, train


def test_patience_counts_over_restarts(corpus: Corpus, tmp_path: Path) -> None:
    # Wanted is a higher loss, so that no epoch is better than the first.
    options = ["--maximize-best-checkpoint-metric", "--patience", 3, "--max-epoch"]
    for epochs in (2, 9, 9):
        said = train(corpus, tmp_path, *options, epochs)
        if epochs == 9:
            assert "early stop" in said
    assert not logged(said, "num_updates")
    assert sorted(path.name for path in tmp_path.glob("checkpoint?.pt")) == [
        f"checkpoint{n}.pt" for n in (1, 2, 3, 4)
    ]
    assert logged(
        train(corpus, tmp_path, "--maximize-best-checkpoint-metric", "--patience", 4, "--max-epoch", 9), "num_updates"
    )
