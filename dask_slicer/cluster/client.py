"""Dask clients: settings for schedulers and workers, checks, links.

Functions import `distributed` when they are called: that takes half a second.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from dask_slicer.cluster.dask_private import remove_traces
from dask_slicer.cluster.process_settings import DASK, IGNORED_WARNINGS, LOG_LEVELS
from dask_slicer.cluster.rpc import ask_scheduler
from dask_slicer.errors import SchedulerError, UsageError
from dask_slicer.utils import signals
from dask_slicer.utils.formatting import format_value

if TYPE_CHECKING:
    from distributed import Client


_LOG = logging.getLogger(__name__)

# Each was measured on clusters of 2 to 4 workers with volumes of 20 to 240 MB.
SETTINGS = {
    # One loaded volume on each worker; the default allows two.
    "distributed.scheduler.worker-saturation": 1.0,
    # Arrays stay where they were loaded.
    "distributed.scheduler.work-stealing": False,
    # Dask counts the death of a worker against each case on it; with 0, a case would fail because
    # of another one.
    "distributed.scheduler.allowed-failures": 3,
    # A paused worker would never free the volume that made it pause, and spilling a volume is no
    # use. The limit at which a worker is stopped remains.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # How often each process checks its clock, its memory and its running task: the defaults take a
    # tenth of a core.
    "distributed.admin.tick.interval": "200ms",
    "distributed.worker.memory.monitor-interval": "200ms",
    "distributed.worker.profile.interval": "100ms",
    "distributed.scheduler.worker-ttl": "120s",
    # A client, too, notices by these that it cannot reach its scheduler.
    "distributed.comm.timeouts.tcp": "20s",
    "distributed.comm.timeouts.connect": "10s",
}
_TIMEOUTS = {key: value for key, value in SETTINGS.items() if ".timeouts." in key}
# Variables that work only if they are set when a process starts. Dask would set
# MALLOC_TRIM_THRESHOLD_ too, with which glibc returns the memory of every plane and maps it again:
# a third of the CPU time. One arena, since one thread allocates: others would map and unmap, too.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
# The setting of the dashboard's link, in which the user may name variables, and its default.
_LINK, _PLAIN_LINK = "distributed.dashboard.link", "{scheme}://{host}:{port}/status"
# The setting of pages that a scheduler serves, and the module of our page.
_ROUTES, OUR_ROUTES = "distributed.scheduler.http.routes", "dask_slicer.monitoring.run_page"


def variable_of(setting: str) -> str:
    """Return the environment variable of a setting of Dask."""
    return "DASK_" + setting.upper().replace(".", "__").replace("-", "_")


@contextmanager
def cluster_client(
    start: Callable[..., Any],
    close: Callable[[Any], None],
    *,
    failure: str,
    dashboard_address: str,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Client]:
    """Start a cluster whose scheduler runs in this process; yield its client.

    `start` makes it, given options of the scheduler and a level for logs. Dask's configuration has
    `SETTINGS` until the cluster has read them, and `settings` until it is closed.
    """
    # Before the settings: this import adds defaults to Dask's configuration, which must stay when
    # the settings end.
    from distributed import Client

    is_hidden = dashboard_address == "none"
    scheduler_options = {
        "dashboard_address": "127.0.0.1:0" if is_hidden else dashboard_address,
        "dashboard": not is_hidden,
    }
    start_settings = SETTINGS | run_page_setting() | _link_setting()
    with silenced_dask() as level, ExitStack() as stack:
        # Connections read timeouts whenever they are made.
        stack.enter_context(DASK.changed(_TIMEOUTS | dict(settings or {})))
        with (
            signals.deferred(),
            # The link that the run prints has the right port.
            IGNORED_WARNINGS.changed({"Port .* is already in use": True}),
            DASK.changed(start_settings),
        ):
            try:
                cluster = start(scheduler_options, level)
            except (RuntimeError, OSError, ValueError) as error:
                raise SchedulerError(f"{failure}: {error}") from error
            stack.callback(remove_traces, [cluster.scheduler, *cluster.workers.values()])
            stack.callback(close, cluster)
            # This part alone: elsewhere, programs keep what cannot be copied, such as pools.
            settings_now = copy.deepcopy(dask.config.get("distributed"))
            cluster.started_with = {"distributed": settings_now}
            # Signals are still held back: an interrupt here would leave a client that nothing
            # closes. It is not the default client: the rest of the program has no use for it.
            client = stack.enter_context(Client(cluster, set_as_default=False))
        yield client


@contextmanager
def client_timeouts() -> Iterator[None]:
    """Set the timeouts of a client of a running scheduler, unless the user has set them."""
    import distributed  # noqa: F401, adds its defaults

    defaults = dask.config.merge(*dask.config.defaults)
    timeouts = {
        key: value
        for key, value in _TIMEOUTS.items()
        if DASK.before(key) == dask.config.get(key, config=defaults)
    }
    with silenced_dask(), DASK.changed(timeouts):
        yield


@contextmanager
def silenced_dask() -> Iterator[int]:
    """Silence Dask's log below -vv, since a run reports what is lost; yield its level."""
    debugging = logging.getLogger("dask_slicer").isEnabledFor(logging.DEBUG)
    level = logging.WARNING if debugging else logging.CRITICAL
    names = [
        name
        for name, logger in list(logging.root.manager.loggerDict.items())
        if name.partition(".")[0] in {"distributed", "bokeh"}
        if isinstance(logger, logging.Logger) and logger.level  # its own
    ]
    with LOG_LEVELS.changed(dict.fromkeys(names, level)):
        yield level


def default_client() -> Client | None:
    """Return the default client of this process, as a notebook may have; None if there is none."""
    with suppress(KeyError, ValueError):  # nothing has imported `distributed`, or made a client
        client: Client = sys.modules["distributed"].default_client()
        return None if client.asynchronous else client
    return None


def check_usable(client: Any) -> None:
    """Raise a UsageError if a client is none, is closed or asynchronous, or lost its scheduler."""
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


def memory_limit(client: Client, *, of: Callable[..., float] = max) -> int | None:
    """Return the largest (or least) memory of a worker for one case, in bytes; None: no limit."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [
        worker["memory_limit"] // max(worker["nthreads"], 1) or math.inf for worker in workers
    ]
    limit = of(limits, default=math.inf)
    return None if math.isinf(limit) else int(limit)


def count_threads(client: Client) -> int:
    """Return how many cases the workers can run at once, including workers that are starting."""
    planned = len(getattr(client.cluster, "plan", ()))  # names of workers with one thread each
    return max(int(sum(client.nthreads().values())), planned)


def thread_addresses(client: Client) -> list[str]:
    """Return the address of the worker of each thread, alternately of all workers."""
    threads = [
        (number, worker)
        for worker, n_threads in client.nthreads().items()
        for number in range(n_threads)
    ]
    return [worker for _, worker in sorted(threads)]


def address(client: Client) -> str:
    """Return the address of a client's scheduler."""
    return str(client.scheduler_info(n_workers=0)["address"])


def dashboard_link(client: Client) -> str:
    """Return the link of a client's dashboard; empty if it has none.

    A link is never a reason to fail: if Dask cannot make it as the user's settings say, such as
    with a variable that is not set, it is the plain one.
    """
    for setting in ({}, {_LINK: _PLAIN_LINK}):
        try:
            with dask.config.set(setting):
                return str(client.dashboard_link or "")
        except Exception as error:  # any error, also of settings that are no template
            _LOG.info("Could not make the dashboard's link: %r", error)
    return ""


def _link_setting() -> dict[str, str]:
    """Return the plain link if that of the settings would stop a scheduler that starts here."""
    try:
        DASK.before(_LINK).format(**os.environ | {"scheme": "http", "host": "h", "port": 1})
    except Exception as error:  # any error, as above
        _LOG.info("The setting %s cannot be used: %r", _LINK, error)
        return {_LINK: _PLAIN_LINK}
    return {}


def scheduler_setting(client: Client, name: str) -> Any:
    """Return a setting of Dask that a client's scheduler was started with."""
    ours = getattr(client.cluster, "started_with", None)  # by `cluster_client`
    if ours is not None:
        return dask.config.get(name, config=ours)
    return ask_scheduler(client, client.run_on_scheduler, dask.config.get, name)


def run_page_setting() -> dict[str, list[str]]:
    """Return the setting with which a scheduler serves our page in addition to its own."""
    routes = list(DASK.before(_ROUTES))
    return {_ROUTES: routes if OUR_ROUTES in routes else [*routes, OUR_ROUTES]}


def run_page_link(client: Client, dashboard: str) -> str:
    """Return the link of our page beside the dashboard; empty if the scheduler has no such page."""
    server, _, page = dashboard.rpartition("/")
    with suppress(Exception):  # it may be busy, or of another version; the page is optional
        if page == "status" and OUR_ROUTES in scheduler_setting(client, _ROUTES):
            return f"{server}/dask-slicer"
    return ""


@contextmanager
def performance_report(client: Client, path: Path) -> Iterator[None]:
    """Write Dask's performance report of the block, unless the scheduler is lost."""
    from distributed import performance_report as report

    with client.as_current(), ExitStack() as stack:
        stack.enter_context(report(str(path)))
        try:
            yield
        except SchedulerError:
            stack.pop_all()  # the scheduler would have to write it
            raise
