"""fairseq's two fine-tuning tasks, with their data and labels checked."""

import os
from typing import Any

from fairseq import models
from fairseq.data import data_utils
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask

from luna_fairseq import compat
from luna_fairseq.checks import check_count, check_dictionary, check_folder, check_labels, read_labels
from luna_fairseq.errors import DataError


class CheckedSentencePredictionTask(SentencePredictionTask):
    """The task ``sentence_prediction`` while the plugin is loaded; what it does not mention is fairseq's."""

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> SentencePredictionTask:
        if cfg.num_classes < 1:
            raise ValueError(
                f"--num-classes is {cfg.num_classes}: say how many classes (or regression targets) there are"
            )
        check_folder(cfg.data)
        check_dictionary(cfg.data, "input0", "dict.txt")
        if not cfg.regression_target:
            check_dictionary(cfg.data, "label", "dict.txt")
        return super().setup_task(cfg, **kwargs)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> Any:
        """Load a split.

        Raises:
            DataError: for missing labels, or a label outside ``--num-classes``.
        """
        path = os.path.join(self.cfg.data, "label", split)
        count = None
        if self.cfg.regression_target:
            path += ".label"
            if os.path.exists(path):
                with open(path) as lines:
                    count = sum(1 for _ in lines)
        else:
            labels = data_utils.load_indexed_dataset(path, self.label_dictionary, combine=combine)
            if labels is not None:
                count, first = len(labels), self.label_dictionary.nspecial
                check_labels((int(labels[i][0]) - first for i in range(count)), self.cfg.num_classes, path)
        if count is not None:
            text = os.path.join(self.cfg.data, "input0", split)
            inputs = data_utils.load_indexed_dataset(text, self.source_dictionary, combine=combine)
            check_count(path, count, count if inputs is None else len(inputs))
        elif split == "train":
            raise DataError(f"{path} does not exist: training needs labels; prepare the data again")
        return super().load_dataset(split, combine, **kwargs)


class CheckedSentenceRankingTask(SentenceRankingTask):
    """The task ``sentence_ranking`` while the plugin is loaded; what it does not mention is fairseq's."""

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> SentenceRankingTask:
        if args.num_classes is None or args.num_classes < 2:
            raise ValueError(f"--num-classes is {args.num_classes}: say how many candidates there are, at least 2")
        check_folder(args.data)
        check_dictionary(args.data, "input0", "dict.txt")
        return cls(args, super().setup_task(args, **kwargs).source_dictionary)

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        # fairseq looks for the name among the options of the model, which need not hold it.
        model = models.build_model(args, self, from_checkpoint)
        name = getattr(self.args, "ranking_head_name", None) or "sentence_classification_head"
        model.register_classification_head(name, num_classes=1)
        return model

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> Any:
        """Load a split.

        Raises:
            DataError: if there are not enough candidates, or labels; for a label that is not the number of a
                candidate.
        """
        for i in range(self.args.num_classes + 1):
            folder = os.path.join(self.args.data, f"input{i}")
            if not os.path.isdir(folder):
                raise DataError(
                    f"{folder} does not exist: --num-classes {self.args.num_classes} needs as many candidates"
                )
        path = os.path.join(self.args.data, "label", f"{split}.label")
        labels = None
        if os.path.exists(path):
            labels = read_labels(path)
            check_labels(labels, self.args.num_classes, path)
        elif split == "train":
            raise DataError(f"{path} does not exist: training needs labels; prepare the data again")
        dataset = super().load_dataset(split, combine, **kwargs)
        if labels is not None:
            check_count(path, len(labels), len(dataset))
        return dataset


compat.tasks.replace_task(
    CheckedSentencePredictionTask,
    "sentence_prediction",
    fairseq="ends deep inside, or trains on, if labels are missing or outside of --num-classes",
    here="the first wrong label and its file are named before training",
)
compat.tasks.replace_task(
    CheckedSentenceRankingTask,
    "sentence_ranking",
    fairseq="ends deep inside, or trains on, if candidates or labels are missing; may not find the name of its head",
    here="what is missing is named before training; the head has the name that the task says",
)
