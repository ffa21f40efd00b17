"""Tables of runs and workers for `watch` and the run page, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from typing import Any

from dask_slicer.monitoring.progress_line import figures
from dask_slicer.monitoring.snapshot import Snapshot, WorkerInfo
from dask_slicer.monitoring.state import RunState
from dask_slicer.utils.formatting import first_few, format_bytes, format_time, natural_key, plural

Row = tuple[str, str, str, str, str, str]
WORKER_COLUMNS: Row = ("worker", "CPU", "memory", "step", "case", "for")
LAST_FAILURES = "Last failures"

_MOST_WORKERS = 200
# After which the silence of a worker is shown; it has about two heartbeats a second.
_SILENT_SECONDS = 10.0


def content(view: Snapshot) -> dict[str, Any]:
    """Return what `watch` and the run page show, as plain data: `runs`, and a table of `workers`.

    Each table has a `title`, a `head` and `rows`; no text in it is escaped.
    """
    workers = _table("Workers", WORKER_COLUMNS, worker_rows(view.workers, most=_MOST_WORKERS))
    return {
        "runs": [_run(run) for run in view.runs],
        "workers": workers | {"foot": workers_words(view)},
    }


def _run(run: RunState) -> dict[str, Any]:
    splits = [
        (name or "none", f"{split.n_done} of {split.n_todo}", split.n_failed, split.n_slices)
        for name, split in run.splits.items()
    ]
    kinds = sorted(run.kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    slowest = [
        (slow.case_id, *map(format_time, (slow.load, slow.slice, slow.save, slow.seconds)))
        for slow in run.slowest
    ]
    tables = [
        _table("Splits", ("split", "cases done", "failed", "slices"), splits),
        _table("Failures by kind", ("kind", "cases"), kinds),
        _table("Slowest cases", ("case", "load", "slice", "save", "in all"), slowest),
        _table(LAST_FAILURES, ("case", "step", "kind", "message"), map(astuple, run.failures)),
    ]
    return {
        "title": run.output_dir,
        "where": f"process {run.process} on {run.host}",
        "is_over": bool(run.ending),
        "n_todo": run.n_todo,
        "n_done": run.n_done,
        "n_failed": run.n_failed,
        "figures": figures(run),
        "tables": [table for table in tables if table["rows"]],
    }


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> dict[str, Any]:
    return {
        "title": title,
        "head": list(head),
        "rows": [[str(cell) for cell in row] for row in rows],
    }


def worker_rows(workers: Sequence[WorkerInfo], *, most: int) -> list[Row]:
    """Return a row for each task of each worker; the last of `most` rows sums up those left out."""
    shown: list[Row] = []
    for number, worker in enumerate(workers):
        rows = _rows(worker)
        is_last = number == len(workers) - 1
        if len(shown) + len(rows) + (not is_last) > most:
            return [*shown, _summed_up(workers[number:], is_all=not shown)]
        shown += rows
    return shown


def _rows(worker: WorkerInfo) -> list[Row]:
    limit = f" of {format_bytes(worker.memory_limit)}" if worker.memory_limit else ""
    memory = "" if worker.status == "gone" else f"{format_bytes(worker.memory)}{limit}"
    cpu = "" if worker.status == "gone" else f"{worker.cpu:.0f}%"
    tasks = [
        (task.step, task.name, "" if task.seconds is None else format_time(task.seconds))
        for task in worker.tasks
    ] or [("", "", "")]
    step, name, seconds = tasks[0]
    if worker.status == "running" and not worker.tasks:
        step = "idle"
    elif worker.status != "running":
        step = f"{worker.status} {step}".strip()
    if worker.status == "gone" or worker.unseen > _SILENT_SECONDS:
        seconds = f"no heartbeat for {format_time(worker.unseen)}"
    first = (worker.name, cpu, memory, step, name, seconds)
    return [first, *(("", "", "", *task) for task in tasks[1:])]


def _summed_up(workers: Sequence[WorkerInfo], *, is_all: bool) -> Row:
    present = [worker for worker in workers if worker.status != "gone"]
    n_busy = sum(bool(worker.tasks) for worker in present)
    words = f"{plural(len(present), 'worker')}" if is_all else f"… {len(present)} more"
    cpu, memory = _cpu_and_memory(present)
    return (words, cpu, memory, "", f"{n_busy} busy", "")


def _cpu_and_memory(workers: Sequence[WorkerInfo]) -> tuple[str, str]:
    cpu, memory = sum(worker.cpu for worker in workers), sum(worker.memory for worker in workers)
    return f"{cpu:.0f}%", format_bytes(memory)


def workers_words(view: Snapshot) -> str:
    """Return the sums of all workers on one line."""
    present = [worker for worker in view.workers if worker.status != "gone"]
    waiting = f"; {plural(view.n_waiting, 'graph')} waiting for a worker" if view.n_waiting else ""
    if not present:
        return f"no worker{waiting}"
    hosts = sorted({worker.host for worker in present}, key=natural_key)
    where = f" on {plural(len(hosts), 'host')} ({first_few(hosts)})" if len(hosts) > 1 else ""
    threads = plural(sum(worker.n_threads for worker in present), "thread")
    cpu, memory = _cpu_and_memory(present)
    return f"{plural(len(present), 'worker')}{where}, {threads}, {cpu} CPU, {memory}{waiting}"
