"""Where graphs run: a cluster on this machine, or somebody's scheduler.

It, `jobs`, `flight` and `watch` alone import `distributed`, which takes half a second, and only for
use.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import psutil

from dask_slicer import forking, interrupts
from dask_slicer.errors import SchedulerError

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
# Topic under which nannies of ours say how their workers ended.
EXIT_EVENTS = "dask-slicer-worker-exit"
_CONNECT_SECONDS = 10
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
    with dask.config.set(SETTINGS | own), ExitStack() as stack:
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
        try:
            with Client(cluster) as client:
                yield client
        except BaseException:
            _kill_workers(cluster)
            raise


def quiet() -> int:
    """Let Dask log nothing here, with -vv only warnings; return the level of logging."""
    # A worker that is killed is our business, and reported as a failure.
    debugging = logging.getLogger("dask_slicer").isEnabledFor(logging.DEBUG)
    level = logging.WARNING if debugging else logging.CRITICAL
    logging.getLogger("distributed").setLevel(level)
    return level


@contextmanager
def remote_client(*, address: str | None, scheduler_file: str | None) -> Iterator[Client]:
    """Connect to a running scheduler; yield its client, leave the scheduler running.

    Raises
    ------
    SchedulerError
        If it does not answer within 10 seconds, or has no worker.
    """
    from distributed import Client

    where = address or f"the address in {scheduler_file}"
    deadline = time.monotonic() + _CONNECT_SECONDS
    while scheduler_file is not None and not Path(scheduler_file).exists():
        if time.monotonic() > deadline:
            raise SchedulerError(f"the scheduler_file {scheduler_file} does not exist")
        time.sleep(0.1)  # a scheduler that has just been started may be about to write it
    try:
        client = Client(address, scheduler_file=scheduler_file, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SchedulerError(
            f"no Dask scheduler answers at {where} ({reason}); is it running and reachable?"
        ) from error
    try:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            try:
                client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
            except TimeoutError:
                raise SchedulerError(
                    f"the scheduler at {where} has no workers; start some with `dask worker`"
                ) from None
        yield client
    finally:
        client.close(_CLOSE_SECONDS)


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


def memory_limit(client: Client) -> int | None:
    """Return the most memory that a worker may use for one case, in bytes; None for any amount."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] // max(worker["nthreads"], 1) for worker in workers]
    return max(limits) if limits and all(limits) else None


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


def performance_report(client: Client, path: Path) -> AbstractContextManager[object]:
    """Return a context that writes Dask's performance report of what happens within."""
    from distributed import performance_report as report

    with client.as_current():
        return report(str(path))


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
