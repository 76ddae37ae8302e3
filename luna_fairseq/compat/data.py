"""Data and dictionaries: what is half written, or does not belong together, is named before training."""

import importlib
import itertools
import os
import types
from typing import Any, List

from luna_fairseq.compat._lines import open_text
from luna_fairseq.compat._replace import imported_modules, named, replaces, replaces_value
from luna_fairseq.errors import DataError

# The modules that read text with an open() of their own: dictionaries, fairseq-preprocess, raw data.
READERS = ("file_chunker_utils", "data.dictionary", "data.indexed_dataset")

_NO_DICTIONARY = (
    "{} is not a dictionary, or is damaged (each line is a symbol and a count, and no symbol comes twice): copy it "
    "again, or run fairseq-preprocess again"
)


@replaces(
    "fairseq.data.Dictionary",
    "add_from_file",
    fairseq="does not say which dict.txt it could not read, and takes an empty one",
    here="the file is named",
    since="fairseq 0.12.3",
)
def name_the_dictionary(original: Any, self: Any, f: Any) -> None:
    before = len(self)
    try:
        original(self, f)
    except OSError:
        raise
    except Exception as error:
        if not isinstance(f, str):  # it calls itself with the open file
            raise
        raise DataError(_NO_DICTIONARY.format(f)) from error
    if isinstance(f, str) and len(self) == before:
        raise DataError(_NO_DICTIONARY.format(f))


@replaces(
    "fairseq.data.data_utils",
    "load_indexed_dataset",
    fairseq="finds out that a .bin or .idx was cut short when training comes to the missing part",
    here="the file is named when it is opened",
    since="fairseq 0.12.3",
)
def refuse_half_written_data(original: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    from luna_fairseq.checks import check_complete

    asked = named(original, path, *args, **kwargs)
    for k in itertools.count():  # train, train1, ...
        part = path + (str(k) if k > 0 else "")
        check_complete(part)
        if not asked.get("combine") or not os.path.exists(f"{part}.idx"):
            break
    return original(path, *args, **kwargs)


@replaces(
    "fairseq.data.data_utils",
    "load_indexed_dataset",
    fairseq="finds out that a symbol is not in the dictionary when training comes to it",
    here="the data and the dictionary are named when the data is opened",
    since="fairseq 0.12.3",
)
def refuse_unknown_symbols(original: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    import numpy as np

    asked = named(original, path, *args, **kwargs)
    dataset, dictionary = original(path, *args, **kwargs), asked.get("dictionary")
    if dataset is not None and not hasattr(dataset, "_path"):
        dataset._path = path  # raw text does not know its name, which is said if it does not fit other data
    if dataset is not None and dictionary is not None and not getattr(dataset, "supports_prefetch", False):
        # A look into as much as does not take time.
        some = (dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, min(len(dataset), 10_000)))
        largest = max((int(item.max()) for item in some if len(item) > 0), default=0)
        if largest >= len(dictionary):
            raise DataError(
                f"{path} holds symbol number {largest} and its dictionary ends at {len(dictionary) - 1}: the "
                "dictionary was cut short, or is another one; copy it again, or prepare the data again"
            )
    return dataset


def _modules_with_numpy() -> List[Any]:
    return [module for module in imported_modules() if isinstance(vars(module).get("np"), types.ModuleType)]


@replaces_value(
    _modules_with_numpy,
    "np",
    fairseq="reads what numpy has dropped: np.compat (--sample-break-mode eos), percentile(interpolation=) and more",
    here="every module of fairseq sees a numpy that still has them",
    since="numpy 2.0",
)
def keep_old_numpy(original: Any) -> Any:
    """``--num-batch-buckets`` and the masks of span_masked_lm need them, for example."""

    def percentile(*args: Any, interpolation: str = "linear", **kwargs: Any) -> Any:
        return original.percentile(*args, **{"method": interpolation, **kwargs})

    numpy = types.ModuleType(original.__name__, original.__doc__)
    vars(numpy).update(vars(original))  # the hook for what numpy imports late is among them
    vars(numpy).update(float=float, int=int, compat=types.SimpleNamespace(long=int), percentile=percentile)
    return numpy


@replaces(
    "fairseq.data.concat_dataset.ConcatDataset",
    "__init__",
    fairseq='ends with "negative dimensions" if there is a train1 and no --upsample-primary: it takes train -1 times',
    here="it is taken once; a number below 1 is refused",
    since="fairseq 0.12.3",
)
def take_train_once(original: Any, self: Any, datasets: Any, sample_ratios: Any = 1) -> None:
    # -1 is fairseq's default of --upsample-primary.
    one = isinstance(sample_ratios, int)
    ratios = [1 if ratio == -1 else ratio for ratio in ([sample_ratios] if one else sample_ratios)]
    if min(ratios, default=1) < 1:
        raise DataError(f"--upsample-primary is {min(ratios)}: it says how often train is taken, at least 1")
    original(self, datasets, ratios[0] if one else ratios)


def _parts(dataset: Any) -> List[Any]:
    """What a dataset was put together from, without what is wrapped around it."""
    while not hasattr(dataset, "datasets") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return list(getattr(dataset, "datasets", [dataset]))


def file_of(dataset: Any) -> str:
    """The path of a dataset, without .bin, .idx; empty if it is not known."""
    while not hasattr(dataset, "_path") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return str(getattr(dataset, "_path", None) or getattr(dataset, "path", None) or "")


def _name(dataset: Any) -> str:
    return file_of(dataset) or "one side"


@replaces(
    "fairseq.data.LanguagePairDataset",
    "__init__",
    fairseq='says "Source and target must contain the same number of examples", of no file',
    here="the two files are named, with how many examples each has",
    since="fairseq 0.12.3",
)
def name_the_unequal_files(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    asked = named(original, self, *args, **kwargs)
    source, target = asked["src"], asked.get("tgt")
    if target is not None and len(source) != len(target):
        for one, other in zip(_parts(source), _parts(target), strict=False):
            if len(one) != len(other):
                raise DataError(
                    f"{_name(one)} has {len(one)} examples and {_name(other)} has {len(other)}: each line of the one "
                    "must belong to a line of the other; correct the texts, and prepare them again"
                )
    original(self, *args, **kwargs)


@replaces_value(
    lambda: [importlib.import_module(f"fairseq.{name}") for name in READERS],
    "open",
    fairseq="ends a line of text at a lone carriage return, too, and takes a byte order mark for a part of a word",
    here="a line ends at its line feed, the mark is left out, and a line that is no UTF-8 is named",
    since="fairseq 0.12.3",
)
def read_whole_lines(original: Any) -> Any:
    """Two texts that belong together line by line would no longer do so after one of them has such a character."""
    return open_text


@replaces(
    "fairseq.tasks",
    "setup_task",
    fairseq="takes the languages from the names in the data folder, and saves checkpoints that do not tell them",
    here="a checkpoint tells the languages that it was trained for",
    since="fairseq 0.12.3",
)
def note_the_languages(original: Any, cfg: Any, **kwargs: Any) -> Any:
    """The task gets a copy of the options, and notes them there."""
    from omegaconf import OmegaConf

    task = original(cfg, **kwargs)
    if OmegaConf.is_config(cfg) and not kwargs.get("from_checkpoint"):
        for name in ("source_lang", "target_lang"):
            found = getattr(getattr(task, "cfg", None), name, None)
            if found is not None and name in cfg and cfg[name] is None:
                cfg[name] = found
    return task
