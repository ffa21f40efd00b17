"""Dask clusters on this machine, with workers forked from a prepared process.

That process is a fresh one, not ours: nothing but imports has happened in it, no thread runs.
Workers that import everything themselves take twice as long to start.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import dask
import psutil

from dask_slicer.cluster.client import ENVIRONMENT, SETTINGS, quiet, with_our_page
from dask_slicer.errors import SchedulerError
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from distributed import Client, Nanny


_LOG = logging.getLogger(__name__)

_IMPORTED = ["distributed", "dask_slicer.execution.tasks", "distributed.dashboard.worker"]


def start_forkserver(imported: Sequence[str] = ()) -> str:
    """Start the process that workers will be forked from, if it does not run yet.

    It imports in the background, while this process imports what it needs itself.

    Parameters
    ----------
    imported : sequence of str
        Modules that workers will need, beside those that all need.

    Returns
    -------
    str
        How workers are to be started: forkserver, or spawn where it cannot be had.
    """
    if sys.platform != "linux":
        return "spawn"
    from multiprocessing import forkserver

    # Blosc's lock is left behind by a worker that is stopped; Python's resource tracker, which
    # is started here too, removes it, and there is no need to tell.
    ignored = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]))
    with _environment(ENVIRONMENT | {"PYTHONWARNINGS": ignored}), signals.deferred():
        multiprocessing.set_forkserver_preload([*_IMPORTED, *imported])
        try:
            forkserver.ensure_running()
        except OSError as error:  # the path of its socket, below TMPDIR, may be too long
            _LOG.info("workers are spawned, not forked: %s", error)
            return "spawn"
    return "forkserver"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# Topic under which nannies of ours say how their workers ended.
EXIT_EVENTS = "dask-slicer-worker-exit"
_CLOSE_SECONDS = 3


@contextmanager
def local_client(
    n_workers: int, *, memory_limit: int, dashboard_address: str, imported: Sequence[str] = ()
) -> Iterator[Client]:
    """Start a cluster of one-thread processes on this machine, bound to loopback; yield its client.

    Parameters
    ----------
    n_workers : int
    memory_limit : int
        Bytes for each worker; one that passes it is restarted.
    dashboard_address : str
        host:port; a busy port falls back to a free one. none: no dashboard.
    imported : sequence of str
        Modules that workers will need, beside those that all need.
    """
    method = start_forkserver(imported)
    # Before the settings are made: it adds its defaults to Dask's configuration, and they must stay
    # there when the settings are taken back.
    from distributed import Client, LocalCluster

    hidden = dashboard_address == "none"
    level = quiet()
    own = {
        "distributed.worker.multiprocessing-method": method,
        "logging.distributed": logging.getLevelName(level).lower(),
    }
    with dask.config.set(SETTINGS | own | with_our_page()), ExitStack() as stack:
        with signals.deferred(), warnings.catch_warnings():
            # "Port 8787 is already in use": the link that we print is the true one.
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            try:
                cluster = LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=1,
                    processes=True,
                    worker_class=_nanny_class(),
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0" if hidden else dashboard_address,
                    worker_dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": not hidden},
                    memory_limit=memory_limit,
                    silence_logs=level,
                )
            except (RuntimeError, OSError, ValueError) as error:
                raise SchedulerError(f"cannot start workers on this machine: {error}") from error
            stack.callback(_close, cluster)
            # Not the default: it is the run's, and of no use to the rest of the program.
            client = stack.enter_context(Client(cluster, set_as_default=False))
        try:
            yield client
        except BaseException:
            client.close()
            _kill_workers(cluster)
            raise


@cache
def _nanny_class() -> type[Nanny]:
    from distributed import Nanny

    class TellingNanny(Nanny):
        """Tells how its worker ended."""

        def _on_worker_exit_sync(self, exitcode: int) -> None:
            # By name: a worker's address it learns a moment after the scheduler does.
            event = {"name": self.name, "exitcode": exitcode}
            self.log_event(EXIT_EVENTS, event)  # type: ignore[no-untyped-call]
            super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]

    return TellingNanny


def tells_exits(client: Client) -> bool:
    """Return whether a client's workers have nannies of ours, which say how they ended."""
    nannies = getattr(client.cluster, "workers", {})
    return any(isinstance(one, _nanny_class()) for one in nannies.values())


def _close(cluster: Any) -> None:
    try:
        cluster.close(_CLOSE_SECONDS)
    except TimeoutError:
        _LOG.warning("the cluster did not close within %s s", _CLOSE_SECONDS)
        _kill_workers(cluster)


def _kill_workers(cluster: Any) -> None:
    """End workers that are in the middle of a case; what they wrote aside, the driver removes."""
    for nanny in list(cluster.workers.values()):
        nanny.auto_restart = False
        if nanny.pid is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(nanny.pid).kill()
