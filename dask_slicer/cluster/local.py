"""Dask clusters on this machine, with workers forked from a prepared process.

That process is a fresh one, not this one: it has no threads and has only imported modules. Workers
that import everything themselves take twice as long to start.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from dask_slicer.cluster import forkserver
from dask_slicer.cluster.client import ENVIRONMENT, cluster_client
from dask_slicer.cluster.dask_private import local_nanny
from dask_slicer.cluster.main_module import check_main_module

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

_IMPORTED = ["distributed", "dask_slicer.execution.tasks", "distributed.dashboard.worker"]
_CLOSE_SECONDS = 3


@contextmanager
def process_method(imported: Sequence[str] = ()) -> Iterator[str]:
    """Yield how worker processes are to be started; `spawn` where they cannot be forked."""
    method = "spawn"
    with ExitStack() as stack:
        if sys.platform == "linux":
            try:
                stack.enter_context(forkserver.running([*_IMPORTED, *imported], ENVIRONMENT))
                method = forkserver.METHOD
            except OSError as error:  # the path of its socket, below TMPDIR, may be too long
                _LOG.info("workers are spawned, not forked: %s", error)
        yield method


@contextmanager
def local_client(
    n_workers: int, *, memory_limit: int, dashboard_address: str, imported: Sequence[str] = ()
) -> Iterator[Client]:
    """Start one-thread worker processes on this machine, bound to loopback; yield the client."""
    check_main_module()

    def start(scheduler_options: dict[str, Any], log_level: int) -> Any:
        from distributed import LocalCluster  # takes time in which the server imports, too

        return LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            worker_class=local_nanny(),
            process_method=method,
            worker_log_level=log_level,
            host="127.0.0.1",
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs=scheduler_options,
            memory_limit=memory_limit,
            silence_logs=False,  # of this process: that would be for good if clusters overlap
        )

    with (
        process_method(imported) as method,
        cluster_client(
            start,
            _close,
            failure="cannot start workers on this machine",
            dashboard_address=dashboard_address,
        ) as client,
    ):
        try:
            yield client
        except BaseException:
            client.close()
            _kill_workers(client.cluster)
            raise


def logs_exit_codes(client: Client) -> bool:
    """Return whether the nannies of a client's workers log exit codes, as those started here do."""
    nannies = getattr(client.cluster, "workers", {}).values()
    return any(isinstance(nanny, local_nanny()) for nanny in nannies)


def _close(cluster: Any) -> None:
    for _ in range(2):
        try:
            cluster.close(_CLOSE_SECONDS)
        except TimeoutError:
            _kill_workers(cluster)
        else:
            return
    _LOG.warning("the cluster did not close within %s s", 2 * _CLOSE_SECONDS)


def _kill_workers(cluster: Any) -> None:
    """Kill workers that are busy with a case; the driver removes their temporary files."""
    for nanny in list(cluster.workers.values()):
        nanny.is_over = True
        if nanny.pid is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(nanny.pid).kill()
