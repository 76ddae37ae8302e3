"""Measurements as cells of Markdown tables."""

from typing import Any, Dict, List


def ratio(rows: List[Dict[str, Any]], row: Dict[str, Any], **other: Any) -> str:
    """How many times as fast as another row, and with what part of its memory; "" if that was not run."""
    wanted: Dict[str, Any] = {
        **{key: row[key] for key in ("layer", "l", "arch", "length", "beam", "backward") if key in row},
        **other,
    }
    for base in rows:
        if all(base[key] == value for key, value in wanted.items()):
            return f"{base['seconds'] / row['seconds']:.2f}x, {row['bytes'] / max(1, base['bytes']):.2f}x"
    return ""


def table(head: List[str], rows: List[List[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"
