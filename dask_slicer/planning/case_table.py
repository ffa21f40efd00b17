"""Groups of cases, such as patients, and their columns in the tables of a dataset."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import quantiles
from typing import Any

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.case import Case
from dask_slicer.utils.formatting import did_you_mean, escape_line, first_few, natural_key

# Numbers with more values than this are classes by quartile, unless as many cases as this have the
# same value on average, as with the number of a site.
_MOST_VALUES, _CASES_PER_VALUE = 8, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseTable:
    """Groups and columns of cases, as cases.json in the output holds them.

    Attributes
    ----------
    groups : dict of case id to str
        For every case: the patient, or its own id.
    columns : dict of str to dict of case id to str
        Without cases that have no value in a column. An output has only those that were asked for.
    """

    groups: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Iterable[Case], groups: Mapping[str, str] | None = None) -> CaseTable:
        """Return the table of some cases, with other groups than those of the dataset if given."""
        own: dict[str, str] = {}
        columns: dict[str, dict[str, str]] = {}
        for case in cases:
            own[case.case_id] = case.case_id if case.group is None else case.group
            for name, text in case.columns.items():
                columns.setdefault(name, {})[case.case_id] = text
        return cls(groups=own if groups is None else dict(groups), columns=columns)

    @property
    def says_more_than_ids(self) -> bool:
        """Return whether a case has columns, or another group than its id."""
        return bool(self.columns) or any(case != group for case, group in self.groups.items())

    def updated(self, newer: CaseTable, *, keep: Collection[str]) -> CaseTable:
        """Return a newer table with the rows here of cases to `keep` that it does not have.

        >>> old = CaseTable(groups={"a": "p", "b": "p"}, columns={"age": {"a": "7", "b": "8"}})
        >>> old.updated(CaseTable(groups={"b": "q"}), keep={"a", "b"})
        CaseTable(groups={'a': 'p', 'b': 'q'}, columns={'age': {'a': '7'}})
        """
        kept = set(keep) - newer.groups.keys()
        columns = {
            name: {case: cells[case] for case in cells if case in kept}
            for name, cells in self.columns.items()
        }
        for name, cells in newer.columns.items():
            columns[name] = dict(sorted((columns.get(name, {}) | cells).items()))
        groups = {case: group for case, group in self.groups.items() if case in kept}
        return CaseTable(
            groups=dict(sorted((groups | newer.groups).items())),
            columns={name: cells for name, cells in columns.items() if cells},
        )

    def only(self, names: Collection[str]) -> CaseTable:
        """Return the table without other columns than these."""
        columns = {name: cells for name, cells in self.columns.items() if name in names}
        return replace(self, columns=columns)

    def column(self, name: str, option: str) -> dict[str, str]:
        """Return the cells of a column by case id; raise DatasetError if no case has one."""
        if name not in self.columns:
            known = first_few(list(self.columns), 20) or (
                "no columns (participants.tsv must have tabs between columns, and the column "
                "participant_id)"
            )
            raise DatasetError(
                f"--{option} {name}: no case has a value in such a column of a manifest or "
                f"participants.tsv{did_you_mean(name, self.columns)}; there are {known}"
            )
        return self.columns[name]

    def grouped_by(self, name: str) -> dict[str, str]:
        """Return the value in a column as the group of each case; without one, its own group."""
        return {**self.groups, **self.column(name, "group_column")}

    def text(self) -> str:
        """Return the table as JSON."""
        content = {"groups": self.groups, "columns": self.columns}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, content: Any) -> CaseTable:
        """Return the table that `text` wrote; raise ValueError if it is damaged."""
        try:
            return cls(
                groups=_texts(content["groups"]),
                columns={str(name): _texts(cells) for name, cells in content["columns"].items()},
            )
        except (AttributeError, KeyError, TypeError):
            raise ValueError("groups or columns are not texts by case id") from None


NO_TABLE = CaseTable()


def _texts(cells: Mapping[str, str]) -> dict[str, str]:
    if not all(isinstance(text, str) for text in cells.values()):
        raise ValueError("a group or a cell is not a text")
    return dict(cells)


def column_classes(cells: Mapping[str, str]) -> dict[str, tuple[str]]:
    """Return the class of each case for stratification: the value, or the quartile of a number.

    >>> column_classes({"a": "F", "b": "M"})
    {'a': ('F',), 'b': ('M',)}
    >>> sorted(set(column_classes({str(age): str(age) for age in range(20, 60)}).values()))
    [('20 to 29',), ('30 to 39',), ('40 to 49',), ('50 to 59',)]
    """
    numbers = {case: _number(text) for case, text in cells.items()}
    present = sorted({number for number in numbers.values() if number is not None})
    is_code = len(present) <= _MOST_VALUES or len(cells) >= _CASES_PER_VALUE * len(present)
    if is_code or None in numbers.values():
        return {case: (text,) for case, text in cells.items()}
    values = sorted(number for number in numbers.values() if number is not None)
    cuts = quantiles(values, n=4, method="inclusive")
    bins: dict[int, list[float]] = {}
    for value in present:
        bins.setdefault(bisect_left(cuts, value), []).append(value)
    names = {
        number: " to ".join(dict.fromkeys(f"{value:.10g}" for value in (span[0], span[-1])))
        for number, span in bins.items()
    }
    return {
        case: (names[bisect_left(cuts, number)],)
        for case, number in numbers.items()
        if number is not None
    }


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def class_counts(cases: Iterable[str], classes: Mapping[str, Collection[str]]) -> str:
    """Return the number of cases in each class, in words.

    >>> class_counts("abc", {"a": ("F",), "b": ("F",)})
    'F: 2, none: 1'
    """
    counts: dict[str, int] = {}
    for case in cases:
        for name in classes.get(case) or ("none",):
            counts[name] = counts.get(name, 0) + 1
    names = sorted(counts, key=natural_key)
    return first_few([f"{escape_line(name)}: {counts[name]}" for name in names], 12)
