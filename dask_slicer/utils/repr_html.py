"""Small HTML tables for objects shown in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dask_slicer.utils.formatting import plural

# Rows of a table; the others are counted.
_MOST_ROWS = 20
# Characters of a value; the middle of a longer one is left out.
_LONGEST = 200
_CELL = ' style="text-align: left; vertical-align: top; padding: 1px 12px 1px 0"'


def html_card(title: str, *parts: str) -> str:
    """Return a title with HTML parts below it."""
    return f"<div><strong>{_shown(title)}</strong>{''.join(parts)}</div>"


def html_facts(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values."""
    lines = [
        f'<tr><th scope="row"{_CELL}>{_shown(name)}</th><td{_CELL}>{_shown(value)}</td></tr>'
        for name, value in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def html_table(names: Sequence[str], rows: Sequence[Sequence[object]], *, of: str) -> str:
    """Return a table with named columns: the first rows, and how many more there are of `of`."""
    if not rows:
        return ""
    head = "".join(f"<th{_CELL}>{_shown(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td{_CELL}>{_shown(value)}</td>" for value in row) + "</tr>"
        for row in rows[:_MOST_ROWS]
    )
    more = len(rows) - _MOST_ROWS
    rest = f"<div>… and {plural(more, f'more {of}')}</div>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _shown(value: object) -> str:
    """Return a value as escaped text, the middle of a long one left out."""
    text = str(value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return escape(text)
