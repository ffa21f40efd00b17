"""Dask graphs: one for each case, or one for a batch of small cases."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import dask.local
from dask.delayed import Delayed, delayed

from dask_slicer.config.schema import RunConfig
from dask_slicer.execution.tasks import (
    CaseBatch,
    Target,
    load_batch,
    load_case,
    save_batch,
    save_case,
    slice_batch,
    slice_case,
)
from dask_slicer.output.layout import partition_files
from dask_slicer.planning.plan import CasePlan, RunPlan, parse_partition


def target_of(config: RunConfig, *, run_id: str = "") -> Target:
    """Return where and how a run writes."""
    return Target(
        output_dir=str(config.output_dir),
        settings=config.slice_settings,
        run_id=run_id,
        fsync=config.fsync,
        temporary=partition_files(parse_partition(config.shard)).temporary,
    )


def case_graph(case: CasePlan, target: Target) -> Delayed:
    """Return the graph of one case; nothing runs yet.

    ::

        ("load", case_id) ──► ("slice", case_id) ──► ("save", case_id)

    The keys are tuples, so that the dashboard groups and colours tasks by step, and the scheduler
    queues all loads as one group. The graph holds paths and settings, never an array.

    Parameters
    ----------
    case : CasePlan
        Without a problem.
    target : Target

    Returns
    -------
    Delayed
        Computes to a CommittedCase.
    """
    return _chain(
        case.case_id,
        partial(load_case, case, target),
        partial(slice_case, target=target),
        partial(save_case, case=case, target=target),
    )


def batch_graph(cases: CaseBatch, target: Target) -> Delayed:
    """Return one graph of three tasks for several cases, so small that one each were too many.

    A case that fails does not disturb the others.

    Parameters
    ----------
    cases : tuple of CasePlan
        Without problems.
    target : Target

    Returns
    -------
    Delayed
        Computes to a list of CommittedCase or CaseError, one per case.
    """
    return _chain(
        f"{cases[0].case_id} / {len(cases) - 1} more",  # no case id holds a slash
        partial(load_batch, cases, target),
        partial(slice_batch, target=target),
        partial(save_batch, cases=cases, target=target),
    )


def _chain(
    name: str,
    load: Callable[..., object],
    slice_: Callable[..., object],
    save: Callable[..., object],
) -> Delayed:
    # Inputs are bound to the functions: Dask would search arguments for other tasks, down to the
    # last field of every record.
    loaded = delayed(load, pure=False)(dask_key_name=("load", name))
    sliced = delayed(slice_, pure=False)(loaded, dask_key_name=("slice", name))
    saved: Delayed = delayed(save, pure=False)(sliced, dask_key_name=("save", name))
    return saved


def build_graphs(plan: RunPlan) -> dict[str, Delayed]:
    """Return the graphs of all cases that a run of this plan would compute, by case id.

    Computing one writes its slices into the output directory, which must exist; the journal and
    the index are `run`'s part.

    Parameters
    ----------
    plan : RunPlan

    Returns
    -------
    dict of case id to Delayed
        Cases with a problem are left out.
    """
    target = target_of(plan.config)
    return {
        case.case_id: case_graph(case, target) for case in plan.selected if case.problem is None
    }


def verify_graph(name: str, check: Callable[[], object]) -> Delayed:
    """Return the graph of checking one case: ("verify", name)."""
    checked: Delayed = delayed(check, pure=False)(dask_key_name=("verify", name))
    return checked


def compute_here(graph: Delayed) -> Any:
    """Compute a case's graph in this thread, without importing `distributed`.

    Raises
    ------
    CaseError
        What the failing task raised.
    """
    return graph.compute(scheduler=dask.local.get_sync)


NextCase = Callable[[], CasePlan | None]

# Bytes of voxels, of which a thread does about 120 MB a second.
# A graph costs client, scheduler and worker about 10 ms together; cases are put together until they
# take several times as long. A volume of 256 x 256 x 64 already is a lot of its own.
_LEAST_WORK = 8_000_000
# A scheduler serves one thread after another: the more there are, the longer each must be at work,
# 30 ms for each of them, until a lot is as large as the CT of a whole body.
_WORK_PER_THREAD, _MOST_WORK = 4_000_000, 256_000_000
# All cases of a lot are in memory at once, perhaps in a wider dtype than the file's.
_PART_OF_MEMORY = 16
# Every thread is to get some lots, or the last one would be waited for.
_LOTS_PER_THREAD = 4


def batch_work(n_threads: int, memory_limit: int | None) -> int:
    """Return up to how much work cases are put together.

    Parameters
    ----------
    n_threads : int
        That one scheduler serves.
    memory_limit : int or None
        Bytes that each may use; None for any amount.

    Returns
    -------
    int
        Bytes of voxels, as `CasePlan.work`.

    Examples
    --------
    >>> [batch_work(n, 2_000_000_000) // 1_000_000 for n in (1, 16, 64)]
    [8, 64, 125]
    """
    most = _MOST_WORK if memory_limit is None else min(_MOST_WORK, memory_limit // _PART_OF_MEMORY)
    return max(_LEAST_WORK, min(n_threads * _WORK_PER_THREAD, most))


class Batcher:
    """Deals out cases: a large one by itself, small ones together.

    Parameters
    ----------
    next_case : callable
        Returns the next case, None when there is none at present.
    n_cases : int
        About how many there are.
    n_threads : int
        That they are for; 0 where workers are still to come.
    enough : int
        Work up to which cases are put together.
    """

    def __init__(
        self, next_case: NextCase, *, n_cases: int, n_threads: int, enough: int = _LEAST_WORK
    ) -> None:
        self._next_case = next_case
        self._enough = enough
        self._most = max(n_cases // (_LOTS_PER_THREAD * max(n_threads, 1)), 1)
        self._held: CasePlan | None = None
        self._singly: deque[CasePlan] = deque()
        self._single: set[str] = set()
        self._suspects: deque[CasePlan] = deque()
        self._suspected: set[str] = set()
        self._suspect_is_out = False

    def next(self, n_in_flight: int = 0) -> CaseBatch:
        """Return the cases of the next graph, none when there are none at present.

        Parameters
        ----------
        n_in_flight : int
            Graphs that have not ended. A suspect is dealt when there are none, and nothing is
            dealt before it has ended.
        """
        if self._suspect_is_out and n_in_flight:
            return ()
        lot = self._next_lot()
        self._suspect_is_out = not lot and not n_in_flight and bool(self._suspects)
        return (self._suspects.popleft(),) if self._suspect_is_out else lot

    def retry_alone(self, case: CasePlan) -> None:
        """Deal a case again, in a graph of its own, now and later."""
        self._single.add(case.case_id)
        self._singly.append(case)

    def quarantine(self, case: CasePlan) -> None:
        """Deal a case again when nothing else runs: what it does to others is then no question."""
        self._suspected.add(case.case_id)
        self._suspects.append(case)

    def was_alone(self, lot: CaseBatch) -> bool:
        """Return whether nothing else ran when a lot did."""
        return len(lot) == 1 and lot[0].case_id in self._suspected

    def _next_lot(self) -> CaseBatch:
        if self._singly:
            return (self._singly.popleft(),)
        lot: list[CasePlan] = []
        work = 0
        while len(lot) < self._most and (case := self._next()) is not None:
            work_alone = self._enough if case.case_id in self._single else case.work
            if lot and work + work_alone > self._enough:
                self._held = case
                break
            lot.append(case)
            work += work_alone
        return tuple(lot)

    def _next(self) -> CasePlan | None:
        held, self._held = self._held, None
        if held is not None:
            return held
        while (case := self._next_case()) is not None and case.case_id in self._suspected:
            self._suspects.append(case)  # tried again: still one to be careful with
        return case
