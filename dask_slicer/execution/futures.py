"""Submitting graphs to a client, a bounded number at a time, and yielding results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from dask_slicer.cluster.client import count_threads
from dask_slicer.cluster.local import tells_exits
from dask_slicer.errors import CaseError
from dask_slicer.execution.watchdog import LOST, Watchdog
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client, Future, as_completed


L = TypeVar("L")

_LOG = logging.getLogger(__name__)

# Graphs handed to the scheduler at a time, so that neither it nor we grow with the dataset.
_SMALLEST_WINDOW = 16
_GRAPHS_PER_THREAD = 4
_FORGET_SECONDS = 3
# Results: each takes a round trip to the scheduler, and one from there to the worker.
_FETCHED_AT_ONCE = 8
# That a stopped run waits for the cases that somebody's workers are in the middle of.
_LEAVE_SECONDS = 5
_STEPS = ("load", "slice", "save")
# Failures that stay in Dask's pages, the last ones: each is three tasks with a traceback, about
# 20 kB, on a scheduler that may see a hundred thousand of them.
_MOST_ERRED = 200


def run_graphs(
    client: Client,
    next_lot: Callable[[int], L | None],
    graph_of: Callable[[L], Delayed],
    *,
    timeout: float | None = None,
    names_of: Callable[[L], Sequence[str]] = lambda _: (),
) -> Iterator[tuple[L, Any]]:
    """Run the graphs of lots of cases on a client's workers; yield what became of each as it ends.

    A bounded number of graphs is in flight. Results are released as they arrive: a held one would
    be computed again when its worker dies. An error, which no worker holds, stays until the end.

    Parameters
    ----------
    client : Client
    next_lot : callable
        Returns what the next graph is of, nothing when there is nothing at present; told how many
        graphs are in flight.
    graph_of : callable
        Returns the graph of a lot.
    timeout : float, optional
        Seconds that a graph may run; one that takes longer is stopped, by the end of its worker.
    names_of : callable
        Returns the names of the cases of a lot. The error of a single one stays with the scheduler,
        for its dashboard to show, until the run is over or the case is tried again.

    Yields
    ------
    lot
    result
        What the graph came to, or a CaseError.

    Raises
    ------
    SchedulerError
        If the scheduler is lost, or nothing runs although there is something to run.
    """
    from distributed import as_completed

    window = max(_SMALLEST_WINDOW, _GRAPHS_PER_THREAD * count_threads(client))
    refill = window // 4
    # So many that the scheduler sees that there are many loads, which it then queues.
    at_once = 2 * count_threads(client) + 1
    in_flight: dict[Future[Any], L] = {}
    # Without results: of one that is lost on its way and then fails, it would never tell.
    ended = as_completed(loop=client.loop)
    watchdog = Watchdog(client, timeout)
    fetchers = ThreadPoolExecutor(_FETCHED_AT_ONCE, thread_name_prefix="dask-slicer-fetch")
    erred = _Erred(client)
    try:
        while True:
            if len(in_flight) <= window - refill:
                lots = _take(next_lot, len(in_flight), window)
                erred.let_go(name for lot in lots for name in names_of(lot))
                for first in range(0, len(lots), at_once):
                    some = lots[first : first + at_once]
                    # Each call's graphs after those of the last, by the last argument; those of
                    # one call run in an order of Dask's own.
                    futures = client.compute([graph_of(lot) for lot in some], fifo_timeout="0 s")
                    in_flight |= dict(zip(futures, some, strict=True))
                    ended.update(futures)
                    del futures
            if not in_flight:
                return
            watchdog.poll(in_flight)
            while not ended.has_ready():
                with ended.thread_condition:
                    ended.thread_condition.wait(timeout=0.1)
                signals.raise_if_interrupted()
                watchdog.poll(in_flight)
            for future, result in _fetched(ended, watchdog, fetchers):
                outcome = watchdog.resolve(future, result)
                lot = in_flight.pop(future)
                if isinstance(outcome, CaseError):
                    erred.keep_or_let_go(names_of(lot), future)
                yield lot, outcome
    finally:
        fetchers.shutdown(wait=False, cancel_futures=True)
        erred.let_go_of_all()
        if in_flight:
            _cancel(client, list(in_flight))


def _take(next_lot: Callable[[int], L | None], n_in_flight: int, most: int) -> list[L]:
    lots: list[L] = []
    while n_in_flight + len(lots) < most and (lot := next_lot(n_in_flight + len(lots))):
        lots.append(lot)
    return lots


def _fetched(
    ended: as_completed, watchdog: Watchdog, fetchers: Executor
) -> list[tuple[Future[Any], Any]]:
    """Return some graphs that have ended, and their results; what did not fail is released."""
    ready = [next(ended)]
    while ended.has_ready() and len(ready) < _FETCHED_AT_ONCE:
        ready.append(next(ended))
    fetched = []
    for future, result in zip(ready, fetchers.map(watchdog.result, ready), strict=True):
        if result is LOST:  # with its worker, and made again
            ended.add(future)
            continue
        if future.status != "error":
            future.release()
        fetched.append((future, result))
    return fetched


class _Erred:
    """Errors of single cases that the scheduler keeps for us: its pages show them as erred tasks.

    Parameters
    ----------
    client : Client
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._futures: dict[str, Future[Any]] = {}

    def keep_or_let_go(self, names: Sequence[str], future: Future[Any]) -> None:
        """Keep the error of a single case, and no more than the last ones."""
        if future.status != "error" or len(names) != 1:
            future.release()
            # Run again while the client knows the key, the old error would come back.
            _wait_until_forgotten(self._client, future.key)
            return
        self._futures[names[0]] = future
        while len(self._futures) > _MOST_ERRED:
            self.let_go([next(iter(self._futures))])

    def let_go(self, names: Iterable[str]) -> None:
        """Let go of the errors of cases, if there are any, that are to be tried again."""
        futures = [self._futures.pop(name) for name in names if name in self._futures]
        for future in futures:
            future.release()
        for future in futures:
            _wait_until_forgotten(self._client, future.key)

    def let_go_of_all(self) -> None:
        """Let go of what is left, when the run is over."""
        for future in self._futures.values():
            future.release()
        self._futures.clear()


def _wait_until_forgotten(client: Client, key: Any) -> None:
    """Wait until a client has forgotten a key; run again before, the old error would come back."""
    deadline = time.monotonic() + _FORGET_SECONDS
    while key in client.futures and time.monotonic() < deadline:
        time.sleep(0.01)


def _cancel(client: Client, futures: list[Future[Any]]) -> None:
    try:
        # Not by force: another run on this scheduler may be waiting for the same keys.
        client.cancel(futures)
        if not tells_exits(client):  # workers of ours are ended
            _wait_until_left_alone(client)
    except Exception:  # the scheduler may be what was lost
        _LOG.debug("could not cancel", exc_info=True)


def _wait_until_left_alone(client: Client) -> None:
    """Give cases that a worker is in the middle of, which nothing stops, a moment to end."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        busy = client.sync(client.run, _runs_ours, on_error="return", callback_timeout=left)
        if not any(answer is True for answer in busy.values()):
            return
        time.sleep(0.05)


def _runs_ours(dask_worker: Any) -> bool:
    """Return whether a worker runs a task of ours, cancelled or not; runs on it."""
    return any(
        isinstance(task.key, tuple) and task.key[0] in _STEPS
        for task in dask_worker.state.all_running_tasks
    )
