"""Graphs in flight: handed out, a bounded number at a time, and what they came to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dask_slicer.cluster import n_threads
from dask_slicer.errors import CaseError
from dask_slicer.watch import Watch

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client, Future

L = TypeVar("L")

_LOG = logging.getLogger(__name__)

# Graphs handed to the scheduler at a time, so that neither it nor we grow with the dataset.
_SMALLEST_WINDOW = 16
_GRAPHS_PER_THREAD = 4
_FORGET_SECONDS = 3
# Failures that stay in Dask's pages, the last ones: each is three tasks with a traceback, about
# 20 kB, on a scheduler that may see a hundred thousand of them.
_MOST_ERRED = 200


def execute(
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

    window = max(_SMALLEST_WINDOW, _GRAPHS_PER_THREAD * n_threads(client))
    refill = window // 4
    in_flight: dict[Future[Any], L] = {}
    # Without results: of one that is lost on its way and then fails, it would never tell.
    ended = as_completed(loop=client.loop)
    watch = Watch(client, timeout)
    erred = _Erred(client)
    try:
        while True:
            if len(in_flight) <= window - refill:
                lots = _take(next_lot, len(in_flight), window)
                erred.let_go(name for lot in lots for name in names_of(lot))
                # Together: one message to the scheduler, and it sees at once that there are many
                # loads, which it then queues.
                futures = client.compute([graph_of(lot) for lot in lots])
                in_flight |= dict(zip(futures, lots, strict=True))
                ended.update(futures)
                del futures
            if not in_flight:
                return
            watch.look(in_flight)
            while not ended.has_ready():
                with ended.thread_condition:
                    ended.thread_condition.wait(timeout=0.1)
                watch.look(in_flight)
            future = next(ended)
            try:
                outcome = watch.outcome(future)
            except TimeoutError:  # lost with its worker, and made again
                ended.add(future)
                continue
            lot = in_flight.pop(future)
            names = names_of(lot)
            if isinstance(outcome, CaseError) and future.status == "error" and len(names) == 1:
                erred.keep(names[0], future)
            else:
                future.release()
                if isinstance(outcome, CaseError):
                    _wait_until_forgotten(client, future.key)
            del future
            yield lot, outcome
    finally:
        erred.let_go_of_all()
        if in_flight:
            _cancel(client, list(in_flight))


def _take(next_lot: Callable[[int], L | None], n_in_flight: int, most: int) -> list[L]:
    lots: list[L] = []
    while n_in_flight + len(lots) < most and (lot := next_lot(n_in_flight + len(lots))):
        lots.append(lot)
    return lots


class _Erred:
    """Errors of single cases that the scheduler keeps for us: its pages show them as erred tasks.

    Parameters
    ----------
    client : Client
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._futures: dict[str, Future[Any]] = {}

    def keep(self, name: str, future: Future[Any]) -> None:
        """Keep the error of a case, and no more than the last ones."""
        self._futures[name] = future
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
    except Exception:  # the scheduler may be what was lost
        _LOG.debug("could not cancel", exc_info=True)
