"""fairseq's masked-LM task, with its data checked and whole-word masking repaired."""

import os
from typing import Any

from fairseq import utils
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from luna_fairseq import compat
from luna_fairseq.checks import check_complete, check_dictionary, check_folder
from luna_fairseq.errors import DataError


class CheckedMaskedLMTask(MaskedLMTask):
    """The task ``masked_lm`` while the plugin is loaded; everything that it does not mention is fairseq's."""

    args: Any  # read by fairseq's load_dataset for --mask-whole-words, and set by nobody

    @classmethod
    def setup_task(cls, cfg: MaskedLMConfig, **kwargs: Any) -> MaskedLMTask:
        folders = utils.split_paths(cfg.data or "")
        for folder in folders or [""]:
            check_folder(folder)
        check_dictionary(folders[0], "dict.txt")
        return super().setup_task(cfg, **kwargs)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split.

        Raises:
            ValueError: ``--mask-whole-words`` without a ``--bpe`` that tells where words begin.
            DataError: ``--sample-break-mode complete_doc`` and a training text without document breaks.
        """
        if self.cfg.mask_whole_words:
            root: Any = self.cfg._get_root()
            self.args = root.get("bpe") if root is not self.cfg else None
            if getattr(self.args, "_name", None) is None:
                raise ValueError(
                    "--mask-whole-words needs to know where words begin: add --bpe (with its files, such as "
                    "--sentencepiece-model)"
                )
        if split == "train" and split not in self.datasets:
            # A later shard that is damaged must not stop the run after days.
            for folder in utils.split_paths(self.cfg.data):
                path = os.path.join(folder, split)
                check_complete(path)
                if not os.path.exists(f"{path}.idx") and not os.path.exists(path):
                    raise FileNotFoundError(
                        f"{path}.bin does not exist: every shard needs it; prepare the data again"
                    )
        super().load_dataset(split, epoch, combine, **kwargs)

    def _load_dataset_split(self, split: str, epoch: int, combine: bool) -> Any:
        dataset = super()._load_dataset_split(split, epoch, combine)
        if split == "train" and self.cfg.sample_break_mode == "complete_doc":
            lines = dataset.dataset.dataset  # blocks under the prepended <s>, lines under the blocks
            if len(lines) > 1 and not (lines.sizes == 1).any():
                raise DataError(
                    f"--sample-break-mode is complete_doc, and {split} of {self.cfg.data} has no blank line between "
                    "documents: prepare the text with its blank lines, or take --sample-break-mode complete"
                )
        return dataset


compat.tasks.replace_task(
    CheckedMaskedLMTask,
    "masked_lm",
    fairseq="ends at a damaged shard when it comes to it, and at --mask-whole-words, which reads what nobody sets",
    here="all shards are looked at before training; --mask-whole-words works",
)
