"""Where a run's cases are computed: in this process, on a cluster started here, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dask_slicer import machine
from dask_slicer.config import RunConfig
from dask_slicer.errors import CaseError
from dask_slicer.events import Observer
from dask_slicer.graph import case_graph, compute_here, lot_graph, target_of
from dask_slicer.journal import CommittedCase
from dask_slicer.lots import Lot, Lots, NextCase
from dask_slicer.plans import CasePlan, RunPlan
from dask_slicer.tasks import Target
from dask_slicer.words import size

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client

Outcome = CommittedCase | CaseError
Execute = Callable[[NextCase], Iterator[tuple[CasePlan, Outcome]]]


@contextmanager
def executor(
    plan: RunPlan, n_cases: int, *, run_id: str, client: Client | None, observer: Observer
) -> Iterator[Execute]:
    """Start what the cases run on; yield a function that runs them.

    Parameters
    ----------
    plan : RunPlan
        Its configuration says where.
    n_cases : int
        To be run; no more workers than that are started, and none for none.
    run_id : str
        Stamped on every record.
    client : Client, optional
        Wins over the configuration.
    observer : Observer
        Is told where, and the link of the dashboard.

    Yields
    ------
    callable
        Takes a function that returns the next case, or None when there is none at present; yields
        cases with what became of them.
    """
    config = plan.config
    target = target_of(config, run_id=run_id)
    remote = config.scheduler is not None or config.scheduler_file is not None
    if n_cases == 0 or (config.num_workers == 0 and client is None and not remote):
        observer.connected("", "in this process")
        yield lambda next_case: _execute_here(next_case, target)
        return
    from dask_slicer import cluster

    with ExitStack() as stack:
        if client is not None:
            where = "on the workers of the given client"
        elif remote:
            file = None if config.scheduler_file is None else str(config.scheduler_file)
            client = stack.enter_context(
                cluster.remote_client(address=config.scheduler, scheduler_file=file)
            )
            where = f"on {cluster.n_threads(client)} threads of {cluster.address(client)}"
        else:
            n_workers = _n_workers(plan, n_cases, observer)
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
        if remote and config.num_workers != RunConfig.model_fields["num_workers"].default:
            observer.note("--num_workers is ignored: the scheduler has its own workers")
        if config.performance_report is not None:
            stack.enter_context(cluster.performance_report(client, config.performance_report))
        yield lambda next_case: _execute_on(client, next_case, n_cases, target)


def _execute_on(
    client: Client, next_case: NextCase, n_cases: int, target: Target
) -> Iterator[tuple[CasePlan, Outcome]]:
    from dask_slicer import cluster

    lots = Lots(next_case, n_cases=n_cases, n_threads=cluster.n_threads(client))
    for lot, result in cluster.execute(client, lots.next, lambda lot: _graph(lot, target)):
        if len(lot) == 1:
            yield lot[0], result
            continue
        # A worker that died takes its whole lot with it. Whoever it was, and whatever else failed
        # in company, is tried by itself before it is said to have failed.
        outcomes = [result] * len(lot) if isinstance(result, CaseError) else result
        for case, outcome in zip(lot, outcomes, strict=True):
            if isinstance(outcome, CaseError):
                lots.alone(case)
            else:
                yield case, outcome


def _graph(lot: Lot, target: Target) -> Delayed:
    return case_graph(lot[0], target) if len(lot) == 1 else lot_graph(lot, target)


def _execute_here(next_case: NextCase, target: Target) -> Iterator[tuple[CasePlan, Outcome]]:
    while (case := next_case()) is not None:
        outcome: Outcome
        try:
            outcome = compute_here(case_graph(case, target))
        except CaseError as error:
            outcome = error
        yield case, outcome


def _n_workers(plan: RunPlan, n_cases: int, observer: Observer) -> int:
    """Return how many workers to start: as asked, but no more than cases, or than fit for -1."""
    wanted = plan.config.num_workers
    memory, peak = machine.memory_bytes(), plan.peak_bytes
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
