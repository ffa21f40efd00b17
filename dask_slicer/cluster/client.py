"""Dask clients: settings for schedulers and workers, checks, dashboard link.

`distributed` takes half a second to import: the few modules that talk to schedulers do it when
they are used.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.utils.formatting import format_value

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

# Each of these was measured on clusters of 2 to 4 workers with volumes of 20 to 240 MB.
SETTINGS = {
    # Exactly one loaded volume a worker; the default holds two.
    "distributed.scheduler.worker-saturation": 1.0,
    # Arrays stay where they were loaded.
    "distributed.scheduler.work-stealing": False,
    # Every case on a worker that dies is a suspect; with 0, innocents are condemned.
    "distributed.scheduler.allowed-failures": 3,
    # A paused worker would never free the volume that made it pause, nor is one worth spilling; the
    # limit at which a worker is stopped stays.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # How often every process looks at its clock, its memory, and where its task is: a tenth of a
    # core, at the defaults.
    "distributed.admin.tick.interval": "200ms",
    "distributed.worker.memory.monitor-interval": "200ms",
    "distributed.worker.profile.interval": "100ms",
    "distributed.scheduler.worker-ttl": "120s",
    "distributed.comm.timeouts.tcp": "20s",
    "distributed.comm.timeouts.connect": "10s",
}
# By which a client, too, notices that its scheduler is out of reach.
_TIMEOUTS = ("distributed.comm.timeouts.tcp", "distributed.comm.timeouts.connect")
# By which a scheduler's server has pages; and the module of ours.
_ROUTES, OUR_ROUTES = "distributed.scheduler.http.routes", "dask_slicer.monitoring.run_page"
_PAGE = "dask-slicer"
_PAGE_SECONDS = 5


@contextmanager
def settings_of_clients() -> Iterator[None]:
    """Let a client of somebody's scheduler notice when that is lost, and leave the telling to us.

    What the user has set in Dask's configuration stays.
    """
    import distributed  # noqa: F401, adds its defaults

    quiet()
    defaults = dask.config.merge(*dask.config.defaults)
    own = {
        key: SETTINGS[key]
        for key in _TIMEOUTS
        if dask.config.get(key) == dask.config.get(key, config=defaults)
    }
    with dask.config.set(own):
        yield


def quiet() -> int:
    """Leave Dask's own log to -vv; return its level.

    A worker that is killed, or a scheduler that is lost, is our business, and reported as such.
    """
    debugging = logging.getLogger("dask_slicer").isEnabledFor(logging.DEBUG)
    level = logging.WARNING if debugging else logging.CRITICAL
    for name in ("distributed", "distributed.client"):  # of which each has a level of its own
        logging.getLogger(name).setLevel(level)
    return level


def default_client() -> Client | None:
    """Return the client that this process works with, such as a notebook's; None if it has none.

    Nothing is imported to find out: who has made a client, has imported `distributed`.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        client: Client = distributed.default_client()
    except ValueError:
        return None
    return None if client.asynchronous else client


def check_usable(client: Any) -> None:
    """Raise if a client cannot be run on.

    Raises
    ------
    UsageError
        If it is none, is closed or asynchronous, or has lost its scheduler.
    """
    if not all(hasattr(client, name) for name in ("scheduler_info", "asynchronous", "status")):
        raise UsageError(
            f"client must be a distributed.Client, got {format_value(client)} of type "
            f"{type(client).__name__}; for a running scheduler, give scheduler=ADDRESS instead"
        )
    if client.asynchronous:
        raise UsageError("client must not be asynchronous; make one with asynchronous=False")
    if client.status != "running":
        lost = "has lost its scheduler" if client.status == "connecting" else "is closed"
        raise UsageError(f"the client {lost} (status {client.status}); make a new one")


def memory_limit(client: Client, *, of: Callable[[Iterable[float]], float] = max) -> int | None:
    """Return the memory that a worker may use for one case, in bytes; None for any amount.

    Parameters
    ----------
    client : Client
    of : {max, min}
        Of the worker that has most, or least.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [
        worker["memory_limit"] // max(worker["nthreads"], 1) or math.inf for worker in workers
    ]
    found = of(limits) if limits else math.inf
    return None if math.isinf(found) else int(found)


def count_threads(client: Client) -> int:
    """Return how many cases the workers of a client can run at once, those to come included."""
    planned = len(getattr(client.cluster, "plan", ()))  # names of workers, one thread each
    return max(int(sum(client.nthreads().values())), planned)


def address(client: Client) -> str:
    """Return the address of a client's scheduler."""
    return str(client.scheduler_info(n_workers=0)["address"])


def dashboard_link(client: Client) -> str:
    """Return where the dashboard is to be seen."""
    return str(client.dashboard_link or "")


def with_our_page() -> dict[str, list[str]]:
    """Return the setting by which a scheduler has our page, beside the pages that it has anyway."""
    known = list(dask.config.get(_ROUTES))
    return {_ROUTES: known if OUR_ROUTES in known else [*known, OUR_ROUTES]}


def page_link(dashboard: str) -> str:
    """Return where our page is, of the dashboard's link; nothing of a link of another kind.

    Examples
    --------
    >>> page_link("http://127.0.0.1:8787/status")
    'http://127.0.0.1:8787/dask-slicer'
    """
    server, slash, name = dashboard.rpartition("/")
    return f"{server}/{_PAGE}" if slash and name == "status" else ""


def has_our_page(client: Client) -> bool:
    """Return whether the scheduler of somebody was told to have our page."""
    try:
        found = client.sync(
            client.run_on_scheduler, dask.config.get, _ROUTES, callback_timeout=_PAGE_SECONDS
        )
    except Exception as error:  # it may be busy, or of another version; the page is a nicety
        _LOG.debug("the scheduler does not say which pages it has: %s", error)
        return False
    return OUR_ROUTES in found


@contextmanager
def performance_report(client: Client, path: Path) -> Iterator[None]:
    """Write Dask's performance report of what happens within, unless the scheduler is lost."""
    from distributed import performance_report as report

    with client.as_current(), ExitStack() as stack:
        stack.enter_context(report(str(path)))
        try:
            yield
        except SchedulerError:
            stack.pop_all()  # there is nobody to ask for it
            raise


# What works only in a process that has it from its start. Dask would set MALLOC_TRIM_THRESHOLD_
# too, with which glibc gives every plane's memory back to be mapped anew: a third of the CPU time.
# One arena, since one thread allocates: the others grow by mapping and unmapping as well.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
