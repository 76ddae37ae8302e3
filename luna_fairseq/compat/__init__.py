"""fairseq 0.12.3 on today's torch and Python: what does not fit, and what happens instead.

One file a concern; ``docs/fairseq.md`` has the table of all repairs. Everything here was needed with fairseq-fixed
0.12.3.1, torch 2.13, hydra-core 1.3 and Python 3.11. Public hooks are used wherever there is one; for what is
replaced there is none.

The files below import fairseq and torch inside their functions: the import of this package is cheap and changes
nothing, :func:`prepare` does.
"""

# The order of the list of repairs, and so of repairs of the same function: see _replace.py. First comes what fairseq
# cannot be imported without, then the noise, because fairseq makes some of it when it is imported; the options come
# last, because every module that uses any must have been imported.
# isort: off
from luna_fairseq.compat import importing
from luna_fairseq.compat import noise
from luna_fairseq.compat import mistakes
from luna_fairseq.compat import loading
from luna_fairseq.compat import hub
from luna_fairseq.compat import checkpoints
from luna_fairseq.compat import matching
from luna_fairseq.compat import data
from luna_fairseq.compat import epochs
from luna_fairseq.compat import trainer
from luna_fairseq.compat import pruning
from luna_fairseq.compat import limits
from luna_fairseq.compat import commands
from luna_fairseq.compat import decoding
from luna_fairseq.compat import evaluation
from luna_fairseq.compat import ending
from luna_fairseq.compat import locking
from luna_fairseq.compat import signals
from luna_fairseq.compat import tasks
from luna_fairseq.compat import options

# isort: on
from luna_fairseq.compat._replace import REPAIRS, Repair, switched_off

__all__ = [
    "REPAIRS",
    "Repair",
    "checkpoints",
    "commands",
    "data",
    "decoding",
    "ending",
    "epochs",
    "evaluation",
    "hub",
    "importing",
    "limits",
    "loading",
    "locking",
    "matching",
    "mistakes",
    "noise",
    "options",
    "prepare",
    "pruning",
    "signals",
    "switched_off",
    "tasks",
    "trainer",
]

_prepared = False


def prepare() -> None:
    """Make fairseq work here, once; every part of the plugin that needs fairseq calls it first."""
    global _prepared
    if _prepared:
        return
    for repair in REPAIRS:
        repair.switch_on()
    _prepared = True
