"""Data and dictionaries: what is half written, or does not belong together, is named before training."""

import itertools
import os
import types
from typing import Any

from luna_fairseq.compat._replace import named, replaces, replaces_value
from luna_fairseq.errors import DataError

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


@replaces_value(
    "fairseq.data.token_block_dataset",
    "np",
    fairseq="takes a type from numpy.compat for --sample-break-mode eos, and ends because that is gone",
    here="the module sees a numpy that still has it",
    since="numpy 2.0",
)
def break_at_sentences(original: Any) -> Any:
    numpy = types.SimpleNamespace(**vars(original))
    numpy.compat = types.SimpleNamespace(long=original.int64)
    return numpy
