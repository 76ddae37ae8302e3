"""``fairseq-hydra-train`` on the test corpus, with the model of ``running.TINY``."""

from pathlib import Path
from typing import Any

from support.running import ROOT, USER_DIR, Corpus, run_command

_SIZES = "embed_dim=16 ffn_embed_dim=32 layers=2 attention_heads=2".split()


def train_by_hydra(corpus: Corpus, save: Path, *overrides: Any, code: int = 0) -> str:
    """With Adam, the config ``translation`` and a simple log; Hydra's own files lie beside ``save``."""
    return run_command(
        *("fairseq-hydra-train", "--config-dir", ROOT / "configs" / "translation", "--config-name", "translation"),
        *(f"common.user_dir={USER_DIR}", f"task.data={corpus.data}", f"checkpoint.save_dir={save}"),
        *(f"hydra.run.dir={save}-hydra", "common.cpu=true", "common.seed=3", "common.log_interval=1"),
        *("dataset.max_tokens=200", "dataset.data_buffer_size=0", "dataset.num_workers=0"),
        *("optimization.lr=[0.01]", "lr_scheduler.warmup_updates=4", "model.share_all_embeddings=true"),
        *(f"++model.{side}_{size}" for side in ("encoder", "decoder") for size in _SIZES),
        *("++model.projection_length=4", *overrides),
        code=code,
    )
