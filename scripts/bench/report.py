"""The tables of a run, as Markdown."""

import itertools
import statistics
from typing import Any, Dict, List

from scripts.bench.aims import targets
from scripts.bench.decoding import BEAM
from scripts.bench.growth import GROWTH_ROUNDS
from scripts.bench.layers import BIASED
from scripts.bench.parts import PARTS
from scripts.bench.tables import ratio, table


def attention_tables(found: Dict[str, Any]) -> List[str]:
    """One attention layer next to softmax attention, and the causal one next to the transcription."""
    parts = []
    rows = found.get("attention", [])
    sizes = found["sizes"]
    batch = f"d = {sizes['dim']}, {sizes['heads']} heads, {sizes['tokens']:,} tokens a batch"
    for backward in sorted({row["backward"] for row in rows}, reverse=True):
        ours = [row for row in rows if row["backward"] == backward and row["layer"] in ("Luna", "causal Luna")]
        names = list(dict.fromkeys((row["layer"], row["l"]) for row in ours))
        lines = []
        for length in dict.fromkeys(row["length"] for row in ours):
            here = {(row["layer"], row["l"]): row for row in ours if row["length"] == length}
            bases = {"Luna": "softmax", "causal Luna": "causal softmax"}
            lines.append([f"{length:,}", *(ratio(rows, here[name], layer=bases[name[0]], l=0) for name in names)])
        passes = "forward and backward" if backward else "forward"
        parts.append(
            f"One attention layer, {passes} ({batch}): times the speed of softmax attention, part of its memory.\n"
        )
        parts.append(table(["length", *(f"{layer}, l = {size}" for layer, size in names)], lines))
        lines = [
            [f"{row['length']:,}", str(row["l"]), ratio(rows, row, layer="transcription")]
            for row in ours
            if row["layer"] == "causal Luna" and ratio(rows, row, layer="transcription")
        ]
        if lines:
            wanted = " (wanted for l = 32: at most 0.1x of its memory)" if backward else ""
            parts.append(f"The causal layer, {passes}, next to a plain transcription of the formulas{wanted}.\n")
            parts.append(table(["length", "l", "speed, memory"], lines))
        biased = [row for row in rows if row["backward"] == backward and row["layer"] == BIASED]
        if biased:
            names = list(dict.fromkeys(row["l"] for row in biased))
            lines = []
            for length in dict.fromkeys(row["length"] for row in biased):
                here = {row["l"]: row for row in biased if row["length"] == length}
                lines.append([f"{length:,}", *(ratio(rows, here[size], layer="Luna") for size in names)])
            parts.append(f"Luna with a position bias, {passes}, next to Luna without (wanted: 0.95x, 1.10x).\n")
            parts.append(table(["length", *(f"l = {size}" for size in names)], lines))
    return parts


def growth_tables(found: Dict[str, Any]) -> List[str]:
    """How time and memory of a sentence grow from each length to the next."""
    rows = found.get("growth", [])
    pairs = list(itertools.pairwise(sorted({row["length"] for row in rows})))
    if not pairs:
        return []
    lines = []
    for what, size in dict.fromkeys((row["what"], row["l"]) for row in rows):
        here = {row["length"]: row for row in rows if (row["what"], row["l"]) == (what, size)}
        grown = [
            f"{here[b]['growth']:.2f}x, {here[b]['bytes'] / here[a]['bytes']:.2f}x" if a in here and b in here else ""
            for a, b in pairs
        ]
        lines.append([f"{what}{f', l = {size}' if size else ''}", *grown])
    layer = f"d = {found['sizes']['dim']}, {found['sizes']['heads']} heads"
    return [
        f"Time and memory when one sentence gets twice as long: of a layer ({layer}), forward and backward, and "
        "of an update of a whole model (memory: beside parameters and Adam). Times are the median, over "
        f"{found['rounds']} rounds ({found['rounds'] * GROWTH_ROUNDS} for a layer of Luna), of the ratio within "
        "a round. Wanted for Luna from 4,096 on: at most 2.10x.\n",
        table(["", *(f"{a:,} to {b:,}" for a, b in pairs)], lines),
    ]


def decoding_tables(found: Dict[str, Any]) -> List[str]:
    """The next position of one layer, after so many others."""
    if not (rows := found.get("decoding", [])):
        return []
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    lines = []
    for layer, size in dict.fromkeys((row["layer"], row["l"]) for row in rows):
        here = [row for row in rows if (row["layer"], row["l"]) == (layer, size)]
        times = [f"{row['seconds'] * 1e6:,.0f}, {row['bytes'] / 2**20:,.2f}" for row in here]
        lines.append([f"{layer}{f', l = {size}' if size else ''}", *times])
    return [
        f"The next position of one layer after so many (beam {BEAM}): microseconds, and MiB kept of the others.\n",
        table(["layer", *(f"{length:,}" for length in lengths)], lines),
    ]


def model_tables(found: Dict[str, Any]) -> List[str]:
    """Training and generation of whole models; what they are compared with is the first row of each length."""
    parts = []
    for part, what in (("training", "Training"), ("generation", "Generation")):
        rows = found.get(part, [])
        lines = []
        for row in rows:
            base = next(other["arch"] for other in rows if other["length"] == row["length"])
            line = [row["arch"], f"{row['length']:,}", *([str(row["beam"])] if part == "generation" else [])]
            line += [
                f"{row['words'] / row['seconds']:,.0f}",
                f"{row['bytes'] / 2**20:,.0f}",
                ratio(rows, row, arch=base),
            ]
            if part == "generation":
                line.append(", ".join(f"{size / 2**10:,.0f}" for size in row["state"].values()))
            lines.append(line)
        if lines:
            beam, state = (
                (["beam"], ["decoder state after 8 words, after all, KiB"]) if part == "generation" else ([], [])
            )
            parts.append(f"{what}, vocabulary {found['sizes']['vocabulary']:,}.\n")
            parts.append(table(["model", "length", *beam, "words/s", "memory, MiB", "speed, memory", *state], lines))
    return parts


def report(found: Dict[str, Any]) -> str:
    """The tables of a run.

    Args:
        found: what stands in ``benchmark.json``.
    """
    spreads = [row["spread"] for part in PARTS for row in found.get(part, [])]
    parts = [
        f"{found['machine']}; {found['dtype']}, medians of {found['rounds']} rounds. (slowest - fastest) / median: "
        f"half of the rows below {statistics.median(spreads):.1%}, all below {max(spreads):.0%}.\n"
    ]
    if aims := targets(found):
        parts += ["What is aimed at, forward and backward for one layer:\n", aims]
    for tables in (attention_tables, growth_tables, decoding_tables, model_tables):
        parts += tables(found)
    return "\n".join(parts)
