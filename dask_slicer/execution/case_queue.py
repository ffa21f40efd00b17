"""The queue of the cases of a run, the largest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from dask_slicer.planning.plan import CasePlan


class CaseQueue:
    """Cases that are still to run, with the methods of a deque.

    It holds numbers of cases, as `cases` may be packed; a case that comes back is held itself.

    Parameters
    ----------
    cases : sequence of CasePlan
    numbers : iterable of int, optional
        Those in the queue, in their order; all by default.
    """

    def __init__(self, cases: Sequence[CasePlan], numbers: Iterable[int] | None = None) -> None:
        self._cases = cases
        self._items: deque[int | CasePlan] = deque(
            range(len(cases)) if numbers is None else numbers
        )

    @classmethod
    def largest_first(cls, cases: Sequence[CasePlan]) -> CaseQueue:
        """Return the queue of cases without a problem, so that none of the largest is the last."""
        work = {number: case.work for number, case in enumerate(cases) if case.problem is None}
        return cls(cases, sorted(work, key=lambda number: -work[number]))

    def renew(self, cases: Sequence[CasePlan]) -> None:
        """Take other plans of the same cases; none may have come back yet."""
        self._cases = cases

    def popleft(self) -> CasePlan:
        """Remove and return the first case."""
        return self._case(self._items.popleft())

    def append(self, case: CasePlan) -> None:
        """Add a case at the end."""
        self._items.append(case)

    def appendleft(self, case: CasePlan) -> None:
        """Add a case as the first."""
        self._items.appendleft(case)

    def take(self, is_wanted: Callable[[CasePlan], bool]) -> list[CasePlan]:
        """Remove some cases, and return them in their order."""
        # In the order in which they are packed, which is quicker.
        numbers = sorted(item for item in self._items if isinstance(item, int))
        chosen = {number for number in numbers if is_wanted(self._cases[number])}
        taken = []
        if chosen:
            taken = [self._case(item) for item in self._items if item in chosen]
            self._items = deque(item for item in self._items if item not in chosen)
        return taken

    def remove(self, case: CasePlan) -> None:
        """Remove a case."""
        self.take(lambda other: other.case_id == case.case_id)

    def clear(self) -> None:
        """Remove all cases."""
        self._items.clear()

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> CasePlan:
        return self._case(self._items[place])

    def __iter__(self) -> Iterator[CasePlan]:
        return map(self._case, self._items)

    def _case(self, item: int | CasePlan) -> CasePlan:
        return self._cases[item] if isinstance(item, int) else item
