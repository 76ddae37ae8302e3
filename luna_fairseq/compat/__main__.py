"""``python -m luna_fairseq.compat``: the table of docs/fairseq.md, on standard output."""

from typing import List

from luna_fairseq.compat import REPAIRS


def table() -> List[str]:
    """The lines of the table of all repairs, those of tasks included if the plugin is loaded."""
    lines = [
        "| area | repair | in the place of | fairseq 0.12.3 | here | needed since |",
        "|---|---|---|---|---|---|",
    ]
    for repair in REPAIRS:
        target = f"`{repair.target}`" if repair.target else ""
        lines.append(
            f"| {repair.area} | `{repair.name}` | {target} | {repair.fairseq} | {repair.here} | {repair.since} |"
        )
    return lines


def main() -> None:
    """Print the table."""
    from luna_fairseq import plugin

    plugin.load()
    print("\n".join(table()))


if __name__ == "__main__":
    main()
