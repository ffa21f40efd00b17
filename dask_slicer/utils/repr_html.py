"""Small HTML tables for objects shown in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from dask_slicer.utils.formatting import plural

if TYPE_CHECKING:
    pass


# Rows of a table, before the rest is only counted.
_MOST_ROWS = 20
# Characters of a value, before its middle is left out.
_LONGEST = 200
_CELL = ' style="text-align: left; vertical-align: top; padding: 1px 12px 1px 0"'


def html_card(title: str, *parts: str) -> str:
    """Return a title with tables below it, which were made by functions of this module."""
    return f"<div><strong>{_shown(title)}</strong>{''.join(parts)}</div>"


def html_facts(rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values.

    Examples
    --------
    >>> "a &lt;b&gt;" in html_facts([("case", "a <b>")])
    True
    """
    lines = [
        f'<tr><th scope="row"{_CELL}>{_shown(name)}</th><td{_CELL}>{_shown(value)}</td></tr>'
        for name, value in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def html_table(names: Sequence[str], rows: Sequence[Sequence[object]], *, of: str) -> str:
    """Return a table with a head; of a long one the first rows, and how many more there are.

    Parameters
    ----------
    names : sequence of str
        Of the columns.
    rows : sequence
    of : str
        What a row is, as `count` takes it.
    """
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


def html_details(title: str, part: str) -> str:
    """Return a part that is shown when its title is clicked."""
    return f"<details><summary>{_shown(title)}</summary>{part}</details>"


def _shown(value: object) -> str:
    """Return a value as HTML shows it, without the middle of a long one."""
    text = str(value)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return escape(text)
