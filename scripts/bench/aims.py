"""What is aimed at, and whether a run reached it."""

from typing import Any, Dict, List, Tuple

from scripts.bench.layers import BIASED
from scripts.bench.sizes import SIZES, TRANSLATION
from scripts.bench.tables import ratio, table

# What is aimed at on two CPU cores, by length: the least speed relative to what stands behind it.
TARGETS: List[Tuple[str, Dict[str, Any], Dict[str, Any], Dict[int, float]]] = [
    (
        "attention",
        {"layer": "Luna", "l": 32, "backward": True},
        {"layer": "softmax", "l": 0},
        {256: 1.5, 1024: 2.7, 4096: 9, 16384: 30},
    ),
    ("attention", {"layer": "Luna", "l": 256, "backward": True}, {"layer": "softmax", "l": 0}, {4096: 2.5}),
    (
        "attention",
        {"layer": "causal Luna", "l": 32, "backward": True},
        {"layer": "causal softmax", "l": 0},
        {256: 1.0, 1024: 1.4, 4096: 3, 16384: 8},
    ),
    (
        "attention",
        {"layer": "causal Luna", "l": 32, "backward": True},
        {"layer": "transcription"},
        {512: 12, 1024: 12, 2048: 12},
    ),
    (
        "attention",
        {"layer": BIASED, "l": 32, "backward": True},
        {"layer": "Luna"},
        {128: 0.95, 512: 0.95, 2048: 0.95, 16384: 0.95},
    ),
    *(
        ("training", {"arch": arch}, {"arch": "transformer_wmt_en_de"}, {32: 0.85, 1024: 1.2, 4096: 3})
        for arch in TRANSLATION[1:]
    ),
    ("training", {"arch": "luna_base_2048"}, {"arch": "roberta_base"}, {2048: 1.5}),
    *(
        (
            "generation",
            {"arch": arch, "beam": beam},
            {"arch": "transformer_wmt_en_de"},
            {25: 1.0, 250: 1.3, 2000: 3},
        )
        for arch in TRANSLATION[1:]
        for beam in (5, 1)
    ),
]

# The same of --full, which is for a GPU.
FULL_TARGETS: List[Tuple[str, Dict[str, Any], Dict[str, Any], Dict[int, float]]] = [
    (
        "attention",
        {"layer": "Luna", "l": 128, "backward": True},
        {"layer": "softmax", "l": 0},
        {1024: 1.0, 8192: 4, 65536: 25},
    ),
    (
        "attention",
        {"layer": "causal Luna", "l": 128, "backward": True},
        {"layer": "causal softmax", "l": 0},
        {4096: 1.0, 16384: 4},
    ),
]


def targets(found: Dict[str, Any]) -> str:
    """What was aimed at, and what was measured."""
    lines = []
    for part, chosen, base, wanted in FULL_TARGETS if found["sizes"]["dim"] == SIZES["full"]["dim"] else TARGETS:
        rows = found.get(part, [])
        cells = []
        for length, least in wanted.items():
            row = next((row for row in rows if chosen.items() <= row.items() and row["length"] == length), None)
            if row and (measured := ratio(rows, row, **base)):
                cells.append(f"{length:,}: {measured.split('x')[0]} ({least:g})")
        if cells:
            own = ", ".join(f"{key} {value}" for key, value in chosen.items() if key in ("l", "beam"))
            name = f"{chosen.get('layer') or chosen['arch']}{f' ({own})' if own else ''}"
            lines.append([part, name, str(base.get("layer") or base["arch"]), ", ".join(cells)])
    return table(["", "", "against", "length: speed (wanted)"], lines) if lines else ""
