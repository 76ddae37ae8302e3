"""fairseq's language modelling task with its data checked, and with state that is carried from block to block."""

import copy
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import torch
import torch.distributed as dist
from fairseq import utils
from fairseq.data import BaseWrapperDataset
from fairseq.data.iterators import EpochBatchIterator
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from luna_fairseq import compat
from luna_fairseq.checks import check_complete, check_dictionary, check_folder
from luna_fairseq.errors import DataError
from luna_fairseq.models._config import CarryOptions
from luna_fairseq.modules.carried import CARRY_OPTIONS, Carried, Carry, check_carried
from luna_fairseq.modules.positions import learned_positions

logger = logging.getLogger(__name__)


@dataclass
class CarryingLanguageModelingConfig(CarryOptions, LanguageModelingConfig):
    """fairseq's options, and those of the state that blocks hand on."""


class ConsecutiveBlocks(BaseWrapperDataset):
    """The blocks of a text in their order, as rows that each read a part of it from beginning to end.

    The text is cut into as many parts of equally many blocks as there are rows in the batches of all shards; batch i
    of a shard holds block i of each of its parts, row by row. Where the last part is shorter it ends earlier.

    Args:
        dataset: a split of fairseq's, whose items are blocks in the order of the text.
    """

    shards = 1  # how many share the batches among them, each taking every so manieth
    last_position: Optional[int] = None  # of the model, if it has one and they are counted on from block to block
    part = 1  # blocks

    def ordered_indices(self) -> np.ndarray:
        """All blocks, in the order of the text."""
        return np.arange(len(self.dataset))

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        required_batch_size_multiple: int = 1,
    ) -> List[List[int]]:
        """Batches of equally many rows: ``max_sentences``, and at most what ``max_tokens`` allows.

        Raises:
            DataError: if blocks were left out because they are too long, or a row has more tokens than the model
                has learned positions.
        """
        blocks, longest = len(self.dataset), max(1, int(self.sizes.max(initial=1)))
        if max_tokens and longest > max_tokens:
            raise DataError(
                f"--max-tokens is {max_tokens} and a block has {longest} tokens: raise it to that, or take fewer "
                "--tokens-per-sample"
            )
        if len(indices) != blocks:
            raise DataError(
                f"{blocks - len(indices)} of {blocks} blocks are longer than the model's positions: --carry-state "
                "needs them all; take fewer --tokens-per-sample, or --sample-break-mode none"
            )
        rows = min((limit for limit in (max_sentences, (max_tokens or 0) // longest) if limit), default=1)
        self.part = -(-blocks // (rows * self.shards))
        starts = range(0, rows * self.shards * self.part, self.part)
        longest = max((int(self.sizes[start : start + self.part].sum()) for start in starts), default=0)
        if self.last_position is not None and longest > self.last_position:
            raise DataError(
                f"--carry-positions continue counts the {longest:,} tokens of a row, and the model has "
                f"{self.last_position:,} learned positions: take --carry-positions restart, or a model without "
                "--decoder-learned-pos"
            )
        return [
            [start + i for start in starts[shard * rows : (shard + 1) * rows] if start + i < blocks]
            for i in range(self.part)
            for shard in range(self.shards)
        ]

    def collater(self, samples: List[Dict[str, Any]]) -> Dict[str, Any]:
        """A batch of fairseq's, and whether it is the first of its parts."""
        batch = super().collater(samples)
        return {**batch, "begins": bool(batch["id"][0] % self.part == 0)} if batch else batch


class Carrier:
    """Hands the state from batch to batch of :class:`ConsecutiveBlocks`.

    Args:
        restart, at_most: see :class:`luna_fairseq.modules.carried.Carry`.
    """

    def __init__(self, restart: bool, at_most: int = 0) -> None:
        self.restart, self.at_most = restart, at_most
        self.blocks: Optional[Tensor] = None  # that were read last, [B]
        self.carry = self._behind({})
        self.all_processes: Optional[List[Any]] = None  # what each had at the last save, in the first one

    def _behind(self, before: Carried) -> Carry:
        return Carry(before, self.restart, self.at_most)

    def carry_on(self, sample: Dict[str, Any]) -> Dict[str, Any]:
        """The same batch with what the model needs to go on behind the batch before; an empty one as it is."""
        if not sample:
            return sample
        blocks = sample["id"].cpu()
        rows = len(sample["net_input"]["src_tokens"])  # with those of padding alone (--pad-to-fixed-bsz)
        if sample["begins"]:
            carry = self._behind({})
        elif self.blocks is not None and torch.equal(blocks, self.blocks):  # the same batch again
            carry = self._behind(self.carry.before)
        elif self._lead_to(blocks, rows):
            carry = self.carry.next(rows)
        else:
            logger.warning("no state is known for what comes before block %d: it begins with none", int(blocks[0]))
            carry = self._behind({})
        self.blocks, self.carry = blocks, carry
        return {**sample, "net_input": {**sample["net_input"], "carry": carry}}

    def _lead_to(self, blocks: Tensor, rows: int) -> bool:
        """Whether the blocks that were read last, and have left a state, are those before these."""
        known = self.blocks is not None and torch.equal(blocks, self.blocks[: len(blocks)] + 1)
        return known and len(self.carry.after.get("real", ())) >= rows

    def gather(self) -> None:
        """Tell the first process, which saves, what all of them carry; each must call it."""
        processes = distributed_utils.get_data_parallel_world_size()
        if processes == 1:
            return
        group, first = distributed_utils.get_data_parallel_group(), distributed_utils.get_data_parallel_rank() == 0
        self.all_processes = [None] * processes if first else None
        dist.gather_object(utils.move_to_cpu(self._own_state()), self.all_processes, group=group)

    def _own_state(self) -> Dict[str, Any]:
        # fairseq broadcasts what it loads, and of a part of a larger tensor the wrong numbers.
        return {"blocks": self.blocks, "carried": {name: x.contiguous() for name, x in self.carry.after.items()}}

    def state_dict(self) -> Dict[str, Any]:
        """Of one process; or of all that have been gathered, in their order."""
        return self._own_state() if self.all_processes is None else {"processes": self.all_processes}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take what this process carried. Of another number of processes each had other rows: nothing is taken."""
        saved = state.get("processes", [state])
        if len(saved) != distributed_utils.get_data_parallel_world_size():
            saved = [{"blocks": torch.empty(0, dtype=torch.int64), "carried": {}}]  # carry_on says so
        own = saved[distributed_utils.get_data_parallel_rank() if len(saved) > 1 else 0]
        self.blocks = own["blocks"]
        self.carry = self._behind({})
        self.carry.after = own["carried"]


class _InOrder(EpochBatchIterator):
    """fairseq's batches of an epoch, never shuffled; what is carried there belongs to the place in the data."""

    carrier: Carrier

    @classmethod
    def of(cls, batches: EpochBatchIterator, carrier: Carrier) -> "_InOrder":
        own: Any = copy.copy(batches)
        own.__class__ = cls
        own.disable_shuffling, own.shuffle, own.carrier = True, False, carrier
        return own

    def state_dict(self) -> Dict[str, Any]:
        state = super().state_dict()
        return {**state, "carrier": self.carrier.state_dict()} if state["iterations_in_epoch"] else state

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "shuffle": False})  # a training that carried nothing was shuffled
        if "carrier" in state_dict:
            self.carrier.load_state_dict(state_dict["carrier"])


class _Carried:
    """Batches of :class:`ConsecutiveBlocks` with the state, in the process that computes.

    Args:
        batches: an iterator of fairseq's, with a length.
        carrier: of these batches alone.
    """

    def __init__(self, batches: Any, carrier: Carrier) -> None:
        self.batches, self.carrier = batches, carrier
        self.n = getattr(batches, "n", 0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return map(self.carrier.carry_on, self.batches)


class CheckedLanguageModelingTask(LanguageModelingTask):
    """The task ``language_modeling`` while the plugin is loaded; everything that it does not mention is fairseq's."""

    def __init__(self, args: Any, *others: Any, **kwargs: Any) -> None:
        super().__init__(args, *others, **kwargs)
        self._carriers: Dict[str, Carrier] = {}  # empty: nothing is carried
        self._last_position: Optional[int] = None
        length = getattr(args, "tokens_per_sample", None)
        if length is not None and length < 1 and getattr(args, "sample_break_mode", None) != "eos":
            raise ValueError(
                f"--tokens-per-sample is {length} without what --context-window takes of it: at least 1 must be left"
            )
        check_carried(getattr(args, "carry_state", False), getattr(args, "carry_at_most", 0))
        if getattr(args, "carry_state", False):
            self._begin_to_carry(args)

    def _begin_to_carry(self, options: Any) -> None:
        """As the options of the task or the attributes of the model, which have the same names, say."""
        if getattr(self.args, "add_bos_token", False):
            raise ValueError(
                "--carry-state goes on with one text, and --add-bos-token begins a new one with each block: leave "
                "one of them out"
            )
        restart, at_most = options.carry_positions == "restart", getattr(options, "carry_at_most", 0)
        self._carriers = {split: Carrier(restart, at_most) for split in ("train", "valid")}

    def gather_state(self) -> None:
        """What is carried belongs to the checkpoint that is about to be saved; every process calls it."""
        if self._carriers:
            self._carriers["train"].gather()

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> LanguageModelingTask:
        if args.data:
            folders = utils.split_paths(args.data)
            for folder in folders:
                check_folder(folder)
            check_dictionary(folders[0], "dict.txt")
        return super().setup_task(args, **kwargs)

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(args, from_checkpoint)
        # Whoever evaluates says so to the task.
        if not from_checkpoint and getattr(model, "carry_state", False) and not self._carriers:
            self._begin_to_carry(model)
            _note_in_the_task(args, model)
        if self._carriers and not hasattr(model, "carry_state"):
            raise ValueError(
                "--carry-state needs a model whose state has one size, luna_lm: leave it out with "
                f"{type(model).__name__}"
            )
        if self._carriers:
            self._compare(model)
        return model

    def _compare(self, model: Any) -> None:
        """What is carried here with what the model has positions for, and was trained with."""
        known = self._carriers["valid"]
        learned = None if known.restart else learned_positions(model.decoder.embed_positions)
        self._last_position = min(self._last_position or sys.maxsize, learned) if learned else self._last_position
        trained = model.carry_positions == "restart", model.carry_at_most
        if model.carry_state and trained != (known.restart, known.at_most):
            logger.warning(
                "the model was trained with --carry-positions %s --carry-at-most %d, which is not what is done here",
                model.carry_positions,
                model.carry_at_most,
            )

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split.

        Raises:
            DataError: if a file of any shard is damaged or only half written.
        """
        if split == "train" and split not in self.datasets:
            for folder in utils.split_paths(self.args.data):  # a later shard must not stop the run after days
                check_complete(os.path.join(folder, split))
        super().load_dataset(split, epoch, combine, **kwargs)
        if self._carriers:
            self.datasets[split] = ConsecutiveBlocks(self.datasets[split])
            self.datasets[split].last_position = self._last_position

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Batches of fairseq's; those of consecutive blocks in their order."""
        if not isinstance(dataset, ConsecutiveBlocks):
            return super().get_batch_iterator(dataset, *args, **kwargs)
        dataset.shards = kwargs.get("num_shards", 1)
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        if not isinstance(batches, _InOrder):
            batches = _InOrder.of(batches, self._carriers["train"])  # only a training saves its place
            if dataset in self.dataset_to_epoch_iter:  # fairseq asks for the same ones again in each epoch
                self.dataset_to_epoch_iter[dataset] = batches
        return batches

    def train_step(self, sample: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self._carriers:
            sample = self._carriers["train"].carry_on(sample)
        return super().train_step(sample, model, *args, **kwargs)

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        if self._carriers:
            sample = self._carriers["valid"].carry_on(sample)
        return super().valid_step(sample, model, criterion)

    def eval_lm_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Batches for ``fairseq-eval-lm``; with ``--carry-state`` one row, or ``--batch-size`` of them.

        Raises:
            ValueError: for a context window beside the carried state.
        """
        _pad_no_rows(dataset)
        if self._carriers and kwargs.pop("context_window", 0) > 0:
            raise ValueError("--context-window and --carry-state both give a block what comes before: leave one out")
        if not self._carriers:
            return super().eval_lm_dataloader(dataset, *args, **kwargs)
        # -1 is no limit, and rows are parts of the text; the number of tokens has a default, which is none for them.
        kwargs.update(batch_size=max(1, kwargs.get("batch_size") or 1), max_tokens=None)
        batches = super().eval_lm_dataloader(dataset, *args, **kwargs)
        known = self._carriers["valid"]
        return _Carried(batches, Carrier(known.restart, known.at_most))


def _pad_no_rows(dataset: Any) -> None:
    """Leave out rows of padding alone (``--pad-to-fixed-bsz``): fairseq-eval-lm asks for their block."""
    while dataset is not None:
        if hasattr(dataset, "pad_to_bsz"):
            dataset.pad_to_bsz = None
        dataset = getattr(dataset, "dataset", None)


def _note_in_the_task(cfg: Any, model: Any) -> None:
    """What the model's options say, as if they were the task's: a checkpoint has the same task by both commands.

    Args:
        cfg: the model's config within the whole, if it is within one.
        model: with ``carry_state`` and what belongs to it.
    """
    root: Any = cfg._get_root() if OmegaConf.is_config(cfg) else None
    if OmegaConf.is_config(root) and "task" in root:
        with open_dict(root.task):
            for name in CARRY_OPTIONS:
                setattr(root.task, name, getattr(model, name))


compat.tasks.extend_task(CheckedLanguageModelingTask, "language_modeling", CarryingLanguageModelingConfig)
