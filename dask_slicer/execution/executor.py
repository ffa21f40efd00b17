"""Computing the cases of a run: in this process or on a cluster."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dask_slicer.cluster.client import (
    address,
    count_threads,
    memory_limit,
    thread_addresses,
)
from dask_slicer.cluster.preflight import Requirements
from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.errors import (
    CaseError,
    DiskFull,
    OutOfMemory,
    Unexpected,
    UsageError,
    WorkerLost,
    as_case_error,
)
from dask_slicer.execution import graph
from dask_slicer.execution.case_queue import CaseQueue
from dask_slicer.execution.tasks import CaseBatch, Target, without_frames
from dask_slicer.execution.workers import workers
from dask_slicer.inputs.readers.base import split_volume
from dask_slicer.monitoring.publisher import ProgressPublisher
from dask_slicer.output.lock import name_scheduler
from dask_slicer.output.lock_owner import IN_PROCESS
from dask_slicer.planning.memory import WORKER_BASE_BYTES, least_limit, peak_bytes
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase
from dask_slicer.utils import system
from dask_slicer.utils.formatting import format_bytes

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client


Outcome = CommittedCase | CaseError
Outcomes = Generator[tuple[CasePlan, Outcome], None, None]
# Runs the cases of the queue by a plan.
Execute = Callable[[RunPlan], Outcomes]


@contextmanager
def executor(
    plan: RunPlan,
    queue: CaseQueue,
    *,
    n_todo: int,
    run_id: str,
    client: Client | None,
    publisher: ProgressPublisher,
) -> Iterator[tuple[Client | None, Execute]]:
    """Start or connect to workers; yield their client, and a function that runs a queue of cases.

    A case may be put into the queue again. `n_todo` counts cases that cannot be run, too.
    """
    target = graph.target_of(plan.config, run_id=run_id)
    timeout = plan.config.timeout
    with ExitStack() as stack:
        used_client = stack.enter_context(
            workers(
                plan.config,
                len(queue),
                n_useful=_n_useful_workers(queue, plan.config),
                peak_bytes=plan.peak_bytes,
                needs=_requirements(plan, target),
                client=client,
                observer=publisher.observer,
            )
        )
        if used_client is None:
            scheduler = IN_PROCESS
            if timeout is not None:
                publisher.observer.note(
                    "--timeout has no effect in this process: only a worker can be stopped"
                )
        else:
            scheduler = address(used_client)
            if scheduler.startswith("inproc://"):  # other processes cannot reach it
                scheduler = IN_PROCESS

        def execute(plan: RunPlan) -> Outcomes:
            target = graph.target_of(plan.config, run_id=run_id, names=plan.names, steps=plan.steps)
            if used_client is None:
                outcomes = _execute_here(queue, target)
            else:
                outcomes = _execute_on(used_client, queue, target, timeout)
            return stack.enter_context(closing(outcomes))

        path = plan.config.output_dir / target.lock
        name_scheduler(path, run_id, scheduler, n_cases=n_todo)
        if used_client is None:
            yield used_client, execute
            return
        stack.enter_context(
            publisher.publishing_to(used_client, run_id=run_id, output_dir=target.output_dir)
        )
        from dask_slicer.execution.watchdog import count_lost_workers, last_event

        began = last_event(used_client)
        yield used_client, execute
        publisher.n_lost_workers = count_lost_workers(used_client, after=began)


def _requirements(plan: RunPlan, target: Target) -> Requirements:
    input_file, needed = "", array("q")
    for case in plan.selected:
        if case.problem is None:
            input_file = input_file or split_volume(case.case.image_files[0])[0]
            needed.append(least_limit(case, plan.config))
    return Requirements(
        output_dir=plan.config.output_dir,
        input_file=input_file,
        least_bytes=min(needed, default=0),
        most_bytes=max(needed, default=0),
        timeout=plan.config.timeout,
        temporary=target.temporary,
    )


def _n_useful_workers(cases: CaseQueue, config: RunConfig) -> int:
    """Return how many workers have something to do: one for each case, more for large ones.

    On this machine, no more are started for large ones than have room: those that are mapped need
    little, those that are inflated stay in memory if they can.
    """
    if not cases or cases[0].work < graph.LEAST_IN_PARTS:  # the largest is the first
        return len(cases)
    n_useful = graph.n_useful_threads(cases, config)
    if config.cluster is None and n_useful > len(cases):
        needed = max(
            least_limit(case, config)
            if case.file_bytes >= case.voxel_bytes
            else WORKER_BASE_BYTES + peak_bytes(case, config)
            for case in cases
        )
        n_useful = min(n_useful, system.memory_bytes() // needed)
    return max(n_useful, len(cases))


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


def check_scratch_dir(path: Path | None) -> None:
    """Raise UsageError now, not for each large case, if files cannot be made in a folder."""
    if path is not None and path.exists() and not path.is_dir():
        raise UsageError(f"scratch_dir {path} is a file; name a folder")


def _execute_on(
    client: Client, queue: CaseQueue, target: Target, timeout: float | None
) -> Outcomes:
    from dask_slicer.execution import futures

    yield from _too_large(queue, target.settings, memory_limit(client))
    target = _limited(target, memory_limit(client, of=min))
    n_threads = count_threads(client)
    # Batches stay small with a timeout, which is for one case but stops a whole graph, and before
    # the first worker is there, since the memory of workers is then unknown.
    n_served = n_threads if timeout is None and client.nthreads() else 1
    enough = graph.batch_work(n_served, memory_limit(client, of=min))
    batcher = graph.Batcher(queue, n_threads=n_threads, enough=enough)

    def graph_of(batch: CaseBatch) -> Delayed:
        if batcher.in_parts(batch) and graph.is_in_parts(batch[0], target.settings):
            addresses = thread_addresses(client)
            if len(addresses) > 1:
                return graph.parts_graph(batch[0], target, addresses)
        return graph.batch_graph(batch, target)

    results = futures.run_graphs(
        client,
        batcher.next,
        graph_of,
        timeout=timeout,
        names_of=lambda batch: [case.case_id for case in batch],
    )
    for batch, result in results:
        for case, outcome in zip(batch, _outcomes(batch, result), strict=True):
            if isinstance(outcome, WorkerLost | OutOfMemory) and not batcher.ran_isolated(batch):
                batcher.retry_isolated(case)  # another case may have killed its worker
            elif isinstance(outcome, DiskFull | CommittedCase) or len(batch) == 1:
                yield case, outcome  # on a full disk without a retry: the run must stop at once
            else:
                batcher.retry_unbatched(case)  # before it counts as failed


def _execute_here(queue: CaseQueue, target: Target) -> Outcomes:
    yield from _too_large(queue, target.settings, system.memory_bytes())
    target = _limited(target, system.memory_bytes())
    while queue:
        case = queue.popleft()
        try:
            result: object = graph.compute_here(graph.case_graph(case, target))
        except CaseError as error:
            result = without_frames(error)
        yield case, _outcomes((case,), result)[0]


def _limited(target: Target, limit: int | None) -> Target:
    return target if limit is None else replace(target, memory_limit=limit)


def _too_large(queue: CaseQueue, settings: SliceSettings, limit: int | None) -> Outcomes:
    """Take the cases out of the queue that need more than `limit` bytes, and yield their errors."""
    if limit is None:
        return
    for case in queue.take(lambda case: least_limit(case, settings) > limit):
        needed, least = peak_bytes(case, settings), least_limit(case, settings)
        or_least = f", or {format_bytes(least)} with its voxels in files" if least < needed else ""
        failure = OutOfMemory(
            f"needs {format_bytes(needed)} of memory{or_least}, a worker may use "
            f"{format_bytes(limit)}; use fewer workers, or a machine with more memory"
        )
        yield case, as_case_error(failure, step="load")


def _outcomes(batch: CaseBatch, result: object) -> list[Outcome]:
    """Return the outcome of each case of a batch."""
    # An error of the whole graph is that of each case.
    items = result if isinstance(result, list) and len(result) == len(batch) > 1 else None
    outcomes: list[Outcome] = []
    for item in items or [result] * len(batch):
        if not isinstance(item, Outcome):
            message = f"its task returned no record but {type(item).__name__}"
            item = as_case_error(Unexpected(message), step="save")
        outcomes.append(item)
    return outcomes
