"""Tables and text of progress: rates, time left, rows of runs and workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_slicer.monitoring.snapshot import Snapshot, WorkerInfo, natural_key
from dask_slicer.monitoring.state import FailureEvent, RunState, SlowCase
from dask_slicer.utils.formatting import first_few, format_bytes, format_time, plural

_MOST_WORKERS, _MOST_FAILURES = 200, 10


def content(view: Snapshot) -> dict[str, Any]:
    """Return what the page shows: plain data, texts that the page escapes.

    Parameters
    ----------
    view : View

    Returns
    -------
    dict
        `runs`, each with its `figures` and `tables`; and the `workers`, as one table.
    """
    return {
        "runs": [_run(run, since_told, view.failures) for run, since_told in view.runs],
        "workers": {
            "title": "Workers",
            "head": list(COLUMNS),
            "rows": [list(row) for row in worker_rows(view.workers, most=_MOST_WORKERS)],
            "foot": workers_words(view),
        },
    }


def _run(run: RunState, since_told: float, failures: Sequence[FailureEvent]) -> dict[str, Any]:
    own = [one for one in failures if one.run_id == run.run_id][-_MOST_FAILURES:]
    tables = [_splits(run), _kinds(run), _slowest(run.slowest), _failures(own)]
    return {
        "title": run.output_dir,
        "where": f"process {run.process} on {run.host}",
        "is_over": bool(run.ending),
        "n_todo": run.n_todo,
        "n_done": run.n_done,
        "n_failed": run.n_failed,
        "figures": figures(run, since_told),
        "tables": [table for table in tables if table["rows"]],
    }


def figures(run: RunState, since: float = 0.0) -> list[tuple[str, str]]:
    """Return names and values of what a run has done; the most important first.

    Parameters
    ----------
    run : RunState
    since : float
        Seconds since that was its state: while it goes on, its rate falls.
    """
    since = 0.0 if run.ending else since
    seconds = max(run.seconds + since, 1e-3)
    left = seconds_left(run, since)
    return [
        ("cases", f"{run.n_ended} of {run.n_todo}"),
        ("failed", f"{run.n_failed}"),
        *(
            []
            if run.ending
            else [("left", f"about {format_time(left)}" if left is not None else "unknown time")]
        ),
        ("slices/s", f"{run.n_slices / seconds:.0f}"),
        (f"{run.ending} after" if run.ending else "so far", format_time(run.seconds + since)),
        ("read", f"{format_bytes(run.n_bytes_in / seconds)}/s"),
        ("written", f"{format_bytes(run.n_bytes / seconds)}/s"),
        *([("skipped", f"{run.n_skipped}")] if run.n_skipped else []),
    ]


def progress_words(run: RunState, since: float = 0.0, *, most: int | None = None) -> str:
    """Return the first figures of a run, or all of them, on one line."""
    return ", ".join(
        f"{name} {value}" if name.endswith("after") else f"{value} {name}"
        for name, value in figures(run, since)[:most]
    )


def _splits(run: RunState) -> dict[str, Any]:
    return {
        "title": "Splits",
        "head": ["split", "cases done", "failed", "slices"],
        "rows": [
            [name or "none", f"{one.n_done} of {one.n_todo}", str(one.n_failed), str(one.n_slices)]
            for name, one in run.splits.items()
        ],
    }


def _kinds(run: RunState) -> dict[str, Any]:
    return {
        "title": "Failures by kind",
        "head": ["kind", "cases"],
        "rows": [[kind, str(n)] for kind, n in failures_by_kind(run)],
    }


def _slowest(cases: Sequence[SlowCase]) -> dict[str, Any]:
    return {
        "title": "Slowest cases",
        "head": ["case", "load", "slice", "save", "in all"],
        "rows": [
            [one.case_id, *map(format_time, (one.load, one.slice, one.save, one.seconds))]
            for one in cases
        ],
    }


def _failures(failures: Sequence[FailureEvent]) -> dict[str, Any]:
    return {
        "title": "Last failures",
        "head": ["case", "step", "kind", "message"],
        "rows": [[one.case_id, one.step, one.kind, one.message] for one in failures[::-1]],
    }


def seconds_left(run: RunState, since: float = 0.0) -> float | None:
    """Return about how long a run will still take; None until a case is written."""
    if run.ending or run.n_ended == run.n_todo:
        return 0.0
    if not run.work_done:
        return None
    return (run.seconds + since) * (run.work - run.work_done) / run.work_done


def detail_words(run: RunState) -> str:
    """Return how far a run is with each split, and what failed there, in words.

    Examples
    --------
    >>> from dask_slicer.monitoring.state import SplitState
    >>> detail_words(
    ...     RunState(
    ...         run_id="1f", output_dir="/out", host="node7", process="4711", client="Client-1",
    ...         n_cases=12, n_skipped=2, splits={"train": SplitState(n_todo=10, n_done=3)},
    ...         kinds={"NonFinite": 1, "CorruptFile": 2},
    ...     )
    ... )
    'train 3 of 10; failed: 2 CorruptFile, 1 NonFinite'
    """
    splits = [f"{name} {one.n_done} of {one.n_todo}" for name, one in run.splits.items() if name]
    failed = [f"{n} {kind}" for kind, n in failures_by_kind(run)]
    words = [", ".join(splits), f"failed: {', '.join(failed)}" if failed else ""]
    return "; ".join(filter(None, words))


def failures_by_kind(run: RunState) -> list[tuple[str, int]]:
    """Return kinds of failures with their numbers, the most frequent first."""
    return sorted(run.kinds.items(), key=lambda one: (-one[1], one[0]))


Row = tuple[str, str, str, str, str, str]
COLUMNS: Row = ("worker", "CPU", "memory", "step", "case", "for")
# Beyond which the silence of a worker is worth a word; it is heard of about twice a second.
_SILENT_SECONDS = 10.0


def worker_rows(workers: Sequence[WorkerInfo], *, most: int) -> list[Row]:
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
        seconds = f"unheard for {format_time(worker.unseen)}"
    first = (worker.name, cpu, memory, step, name, seconds)
    return [first, *(("", "", "", *task) for task in tasks[1:])]


def _summed_up(workers: Sequence[WorkerInfo], *, is_all: bool) -> Row:
    here = [worker for worker in workers if worker.status != "gone"]
    n_busy = sum(bool(worker.tasks) for worker in here)
    words = f"{plural(len(here), 'worker')}" if is_all else f"… {len(here)} more"
    return (
        words,
        f"{sum(worker.cpu for worker in here):.0f}%",
        format_bytes(sum(worker.memory for worker in here)),
        "",
        f"{n_busy} busy",
        "",
    )


def workers_words(view: Snapshot) -> str:
    """Return what all workers come to, in words."""
    here = [worker for worker in view.workers if worker.status != "gone"]
    hosts = sorted({worker.host for worker in here}, key=natural_key)
    where = f" on {plural(len(hosts), 'host')} ({first_few(hosts)})" if len(hosts) > 1 else ""
    waiting = (
        f"; {plural(view.n_waiting, 'graph')} handed out and waiting" if view.n_waiting else ""
    )
    if not here:
        return f"no worker{waiting}"
    threads = plural(sum(worker.n_threads for worker in here), "thread")
    return (
        f"{plural(len(here), 'worker')}{where} of {threads}, "
        f"{sum(worker.cpu for worker in here):.0f}% CPU, "
        f"{format_bytes(sum(worker.memory for worker in here))}{waiting}"
    )
