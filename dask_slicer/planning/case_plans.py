"""Plans of many cases in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from dask_slicer.records import FailedCase
from dask_slicer.utils.packed import PackedList


class _Planned(Protocol):
    @property
    def case_id(self) -> str: ...
    @property
    def problem(self) -> FailedCase | None: ...


P = TypeVar("P", bound=_Planned)


class CasePlans(PackedList[P]):
    """Plans of many cases; ids and problems are there without looking at each.

    Parameters
    ----------
    cases : iterable of CasePlan
    """

    def __init__(self, cases: Iterable[P] = ()) -> None:
        self.ids: list[str] = []
        self.problems: dict[int, FailedCase] = {}  # by number
        self._numbers: dict[str, int] = {}  # by id, made on use
        super().__init__(cases)

    def append(self, record: P) -> None:
        """Add a case at the end."""
        if record.problem is not None:
            self.problems[len(self)] = record.problem
        self.ids.append(record.case_id)
        super().append(record)

    @property
    def runnable(self) -> Sequence[P]:
        """Return the cases without a problem."""
        if not self.problems:
            return self
        return self.select([n for n in range(len(self)) if n not in self.problems])

    def of_id(self, case_id: str) -> P:
        """Return the case with an id; raise KeyError if there is none."""
        if len(self._numbers) < len(self):
            self._numbers = {name: number for number, name in enumerate(self.ids)}
        return self[self._numbers[case_id]]

    def of_ids(self, wanted: set[str]) -> Sequence[P]:
        """Return the cases with these ids."""
        return self.select([n for n, case_id in enumerate(self.ids) if case_id in wanted])
