"""The trainer: ``--patience`` counts over restarts, and a checkpoint is still told of."""

from pathlib import Path

from support.running import Corpus, logged, train
from support.trainers import make_trainer


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


def test_the_name_of_a_saved_checkpoint_is_returned(tmp_path: Path) -> None:
    """fairseq hands it to the task, which may have something to do with it."""
    trainer = make_trainer(tmp_path)
    trainer.consolidate_optimizer()
    assert trainer.save_checkpoint(str(tmp_path / "x.pt"), {}) == str(tmp_path / "x.pt")
