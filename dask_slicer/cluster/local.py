"""Dask clusters on this machine, with workers forked from a prepared process.

That process is a fresh one, not this one: it has no threads and has only imported modules. Workers
that import everything themselves take twice as long to start.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from dask_slicer.cluster.client import ENVIRONMENT, cluster_client
from dask_slicer.cluster.dask_private import exit_reporting_nanny, nanny_variables
from dask_slicer.cluster.main_module import check_main_module
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

_IMPORTED = ["distributed", "dask_slicer.execution.tasks", "distributed.dashboard.worker"]
_CLOSE_SECONDS = 3


def start_forkserver(imported: Sequence[str] = ()) -> str:
    """Start the process that workers are forked from; return `spawn` if it cannot run."""
    if sys.platform != "linux":
        return "spawn"
    from multiprocessing import forkserver

    # A worker that is killed leaves a lock of Blosc. Python's resource tracker, which starts here
    # too, removes it; its warning helps no user.
    warnings_option = "ignore:resource_tracker"
    if os.environ.get("PYTHONWARNINGS"):
        warnings_option = f"{os.environ['PYTHONWARNINGS']},{warnings_option}"
    variables = ENVIRONMENT | {"PYTHONWARNINGS": warnings_option}
    with _ENVIRONMENT.restored(variables):
        os.environ.update(variables)
        with signals.deferred():  # after the variables: it starts the resource tracker
            multiprocessing.set_forkserver_preload([*_IMPORTED, *imported])
            try:
                forkserver.ensure_running()
            except OSError as error:  # the path of its socket, below TMPDIR, may be too long
                _LOG.info("workers are spawned, not forked: %s", error)
                return "spawn"
    return "forkserver"


class _Environment:
    """Restores environment variables, also when runs in several threads overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before: dict[str, str | None] = {}
        self._during: dict[str, str | None] = {}

    @contextmanager
    def restored(self, names: Iterable[str]) -> Iterator[None]:
        """Restore variables when the last such block ends."""
        with self._lock:
            self._depth += 1
            for name in names:
                self._before.setdefault(name, os.environ.get(name))
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if not self._depth:
                    self._restore()

    def note(self) -> None:
        """Remember the present values: one that the user's program changes later is kept."""
        with self._lock:
            self._during = {name: os.environ.get(name) for name in self._before}

    def _restore(self) -> None:
        for name, value in self._before.items():
            if os.environ.get(name) == self._during.get(name, os.environ.get(name)):
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        self._before.clear()
        self._during.clear()


_ENVIRONMENT = _Environment()


@contextmanager
def local_client(
    n_workers: int, *, memory_limit: int, dashboard_address: str, imported: Sequence[str] = ()
) -> Iterator[Client]:
    """Start one-thread worker processes on this machine, bound to loopback; yield the client."""
    check_main_module()
    method = start_forkserver(imported)
    from distributed import LocalCluster

    def start(scheduler_options: dict[str, Any], log_level: int) -> Any:
        cluster = LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            worker_class=exit_reporting_nanny(),
            host="127.0.0.1",
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs=scheduler_options,
            memory_limit=memory_limit,
            silence_logs=log_level,
        )
        _ENVIRONMENT.note()
        return cluster

    with (
        _ENVIRONMENT.restored(nanny_variables()),
        cluster_client(
            start,
            _close,
            failure="cannot start workers on this machine",
            dashboard_address=dashboard_address,
            settings={"distributed.worker.multiprocessing-method": method},
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
    return any(isinstance(nanny, exit_reporting_nanny()) for nanny in nannies)


def _close(cluster: Any) -> None:
    try:
        cluster.close(_CLOSE_SECONDS)
    except TimeoutError:
        _LOG.warning("the cluster did not close within %s s", _CLOSE_SECONDS)
        _kill_workers(cluster)


def _kill_workers(cluster: Any) -> None:
    """Kill workers that are busy with a case; the driver removes their temporary files."""
    for nanny in list(cluster.workers.values()):
        if nanny.pid is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(nanny.pid).kill()
