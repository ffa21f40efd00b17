"""Tables and shapes, as text of the report."""

from __future__ import annotations

from collections.abc import Iterable

Rows = Iterable[tuple[str, ...]]


def table(head: tuple[str, ...], rows: Rows) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def times(lengths: Iterable[int]) -> str:
    """Return a shape, such as 512×512×40."""
    return "×".join(map(str, lengths))
