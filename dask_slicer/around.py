"""What a scheduler knows of runs and workers, asked on it or in it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dask_slicer.standing import TOPIC
from dask_slicer.views import TaskView, WorkerView
from dask_slicer.words import one_line

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

_KEY_LENGTH = 2  # step and name
_STEPS = {"load", "slice", "save", "verify"}


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


def worker_view(described: dict[str, Any]) -> WorkerView:
    """Return a worker as it is seen, of what `look_around` says of it."""
    name = described["name"].rpartition("://")[2]  # of one without a name, its address
    tasks = tuple(_task_view(key, seconds) for key, seconds in described["tasks"])
    return WorkerView(**(described | {"name": one_line(name), "tasks": tasks}))


def _task_view(key: Any, seconds: float | None) -> TaskView:
    if isinstance(key, tuple) and len(key) == _KEY_LENGTH and key[0] in _STEPS:
        return TaskView(step=key[0], name=one_line(str(key[1])), seconds=seconds)
    return TaskView(step="other", name=one_line(str(key)), seconds=seconds)
