"""Computing the cases of a run: in this process or on a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
    plan: RunPlan,
    n_cases: int,
    *,
    n_todo: int,
    run_id: str,
    client: Client | None,
    observer: ProgressPublisher,
) -> Iterator[Execute]:
    """Start or connect to workers; yield a function that runs cases there.

    It takes a function that returns the next case, or None when there is none at present, and
    yields each case with its outcome. `n_todo` counts cases that cannot be run, too.
    """
    target = target_of(plan.config, run_id=run_id)
    partition = parse_partition(plan.config.shard)
    name_scheduler = partial(lock.name_scheduler, plan.config.output_dir, partition, n_cases=n_todo)
    with workers(
        plan.config,
        n_cases,
        peak_bytes=plan.peak_bytes,
        needs=_requirements(plan),
        client=client,
        observer=observer,
    ) as used_client:
        if used_client is None:
            if plan.config.timeout is not None:
                observer.note(
                    "--timeout has no effect in this process: only a worker can be stopped"
                )
            name_scheduler(lock.IN_PROCESS)
            yield lambda next_case: _execute_here(next_case, target)
        else:
            from dask_slicer.cluster.client import address

            timeout = plan.config.timeout
            scheduler = address(used_client)
            if scheduler.startswith("inproc://"):  # other processes cannot reach it
                scheduler = lock.IN_PROCESS
            name_scheduler(scheduler)
            with observer.publishing_to(used_client, run_id=run_id, output_dir=target.output_dir):
                yield lambda next_case: _execute_on(
                    used_client, next_case, n_cases, target, timeout
                )


def _requirements(plan: RunPlan) -> Requirements:
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
    """Raise UsageError now, not after hours, if the performance report cannot be written."""
    if path is not None:
        existed = path.exists()
        try:
            path.open("ab").close()
            if not existed:
                path.unlink()  # a run that ends without a report leaves no empty file
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
    fitting = _FittingCases(next_case, target, limit)
    # Batches stay small with a timeout, which is for one case but stops a whole graph, and before
    # the first worker is there, since the memory of workers is then unknown.
    n_served = n_threads if timeout is None and client.nthreads() else 1
    enough = batch_work(n_served, memory_limit(client, of=min))
    batcher = Batcher(fitting.next, n_cases=n_cases, n_threads=n_threads, enough=enough)
    results = futures.run_graphs(
        client,
        batcher.next,
        lambda batch: _graph(batch, target),
        timeout=timeout,
        names_of=lambda batch: [case.case_id for case in batch],
    )
    for batch, result in results:
        yield from fitting.too_large()
        for case, outcome in zip(batch, _outcomes(batch, result), strict=True):
            if isinstance(outcome, WorkerLost | OutOfMemory) and not batcher.ran_isolated(batch):
                batcher.retry_isolated(case)  # another case may have killed its worker
            elif isinstance(outcome, DiskFull):
                yield case, outcome  # without a retry: the run must stop at once
            elif isinstance(outcome, CaseError) and len(batch) > 1:
                batcher.retry_unbatched(case)  # before it counts as failed
            else:
                yield case, outcome
    yield from fitting.too_large()


def _outcomes(batch: CaseBatch, result: object) -> list[Outcome]:
    """Return the outcome of each case of a batch."""
    if isinstance(result, CaseError):
        return [result] * len(batch)
    outcomes = [result] if len(batch) == 1 else result
    if isinstance(outcomes, list) and len(outcomes) == len(batch):
        return [item if isinstance(item, Outcome) else _unexpected(item) for item in outcomes]
    return [_unexpected(result)] * len(batch)


def _unexpected(result: object) -> CaseError:
    return as_case_error(
        Unexpected(f"its task returned no record but {type(result).__name__}"), step="save"
    )


class _FittingCases:
    """Cases that fit into a worker's memory of `limit` bytes, and those that do not."""

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
        """Yield the cases that `next` has skipped, with the error."""
        while self._too_large:
            yield self._too_large.popleft()


def _graph(batch: CaseBatch, target: Target) -> Delayed:
    return case_graph(batch[0], target) if len(batch) == 1 else batch_graph(batch, target)


def _execute_here(next_case: NextCase, target: Target) -> Iterator[tuple[CasePlan, Outcome]]:
    fitting = _FittingCases(next_case, target, system.memory_bytes())
    while (case := fitting.next()) is not None:
        result: object
        try:
            result = compute_here(case_graph(case, target))
        except CaseError as error:
            result = error
        yield from fitting.too_large()
        yield case, _outcomes((case,), result)[0]
    yield from fitting.too_large()
