"""``--criterion lra_cross_entropy``: cross-entropy over classes, and accuracy (paper, section 4.1)."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, TextIO, Tuple

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed.utils import get_data_parallel_world_size
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn


@dataclass
class LRACrossEntropyConfig(FairseqDataclass):
    """Options of the criterion."""

    save_predictions: Optional[str] = field(
        default=None,
        metadata={
            "help": "file for the last evaluation, of one split: number of the example, predicted class, class"
        },
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("lra_cross_entropy", dataclass=LRACrossEntropyConfig)
class LRACrossEntropyCriterion(FairseqCriterion):
    """The sum over a batch of -log p(class); ``accuracy``, in percent, can choose the best checkpoint.

    As published, the trainer divides the gradient by the number of tokens unless ``--sentence-avg`` is given,
    as in every published command.

    Args:
        task: ``lra-text`` or ``lra-image``.
        save_predictions: file for the predictions of the last evaluation, or None.
        sentence_avg: divide by the number of examples.

    Raises:
        ValueError: for a file of predictions and several devices, or if something else is in that file.
    """

    def __init__(self, task: Any, save_predictions: Optional[str], sentence_avg: bool) -> None:
        super().__init__(task)
        if save_predictions and get_data_parallel_world_size() > 1:
            raise ValueError(
                f"--save-predictions is {save_predictions}: evaluate with --distributed-world-size 1 to write it"
            )
        if save_predictions:
            _check_replaceable(Path(save_predictions))
        self.save_predictions = save_predictions
        self.sentence_avg = sentence_avg
        self._file: Optional[TextIO] = None
        self._written: Set[int] = set()

    def forward(self, model: nn.Module, sample: Dict[str, Any], reduce: bool = True) -> Tuple[Tensor, int, Dict]:
        """Loss of a batch.

        Args:
            model: a classifier whose ``forward`` takes ``sample["net_input"]``.
            sample: a batch of the task, with ``target`` ``[B, 1]`` or ``[B]`` int64.
            reduce: not read, the sum is needed always.

        Returns:
            The sum over the batch in nats, float32; what to divide the gradient by; and what to log.
        """
        logits = model(**sample["net_input"])[0].float()
        target = sample["target"].view(-1)
        loss = F.cross_entropy(logits, target, reduction="sum")
        predicted = logits.argmax(dim=-1)
        if self.save_predictions:
            self._write(model.training, sample["id"].tolist(), predicted.tolist(), target.tolist())
        nsentences = target.size(0)
        sample_size = nsentences if self.sentence_avg else sample["ntokens"]
        return loss, sample_size, {
            "loss": loss.detach(),
            "ncorrects": (predicted == target).sum().detach(),
            "ntokens": sample["ntokens"],
            "nsentences": nsentences,
            "sample_size": sample_size,
        }  # fmt: skip

    def _write(self, training: bool, ids: List[int], predicted: List[int], target: List[int]) -> None:
        if training:  # the next evaluation begins a new file
            if self._file is not None:
                self._file.close()
            self._file = None
            self._written.clear()
            return
        if self._file is None:
            assert self.save_predictions is not None
            self._file = open(self.save_predictions, "w", encoding="utf-8")  # noqa: SIM115 (open over many batches)
        if not self._written.isdisjoint(ids):
            raise ValueError("--save-predictions writes one split: name one --valid-subset")
        self._written.update(ids)
        for i, *classes in zip(ids, predicted, target, strict=True):
            self._file.write("\t".join([str(i), *map(self.task.class_name, classes)]) + "\n")
        self._file.flush()

    @staticmethod
    def reduce_metrics(logging_outputs: List[Dict[str, Any]]) -> None:
        """Log the loss of an example (or of a token, without ``--sentence-avg``) in bits, and the accuracy."""
        total = {
            key: sum(log.get(key, 0) for log in logging_outputs)
            for key in ("loss", "ncorrects", "nsentences", "sample_size")
        }
        metrics.log_scalar("loss", total["loss"] / total["sample_size"] / math.log(2), total["sample_size"], round=3)
        metrics.log_scalar("accuracy", 100 * total["ncorrects"] / total["nsentences"], total["nsentences"], round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All of them are sums."""
        return True


def _check_replaceable(path: Path) -> None:
    """Refuse to write over a file that does not begin as predictions do.

    Raises:
        ValueError: if it does not.
    """
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            first = file.readline()
        if first and not re.fullmatch(r"\d+\t[^\t]*\t[^\t]*\n", first):
            raise ValueError(f"--save-predictions is {path}, which holds something else: name another file")
