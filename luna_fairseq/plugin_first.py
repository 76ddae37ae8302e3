"""The plugin is loaded before fairseq: in this process, and in those that it spawns.

A process that torch or multiprocessing spawns imports the main module of the one that spawned it, before anything
else. :func:`load` makes this file that module; what it does there stands at its end.
"""

import importlib.util
import multiprocessing
import sys
from argparse import Namespace

from luna_fairseq import compat, plugin
from luna_fairseq.cli import user_dir


def load() -> None:
    """Load the plugin as ``--user-dir`` does, but with all repairs made before fairseq is imported."""
    compat.prepare()
    from fairseq.utils import import_user_module

    import_user_module(Namespace(user_dir=str(user_dir())))
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("luna_fairseq.plugin_first")
    if sys.version_info >= (3, 14) and sys.platform == "linux":
        # It would start data workers from a process that has not loaded the plugin. An import may have asked already
        # which method there is, which settles it.
        multiprocessing.set_start_method("fork", force=True)


if __name__ == "__mp_main__":
    plugin.load()
