"""What is seen of workers and runs at one moment, as rows and words for a screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dask_slicer.standing import FailureEvent, RunState
from dask_slicer.words import count, duration, size, some

Row = tuple[str, str, str, str, str, str]
COLUMNS: Row = ("worker", "CPU", "memory", "step", "case", "for")
# For which a worker that has gone is still shown.
_GONE_SECONDS = 60.0
# Beyond which the silence of a worker is worth a word; it is heard of about twice a second.
_SILENT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A step that a worker is at; its seconds are None where they are not known yet."""

    step: str
    name: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
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
    tasks: tuple[TaskView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
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
    workers: tuple[WorkerView, ...] = ()
    n_waiting: int = 0


def natural(name: str) -> list[tuple[int, str]]:
    """Return what names are sorted by, so that worker 10 comes after worker 9.

    Examples
    --------
    >>> sorted(["w-10", "w-9", "w-9b"], key=natural)
    ['w-9', 'w-9b', 'w-10']
    """
    return [(int(digits or -1), text) for digits, text in re.findall(r"(\d+)|(\D+)", name)]


def with_gone(
    before: Sequence[WorkerView], now: Sequence[WorkerView], *, passed: float
) -> tuple[WorkerView, ...]:
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
    return tuple(sorted((*now, *kept), key=lambda worker: natural(worker.name)))


def worker_rows(workers: Sequence[WorkerView], *, most: int) -> list[Row]:
    """Return what each worker is at, a row a task; what does not fit is summed up in the last row.

    Parameters
    ----------
    workers : sequence of WorkerView
    most : int
        Rows that fit, at least 1.
    """
    shown: list[Row] = []
    for number, worker in enumerate(workers):
        rows = _rows(worker)
        is_last = number == len(workers) - 1
        if len(shown) + len(rows) + (not is_last) > most:
            return [*shown, _summed_up(workers[number:], is_all=not shown)]
        shown += rows
    return shown


def _rows(worker: WorkerView) -> list[Row]:
    limit = f" of {size(worker.memory_limit)}" if worker.memory_limit else ""
    memory = "" if worker.status == "gone" else f"{size(worker.memory)}{limit}"
    cpu = "" if worker.status == "gone" else f"{worker.cpu:.0f}%"
    tasks = [
        (task.step, task.name, "" if task.seconds is None else duration(task.seconds))
        for task in worker.tasks
    ] or [("", "", "")]
    step, name, seconds = tasks[0]
    if worker.status == "running" and not worker.tasks:
        step = "idle"
    elif worker.status != "running":
        step = f"{worker.status} {step}".strip()
    if worker.status == "gone" or worker.unseen > _SILENT_SECONDS:
        seconds = f"unheard for {duration(worker.unseen)}"
    first = (worker.name, cpu, memory, step, name, seconds)
    return [first, *(("", "", "", *task) for task in tasks[1:])]


def _summed_up(workers: Sequence[WorkerView], *, is_all: bool) -> Row:
    here = [worker for worker in workers if worker.status != "gone"]
    n_busy = sum(bool(worker.tasks) for worker in here)
    words = f"{count(len(here), 'worker')}" if is_all else f"… {len(here)} more"
    return (
        words,
        f"{sum(worker.cpu for worker in here):.0f}%",
        size(sum(worker.memory for worker in here)),
        "",
        f"{n_busy} busy",
        "",
    )


def workers_words(view: View) -> str:
    """Return what all workers come to, in words."""
    here = [worker for worker in view.workers if worker.status != "gone"]
    hosts = sorted({worker.host for worker in here}, key=natural)
    where = f" on {count(len(hosts), 'host')} ({some(hosts)})" if len(hosts) > 1 else ""
    waiting = f"; {count(view.n_waiting, 'graph')} handed out and waiting" if view.n_waiting else ""
    if not here:
        return f"no worker{waiting}"
    threads = count(sum(worker.n_threads for worker in here), "thread")
    return (
        f"{count(len(here), 'worker')}{where} of {threads}, "
        f"{sum(worker.cpu for worker in here):.0f}% CPU, "
        f"{size(sum(worker.memory for worker in here))}{waiting}"
    )
