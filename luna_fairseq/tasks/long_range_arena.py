"""Long Range Arena: ``--task lra-text`` (also ``long_range_arena``) and ``--task lra-image`` (paper, section 4.1)."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from fairseq.data import (
    Dictionary,
    FairseqDataset,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    OffsetTokensDataset,
    PrependTokenDataset,
    RawLabelDataset,
    RightPadDataset,
    SortDataset,
    StripTokenDataset,
    data_utils,
)
from fairseq.data.shorten_dataset import TruncateDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.constants import DATASET_IMPL_CHOICES
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II
from torch import Tensor

from luna_fairseq.checks import check_count, check_dictionary, check_folder, check_labels, read_labels
from luna_fairseq.errors import DataError
from luna_fairseq.models.lra import CLS, LRAModel

logger = logging.getLogger(__name__)


@dataclass
class LRAConfig(FairseqDataclass):
    """What both tasks read."""

    data: str = field(default="", metadata={"help": "folder of the prepared data"})
    no_shuffle: bool = field(default=False, metadata={"help": "keep the order of the data"})
    seed: int = II("common.seed")


@dataclass
class LRATextConfig(LRAConfig):
    """Options of ``lra-text``."""

    dataset_impl: Optional[DATASET_IMPL_CHOICES] = II("dataset.dataset_impl")


@dataclass
class LRAImageConfig(LRAConfig):
    """Options of ``lra-image``."""

    pixel_normalization: List[float] = field(
        default_factory=lambda: [0.5, 0.5],
        metadata={"help": "mean and standard deviation that grey values, scaled to [0, 1], are normalised with"},
    )


class _LRATask(FairseqTask):
    """Classification with accuracy; the subclasses read their data.

    Args:
        cfg: the options.
    """

    cfg: Any
    source_dictionary: Optional[Dictionary] = None
    target_dictionary = None
    _model: Any = None
    _criterion: Any = None
    _trains = False

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model; its options say how the data is to be read, so it comes before the data."""
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        if not issubclass(MODEL_REGISTRY.get(name, object), LRAModel):
            raise ValueError(f"--arch {name} does not classify long documents: take lra, luna_lra_listop, ...")
        model = super().build_model(cfg, from_checkpoint)
        self._model = model.args
        return model

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, which is told of the end of each evaluation."""
        self._criterion = super().build_criterion(cfg, from_checkpoint)
        return self._criterion

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """An evaluation of a training begins."""
        self._trains = True

    def post_validate(self, model: Any, stats: Any, agg: Any) -> None:
        """The evaluation of a split by a training has ended."""
        self._end_evaluation()

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion: Any) -> None:
        """Log; a training does so after each batch, and ``fairseq-validate`` once, at the end."""
        super().reduce_metrics(logging_outputs, criterion)
        if not self._trains and not criterion.training:
            self._end_evaluation()

    def _end_evaluation(self) -> None:
        end = getattr(self._criterion, "end_evaluation", None)
        if end is not None:
            end()

    @property
    def model_args(self) -> Any:
        """The options of the model.

        Raises:
            RuntimeError: if there is no model yet.
        """
        if self._model is None:
            raise RuntimeError("call build_model before load_dataset: the model says how long an input may be")
        return self._model

    def class_name(self, number: int) -> str:
        """What the data calls a class."""
        return str(number)

    def max_positions(self) -> int:
        """The longest input; what is longer has been cut."""
        return self.model_args.max_positions

    def _finish(self, split: str, inputs: Dict[str, FairseqDataset], target: FairseqDataset) -> FairseqDataset:
        """Put a split together and keep it."""
        sizes = [dataset.sizes for name, dataset in inputs.items() if name.endswith("tokens")]
        parts = {
            "id": IdDataset(),
            "net_input": inputs,
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(inputs["src_tokens"], reduce=True),
            "target": target,
        }
        dataset = NestedDictionaryDataset(parts, sizes=[np.max(sizes, axis=0)])
        if not self.cfg.no_shuffle:
            with data_utils.numpy_seed(self.cfg.seed):
                dataset = SortDataset(dataset, sort_order=[np.random.permutation(len(dataset))])
        self.datasets[split] = dataset
        logger.info("%s: %d examples", split, len(dataset))
        return dataset


class LRATextTask(_LRATask):
    """Classify texts, or pairs of them, symbol by symbol; grey values are symbols too (the paper's way).

    The folder holds ``src-bin``, ``label-bin``, and ``src1-bin`` for the second documents, each from
    ``fairseq-preprocess --only-source``. ``<CLS>`` is put in front unless the model averages, and what is
    longer than ``--max-positions`` is cut.

    Args:
        cfg: the options.
        dictionary: of the texts.
        labels: of the classes.
    """

    source_dictionary: Dictionary

    def __init__(self, cfg: LRATextConfig, dictionary: Dictionary, labels: Dictionary) -> None:
        super().__init__(cfg)
        self.source_dictionary = dictionary
        self.label_dictionary = labels
        self.cls = dictionary.index(CLS)

    @classmethod
    def setup_task(cls, cfg: LRATextConfig, **kwargs: Any) -> "LRATextTask":
        """Load the dictionaries.

        Raises:
            FileNotFoundError: if the folder or a dictionary does not exist.
            DataError: if the second documents have another dictionary.
        """
        check_folder(cfg.data)
        dictionaries = []
        for part in ("src-bin", "label-bin"):
            check_dictionary(cfg.data, part, "dict.txt", remedy="name the folder that holds src-bin and label-bin")
            dictionaries.append(Dictionary.load(os.path.join(cfg.data, part, "dict.txt")))
        dictionary, labels = dictionaries
        if os.path.isdir(os.path.join(cfg.data, "src1-bin")):
            check_dictionary(cfg.data, "src1-bin", "dict.txt")
            second = Dictionary.load(os.path.join(cfg.data, "src1-bin", "dict.txt"))
            if second.symbols != dictionary.symbols:
                raise DataError(
                    f"{cfg.data} has one dictionary in src-bin and another in src1-bin: prepare the second documents "
                    "with --srcdict src-bin/dict.txt"
                )
        dictionary.add_symbol(CLS)
        return cls(cfg, dictionary, labels)

    def class_name(self, number: int) -> str:
        return self.label_dictionary[number + self.label_dictionary.nspecial]

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> FairseqDataset:
        """Load a split.

        Raises:
            FileNotFoundError: if it does not exist.
            DataError: for missing or unknown labels, or other numbers of them or of second documents.
        """
        texts = {"src": self._read("src-bin", split, combine), "src1": self._read("src1-bin", split, combine)}
        first = texts["src"]
        if first is None:
            raise FileNotFoundError(f"{os.path.join(self.cfg.data, 'src-bin', split)}.bin does not exist: name "
                                    "a split that does, or prepare the data again")  # fmt: skip
        limit = self.max_positions()
        inputs: Dict[str, FairseqDataset] = {}
        for name, text in texts.items():
            if text is None:
                continue
            check_count(os.path.join(self.cfg.data, f"{name}-bin", split), len(text), len(first), what="texts")
            if self.model_args.sen_rep_type != "mp":
                text = PrependTokenDataset(text, self.cls)
            longer = int((text.sizes > limit).sum())
            if longer:
                logger.info("%s: %d of %d texts are cut to %d symbols", split, longer, len(text), limit)
            text = TruncateDataset(text, limit)
            inputs[f"{name}_tokens"] = RightPadDataset(text, pad_idx=self.source_dictionary.pad())
            inputs[f"{name}_lengths"] = NumelDataset(text)

        labels = self._read("label-bin", split, combine)
        path = os.path.join(self.cfg.data, "label-bin", split)
        if labels is None:
            raise FileNotFoundError(f"{path}.bin does not exist: {split} needs labels; prepare the data again")
        check_count(path, len(labels), len(first))
        if (labels.sizes != 2).any():
            raise DataError(f"{path} has an example with more or fewer labels than one: prepare the data again")
        special = self.label_dictionary.nspecial
        check_labels(
            (int(row[0]) - special for row in labels),
            self.model_args.sentence_class_num,
            path,
            "--sentence-class-num",
        )
        target = OffsetTokensDataset(StripTokenDataset(labels, self.label_dictionary.eos()), offset=-special)
        return self._finish(split, inputs, target)

    def _read(self, part: str, split: str, combine: bool) -> Any:
        dictionary = self.label_dictionary if part == "label-bin" else self.source_dictionary
        path = os.path.join(self.cfg.data, part, split)
        return data_utils.load_indexed_dataset(path, dictionary, self.cfg.dataset_impl, combine=combine)


class PixelDataset(FairseqDataset):
    """Images as rows of real numbers.

    Args:
        pixels: grey values 0 to 255, ``[images, N]`` uint8.
        normalization: mean and standard deviation of the grey values scaled to [0, 1].
    """

    def __init__(self, pixels: np.ndarray, normalization: Sequence[float]) -> None:
        self.pixels = pixels
        self.mean, self.std = normalization
        self.sizes = np.full(len(pixels), pixels.shape[1])

    def __getitem__(self, index: int) -> Tensor:
        """One image, ``[N]`` float32."""
        return (torch.from_numpy(self.pixels[index]).float() / 255 - self.mean) / self.std

    def __len__(self) -> int:
        return len(self.pixels)

    def collater(self, samples: List[Tensor]) -> Tensor:
        """A batch, ``[B, N]``."""
        return torch.stack(samples)


class LRAImageTask(_LRATask):
    """Classify images, pixel by pixel, as real numbers (``--input-type image``).

    The folder holds ``input/SPLIT.src``, one image a line as grey values 0 to 255, and ``label/SPLIT.label``, one
    number of a class a line.

    Args:
        cfg: the options.
    """

    @classmethod
    def add_args(cls, parser: Any) -> None:
        # As published, "--pixel-normalization 0.5 0.5"; fairseq would make it one comma-separated value.
        option = LRAImageConfig.__dataclass_fields__["pixel_normalization"]
        parser.add_argument(
            "--pixel-normalization", type=float, nargs=2, default=[0.5, 0.5], metavar=("MEAN", "STD"),
            help=option.metadata["help"],
        )  # fmt: skip
        gen_parser_from_dataclass(parser, LRAImageConfig())

    @classmethod
    def setup_task(cls, cfg: LRAImageConfig, **kwargs: Any) -> "LRAImageTask":
        """Check the options.

        Raises:
            FileNotFoundError: if the folder does not exist.
            ValueError: for a normalisation that is not a mean and a standard deviation.
        """
        check_folder(cfg.data)
        normalization = list(cfg.pixel_normalization)
        if len(normalization) != 2 or normalization[1] <= 0:
            raise ValueError(
                f"--pixel-normalization is {normalization}: give a mean and a standard deviation above 0"
            )
        return cls(cfg)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> FairseqDataset:
        """Load a split.

        Raises:
            FileNotFoundError: if it does not exist.
            DataError: for what is not a grey value, or not a class, images of different or too large sizes, and
                more or fewer labels than images.
        """
        path = os.path.join(self.cfg.data, "input", f"{split}.src")
        label_path = os.path.join(self.cfg.data, "label", f"{split}.label")
        for name in (path, label_path):
            if not os.path.isfile(name):
                raise FileNotFoundError(f"{name} does not exist: name a split that does, or prepare the data again")
        pixels = _read_pixels(path)
        if pixels.shape[1] > self.max_positions():
            raise DataError(
                f"an image of {path} has {pixels.shape[1]} pixels and --max-positions is {self.max_positions()}: "
                "raise it"
            )
        labels = read_labels(label_path)
        check_count(label_path, len(labels), len(pixels))
        check_labels(labels, self.model_args.sentence_class_num, label_path, "--sentence-class-num")
        images = PixelDataset(pixels, self.cfg.pixel_normalization)
        inputs = {"src_tokens": images, "src_lengths": NumelDataset(images)}
        return self._finish(split, inputs, RawLabelDataset(labels))


def _read_pixels(path: str) -> np.ndarray:
    """The images of a file, ``[images, N]`` uint8."""
    images: List[np.ndarray] = []
    with open(path, "rb") as lines:
        for i, line in enumerate(lines, 1):
            words = len(line.split())
            try:
                values = np.fromstring(line, dtype=np.int64, sep=" ")
            except ValueError:
                values = np.empty(0, np.int64)
            if not len(values) == words > 0 or values.min() < 0 or values.max() > 255:
                raise DataError(
                    f"{path}, line {i}, is not a list of grey values from 0 to 255: prepare the data again"
                )
            if images and words != len(images[0]):
                raise DataError(
                    f"{path}, line {i}, has {words} pixels and line 1 has {len(images[0])}: prepare the data again"
                )
            images.append(values.astype(np.uint8))
    if not images:
        raise DataError(f"{path} is empty: prepare the data again")
    return np.stack(images)


class LongRangeArenaTask(LRATextTask):
    """The same under the name that it has in the paper's own release."""


register_task("lra-text", dataclass=LRATextConfig)(LRATextTask)
register_task("long_range_arena", dataclass=LRATextConfig)(LongRangeArenaTask)
register_task("lra-image", dataclass=LRAImageConfig)(LRAImageTask)
