"""Runs and workers known to a scheduler, at one moment."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dask_slicer.monitoring.state import TOPIC, FailureEvent, RunState, from_event
from dask_slicer.utils.formatting import escape_line

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

# How long a worker that has gone is still shown.
_GONE_SECONDS = 60.0
# The most failures kept of a run, and the most runs kept: a scheduler may see thousands.
_MOST_FAILURES, _MOST_RUNS = 20, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A step that a worker runs; its seconds are None where they are not known yet."""

    step: str
    name: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker as its scheduler sees it.

    CPU is in percent of one core, memory in bytes (a limit of 0 is none); `unseen` are the seconds
    since its last heartbeat. The status is running, paused, … or gone.
    """

    name: str
    host: str = ""
    cpu: float = 0.0
    memory: int = 0
    memory_limit: int = 0
    n_threads: int = 1
    status: str = "running"
    unseen: float = 0.0
    tasks: tuple[TaskInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Runs, each with its age in seconds, their last failures, and workers, at one moment.

    `n_waiting` graphs wait for a worker.
    """

    runs: tuple[tuple[RunState, float], ...] = ()
    failures: tuple[FailureEvent, ...] = ()
    workers: tuple[WorkerInfo, ...] = ()
    n_waiting: int = 0


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts worker 10 after worker 9.

    Examples
    --------
    >>> sorted(["w-10", "w-9", "w-9b"], key=natural_key)
    ['w-9', 'w-9b', 'w-10']
    """
    return [(int(digits or -1), text) for digits, text in re.findall(r"(\d+)|(\D+)", name)]


def with_gone(
    before: Sequence[WorkerInfo], now: Sequence[WorkerInfo], *, elapsed: float
) -> tuple[WorkerInfo, ...]:
    """Return the workers of now, and those that have gone within the last minute.

    `elapsed` is the time since `before`, in seconds.
    """
    names = {worker.name for worker in now}
    gone = (
        replace(worker, status="gone", cpu=0.0, memory=0, tasks=(), unseen=worker.unseen + elapsed)
        for worker in before
        if worker.name not in names
    )
    kept = (worker for worker in gone if worker.unseen < _GONE_SECONDS)
    return tuple(sorted((*now, *kept), key=lambda worker: natural_key(worker.name)))


@dataclass(slots=True)
class EventLog:
    """Events and workers of a scheduler so far; another thread may add events while it is read.

    `runs` has the latest state of each run, and its time; all times are by the scheduler's clock.
    """

    runs: dict[str, tuple[RunState, float]] = field(default_factory=dict)
    failures: dict[tuple[str, str], FailureEvent] = field(default_factory=dict)
    workers: tuple[WorkerInfo, ...] = ()
    clients: frozenset[str] = frozenset()
    n_waiting: int = 0
    last_event: float = 0.0
    last_update: float = 0.0

    def update(self, answer: dict[str, Any]) -> None:
        """Add what `scheduler_snapshot` returned."""
        for at, content in answer["events"]:
            self.add(at, content)
            self.last_event = at
        workers = [worker_info(worker) for worker in answer["workers"]]
        elapsed = max(answer["now"] - self.last_update, 0.0)
        self.workers = with_gone(self.workers, workers, elapsed=elapsed)
        self.clients = frozenset(answer["clients"])
        self.n_waiting = answer["n_waiting"]
        self.last_update = answer["now"]

    def add(self, at: float, content: object) -> None:
        """Add an event and its scheduler time."""
        event = from_event(content)
        if isinstance(event, RunState):
            known = self.runs.get(event.run_id)
            if known is None or known[0].seconds <= event.seconds:
                self.runs[event.run_id] = (event, at)
            if len(self.runs) > _MOST_RUNS:
                self._forget(min(self.runs, key=lambda run_id: self.runs[run_id][1]))
        elif isinstance(event, FailureEvent):
            self.failures[event.run_id, event.case_id] = event
            of_run = [key for key in self.failures if key[0] == event.run_id]
            if len(of_run) > _MOST_FAILURES:
                del self.failures[of_run[0]]

    def _forget(self, run_id: str) -> None:
        del self.runs[run_id]
        for key in [key for key in self.failures if key[0] == run_id]:
            del self.failures[key]

    def view(self, now: float, *, process: tuple[str, str] | None = None) -> Snapshot:
        """Return the runs to show, perhaps of one process only, given as its host and number.

        `now` is by the scheduler's clock.
        """
        known = list(self.runs.values())
        ages = {run.run_id: max(now - at, 0.0) for run, at in known}
        # A run that has published since the last update has a client, too.
        newer = {run.client for run, at in known if at > self.last_update}
        runs = runs_to_show([run for run, _ in known], self.clients | newer, process=process)
        ids = {run.run_id for run in runs}
        failures = list(self.failures.values())
        return Snapshot(
            runs=tuple((run, ages[run.run_id]) for run in runs),
            failures=tuple(failure for failure in failures if failure.run_id in ids),
            workers=self.workers,
            n_waiting=self.n_waiting,
        )


def runs_to_show(
    runs: Iterable[RunState], connected: Iterable[str], *, process: tuple[str, str] | None
) -> list[RunState]:
    """Return the runs to show: those in progress, or else the one that began last.

    A run whose client the scheduler does not have has stopped, also when it could not publish that.
    """
    clients = set(connected)
    of_process = [
        run if run.ending or run.client in clients else replace(run, ending="stopped")
        for run in runs
        if process in (None, (run.host, run.process))
    ]
    return [run for run in of_process if not run.ending] or of_process[-1:]


# -- functions that run on the scheduler -----------------------------------------------------------

_KEY_LENGTH = 2  # step and name
_STEPS = {"load", "slice", "save", "verify"}


def scheduler_snapshot(since: float, dask_scheduler: Scheduler) -> dict[str, Any]:
    """Return workers, clients and our events since a time, as plain data; runs on the scheduler."""
    newest = []
    for event in reversed(dask_scheduler.get_events(TOPIC)):
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
    """Return a worker as plain data; runs on the scheduler."""
    tasks = list(worker.processing)
    if len(tasks) > worker.nthreads:
        # Some wait on the worker for the others. The worker reports a moment later which ones run.
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


def worker_info(described: dict[str, Any]) -> WorkerInfo:
    """Return the worker that `scheduler_snapshot` describes."""
    name = described["name"].rpartition("://")[2]  # without a name, it is the address
    tasks = tuple(_task_info(key, seconds) for key, seconds in described["tasks"])
    return WorkerInfo(**(described | {"name": escape_line(name), "tasks": tasks}))


def _task_info(key: Any, seconds: float | None) -> TaskInfo:
    if isinstance(key, tuple) and len(key) == _KEY_LENGTH and key[0] in _STEPS:
        return TaskInfo(step=key[0], name=escape_line(str(key[1])), seconds=seconds)
    return TaskInfo(step="other", name=escape_line(str(key)), seconds=seconds)
