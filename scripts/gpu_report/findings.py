"""What a part has found, on disk from the first row on; and how much of its time is left."""

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict, List

import torch

from luna_fairseq.data.files import write_json
from scripts.bench.checks import Mismatch
from scripts.gpu_report import BEGAN

# What a part has come to. Of these alone DONE is not repeated.
BEGUN, DONE, OUT_OF_TIME = "begun", "done", "out of time"


class Findings:
    """The rows of a part.

    Args:
        path: the file; written anew after every row, whole or not at all.
        what: the machine and the sizes, in words and numbers.
        seconds: what the process may take; rows that would begin later are left out, and named.
    """

    def __init__(self, path: Path, what: Dict[str, Any], seconds: float) -> None:
        self.path = path
        self.seconds = seconds
        self.found: Dict[str, Any] = {**what, "state": BEGUN, "rows": [], "wrong": [], "failed": [], "left out": []}
        self._write()

    def _write(self) -> None:
        self.found["seconds"] = round(time.monotonic() - BEGAN, 1)
        write_json(self.path, self.found)

    def add(self, name: str, measure: Callable[[], Dict[str, Any]]) -> None:
        """Add what ``measure`` returns; what it raises is written down, and the next row has its turn.

        Args:
            name: of the row, for people.
            measure: raises :class:`Mismatch` where something is computed wrongly.
        """
        if time.monotonic() - BEGAN >= self.seconds:
            self.found["left out"].append(name)
            return self._write()
        gc.collect()  # the models of the row before
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        try:
            row = {"name": name, **measure()}
            self.found["rows"].append(row)
            said = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
        except Mismatch as error:
            said = f"WRONG: {error}"
            self.found["wrong"].append(f"{name}: {error}")
        except Exception as error:  # memory that does not suffice, a kernel that does not start
            said = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            self.found["failed"].append(f"{name}: {said}")
        print(f"{name}: {said}", file=sys.stderr, flush=True)
        return self._write()

    def end(self) -> None:
        """Say that all rows have had their turn."""
        self.found["state"] = OUT_OF_TIME if self.found["left out"] else DONE
        self._write()


def read(folder: Path, parts: List[str]) -> Dict[str, Dict[str, Any]]:
    """What is there, by part; one that was never begun is missing."""
    paths = {part: folder / f"{part}.json" for part in parts}
    return {part: json.loads(path.read_text()) for part, path in paths.items() if path.is_file()}
