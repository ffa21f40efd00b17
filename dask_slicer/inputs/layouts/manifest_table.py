"""Tables of manifests: columns and cells of CSV, TSV and JSON."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_slicer.utils.formatting import plural

# Names of columns of images: numbered, or with the name of the modality.
IMAGE = re.compile(r"image(_\d+)?|image:.+")
_NAMED = re.compile(r"(image|label)\s*:\s*(.*\S)", re.IGNORECASE | re.DOTALL)
_KNOWN = {"case_id", "label", "group", "split", "label_grid", "orientation_from"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The cells of a manifest."""

    header: list[str]  # all columns, in the order of the file; known names in lower case
    # Where a row is in the file, and its cells by column, without those that are empty.
    rows: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def used_columns(self) -> list[str]:
        """Return the columns with at least one cell that is not empty."""
        used = {name for _, row in self.rows for name in row}
        return [name for name in self.header if name in used]

    @staticmethod
    def is_known(name: str) -> bool:
        """Return whether a column is one of those of a manifest."""
        return name in _KNOWN or IMAGE.fullmatch(name) is not None or name.startswith("label:")


def read_table(path: Path) -> Table:
    """Return the table of a manifest.

    It is CSV with commas, semicolons or tabs, and with a header; or JSON: a list of objects, or
    such a list under `cases`.

    Raises
    ------
    ValueError
        If it is not such a table; `csv.Error`, OSError and RecursionError as they come.
    """
    return _read_json(path) if path.suffix.lower() == ".json" else _read_csv(path)


def header_of(path: Path) -> list[str]:
    """Return the columns of a CSV file."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
    return [column_name(name) for name in _cells_of(first, _delimiter(first))]


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        delimiter = _delimiter(lines.readline())
        lines.seek(0)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        header = [column_name(name) for name in next(reader, [])]
        if unnamed := [number for number, name in enumerate(header, start=1) if not name]:
            raise ValueError(
                f"{plural(len(unnamed), 'column')} of the header without a name: number "
                f"{', '.join(map(str, unnamed))} of {len(header)}; remove "
                f"{'it' if len(unnamed) == 1 else 'them'}, or add a name"
            )
        _check_unique(header)
        table = Table(header=header)
        for row in reader:
            if len(row) > len(header):
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            if cells := _filled(dict(zip(header, row, strict=False))):
                table.rows.append((f"line {reader.line_num}", cells))
    return table


def _delimiter(header: str) -> str:
    """Return the character between the columns of a header: the one that shows most known names.

    >>> _delimiter("case_id;image;label,seg")
    ';'
    """

    def n_known(delimiter: str) -> int:
        return sum(map(Table.is_known, map(column_name, _cells_of(header, delimiter))))

    return max(",;\t", key=n_known)


def _cells_of(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def column_name(name: str) -> str:
    """Return the name of a column as it is looked up.

    >>> column_name(" Case_ID "), column_name("Label: Liver"), column_name("Age")
    ('case_id', 'label:Liver', 'Age')
    """
    name = name.strip()
    if named := _NAMED.fullmatch(name):
        return f"{named[1].lower()}:{named[2]}"
    return name.lower() if Table.is_known(name.lower()) else name


def _check_unique(header: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(f"the column {repeated[0]} is given twice")


def _read_json(path: Path) -> Table:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    entries = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(
            "expected a list of cases, one under the key `cases`, or a datalist with `training`"
        )
    rows = [
        (f"case {number}", _filled(dict(_checked(entry, number))))
        for number, entry in enumerate(entries, start=1)
    ]
    header = dict.fromkeys(column_name(name) for entry in entries for name in entry)
    return Table(header=list(header), rows=rows)


def _checked(entry: object, number: int) -> Iterator[tuple[str, Any]]:
    """Yield the columns and values of an object in JSON."""
    if not isinstance(entry, dict):
        raise ValueError(f"case {number} is not an object")
    _check_unique([column_name(name) for name in entry])
    for key, value in entry.items():
        name = column_name(key)
        # 7 is accepted as the name of a case and in further columns, not as that of a file.
        is_name = name in ("case_id", "group") or not Table.is_known(name)
        if not isinstance(value, str | None) and (not is_name or isinstance(value, dict | list)):
            raise ValueError(f"{name} of case {number} must be text, got {value!r}")
        yield name, value


def _filled(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(value).strip()
        for name, value in row.items()
        if value is not None and str(value).strip()
    }
