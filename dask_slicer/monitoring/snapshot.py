"""Runs and workers known to a scheduler, at one moment."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dask_slicer.monitoring.state import STEPS, TOPIC, RunState, from_event
from dask_slicer.utils.formatting import escape_line, natural_key

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

# How long a worker that has gone is still shown.
_GONE_SECONDS = 60.0
# The most runs kept: a scheduler may see thousands.
_MOST_RUNS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A step that a worker runs; its seconds are None where they are not known yet."""

    step: str
    name: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker as its scheduler sees it."""

    name: str
    host: str = ""
    cpu: float = 0.0  # percent of one core
    memory: int = 0  # bytes
    memory_limit: int = 0  # bytes; 0: no limit
    n_threads: int = 1
    status: str = "running"  # or paused, … or gone
    unseen: float = 0.0  # seconds since its last heartbeat
    tasks: tuple[TaskInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Runs and workers at one moment; `n_waiting` graphs wait for a worker."""

    runs: tuple[RunState, ...] = ()
    workers: tuple[WorkerInfo, ...] = ()
    n_waiting: int = 0


def with_gone(
    before: Sequence[WorkerInfo], now: Sequence[WorkerInfo], *, elapsed: float
) -> tuple[WorkerInfo, ...]:
    """Return the workers of now, and those gone within a minute; `before` is `elapsed` s ago."""
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
    workers: tuple[WorkerInfo, ...] = ()
    clients: frozenset[str] = frozenset()
    n_waiting: int = 0
    last_event: float = 0.0
    last_update: float = 0.0
    updated_at: float = 0.0  # the same time, in monotonic seconds

    def update(self, answer: dict[str, Any]) -> None:
        """Add what `scheduler_snapshot` returned."""
        for at, content in answer["events"]:
            self.add(at, content)
            self.last_event = max(at, self.last_event)
        elapsed = max(answer["now"] - self.last_update, 0.0)
        self.workers = with_gone(self.workers, answer["workers"], elapsed=elapsed)
        self.clients = frozenset(answer["clients"])
        self.n_waiting = answer["n_waiting"]
        self.last_update, self.updated_at = answer["now"], time.monotonic()

    def add(self, at: float, content: object) -> None:
        """Add an event and its scheduler time."""
        state = from_event(content)
        if state is None:
            return
        known = self.runs.get(state.run_id)
        if known is None or known[0].seconds <= state.seconds:
            self.runs[state.run_id] = (state, at)
        if len(self.runs) > _MOST_RUNS:
            del self.runs[min(self.runs, key=lambda run_id: self.runs[run_id][1])]

    def view(self, *, process: tuple[str, str] | None = None) -> Snapshot:
        """Return what to show now, perhaps of one process only, given as its host and number."""
        now = self.last_update + time.monotonic() - self.updated_at
        known = list(self.runs.values())
        ages = {run.run_id: max(now - at, 0.0) for run, at in known}
        # A run that has published since the last update has a client, too.
        newer = {run.client for run, at in known if at > self.last_update}
        runs = runs_to_show([run for run, _ in known], self.clients | newer, process=process)
        return Snapshot(
            runs=tuple(run.later(ages[run.run_id]) for run in runs),
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


def scheduler_snapshot(since: float, dask_scheduler: Scheduler) -> dict[str, Any]:
    """Return workers, clients, and the last event of each run since a time."""
    events = {}
    for at, event in dask_scheduler.get_events(TOPIC):
        if at > since and isinstance(event, dict):
            events[str(event.get("run_id"))] = (at, event)
    now = time.time()
    return {
        "now": now,
        "events": list(events.values()),
        "clients": list(dask_scheduler.clients),
        "workers": [_worker_info(worker, now) for worker in dask_scheduler.workers.values()],
        "n_waiting": len(dask_scheduler.queued) + len(dask_scheduler.unrunnable),
    }


def _worker_info(worker: WorkerState, now: float) -> WorkerInfo:
    tasks = list(worker.processing)
    if len(tasks) > worker.nthreads:
        # Some wait on the worker for the others. The worker reports a moment later which ones run.
        tasks = [task for task in tasks if task in worker.executing] or tasks[: worker.nthreads]
    unseen = max(now - worker.last_seen, 0.0)
    seconds = {task: worker.executing[task] + unseen for task in tasks if task in worker.executing}
    return WorkerInfo(
        name=escape_line(str(worker.name).rpartition("://")[2]),  # without a name, its address
        host=worker.host,
        cpu=float(worker.metrics.get("cpu") or 0.0),
        memory=int(worker.metrics.get("memory") or 0),
        memory_limit=int(worker.memory_limit or 0),
        n_threads=worker.nthreads,
        status=worker.status.name,
        unseen=unseen,
        tasks=tuple(_task_info(task.key, seconds.get(task)) for task in tasks),
    )


def _task_info(key: Any, seconds: float | None) -> TaskInfo:
    step, name = step_and_name(key)
    if step not in (*STEPS, "verify", "assemble"):
        step, name = "other", str(key)
    match key:
        case ("save", _, int() as part):
            name += f", part {part}"
    return TaskInfo(step=step, name=escape_line(name), seconds=seconds)


def step_and_name(key: Any) -> tuple[str, str]:
    """Return the step and the name in a key of ours; empty for other keys.

    >>> step_and_name(("slice", "liver_7")), step_and_name(("save", "liver_7", 3))
    (('slice', 'liver_7'), ('save', 'liver_7'))
    """
    match key:
        case (step, name) | ("save" as step, name, int()):
            return str(step), str(name)
    return "", ""
