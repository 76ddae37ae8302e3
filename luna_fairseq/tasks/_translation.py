"""fairseq's translation task, with its data folder checked and over-long interactive input cut."""

import logging
from typing import Any, Optional, Sequence

import torch
from fairseq import utils
from fairseq.data import LanguagePairDataset, data_utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor

from luna_fairseq import compat
from luna_fairseq.checks import check_dictionary, check_folder
from luna_fairseq.compat._replace import named
from luna_fairseq.models.luna import LunaModel

logger = logging.getLogger(__name__)


def _check_data_folder(cfg: TranslationConfig) -> None:
    """Raise one clear sentence if the (first) data folder is not what fairseq-preprocess writes.

    Raises:
        FileNotFoundError: the folder, its language pair or a dictionary is missing.
    """
    folder = utils.split_paths(cfg.data)[0] if cfg.data else ""
    check_folder(folder)
    source, target = cfg.source_lang, cfg.target_lang
    if source is None or target is None:
        source, target = data_utils.infer_language_pair(folder)
    if source is None or target is None:
        raise FileNotFoundError(
            f"data folder {folder} holds no file named SPLIT.SOURCE-TARGET.LANG.idx to take the languages from: "
            "name a folder that fairseq-preprocess has written, or give --source-lang and --target-lang"
        )
    for lang in (source, target):
        check_dictionary(folder, f"dict.{lang}.txt", remedy="run fairseq-preprocess, or correct the languages")


class _TypedLines(LanguagePairDataset):
    """Sources without targets."""


class CheckedTranslationTask(TranslationTask):
    """The task ``translation`` while the plugin is loaded; everything that it does not mention is fairseq's."""

    @classmethod
    def setup_task(cls, cfg: TranslationConfig, **kwargs: Any) -> TranslationTask:
        _check_data_folder(cfg)
        return super().setup_task(cfg, **kwargs)

    _model_source_positions: Optional[int] = None

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.load_alignments and isinstance(model, LunaModel):
            model.decoder.need_attn = True  # to be trained, also where --checkpoint-activations keeps nothing
        # What the model was trained for, which need not be what the command line says now.
        limits = [limit for limit in (self._model_source_positions, model.max_positions()[0]) if limit is not None]
        self._model_source_positions = min(limits)
        return model

    def cut(self, tokens: Tensor) -> Tensor:
        """An input as long as the model and ``--max-source-positions`` allow: its beginning and its last symbol.

        Args:
            tokens: ``[M]``; not changed.

        Returns:
            the same, or a shorter one; a warning is logged.
        """
        limit = min(self.cfg.max_source_positions, self._model_source_positions or self.cfg.max_source_positions)
        if tokens.numel() <= limit:
            return tokens
        logger.warning(
            "an input of %d symbols was cut to %d: it is all that the model or --max-source-positions allows",
            tokens.numel(),
            limit,
        )
        return torch.cat([tokens[: limit - 1], tokens[-1:]])

    def build_dataset_for_inference(
        self, src_tokens: Sequence[Tensor], src_lengths: Sequence[int], constraints: Optional[Any] = None
    ) -> LanguagePairDataset:
        """What ``fairseq-interactive`` and ``translate`` read."""
        return _TypedLines(
            src_tokens, src_lengths, self.source_dictionary, tgt_dict=self.target_dictionary, constraints=constraints
        )

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Batches of a dataset.

        A line that was typed and is too long is cut, unless such lines are to be skipped, and a batch has room for
        every line; fairseq would end the whole session.
        """
        if not isinstance(dataset, _TypedLines):
            return super().get_batch_iterator(dataset, *args, **kwargs)
        asked = named(super().get_batch_iterator, dataset, *args, **kwargs)
        if not asked.get("ignore_invalid_inputs"):
            lines = [self.cut(tokens) for tokens in dataset.src]
            lengths = [tokens.numel() for tokens in lines]
            asked["dataset"] = super().build_dataset_for_inference(lines, lengths, constraints=dataset.constraints)
        if asked.get("max_tokens") is not None:  # in a hub that of the training
            longest = max((tokens.numel() for tokens in asked["dataset"].src), default=0)
            asked["max_tokens"] = max(asked["max_tokens"], longest)
        return super().get_batch_iterator(**asked)


compat.tasks.replace_task(
    CheckedTranslationTask,
    "translation",
    fairseq="ends deep inside if the data folder is not one, and ends fairseq-interactive at a line that is too long",
    here="what the folder lacks is named; a line is cut to the model's positions, with a warning",
)
