"""What ``--user-dir``, the hub or the import of a model sets off: fairseq is repaired, everything is registered."""

import importlib
from typing import Optional

from luna_fairseq import compat

# Each registers its classes with fairseq when it is imported.
_REGISTERING = (
    "luna_fairseq.optim",
    "luna_fairseq.criterions.lra_cross_entropy",
    "luna_fairseq.models.luna",
    "luna_fairseq.models.luna_bert",
    "luna_fairseq.models.luna_lm",
    "luna_fairseq.models.lra",
    "luna_fairseq.models.multilingual_luna",
    "luna_fairseq.tasks._translation",
    "luna_fairseq.tasks._masked_lm",
    "luna_fairseq.tasks._language_modeling",
    "luna_fairseq.tasks._sentences",
    "luna_fairseq.tasks.long_range_arena",
)
_begun = False
_failure: Optional[BaseException] = None


def load() -> None:
    """Load the plugin, once; further calls do nothing.

    ``luna_fairseq.models`` and ``luna_fairseq.tasks`` call it before any file of theirs is imported.

    Raises:
        Exception: whatever went wrong the first time, again with each call: fairseq cannot forget what was registered
            until then.
    """
    global _begun, _failure
    if _failure is not None:
        raise _failure
    if _begun:  # or at work: the modules below import the packages that call this
        return
    _begun = True
    try:
        compat.prepare()
        for name in _REGISTERING:
            importlib.import_module(name)
    except BaseException as error:
        _failure = error
        raise
