"""Where a run's cases are computed: in this process, on a cluster started here, or elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dask_slicer import holder, machine
from dask_slicer.config import RunConfig
from dask_slicer.errors import (
    CaseError,
    OutOfMemory,
    Unexpected,
    UsageError,
    WorkerLost,
    as_case_error,
)
from dask_slicer.events import Observer
from dask_slicer.graph import case_graph, compute_here, lot_graph, target_of
from dask_slicer.journal import CommittedCase
from dask_slicer.lots import Lot, Lots, NextCase
from dask_slicer.plans import CasePlan, RunPlan, peak_bytes
from dask_slicer.preflight import Needs
from dask_slicer.tasks import Target
from dask_slicer.telling import Telling
from dask_slicer.words import size

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

Outcome = CommittedCase | CaseError
Execute = Callable[[NextCase], Iterator[tuple[CasePlan, Outcome]]]


@contextmanager
def executor(
    plan: RunPlan, n_cases: int, *, run_id: str, client: Client | None, observer: Telling
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
            holder.name_scheduler(plan.config.output_dir, holder.IN_PROCESS)
            yield lambda next_case: _execute_here(next_case, target)
        else:
            from dask_slicer import cluster

            timeout = plan.config.timeout
            holder.name_scheduler(plan.config.output_dir, cluster.address(found))
            with observer.through(found, run_id=run_id, output_dir=target.output_dir):
                yield lambda next_case: _execute_on(found, next_case, n_cases, target, timeout)


@contextmanager
def workers(
    config: RunConfig,
    n_cases: int,
    *,
    peak_bytes: int,
    needs: Needs,
    client: Client | None,
    observer: Observer,
) -> Iterator[Client | None]:
    """Start workers, or connect to those of a scheduler, as a configuration says.

    Parameters
    ----------
    config : RunConfig
    n_cases : int
        No more workers than that are started, and none for none.
    peak_bytes : int
        Memory that a worker needs for the largest case.
    needs : Needs
        What is looked at before the first case, where workers are not of our own making.
    client : Client, optional
        Wins over the configuration.
    observer : Observer
        Is told where, and the link of the dashboard.

    Yields
    ------
    Client or None
        None: in this process.
    """
    is_remote = config.scheduler is not None or config.scheduler_file is not None
    if n_cases == 0 or (config.num_workers == 0 and client is None and not is_remote):
        observer.connected("", "in this process")
        yield None
        return
    from dask_slicer import cluster, preflight, remote

    with ExitStack() as stack:
        is_ours = client is None and not is_remote
        if client is not None:
            where = "on the workers of the given client"
        elif is_remote:
            client = stack.enter_context(remote.remote_client(config, observer))
            where = f"on {cluster.n_threads(client)} threads of {cluster.address(client)}"
        else:
            n_workers = _n_workers(config, n_cases, peak_bytes, observer)
            client = stack.enter_context(
                cluster.local_client(
                    n_workers,
                    memory_limit=machine.memory_bytes() // n_workers,
                    dashboard_address=config.dashboard_address,
                    imported=["dask_slicer.store_zarr"] if config.format == "zarr" else [],
                )
            )
            where = f"on {n_workers} worker{'s' if n_workers > 1 else ''}"
        hidden = config.dashboard_address == "none"
        observer.connected("" if hidden else cluster.dashboard_link(client), where)
        if is_remote and config.num_workers != RunConfig.model_fields["num_workers"].default:
            observer.note("--num_workers is ignored: the scheduler has its own workers")
        if is_ours and config.upload_code:
            observer.note("--upload_code has no effect: workers on this machine have this code")
        if not is_ours:
            if config.upload_code:
                remote.send_package(client)
            preflight.check(client, needs, observer.note, uploaded=config.upload_code)
        if config.performance_report is not None:
            stack.enter_context(cluster.performance_report(client, config.performance_report))
        yield client


def _needs(plan: RunPlan) -> Needs:
    cases = [case for case in plan.selected if case.problem is None]
    peaks = [peak_bytes(case, plan.config) for case in cases]
    return Needs(
        output_dir=plan.config.output_dir,
        input_file=cases[0].case.images[0] if cases else "",
        least_bytes=min(peaks, default=0),
        most_bytes=max(peaks, default=0),
        timeout=plan.config.timeout,
    )


def check_report_place(path: Path | None) -> None:
    """Raise now, not after hours, if the performance report cannot be written.

    Raises
    ------
    UsageError
    """
    if path is not None:
        try:
            path.open("ab").close()
        except OSError as error:
            raise UsageError(
                f"cannot write the performance_report {path}: {error.strerror}"
            ) from None


def _execute_on(
    client: Client, next_case: NextCase, n_cases: int, target: Target, timeout: float | None
) -> Iterator[tuple[CasePlan, Outcome]]:
    from dask_slicer import cluster, flight

    fitting = _Fitting(next_case, target, cluster.memory_limit(client))
    lots = Lots(fitting.next, n_cases=n_cases, n_threads=cluster.n_threads(client))
    ended = flight.execute(client, lots.next, lambda lot: _graph(lot, target), timeout=timeout)
    for lot, result in ended:
        yield from fitting.too_large()
        outcomes = _outcomes(lot, result)
        for case, outcome in zip(lot, outcomes, strict=True):
            if isinstance(outcome, WorkerLost | OutOfMemory) and not lots.was_alone(lot):
                # It may have been the victim of another.
                lots.suspect(case)
            elif isinstance(outcome, CaseError) and len(lot) > 1:
                # Whatever failed in company is tried by itself before it is said to have failed.
                lots.singly(case)
            else:
                yield case, outcome
    yield from fitting.too_large()


def _outcomes(lot: Lot, result: object) -> list[Outcome]:
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
                f"needs {size(needed)} of memory, a worker may use {size(self._limit)}; "
                "use fewer workers, or a machine with more memory"
            )
            self._too_large.append((case, as_case_error(failure, step="load")))
        return case

    def too_large(self) -> Iterator[tuple[CasePlan, Outcome]]:
        """Yield the cases passed over since, with what failed."""
        while self._too_large:
            yield self._too_large.popleft()


def _graph(lot: Lot, target: Target) -> Delayed:
    return case_graph(lot[0], target) if len(lot) == 1 else lot_graph(lot, target)


def _execute_here(next_case: NextCase, target: Target) -> Iterator[tuple[CasePlan, Outcome]]:
    fitting = _Fitting(next_case, target, machine.memory_bytes())
    while (case := fitting.next()) is not None:
        result: object
        try:
            result = compute_here(case_graph(case, target))
        except CaseError as error:
            result = error
        yield from fitting.too_large()
        yield case, _outcomes((case,), result)[0]
    yield from fitting.too_large()


def _n_workers(config: RunConfig, n_cases: int, peak: int, observer: Observer) -> int:
    """Return how many workers to start: as asked, but no more than cases, or than fit for -1."""
    wanted = config.num_workers
    memory = machine.memory_bytes()
    fitting = max(memory // peak, 1)
    if wanted == -1:
        wanted = machine.cpu_count()
        if fitting < min(wanted, n_cases):
            observer.note(
                f"{fitting} of {wanted} CPUs are used: memory of {size(memory)} holds no more "
                f"cases of {size(peak)}"
            )
            wanted = fitting
    elif fitting < min(wanted, n_cases):
        observer.note(
            f"{wanted} workers may need {size(wanted * peak)} of memory, there is "
            f"{size(memory)}; --num_workers {fitting} fits"
        )
    return max(min(wanted, n_cases), 1)
