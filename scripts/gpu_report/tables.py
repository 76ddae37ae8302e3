"""The tables of a report, as Markdown."""

from collections.abc import Callable
from typing import Any, Dict, List, Optional

from luna_fairseq.doctor.figures import on_paper
from scripts.bench.length import PAPER
from scripts.bench.tables import table
from scripts.gpu_report.findings import BEGUN

Row = Dict[str, Any]
MIB = 2**20


def _one(rows: List[Row], **wanted: Any) -> Optional[Row]:
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _correctness(rows: List[Row]) -> List[str]:
    lines = [[row["name"], row["verdict"], row["text"]] for row in rows]
    return ["Correctness.\n", table(["check", "", ""], lines)]


# Heads of the columns, and what stands below them.
_LAYERS = {
    "causal Luna, no kernels": {"kind": "causal Luna", "kernels": "torch"},
    "causal Luna": {"kind": "causal Luna", "kernels": "auto"},
    "causal softmax": {"kind": "causal softmax"},
    "Luna": {"kind": "Luna"},
    "softmax": {"kind": "softmax"},
}


def _layer_table(rows: List[Row], cell: Callable[[Row], str]) -> str:
    heads = [head for head, wanted in _LAYERS.items() if _one(rows, **wanted)]
    lines = []
    for dim, size, length in dict.fromkeys((row["d"], row["l"], row["length"]) for row in rows):
        here = [_one(rows, d=dim, l=size, length=length, **_LAYERS[head]) for head in heads]
        lines.append([f"{dim:,}, {size}, {length:,}", *(cell(row) if row else "" for row in here)])
    return table(["d, l, N", *heads], lines)


def _milliseconds(row: Row) -> str:
    return f"{row['seconds'] * 1e3:.2f} ({row['forward seconds'] * 1e3:.2f}, {row['bytes'] / MIB:,.0f})"


def _next_to_paper(row: Row) -> str:
    cell = f"{row['kernel seconds'] * 1e3:.2f}, {row['launches']}"
    # What was counted are torch's own operations.
    paper = on_paper(row["kind"], row["d"], row["l"], row["length"]) if _counted(row) else None
    return cell + (f" ({paper['milliseconds']:.2f}, {paper['launches']})" if paper else "")


def _counted(row: Row) -> bool:
    return row["kind"] != "causal Luna" or row["kernels"] == "torch"


def _layers(rows: List[Row]) -> List[str]:
    parts = [
        "One layer with its projections, bfloat16, 16,384 tokens a batch or one text: milliseconds forward and "
        "backward (forward alone, and the most MiB that both take). On a GPU softmax is FlashAttention.\n",
        _layer_table(rows, _milliseconds),
    ]
    profiled = [row for row in rows if "launches" in row]
    if profiled:
        parts += [
            "The same by torch's profiler: milliseconds that all kernels last, and how many there are (in brackets "
            "what was counted on paper).\n",
            _layer_table(profiled, _next_to_paper),
        ]
    return parts


def _models(title: str, rows: List[Row]) -> List[str]:
    lines = []
    for row in rows:
        base = _one(rows, arch="transformer_wmt_en_de", length=row["length"])
        ratio = (
            f"{row['words a second'] / base['words a second']:.2f}x, {row['bytes'] / base['bytes']:.2f}x"
            if base
            else ""
        )
        name = row["arch"] + (", no kernels" if row["kernels"] == "torch" else "")
        lines.append(
            [name, f"{row['length']:,}", f"{row['words a second']:,.0f}", f"{row['bytes'] / MIB:,.0f}", ratio]
        )
    return [f"{title}\n", table(["model", "words", "words/s", "MiB", "speed, memory"], lines)]


def _efficiency(rows: List[Row]) -> List[str]:
    lengths = sorted({row["length"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for length in lengths:
            row, base = _one(rows, model=name, length=length), _one(rows, model="Transformer", length=length)
            if row and base and name != "Transformer":
                speed = row["updates a second"] / base["updates a second"]
                cells.append(f"{speed:.2f}x, {row['bytes'] / base['bytes']:.2f}x")
            else:
                cells.append(f"{row['updates a second']:.2f}/s, {row['bytes'] / MIB:,.0f} MiB" if row else "")
        lines.append([name, *cells, f"{PAPER[0]}x, {PAPER[1]}x" if name == "Luna-256" else ""])
    return [
        "The Text task's architecture, training by input length, half precision by autocast: speed and memory, the "
        "Transformer = 1.\n",
        table(["", *(f"{length:,} bytes" for length in lengths), "the paper at 4K"], lines),
    ]


def report(found: Dict[str, Dict[str, Any]]) -> str:
    """All tables, and what was not measured.

    Args:
        found: what each part has written, by its name.
    """
    machines = list(dict.fromkeys(part["machine"] for part in found.values()))
    parts = [f"{'; '.join(machines)}.{' SMOKE: sizes that mean nothing.' if _smoke(found) else ''}\n"]
    makers: Dict[str, Callable[[List[Row]], List[str]]] = {
        "correctness": _correctness,
        "layers": _layers,
        "training": lambda rows: _models("Training, bfloat16 by autocast, Adam, vocabulary as in WMT'14.", rows),
        "decoding": lambda rows: _models("Beam search, bfloat16 by autocast.", rows),
        "lra": _efficiency,
    }
    for name, make in makers.items():
        if name not in found:
            parts.append(f"{name}: not run.\n")
            continue
        if found[name]["rows"]:
            parts += make(found[name]["rows"])
        parts += [f"WRONG, {name}: {text}.\n" for text in found[name]["wrong"]]
        parts += [f"Failed, {name}: {text}.\n" for text in found[name]["failed"]]
        if found[name]["state"] == BEGUN:
            parts.append(f"{name} ended before it was done: what is missing was not measured.\n")
        if found[name]["left out"]:
            parts.append(f"No time was left for {'; '.join(found[name]['left out'])}.\n")
    return "\n".join(parts)


def _smoke(found: Dict[str, Dict[str, Any]]) -> bool:
    return any(part["smoke"] for part in found.values())
