"""Luna (Linear Unified Nested Attention, NeurIPS 2021) as a fairseq plugin.

``--user-dir $(luna-fairseq user-dir)`` makes fairseq import this package and then its folders ``tasks`` and
``models``, which load the plugin (:mod:`luna_fairseq.plugin`): the models, tasks, optimizer, schedule and criterion
are registered, and fairseq is repaired. The import of the package alone costs nothing, and needs neither torch nor
fairseq.
"""

from typing import Any, List

from luna_fairseq._version import __version__

__all__ = ["__version__"]


class _PackagePath(List[str]):
    """``__path__``, which also hears of ``--user-dir`` when the package was imported before fairseq was told of it.

    fairseq then imports no folder any more, and only asks whether ``--user-dir`` is in ``__path__``
    (``fairseq.utils.import_user_module``). There is no other hook.
    """

    def __contains__(self, folder: Any) -> bool:
        found = super().__contains__(folder)
        if found:
            from luna_fairseq import plugin

            plugin.load()
        return found


__path__ = _PackagePath(__path__)
