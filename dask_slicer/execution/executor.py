"""Computing the cases of a run: in this process or on a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dask_slicer.cluster.preflight import Requirements
from dask_slicer.errors import (
    CaseError,
    DiskFull,
    OutOfMemory,
    Unexpected,
    UsageError,
    WorkerLost,
    as_case_error,
)
from dask_slicer.execution.graph import (
    Batcher,
    NextCase,
    batch_graph,
    batch_work,
    case_graph,
    compute_here,
    target_of,
)
from dask_slicer.execution.tasks import CaseBatch, Target
from dask_slicer.execution.workers import workers
from dask_slicer.monitoring.publisher import ProgressPublisher
from dask_slicer.output import lock
from dask_slicer.output.layout import partition_files
from dask_slicer.planning.plan import CasePlan, RunPlan, parse_partition, peak_bytes
from dask_slicer.records import CommittedCase
from dask_slicer.utils import system
from dask_slicer.utils.formatting import format_bytes

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client


Outcome = CommittedCase | CaseError
Execute = Callable[[NextCase], Iterator[tuple[CasePlan, Outcome]]]


@contextmanager
def executor(
    plan: RunPlan, n_cases: int, *, run_id: str, client: Client | None, observer: ProgressPublisher
) -> Iterator[Execute]:
    """Start what the cases run on; yield a function that runs them.

    See `workers` for where that is.

    Yields
    ------
    callable
        Takes a function that returns the next case, or None when there is none at present; yields
        cases with what became of them.
    """
    target = target_of(plan.config, run_id=run_id)
    share = parse_partition(plan.config.shard)
    with workers(
        plan.config,
        n_cases,
        peak_bytes=plan.peak_bytes,
        needs=_needs(plan),
        client=client,
        observer=observer,
    ) as found:
        if found is None:
            if plan.config.timeout is not None:
                observer.note(
                    "--timeout has no effect in this process: it takes a worker to stop a case"
                )
            lock.name_scheduler(plan.config.output_dir, share, lock.IN_PROCESS)
            yield lambda next_case: _execute_here(next_case, target)
        else:
            from dask_slicer.cluster.client import address

            timeout = plan.config.timeout
            where = address(found)
            # A scheduler in this process is nobody else's to see.
            where = lock.IN_PROCESS if where.startswith("inproc://") else where
            lock.name_scheduler(plan.config.output_dir, share, where)
            with observer.publishing_to(found, run_id=run_id, output_dir=target.output_dir):
                yield lambda next_case: _execute_on(found, next_case, n_cases, target, timeout)


def _needs(plan: RunPlan) -> Requirements:
    cases = [case for case in plan.selected if case.problem is None]
    peaks = [peak_bytes(case, plan.config) for case in cases]
    return Requirements(
        output_dir=plan.config.output_dir,
        input_file=cases[0].case.images[0] if cases else "",
        least_bytes=min(peaks, default=0),
        most_bytes=max(peaks, default=0),
        timeout=plan.config.timeout,
        temporary=partition_files(parse_partition(plan.config.shard)).temporary,
    )


def check_report_place(path: Path | None) -> None:
    """Raise now, not after hours, if the performance report cannot be written.

    Raises
    ------
    UsageError
    """
    if path is not None:
        was_there = path.exists()
        try:
            path.open("ab").close()
            if not was_there:
                path.unlink()  # a run that comes to no report leaves no empty one
        except OSError as error:
            raise UsageError(
                f"cannot write the performance_report {path}: {error.strerror}"
            ) from None


def _execute_on(
    client: Client, next_case: NextCase, n_cases: int, target: Target, timeout: float | None
) -> Iterator[tuple[CasePlan, Outcome]]:
    from dask_slicer.cluster.client import count_threads, memory_limit
    from dask_slicer.execution import futures

    limit, n_threads = memory_limit(client), count_threads(client)
    fitting = _Fitting(next_case, target, limit)
    # With a time limit, which is a case's, a graph must not take much longer than its cases do; and
    # of workers that are still to come, it is not known what they hold.
    n_served = n_threads if timeout is None and client.nthreads() else 1
    enough = batch_work(n_served, memory_limit(client, of=min))
    lots = Batcher(fitting.next, n_cases=n_cases, n_threads=n_threads, enough=enough)
    ended = futures.run_graphs(
        client,
        lots.next,
        lambda lot: _graph(lot, target),
        timeout=timeout,
        names_of=lambda lot: [case.case_id for case in lot],
    )
    for lot, result in ended:
        yield from fitting.too_large()
        outcomes = _outcomes(lot, result)
        for case, outcome in zip(lot, outcomes, strict=True):
            if isinstance(outcome, WorkerLost | OutOfMemory) and not lots.was_alone(lot):
                # It may have been the victim of another.
                lots.quarantine(case)
            elif isinstance(outcome, DiskFull):
                yield case, outcome  # the rest had better know at once
            elif isinstance(outcome, CaseError) and len(lot) > 1:
                # Whatever failed in company is tried by itself before it is said to have failed.
                lots.retry_alone(case)
            else:
                yield case, outcome
    yield from fitting.too_large()


def _outcomes(lot: CaseBatch, result: object) -> list[Outcome]:
    """Return what became of each case of a lot."""
    if isinstance(result, CaseError):
        return [result] * len(lot)
    outcomes = [result] if len(lot) == 1 else result
    if isinstance(outcomes, list) and len(outcomes) == len(lot):
        return [one if isinstance(one, Outcome) else _nonsense(one) for one in outcomes]
    return [_nonsense(result)] * len(lot)


def _nonsense(result: object) -> CaseError:
    return as_case_error(
        Unexpected(f"its task returned no record but {type(result).__name__}"), step="save"
    )


class _Fitting:
    """Cases that a worker's memory holds, and those that it does not.

    Parameters
    ----------
    next_case : callable
    target : Target
    limit : int or None
        Bytes that a worker may use; None for any amount.
    """

    def __init__(self, next_case: NextCase, target: Target, limit: int | None) -> None:
        self._next_case = next_case
        self._settings = target.settings
        self._limit = limit
        self._too_large: deque[tuple[CasePlan, Outcome]] = deque()

    def next(self) -> CasePlan | None:
        """Return the next case that fits."""
        while (case := self._next_case()) is not None and self._limit is not None:
            needed = peak_bytes(case, self._settings)
            if needed <= self._limit:
                break
            failure = OutOfMemory(
                f"needs {format_bytes(needed)} of memory, a worker may use "
                f"{format_bytes(self._limit)}; "
                "use fewer workers, or a machine with more memory"
            )
            self._too_large.append((case, as_case_error(failure, step="load")))
        return case

    def too_large(self) -> Iterator[tuple[CasePlan, Outcome]]:
        """Yield the cases passed over since, with what failed."""
        while self._too_large:
            yield self._too_large.popleft()


def _graph(lot: CaseBatch, target: Target) -> Delayed:
    return case_graph(lot[0], target) if len(lot) == 1 else batch_graph(lot, target)


def _execute_here(next_case: NextCase, target: Target) -> Iterator[tuple[CasePlan, Outcome]]:
    fitting = _Fitting(next_case, target, system.memory_bytes())
    while (case := fitting.next()) is not None:
        result: object
        try:
            result = compute_here(case_graph(case, target))
        except CaseError as error:
            result = error
        yield from fitting.too_large()
        yield case, _outcomes((case,), result)[0]
    yield from fitting.too_large()
