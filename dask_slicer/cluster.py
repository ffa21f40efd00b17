"""Where graphs run: a cluster on this machine or somebody's scheduler, and what comes back.

The only module that imports `distributed`, and only when it is used: it takes half a second.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import psutil

from dask_slicer import forking, interrupts
from dask_slicer.errors import (
    CaseError,
    OutOfMemory,
    SchedulerError,
    WorkerLost,
    as_case_error,
)
from dask_slicer.lots import Lot

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client, Future

_LOG = logging.getLogger(__name__)

# Each of these was measured on clusters of 2 to 4 workers with volumes of 20 to 240 MB.
_SETTINGS = {
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
_CONNECT_SECONDS = 10
_CLOSE_SECONDS = 3
# Graphs handed to the scheduler at a time, so that neither it nor we grow with the dataset.
_SMALLEST_WINDOW = 16
_GRAPHS_PER_THREAD = 4
_MEMORY_EVENTS = "worker-restart-memory"


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
    # A worker that is killed is our business, and reported as a failure: its logs are for -vv.
    debugging = logging.getLogger("dask_slicer").isEnabledFor(logging.DEBUG)
    level = logging.WARNING if debugging else logging.CRITICAL
    logging.getLogger("distributed").setLevel(level)
    own = {
        "distributed.worker.multiprocessing-method": method,
        "logging.distributed": logging.getLevelName(level).lower(),
    }
    with dask.config.set(_SETTINGS | own), ExitStack() as stack:
        with interrupts.deferred(), warnings.catch_warnings():
            # "Port 8787 is already in use": the link that we print is the true one.
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            try:
                cluster = LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=1,
                    processes=True,
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


def n_threads(client: Client) -> int:
    """Return how many cases the workers of a client can run at once."""
    return sum(client.nthreads().values())


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


def execute(
    client: Client,
    next_lot: Callable[[], Lot],
    graph_of: Callable[[Lot], Delayed],
) -> Iterator[tuple[Lot, Any]]:
    """Run the graphs of lots of cases on a client's workers; yield what became of each as it ends.

    A bounded number of graphs is in flight. Results are released as they arrive: a held one would
    be computed again when its worker dies.

    Parameters
    ----------
    client : Client
    next_lot : callable
        Returns the cases of the next graph, none when there are none at present.
    graph_of : callable
        Returns the graph of a lot.

    Yields
    ------
    lot : tuple of CasePlan
    result
        What the graph came to, or a CaseError.

    Raises
    ------
    SchedulerError
        If the scheduler is lost.
    """
    from distributed import as_completed

    window = max(_SMALLEST_WINDOW, _GRAPHS_PER_THREAD * n_threads(client))
    refill = window // 4
    in_flight: dict[Future[Any], Lot] = {}
    ended = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    try:
        while True:
            if len(in_flight) <= window - refill:
                lots = _take(next_lot, window - len(in_flight))
                # Together: one message to the scheduler, and it sees at once that there are many
                # loads, which it then queues.
                futures = client.compute([graph_of(lot) for lot in lots])
                in_flight |= dict(zip(futures, lots, strict=True))
                ended.update(futures)
                del futures
            if not in_flight:
                return
            future, result = next(ended)
            lot = in_flight.pop(future)
            outcome = _outcome(client, future, result)
            key = future.key
            future.release()
            del future, result
            if isinstance(outcome, CaseError):
                # Run again while the client still knows the key, the old error would come back.
                _wait_until_forgotten(client, key)
            yield lot, outcome
    finally:
        if in_flight:
            _cancel(client, list(in_flight))


def _wait_until_forgotten(client: Client, key: Any) -> None:
    deadline = time.monotonic() + _CLOSE_SECONDS
    while key in client.futures and time.monotonic() < deadline:
        time.sleep(0.01)


def _take(next_lot: Callable[[], Lot], most: int) -> list[Lot]:
    lots: list[Lot] = []
    while len(lots) < most and (lot := next_lot()):
        lots.append(lot)
    return lots


def _cancel(client: Client, futures: list[Future[Any]]) -> None:
    try:
        # Not by force: another run on this scheduler may be waiting for the same keys.
        client.cancel(futures)
    except Exception:  # the scheduler may be what was lost
        _LOG.debug("could not cancel", exc_info=True)


def _outcome(client: Client, future: Future[Any], result: Any) -> Any:
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        return result
    # A lost scheduler turns futures to `cancelled`, with an exception as if it were a result.
    if future.status != "error":
        raise SchedulerError("the connection to the Dask scheduler was lost")
    _, error, _ = result
    if isinstance(error, CaseError):
        return error
    if isinstance(error, KilledWorker):
        return _lost(client, error)
    if isinstance(error, RuntimeError) and "deserialization" in str(error):
        raise SchedulerError(
            "the scheduler or a worker cannot import dask_slicer; install this version there too "
            f"({error})"
        )
    return as_case_error(error, step="load")


def _lost(client: Client, error: Any) -> CaseError:
    """Return why a case's workers died: by the nanny for their memory, or by themselves."""
    # The task is named by its key, ("save", case_id).
    step = error.task[0] if isinstance(error.task, tuple) else "load"
    worker = error.last_worker.address
    try:
        events = client.get_events(_MEMORY_EVENTS)
    except Exception:  # only the wording depends on it
        events = ()
    if any(event.get("worker") == worker for _, event in events):
        lost: CaseError = OutOfMemory(
            "its worker passed its memory limit and was stopped; use fewer workers, or a machine "
            "with more memory"
        )
    else:
        lost = WorkerLost(
            "the worker that ran it died, several times; the system's log may say why"
        )
    return as_case_error(lost, step=step)


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
