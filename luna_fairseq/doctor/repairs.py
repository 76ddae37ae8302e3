"""The plugin: it loads, fairseq knows its names, and every repair of fairseq is made."""

import collections

from luna_fairseq.doctor.verdicts import Finding, Wrong


def check_repairs() -> Finding:
    """Load the plugin, and ask each repair.

    Raises:
        Wrong: if one is not active, or fairseq does not know the models.
    """
    from luna_fairseq import plugin_first
    from luna_fairseq.compat import REPAIRS

    plugin_first.load()
    from fairseq.models import ARCH_MODEL_REGISTRY

    ours = ("luna", "luna_bert", "luna_lm", "lra", "multilingual_luna")
    missing = [name for name in ours if name not in ARCH_MODEL_REGISTRY]
    if missing:
        raise Wrong(f"fairseq does not know the architectures {', '.join(missing)}")
    asleep = [repair.name for repair in REPAIRS if not repair.on]
    if asleep:
        raise Wrong(f"{len(asleep)} of {len(REPAIRS)} repairs of fairseq are not active: {', '.join(asleep)}")
    areas = collections.Counter(repair.area for repair in REPAIRS)
    text = f"all {len(REPAIRS)} active ({', '.join(f'{area} {count}' for area, count in areas.items())})"
    return Finding(text, {"repairs": {repair.name: repair.on for repair in REPAIRS}})
