"""How small cases share a graph, so that the scheduler has little to do for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dask_slicer.plans import CasePlan

NextCase = Callable[[], CasePlan | None]
Lot = tuple[CasePlan, ...]

# A graph costs client, scheduler and worker about 10 ms together; cases are put together until they
# take ten times as long. A volume of 256 x 256 x 64 already is a lot of its own.
_ENOUGH_WORK = 8_000_000
# Every thread is to get some lots, or the last one would be waited for.
_LOTS_PER_THREAD = 4


class Lots:
    """Deals out cases: a large one by itself, small ones together.

    Parameters
    ----------
    next_case : callable
        Returns the next case, None when there is none at present.
    n_cases : int
        About how many there are.
    n_threads : int
        That they are for; 0 where workers are still to come.
    """

    def __init__(self, next_case: NextCase, *, n_cases: int, n_threads: int) -> None:
        self._next_case = next_case
        self._most = max(n_cases // (_LOTS_PER_THREAD * max(n_threads, 1)), 1)
        self._held: CasePlan | None = None
        self._alone: deque[CasePlan] = deque()

    def next(self) -> Lot:
        """Return the cases of the next graph, none when there are none at present."""
        if self._alone:
            return (self._alone.popleft(),)
        lot: list[CasePlan] = []
        work = 0
        while len(lot) < self._most and (case := self._next()) is not None:
            if lot and work + case.work > _ENOUGH_WORK:
                self._held = case
                break
            lot.append(case)
            work += case.work
        return tuple(lot)

    def alone(self, case: CasePlan) -> None:
        """Deal a case again, by itself: what it does to others is then no question."""
        self._alone.append(case)

    def _next(self) -> CasePlan | None:
        held, self._held = self._held, None
        return held or self._next_case()
