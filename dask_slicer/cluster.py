"""Where graphs run: a cluster on this machine, and what is asked of any cluster.

`distributed` takes half a second to import: the few modules that talk to schedulers do it when
they are used.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import psutil

from dask_slicer import forking, interrupts
from dask_slicer.config import in_a_word
from dask_slicer.errors import SchedulerError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Nanny

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
# Topic under which nannies of ours say how their workers ended.
EXIT_EVENTS = "dask-slicer-worker-exit"
_CLOSE_SECONDS = 3
# By which a scheduler's server has pages; and the module of ours.
_ROUTES, OUR_ROUTES = "distributed.scheduler.http.routes", "dask_slicer.routes"
_PAGE = "dask-slicer"
_PAGE_SECONDS = 5


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
    method = forking.prepare(imported)
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
        with interrupts.deferred(), warnings.catch_warnings():
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
            f"client must be a distributed.Client, got {in_a_word(client)} of type "
            f"{type(client).__name__}; for a running scheduler, give scheduler=ADDRESS instead"
        )
    if client.asynchronous:
        raise UsageError("client must not be asynchronous; make one with asynchronous=False")
    if client.status != "running":
        lost = "has lost its scheduler" if client.status == "connecting" else "is closed"
        raise UsageError(f"the client {lost} (status {client.status}); make a new one")


def tells_exits(client: Client) -> bool:
    """Return whether a client's workers have nannies of ours, which say how they ended."""
    nannies = getattr(client.cluster, "workers", {})
    return any(isinstance(one, _nanny_class()) for one in nannies.values())


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


def n_threads(client: Client) -> int:
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
            client._run_on_scheduler, dask.config.get, _ROUTES, callback_timeout=_PAGE_SECONDS
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
