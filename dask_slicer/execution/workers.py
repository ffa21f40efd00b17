"""Starting or connecting to the workers of a run."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dask_slicer.cluster.preflight import Requirements, run_preflight
from dask_slicer.cluster.rpc import workers_ignore_sigint
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import UsageError
from dask_slicer.execution import tasks
from dask_slicer.monitoring.observer import Observer
from dask_slicer.output.layout import locked_partitions
from dask_slicer.utils import system
from dask_slicer.utils.formatting import format_bytes, plural

if TYPE_CHECKING:
    from distributed import Client


# Ids of clients that a run of this program uses.
_in_use: set[str] = set()
_LOCK = threading.Lock()


@contextmanager
def workers(
    config: RunConfig,
    n_cases: int,
    *,
    n_useful: int | None = None,
    peak_bytes: int,
    needs: Requirements,
    client: Client | None,
    observer: Observer,
) -> Iterator[Client | None]:
    """Start workers here or in jobs, or connect to a scheduler; yield the client, or None.

    A given client wins over the configuration. At most `n_useful` workers are started, or else one
    a case, which may need `peak_bytes` each; `needs` is checked where they are not processes of
    this machine.
    """
    n_useful = n_cases if n_useful is None else n_useful
    is_given = client is not None
    is_remote = not is_given and bool(config.scheduler or config.scheduler_file)
    in_jobs = not is_given and config.cluster is not None
    is_local = not (is_given or is_remote or in_jobs)
    if is_local and config.upload_code:
        observer.note("--upload_code has no effect: workers on this machine have this code")
    if n_cases == 0 or (is_local and config.num_workers == 0):
        observer.connected("in this process")
        if config.performance_report is not None:
            observer.note("--performance_report has no effect without workers: Dask writes none")
        yield None
        return
    from dask_slicer.cluster import client as clients
    from dask_slicer.cluster import jobqueue, remote

    with ExitStack() as stack:
        if client is not None:
            stack.enter_context(_alone_on(client))
            where = "on the workers of the given client"
        elif is_remote:
            client = stack.enter_context(remote.remote_client(config, observer.note))
            threads = plural(clients.count_threads(client), "thread")
            where = f"on {threads} of {clients.address(client)}"
        elif in_jobs:
            client, where = _in_jobs(stack, config, n_useful, peak_bytes, observer)
        else:
            client, where = _here(stack, config, n_useful, peak_bytes, observer)
        dashboard = ""
        if in_jobs:
            dashboard = jobqueue.dashboard_link(client, config.dashboard_address)
        elif config.dashboard_address != "none":
            dashboard = clients.dashboard_link(client)
        page = clients.run_page_link(client, dashboard)
        observer.connected(where, dashboard=dashboard, run_page=page)
        if in_jobs:
            jobqueue.wait_for_workers(client, observer.note)
        if not is_local:
            run_preflight(
                client, needs, observer.note, module=tasks.__name__, upload=config.upload_code
            )
        if is_given:
            stack.enter_context(workers_ignore_sigint(client))
        if config.performance_report is not None:
            stack.enter_context(clients.performance_report(client, config.performance_report))
        yield client


@contextmanager
def _alone_on(client: Client) -> Iterator[None]:
    """Refuse a second run on a client, on which equal keys would be one task."""
    with _LOCK:
        if client.id in _in_use:
            raise UsageError(
                "another run of this program is using this client; wait until it is over, or give "
                "this run a client of another scheduler"
            )
        _in_use.add(client.id)
    try:
        yield
    finally:
        _in_use.discard(client.id)


def _in_jobs(
    stack: ExitStack, config: RunConfig, n_useful: int, peak_bytes: int, observer: Observer
) -> tuple[Client, str]:
    from dask_slicer.cluster import jobqueue

    memory = config.memory // config.cores
    if memory < peak_bytes:
        observer.note(
            f"a case may need {format_bytes(peak_bytes)} of memory, but a worker has "
            f"{format_bytes(memory)}; use --memory {math.ceil(peak_bytes * config.cores / 1e9)}GB"
        )
    n_jobs = min(config.jobs, math.ceil(n_useful / config.cores))
    client = stack.enter_context(
        jobqueue.job_client(
            config,
            n_jobs=n_jobs,
            keep_logs=bool(locked_partitions(config.output_dir)),
            note=observer.note,
        )
    )
    each = f", {config.cores} workers each" if config.cores > 1 else ""
    return client, f"in {plural(n_jobs, 'job')} of {config.cluster}{each}"


def _here(
    stack: ExitStack, config: RunConfig, n_useful: int, peak_bytes: int, observer: Observer
) -> tuple[Client, str]:
    from dask_slicer.cluster import local

    n_workers = _n_workers(config, n_useful, peak_bytes, observer)
    client = stack.enter_context(
        local.local_client(
            n_workers,
            memory_limit=system.memory_bytes() // n_workers,
            dashboard_address=config.dashboard_address,
            imported=["dask_slicer.output.formats.zarr_writer"] if config.format == "zarr" else [],
        )
    )
    return client, f"on {plural(n_workers, 'worker')}"


def _n_workers(config: RunConfig, n_useful: int, peak: int, observer: Observer) -> int:
    """Return how many workers to start: at most `n_useful`, and with -1 what fits into memory."""
    n_workers, n_cpus = config.num_workers, system.cpu_count()
    if "num_workers" not in config.model_fields_set:
        n_workers = min(n_workers, n_cpus)
    elif n_cpus < min(n_workers, n_useful):
        observer.note(
            f"{n_workers} workers share {plural(n_cpus, 'CPU')}; --num_workers {n_cpus} takes less "
            "memory and about as long"
        )
    memory = system.memory_bytes()
    fitting = max(memory // max(peak, 1), 1)  # without a case, it is 0
    if n_workers == -1:
        n_workers = n_cpus
        if fitting < min(n_workers, n_useful):
            observer.note(
                f"only {fitting} of {n_workers} CPUs are used: the memory, {format_bytes(memory)}, "
                f"has no room for more cases, each up to {format_bytes(peak)}"
            )
            n_workers = fitting
    elif fitting < min(n_workers, n_useful):
        observer.note(
            f"{n_workers} workers may need {format_bytes(n_workers * peak)} of memory, but "
            f"there is only {format_bytes(memory)}; use --num_workers {fitting}"
        )
    return max(min(n_workers, n_useful), 1)
