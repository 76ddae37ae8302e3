"""fairseq's two fine-tuning tasks, with their data and labels checked."""

import os
from typing import Any

from fairseq.data import data_utils
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask

from luna_fairseq.tasks._checks import DataError, check_dictionary, check_folder, check_labels


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
            DataError: for a label outside ``--num-classes``.
        """
        path = os.path.join(self.cfg.data, "label", split)
        if not self.cfg.regression_target:
            labels = data_utils.load_indexed_dataset(path, self.label_dictionary, combine=combine)
            if labels is not None:
                first = self.label_dictionary.nspecial
                check_labels((int(labels[i][0]) - first for i in range(len(labels))), self.cfg.num_classes, path)
        return super().load_dataset(split, combine, **kwargs)


class CheckedSentenceRankingTask(SentenceRankingTask):
    """The task ``sentence_ranking`` while the plugin is loaded; what it does not mention is fairseq's."""

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> SentenceRankingTask:
        if args.num_classes is None or args.num_classes < 2:
            raise ValueError(f"--num-classes is {args.num_classes}: say how many candidates there are, at least 2")
        check_folder(args.data)
        for i in range(args.num_classes + 1):
            folder = os.path.join(args.data, f"input{i}")
            if not os.path.isdir(folder):
                raise DataError(f"{folder} does not exist: --num-classes {args.num_classes} needs as many candidates")
        check_dictionary(args.data, "input0", "dict.txt")
        return cls(args, super().setup_task(args, **kwargs).source_dictionary)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> Any:
        """Load a split.

        Raises:
            DataError: for a label that is no number of a candidate, or another number of labels than examples.
        """
        path = os.path.join(self.args.data, "label", f"{split}.label")
        labels = None
        if os.path.exists(path):
            with open(path) as file:
                lines = file.read().split()
            # What is no number is out of range too.
            labels = [int(line) if line.isdigit() else -1 for line in lines]
            check_labels(labels, self.args.num_classes, path)
        dataset = super().load_dataset(split, combine, **kwargs)
        if labels is not None and len(labels) != len(dataset):
            raise DataError(f"{path} has {len(labels)} labels for {len(dataset)} examples: prepare the data again")
        return dataset
