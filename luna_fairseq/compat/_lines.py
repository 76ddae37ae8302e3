"""Lines of a text as they were written: they end at a line feed, and at nothing else."""

import codecs
from typing import Any, BinaryIO, Iterator, List

from luna_fairseq.errors import DataError

_INSIDE_A_CHARACTER = bytes(range(0x80, 0xC0))  # what no character of UTF-8 begins with


class Lines:
    """A file of UTF-8 text, read line by line; as much of Python's text files as fairseq uses.

    A carriage return before the line feed is left out, as Python does; one anywhere else is a character like others.

    Args:
        file: to read from, in bytes.
        name: for the sentence about a line that is no UTF-8.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._skipped = codecs.BOM_UTF8  # before the next line

    def readline(self) -> str:
        """The next line with its line feed; empty at the end."""
        line = self._file.readline()
        if self._skipped == codecs.BOM_UTF8:
            line = line.removeprefix(codecs.BOM_UTF8)
        else:
            line = line.lstrip(self._skipped) if self._skipped else line
        self._skipped = b""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self._name} is not text in UTF-8, at {line[:40]!r}: convert it") from error
        return text[:-2] + "\n" if text.endswith("\r\n") else text

    def readlines(self) -> List[str]:
        """All lines that are left."""
        return list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")

    def seek(self, place: int) -> None:
        """Go to a byte; inside of a character, the rest of that is left out."""
        self._file.seek(place)
        self._skipped = _INSIDE_A_CHARACTER if place > 0 else codecs.BOM_UTF8

    def tell(self) -> int:
        """The byte at which the next line begins."""
        return self._file.tell()

    def fileno(self) -> int:
        """The system's number of the file."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def open_text(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    """``open``, and :class:`Lines` of a text that is read."""
    if mode in ("r", "rt"):
        return Lines(open(path, "rb"), str(path))
    return open(path, mode, *args, **kwargs)
