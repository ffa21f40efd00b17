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

NextCase = Callable[[], CasePlan | None]

# Work is counted in bytes of voxels; a thread processes about 120 MB a second.
# A graph takes client, scheduler and worker about 10 ms, so cases are batched until they take
# several times as long. A volume of 256 x 256 x 64 is large enough for a graph of its own.
_LEAST_WORK = 8_000_000
# A scheduler serves one thread at a time, so batches grow with the number of threads: by 30 ms of
# work for each thread, up to the size of a whole-body CT.
_WORK_PER_THREAD, _MOST_WORK = 4_000_000, 256_000_000
# All cases of a batch are in memory at once, perhaps in a wider dtype than the file's.
_PART_OF_MEMORY = 16
# Each thread gets at least this many batches, so that the run does not wait for the last one.
_BATCHES_PER_THREAD = 4


def build_graphs(plan: RunPlan) -> dict[str, Delayed]:
    """Return the graphs of all cases that a run of this plan would compute, by case id.

    Computing a graph writes its slices into the output directory, which must exist. Only `run`
    writes the journal and the index.

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
    """Return the graph of one case, which computes to a CommittedCase.

    ::

        ("load", case_id) ──► ("slice", case_id) ──► ("save", case_id)

    The keys are tuples, so that the dashboard groups and colours tasks by step, and the scheduler
    queues all loads as one group. The graph holds paths and settings, never an array.
    """
    return _chain(
        case.case_id,
        partial(load_case, case, target),
        partial(slice_case, target=target),
        partial(save_case, case=case, target=target),
    )


def batch_graph(cases: CaseBatch, target: Target) -> Delayed:
    """Return one graph of three tasks for several small cases.

    It computes to a list: the CommittedCase or the CaseError of each case.
    """
    return _chain(
        f"{cases[0].case_id} / {len(cases) - 1} more",  # no case id holds a slash
        partial(load_batch, cases, target),
        partial(slice_batch, target=target),
        partial(save_batch, cases=cases, target=target),
    )


def verify_graph(name: str, check: Callable[[], object]) -> Delayed:
    """Return the graph of checking one case: ("verify", name)."""
    checked: Delayed = delayed(check, pure=False)(dask_key_name=("verify", name))
    return checked


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


def compute_here(graph: Delayed) -> Any:
    """Compute a graph in this thread, without importing `distributed`; raise what a task raised."""
    return graph.compute(scheduler=dask.local.get_sync)


class Batcher:
    """Chooses the cases of each graph: one large case, or a batch of small ones.

    `next_case` returns the next case, or None when there is none at present. `n_threads` is 0 when
    the workers are still to come. `enough` is the work, in bytes of voxels, that fills a batch.
    """

    def __init__(
        self, next_case: NextCase, *, n_cases: int, n_threads: int, enough: int = _LEAST_WORK
    ) -> None:
        self._next_case = next_case
        self._enough = enough
        self._most = max(n_cases // (_BATCHES_PER_THREAD * max(n_threads, 1)), 1)
        self._held: CasePlan | None = None
        self._unbatched: deque[CasePlan] = deque()
        self._unbatched_ids: set[str] = set()
        self._isolated: deque[CasePlan] = deque()
        self._isolated_ids: set[str] = set()
        self._isolated_is_running = False

    def next(self, n_in_flight: int = 0) -> CaseBatch:
        """Return the cases of the next graph; none when there are none at present.

        An isolated case runs when no other graph is in flight; no other starts until it has ended.
        """
        if self._isolated_is_running and n_in_flight:
            return ()
        batch = self._next_batch()
        self._isolated_is_running = not batch and not n_in_flight and bool(self._isolated)
        return (self._isolated.popleft(),) if self._isolated_is_running else batch

    def retry_unbatched(self, case: CasePlan) -> None:
        """Return a case again, in a graph of its own, now and in later attempts."""
        self._unbatched_ids.add(case.case_id)
        self._unbatched.append(case)

    def retry_isolated(self, case: CasePlan) -> None:
        """Return a case again when nothing else runs: it may have killed its worker."""
        self._isolated_ids.add(case.case_id)
        self._isolated.append(case)

    def ran_isolated(self, batch: CaseBatch) -> bool:
        """Return whether nothing else ran while a batch did."""
        return len(batch) == 1 and batch[0].case_id in self._isolated_ids

    def _next_batch(self) -> CaseBatch:
        if self._unbatched:
            return (self._unbatched.popleft(),)
        batch: list[CasePlan] = []
        work = 0
        while len(batch) < self._most and (case := self._next()) is not None:
            case_work = self._enough if case.case_id in self._unbatched_ids else case.work
            if batch and work + case_work > self._enough:
                self._held = case
                break
            batch.append(case)
            work += case_work
        return tuple(batch)

    def _next(self) -> CasePlan | None:
        held, self._held = self._held, None
        if held is not None:
            return held
        while (case := self._next_case()) is not None and case.case_id in self._isolated_ids:
            self._isolated.append(case)  # a retry: it must still run isolated
        return case


def batch_work(n_threads: int, memory_limit: int | None) -> int:
    """Return the work, in bytes of voxels, that fills a batch.

    `memory_limit` is the bytes of each of the scheduler's threads; None for any amount.

    >>> [batch_work(n, 2_000_000_000) // 1_000_000 for n in (1, 16, 64)]
    [8, 64, 125]
    """
    most = _MOST_WORK if memory_limit is None else min(_MOST_WORK, memory_limit // _PART_OF_MEMORY)
    return max(_LEAST_WORK, min(n_threads * _WORK_PER_THREAD, most))
