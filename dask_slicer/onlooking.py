"""What an onlooker sees of runs: he asks their scheduler alone, for what it knows anyway."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster import settings_of_clients
from dask_slicer.errors import SchedulerError
from dask_slicer.holder import Place
from dask_slicer.reach import TlsFiles
from dask_slicer.remote import connected
from dask_slicer.standing import TOPIC, FailureEvent, RunState, chosen, from_event
from dask_slicer.views import TaskView, View, WorkerView, with_gone
from dask_slicer.words import one_line

if TYPE_CHECKING:
    from distributed import Client, Scheduler
    from distributed.scheduler import WorkerState

_LOG = logging.getLogger(__name__)

# That a scheduler may take to answer before the screen says that it does not.
_ANSWER_SECONDS = 3
_MOST_FAILURES = 20
_KEY_LENGTH = 2  # step and name
_STEPS = {"load", "slice", "save", "verify"}


class SchedulerGone(SchedulerError):
    """The connection to the scheduler that is looked at was lost."""


@contextmanager
def onlooker(place: Place, tls: TlsFiles | None) -> Iterator[Onlooker]:
    """Connect to a scheduler to look on; leave it running.

    Raises
    ------
    SchedulerError
        If it does not answer within 10 seconds.
    ConfigError
        If the TLS files cannot be used.
    """
    with ExitStack() as stack:
        stack.enter_context(settings_of_clients())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions there
            client = stack.enter_context(connected(place.address, tls, name="dask-slicer-watch"))
        # What becomes of the connection is said by us. Not before: its import sets these levels.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        one = Onlooker(client, place)
        # A scheduler that ends soon after a run's last word is not asked again in time.
        client.subscribe_topic(TOPIC, one.hear)
        yield one


@dataclass(slots=True)
class Onlooker:
    """Looks at a scheduler now and then.

    Attributes
    ----------
    client : Client
    place : Place
    silent_since : float or None
        When the scheduler was asked what it has not answered yet, in monotonic seconds.
    """

    client: Client
    place: Place
    silent_since: float | None = None
    _runs: dict[str, tuple[RunState, float]] = field(default_factory=dict)
    _failures: dict[tuple[str, str], FailureEvent] = field(default_factory=dict)
    _connected: frozenset[str] = frozenset()
    _workers: tuple[WorkerView, ...] = ()
    _n_waiting: int = 0
    _last_event: float = 0.0
    _last_look: float = 0.0
    _last_seen: float = 0.0
    _clock_ahead: float = 0.0

    def hear(self, event: tuple[float, Any]) -> None:
        """Take note of an event: its time, by the scheduler's clock, and what it tells."""
        at, content = event
        told = from_event(content)
        if isinstance(told, RunState):
            known = self._runs.get(told.run_id)
            if known is None or known[0].seconds <= told.seconds:
                self._runs[told.run_id] = (told, at)
        elif isinstance(told, FailureEvent):
            self._failures[told.run_id, told.case_id] = told
            while len(self._failures) > _MOST_FAILURES:
                del self._failures[next(iter(self._failures))]

    def look(self) -> View:
        """Return what there is to see; what was seen last, where the scheduler does not answer.

        Raises
        ------
        SchedulerGone
        SchedulerError
            If it does not know this package.
        """
        asked = time.monotonic()
        try:
            seen = self.client.sync(
                self.client._run_on_scheduler,
                look_around,
                since=self._last_event,
                callback_timeout=_ANSWER_SECONDS,
            )
        except TimeoutError:
            if self.client.status != "running":
                raise self._gone() from None
            self.silent_since = self.silent_since or asked
            return self.view()
        except (ImportError, AttributeError) as error:
            raise SchedulerError(
                f"the scheduler at {self.place.address} does not have this version of dask_slicer, "
                f"so no run of it is going on there ({error})"
            ) from None
        except Exception as error:  # whatever a connection that breaks comes to
            _LOG.debug("the scheduler cannot be asked", exc_info=True)
            raise self._gone() from error
        self.silent_since = None
        for event in seen["events"]:
            self.hear(event)
            self._last_event = event[0]
        workers = [_worker_view(worker) for worker in seen["workers"]]
        self._workers = with_gone(self._workers, workers, passed=asked - self._last_look)
        self._connected = frozenset(seen["clients"])
        self._n_waiting = seen["n_waiting"]
        self._last_seen = seen["now"]
        self._clock_ahead = seen["now"] - time.time()
        self._last_look = asked
        return self.view()

    def view(self) -> View:
        """Return what was seen and heard so far."""
        now = time.time() + self._clock_ahead
        told = list(self._runs.values())
        ago = {run.run_id: max(now - at, 0.0) for run, at in told}
        # A run that told of itself since the last look may have a client that was new to it.
        new = {run.client for run, at in told if at > self._last_seen}
        runs = chosen([run for run, _ in told], self._connected | new, process=self.place.process)
        ids = {run.run_id for run in runs}
        return View(
            runs=tuple((run, ago[run.run_id]) for run in runs),
            failures=tuple(one for one in list(self._failures.values()) if one.run_id in ids),
            workers=self._workers,
            n_waiting=self._n_waiting,
        )

    def _gone(self) -> SchedulerGone:
        self._workers = tuple(replace(worker, tasks=()) for worker in self._workers)
        self._n_waiting = 0
        return SchedulerGone(f"the scheduler at {self.place.address} is gone")


def look_around(since: float, dask_scheduler: Scheduler) -> dict[str, Any]:
    """Return what a scheduler knows of its workers, and of our events since; runs there."""
    events = dask_scheduler.get_events(TOPIC)
    newest = []
    for event in reversed(events):
        if event[0] <= since:
            break
        newest.append(event)
    now = time.time()
    return {
        "now": now,
        "events": newest[::-1],
        "clients": list(dask_scheduler.clients),
        "workers": [_describe(worker, now) for worker in dask_scheduler.workers.values()],
        "n_waiting": len(dask_scheduler.queued) + len(dask_scheduler.unrunnable),
    }


def _describe(worker: WorkerState, now: float) -> dict[str, Any]:
    """Return what a scheduler knows of a worker, as plain data; runs there."""
    tasks = list(worker.processing)
    if len(tasks) > worker.nthreads:
        # Some wait there for the others; which ones, the worker says, a moment later.
        tasks = [task for task in tasks if task in worker.executing] or tasks[: worker.nthreads]
    unseen = max(now - worker.last_seen, 0.0)
    return {
        "name": str(worker.name),
        "host": worker.host,
        "cpu": float(worker.metrics.get("cpu") or 0.0),
        "memory": int(worker.metrics.get("memory") or 0),
        "memory_limit": int(worker.memory_limit or 0),
        "n_threads": worker.nthreads,
        "status": worker.status.name,
        "unseen": unseen,
        "tasks": [
            (task.key, worker.executing[task] + unseen if task in worker.executing else None)
            for task in tasks
        ],
    }


def _worker_view(described: dict[str, Any]) -> WorkerView:
    name = described["name"].rpartition("://")[2]  # of one without a name, its address
    tasks = tuple(_task_view(key, seconds) for key, seconds in described["tasks"])
    return WorkerView(**(described | {"name": one_line(name), "tasks": tasks}))


def _task_view(key: Any, seconds: float | None) -> TaskView:
    if isinstance(key, tuple) and len(key) == _KEY_LENGTH and key[0] in _STEPS:
        return TaskView(step=key[0], name=one_line(str(key[1])), seconds=seconds)
    return TaskView(step="other", name=one_line(str(key)), seconds=seconds)
