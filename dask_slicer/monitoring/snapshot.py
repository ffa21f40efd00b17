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

# For which a worker that has gone is still shown.
_GONE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A step that a worker is at; its seconds are None where they are not known yet."""

    step: str
    name: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker as its scheduler sees it.

    Attributes
    ----------
    name, host : str
    cpu : float
        Percent of one core.
    memory, memory_limit : int
        Bytes; no limit is 0.
    n_threads : int
    status : str
        running, paused, …, or gone.
    unseen : float
        Seconds since it last was heard of.
    tasks : tuple of TaskView
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
    """All that is seen at one moment.

    Attributes
    ----------
    runs : tuple of (RunState, float)
        With the seconds since each said so.
    failures : tuple of FailureEvent
        The last ones.
    workers : tuple of WorkerView
    n_waiting : int
        Graphs that wait for a worker.
    """

    runs: tuple[tuple[RunState, float], ...] = ()
    failures: tuple[FailureEvent, ...] = ()
    workers: tuple[WorkerInfo, ...] = ()
    n_waiting: int = 0


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return what names are sorted by, so that worker 10 comes after worker 9.

    Examples
    --------
    >>> sorted(["w-10", "w-9", "w-9b"], key=natural_key)
    ['w-9', 'w-9b', 'w-10']
    """
    return [(int(digits or -1), text) for digits, text in re.findall(r"(\d+)|(\D+)", name)]


def with_gone(
    before: Sequence[WorkerInfo], now: Sequence[WorkerInfo], *, passed: float
) -> tuple[WorkerInfo, ...]:
    """Return the workers of now, and for a while those that are missing since.

    Parameters
    ----------
    before, now : sequence of WorkerView
    passed : float
        Seconds between the two.
    """
    here = {worker.name for worker in now}
    gone = (
        replace(worker, status="gone", cpu=0.0, memory=0, tasks=(), unseen=worker.unseen + passed)
        for worker in before
        if worker.name not in here
    )
    kept = (worker for worker in gone if worker.unseen < _GONE_SECONDS)
    return tuple(sorted((*now, *kept), key=lambda worker: natural_key(worker.name)))


# Of each run; and runs, of which a scheduler may see very many.
_MOST_FAILURES, _MOST_RUNS = 20, 100


@dataclass(slots=True)
class EventLog:
    """Runs by their id, with when they told of themselves; and the last failures.

    Both may be added to by another thread while they are read.
    """

    runs: dict[str, tuple[RunState, float]] = field(default_factory=dict)
    failures: dict[tuple[str, str], FailureEvent] = field(default_factory=dict)

    def add(self, at: float, content: object) -> None:
        """Take note of an event: its time, by the scheduler's clock, and what it tells."""
        told = from_event(content)
        if isinstance(told, RunState):
            known = self.runs.get(told.run_id)
            if known is None or known[0].seconds <= told.seconds:
                self.runs[told.run_id] = (told, at)
            if len(self.runs) > _MOST_RUNS:
                self._forget(min(self.runs, key=lambda run_id: self.runs[run_id][1]))
        elif isinstance(told, FailureEvent):
            self.failures[told.run_id, told.case_id] = told
            of_run = [key for key in self.failures if key[0] == told.run_id]
            if len(of_run) > _MOST_FAILURES:
                del self.failures[of_run[0]]

    def _forget(self, run_id: str) -> None:
        del self.runs[run_id]
        for key in [key for key in self.failures if key[0] == run_id]:
            del self.failures[key]

    def clients_since(self, at: float) -> set[str]:
        """Return the clients of runs that have told of themselves since: they are there."""
        return {run.client for run, told in list(self.runs.values()) if told > at}

    def view(
        self,
        now: float,
        connected: Iterable[str],
        *,
        workers: Sequence[WorkerInfo],
        n_waiting: int,
        process: tuple[str, str] | None = None,
    ) -> Snapshot:
        """Return what there is to see.

        Parameters
        ----------
        now : float
            By the scheduler's clock.
        connected : iterable of str
            Clients that the scheduler has.
        workers : sequence of WorkerView
        n_waiting : int
            Graphs that wait for a worker.
        process : (str, str), optional
            Host and number of the only process whose runs are meant.
        """
        told = list(self.runs.values())
        ago = {run.run_id: max(now - at, 0.0) for run, at in told}
        runs = chosen([run for run, _ in told], connected, process=process)
        ids = {run.run_id for run in runs}
        return Snapshot(
            runs=tuple((run, ago[run.run_id]) for run in runs),
            failures=tuple(one for one in list(self.failures.values()) if one.run_id in ids),
            workers=tuple(workers),
            n_waiting=n_waiting,
        )


_KEY_LENGTH = 2  # step and name
_STEPS = {"load", "slice", "save", "verify"}


def scheduler_snapshot(since: float, dask_scheduler: Scheduler) -> dict[str, Any]:
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


def worker_info(described: dict[str, Any]) -> WorkerInfo:
    """Return a worker as it is seen, of what `scheduler_snapshot` says of it."""
    name = described["name"].rpartition("://")[2]  # of one without a name, its address
    tasks = tuple(_task_view(key, seconds) for key, seconds in described["tasks"])
    return WorkerInfo(**(described | {"name": escape_line(name), "tasks": tasks}))


def _task_view(key: Any, seconds: float | None) -> TaskInfo:
    if isinstance(key, tuple) and len(key) == _KEY_LENGTH and key[0] in _STEPS:
        return TaskInfo(step=key[0], name=escape_line(str(key[1])), seconds=seconds)
    return TaskInfo(step="other", name=escape_line(str(key)), seconds=seconds)


def chosen(
    told: Iterable[RunState], connected: Iterable[str], *, process: tuple[str, str] | None
) -> list[RunState]:
    """Return the runs to show: those that go on, else the last one told of.

    Parameters
    ----------
    told : iterable of RunState
        The latest of each run, in the order in which they began.
    connected : iterable of str
        Clients that the scheduler has. A run whose client is not among them has stopped, whether
        it could say so or not.
    process : (str, str), optional
        Host and number of the only process whose runs are meant.
    """
    known = set(connected)
    runs = [
        run if run.ending or run.client in known else replace(run, ending="stopped")
        for run in told
        if process in (None, (run.host, run.process))
    ]
    return [run for run in runs if not run.ending] or runs[-1:]
