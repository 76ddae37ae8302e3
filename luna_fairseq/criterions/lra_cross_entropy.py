"""``--criterion lra_cross_entropy``: cross-entropy over classes, and accuracy (paper, section 4.1)."""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed.utils import get_data_parallel_world_size
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn

from luna_fairseq.errors import OutputError
from luna_fairseq.outputs import replaceable, whole_file


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
        save_predictions: file for the predictions of the last evaluation, or None; it is written at the end of one
            (:meth:`end_evaluation`), whole or not at all.
        sentence_avg: divide by the number of examples.

    Raises:
        ValueError: for a file of predictions and several devices, or if something else is in that file.
        OutputError: if no file can be written there.
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
        self._rows: Dict[int, str] = {}  # of the evaluation at hand, by the number of the example

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
            self._note(model.training, sample["id"].tolist(), predicted.tolist(), target.tolist())
        nsentences = target.size(0)
        sample_size = nsentences if self.sentence_avg else sample["ntokens"]
        return loss, sample_size, {
            "loss": loss.detach(),
            "ncorrects": (predicted == target).sum().detach(),
            "ntokens": sample["ntokens"],
            "nsentences": nsentences,
            "sample_size": sample_size,
        }  # fmt: skip

    def _note(self, training: bool, ids: List[int], predicted: List[int], target: List[int]) -> None:
        if training:
            self._rows.clear()  # the next evaluation begins anew
            return
        if not self._rows.keys().isdisjoint(ids):
            raise ValueError("--save-predictions writes one split: name one --valid-subset")
        for i, *classes in zip(ids, predicted, target, strict=True):
            self._rows[i] = "\t".join([str(i), *map(self.task.class_name, classes)]) + "\n"

    def end_evaluation(self) -> None:
        """Write the predictions of the evaluation that has ended, if any are to be."""
        if self.save_predictions and self._rows:
            with whole_file(self.save_predictions) as temporary:
                temporary.write_text("".join(self._rows.values()), encoding="utf-8")

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
    """Refuse to write over a file that does not begin as predictions do, or where no file can be written.

    Raises:
        ValueError: if it does not.
        OutputError: if something else than a file is there, or nothing can be written.
    """
    folder = replaceable(path).absolute().parent
    above = next(known for known in (folder, *folder.parents) if known.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"--save-predictions is {path}, and nothing can be written to {above}: name another file")
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            first = file.readline()
        if first and not re.fullmatch(r"\d+\t[^\t]*\t[^\t]*\n", first):
            raise ValueError(f"--save-predictions is {path}, which holds something else: name another file")
