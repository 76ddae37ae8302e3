"""What every part of the benchmark writes about a measurement, as soon as it is made."""

import json
import statistics
import sys
from typing import Any, Dict, List, Optional

from scripts.bench.measuring import in_own_process


def finished(row: Dict[str, Any], seconds: List[float], part: str, size: Optional[int] = None) -> Dict[str, Any]:
    """A row with its times and its memory (``size``, if that is known), which is said as soon as it is known."""
    median = statistics.median(seconds)
    row = {**row, "seconds": median, "spread": (max(seconds) - min(seconds)) / median}
    row["bytes"] = in_own_process("--memory-of", part, json.dumps(row)) if size is None else size
    numbers = ("seconds", "spread", "bytes", "words", "growth")
    said = " ".join(str(value) for name, value in row.items() if name not in numbers)
    print(f"{part}: {said}: {median:.4g} s, {row['bytes'] / 2**20:,.0f} MiB", file=sys.stderr, flush=True)
    return row
