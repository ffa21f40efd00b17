"""Submitting graphs to a client, a bounded number at a time, and yielding results."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dask_slicer.cluster.client import count_threads
from dask_slicer.cluster.local import logs_exit_codes
from dask_slicer.errors import CaseError
from dask_slicer.execution.watchdog import LOST, Watchdog
from dask_slicer.monitoring.snapshot import step_and_name
from dask_slicer.monitoring.state import STEPS
from dask_slicer.utils import signals

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client, Future, as_completed


B = TypeVar("B")  # a batch of cases

_LOG = logging.getLogger(__name__)

# Graphs in flight, so that neither the scheduler nor this process grows with the dataset.
_FEWEST_IN_FLIGHT = 16
_GRAPHS_PER_THREAD = 4
_FORGET_SECONDS = 3
# Each result takes a round trip to the scheduler, and one from there to the worker.
_FETCHED_AT_ONCE = 8
# Results that were late, as those of a worker that does not answer: each question about one keeps a
# connection of the scheduler until the worker answers or is lost.
_LATE_AT_ONCE = 2
_POLL_SECONDS = 0.1
# How long a stopped run waits for cases on workers that it did not start.
_LEAVE_SECONDS = 5
# The last failures stay in Dask's pages: each is a task with a traceback, up to 20 kB, on a
# scheduler that may see a hundred thousand of them.
_MOST_ERRED = 200


def run_graphs(
    client: Client,
    next_batch: Callable[[int], B | None],
    graph_of: Callable[[B], Delayed],
    *,
    timeout: float | None = None,
    names_of: Callable[[B], Sequence[str]] = lambda _: (),
) -> Iterator[tuple[B, Any]]:
    """Run graphs on a client's workers; yield each batch, and its result or CaseError, as it ends.

    `next_batch` gets the number of graphs in flight. After `timeout` seconds, the worker of a graph
    is killed. The error of a single case (`names_of`) stays in Dask's pages until it is retried or
    the run ends. Raises SchedulerError if the scheduler is lost, or if nothing runs.
    """
    from distributed import as_completed

    most_in_flight = max(_FEWEST_IN_FLIGHT, _GRAPHS_PER_THREAD * count_threads(client))
    refill = most_in_flight // 4
    # Enough that the scheduler sees that there are many loads, and then queues them.
    at_once = 2 * count_threads(client) + 1
    in_flight: dict[Future[Any], B] = {}
    # Not with_results=True, which never yields a graph whose result is lost and that then fails.
    ended = as_completed(loop=client.loop)
    watchdog = Watchdog(client, timeout)
    results = _Results(ended, watchdog)
    errors = _ErrorsInDask(client)
    try:
        while True:
            if len(in_flight) <= most_in_flight - refill:
                while batches := _take(
                    next_batch, len(in_flight), min(len(in_flight) + at_once, most_in_flight)
                ):
                    errors.release(name for batch in batches for name in names_of(batch))
                    # The last argument puts each call's graphs after those of the call before;
                    # those of one call run in an order that Dask chooses.
                    futures = client.compute(list(map(graph_of, batches)), fifo_timeout="0 s")
                    in_flight |= dict(zip(futures, batches, strict=True))
                    ended.update(futures)
                    del futures
            if not in_flight:
                return
            watchdog.poll(in_flight)
            while not (fetched := results.poll()):
                signals.raise_if_interrupted()
                watchdog.poll(in_flight)
            for future, result in fetched:
                outcome = watchdog.resolve(future, result)
                batch = in_flight.pop(future)
                if isinstance(outcome, CaseError):
                    errors.add(names_of(batch), future)
                yield batch, outcome
    finally:
        results.close()
        errors.release_all()
        if in_flight:
            _cancel(client, list(in_flight))


def _take(next_batch: Callable[[int], B | None], n_in_flight: int, most: int) -> list[B]:
    batches: list[B] = []
    while n_in_flight + len(batches) < most and (batch := next_batch(n_in_flight + len(batches))):
        batches.append(batch)
    return batches


class _Results:
    """Fetches results of graphs that have ended, several at once; a late one holds up no other."""

    def __init__(self, ended: as_completed, watchdog: Watchdog) -> None:
        self._ended = ended
        self._watchdog = watchdog
        self._late: deque[Future[Any]] = deque()
        self._fetches: dict[concurrent.futures.Future[Any], Future[Any]] = {}
        self._late_fetches: dict[concurrent.futures.Future[Any], Future[Any]] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(
            _FETCHED_AT_ONCE + _LATE_AT_ONCE, thread_name_prefix="dask-slicer-fetch"
        )

    def poll(self) -> list[tuple[Future[Any], Any]]:
        """Return some graphs that have ended, and their results; none if none comes soon."""
        while self._ended.has_ready() and len(self._fetches) < _FETCHED_AT_ONCE:
            self._start(next(self._ended), self._fetches)
        while self._late and len(self._late_fetches) < _LATE_AT_ONCE:
            self._start(self._late.popleft(), self._late_fetches)
        running = [*self._fetches, *self._late_fetches]
        if not running:
            with self._ended.thread_condition:
                self._ended.thread_condition.wait(timeout=_POLL_SECONDS)
            return []
        concurrent.futures.wait(
            running, timeout=_POLL_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
        )
        fetched = []
        for fetch in [fetch for fetch in running if fetch.done()]:
            future = (self._fetches if fetch in self._fetches else self._late_fetches).pop(fetch)
            result = fetch.result()
            if result is not LOST:
                fetched.append((future, result))
            elif future.status == "finished":
                self._late.append(future)
            else:  # it was lost with its worker, and Dask computes it again
                self._ended.add(future)
        return fetched

    def close(self) -> None:
        """Fetch no more; do not wait for a result that is late."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(
        self, future: Future[Any], fetches: dict[concurrent.futures.Future[Any], Future[Any]]
    ) -> None:
        fetches[self._threads.submit(self._fetch, future)] = future

    def _fetch(self, future: Future[Any]) -> Any:
        result = self._watchdog.result(future)
        # At once: a held result would be computed again when its worker dies.
        if result is not LOST and future.status != "error":
            future.release()
        return result


class _ErrorsInDask:
    """Errors of single cases that stay on the scheduler: its pages show them as erred tasks."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._futures: dict[str, Future[Any]] = {}

    def add(self, names: Sequence[str], future: Future[Any]) -> None:
        """Keep the error if it is that of a single case; keep only the last errors."""
        if future.status != "error" or len(names) != 1:
            _release(self._client, [future])
            return
        self._futures[names[0]] = future
        self.release(list(self._futures)[:-_MOST_ERRED])

    def release(self, names: Iterable[str]) -> None:
        """Release the errors of cases, if there are any, that are about to be retried."""
        futures = [self._futures.pop(name) for name in names if name in self._futures]
        _release(self._client, futures)

    def release_all(self) -> None:
        """Release the rest when the run is over."""
        for future in self._futures.values():
            future.release()
        self._futures.clear()


def _release(client: Client, futures: Sequence[Future[Any]]) -> None:
    """Wait until a client has forgotten futures: a task of the same key would get an old error."""
    for future in futures:
        future.release()
    deadline = time.monotonic() + _FORGET_SECONDS
    while any(future.key in client.futures for future in futures):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _cancel(client: Client, futures: list[Future[Any]]) -> None:
    """Cancel graphs; give cases that a worker computes, which Dask cannot stop, time to end."""
    try:
        # Not by force: another run on this scheduler may be waiting for the same keys.
        client.cancel(futures)
        deadline = time.monotonic() + _LEAVE_SECONDS
        is_busy = not logs_exit_codes(client)  # workers that the run has started end with it
        while is_busy and (left := deadline - time.monotonic()) > 0:
            answers = client.sync(client.run, _runs_ours, on_error="return", callback_timeout=left)
            is_busy = any(answer is True for answer in answers.values())
            time.sleep(0.05)
    except Exception:  # perhaps the scheduler was lost
        _LOG.debug("Could not cancel the graphs in flight", exc_info=True)


def _runs_ours(dask_worker: Any) -> bool:
    """Return whether a worker runs a task of ours, cancelled or not; called on the worker."""
    running = dask_worker.state.all_running_tasks
    return any(step_and_name(task.key)[0] in STEPS for task in running)
