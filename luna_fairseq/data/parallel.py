"""Parallel text: two files with one name, such as raw/valid.en and raw/valid.de, line by line translations."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from luna_fairseq.data.files import read_lines
from luna_fairseq.errors import PreparationError
from luna_fairseq.outputs import whole_file

Pair = tuple[str, str]


def both_files(prefix: Path, languages: Pair) -> list[Path]:
    """The file of each language."""
    return [Path(f"{prefix}.{language}") for language in languages]


def read_pairs(prefix: Path, languages: Pair, limit: int | None = None) -> Iterator[Pair]:
    """The lines of both languages.

    Args:
        prefix: the name that the files have in common.
        languages: their endings.
        limit: read only so many pairs.

    Raises:
        PreparationError: if one file has more lines than the other, or is not UTF-8.
    """
    paths = both_files(prefix, languages)
    for number, both in enumerate(itertools.zip_longest(*map(read_lines, paths))):
        if None in both:
            short = paths[both.index(None)]
            raise PreparationError(f"{short} ends at line {number}, before its translation: give parallel text")
        if number == limit:
            break
        yield both[0][1], both[1][1]


def write_pairs(prefix: Path, languages: Pair, pairs: Iterator[Pair]) -> int:
    """Write both files, the whole or nothing; returns the number of pairs."""
    first, second = both_files(prefix, languages)
    count = 0
    # The second one is there only when both are.
    with (
        whole_file(second) as b,
        whole_file(first) as a,
        open(a, "w", encoding="utf-8") as source,
        open(b, "w", encoding="utf-8") as target,
    ):
        for left, right in pairs:
            source.write(f"{left}\n")
            target.write(f"{right}\n")
            count += 1
    return count


def lines_of(text: Sequence[Path]) -> Iterator[str]:
    """The lines of files that ``write_pairs`` has written, without their line breaks."""
    for path in text:
        with open(path, encoding="utf-8", newline="\n") as lines:
            yield from (line.rstrip("\n") for line in lines)


def batched(pairs: Iterator[Pair], lines: int) -> Iterator[list[Pair]]:
    """Blocks of so many pairs."""
    while block := list(itertools.islice(pairs, lines)):
        yield block
