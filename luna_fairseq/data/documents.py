"""Text with a blank line between documents: where these begin and end, and which shard gets which.

Only places in the files are kept, for text that is larger than the memory.
"""

import heapq
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from luna_fairseq.console import progress
from luna_fairseq.data.files import BLOCK_BYTES, read_lines
from luna_fairseq.data.pieces import Sample
from luna_fairseq.errors import PreparationError


class Block(NamedTuple):
    """Lines that one worker encodes at a time: bytes ``start`` to ``end`` of a file."""

    file: int
    start: int
    end: int
    new_document: bool


@dataclass
class Scan:
    """What one reading of the text found: units are what a shard gets whole, documents or lines."""

    units: list[list[Block]] = field(default_factory=list)
    documents: int = 0
    unbroken: list[Path] = field(default_factory=list)


def scan(files: Sequence[Path], unit_bytes: int, block_bytes: int, limit: int | None, sample: Sample | None) -> Scan:
    """Find the documents.

    Args:
        files: the text.
        unit_bytes: a unit is closed at the first end of a document after so many bytes.
        block_bytes: a block is closed at the first end of a line after so many bytes.
        limit: read only so many lines.
        sample: gets every line that is not blank.
    """
    found = Scan()
    left = limit if limit is not None else sys.maxsize
    with progress(sum(path.stat().st_size for path in files), "reading", "B") as bar:
        for number, path in enumerate(files):
            units: list[list[Block]] = [[]]
            start, position, shown, breaks = -1, 0, 0, 0
            new = gap = True
            for size, text in itertools.islice(read_lines(path), left):
                left -= 1
                if not (text := text.strip()):
                    gap = True
                else:
                    if start >= 0:
                        breaks += gap
                        unit_start = units[-1][0].start if units[-1] else start
                        ends_unit = gap and position - unit_start >= unit_bytes
                        if ends_unit or position - start >= block_bytes:
                            units[-1].append(Block(number, start, position, new))
                            start = -1
                        if ends_unit:
                            units.append([])
                    if start < 0:
                        start, new = position, gap
                    gap = False
                    if sample:
                        sample.add(text)
                position += size
                if position - shown >= BLOCK_BYTES:
                    bar.update(position - shown)
                    shown = position
            bar.update(position - shown)
            if start < 0:
                if left:
                    raise PreparationError(f"the file {path} has no text: leave it out")
                continue
            units[-1].append(Block(number, start, position, new))
            found.documents += breaks + 1
            if not breaks:
                found.unbroken.append(path)
                units = [[block] for block in units[0]]
            found.units += units
    return found


def deal(units: Sequence[list[Block]], shards: int) -> list[list[Block]]:
    """Every unit goes to the shard that has the least text, so that each shard has some of every part of the text."""
    dealt: list[list[Block]] = [[] for _ in range(shards)]
    sizes = [(0, shard) for shard in range(shards)]
    for unit in units:
        size, shard = sizes[0]
        dealt[shard] += unit
        heapq.heapreplace(sizes, (size + sum(block.end - block.start for block in unit), shard))
    return dealt
