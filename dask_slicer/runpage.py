"""What the page of runs on a scheduler's server says, as words for its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_slicer.standing import (
    FailureEvent,
    RunState,
    SlowCase,
    failures_by_kind,
    seconds_left,
    slices_per_second,
)
from dask_slicer.views import COLUMNS, View, worker_rows, workers_words
from dask_slicer.words import duration, size

_MOST_WORKERS, _MOST_FAILURES = 200, 10


def content(view: View) -> dict[str, Any]:
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
    since_told = 0.0 if run.ending else since_told
    own = [one for one in failures if one.run_id == run.run_id][-_MOST_FAILURES:]
    tables = [_splits(run), _kinds(run), _slowest(run.slowest), _failures(own)]
    return {
        "title": run.output_dir,
        "where": f"process {run.process} on {run.host}",
        "is_over": bool(run.ending),
        "n_todo": run.n_todo,
        "n_done": run.n_done,
        "n_failed": run.n_failed,
        "figures": _figures(run, since_told),
        "tables": [table for table in tables if table["rows"]],
    }


def _figures(run: RunState, since_told: float) -> list[tuple[str, str]]:
    """Return names and values of what is shown in large."""
    seconds = max(run.seconds + since_told, 1e-3)
    left = seconds_left(run, since_told)
    figures = [
        ("cases", f"{run.n_ended} of {run.n_todo}"),
        ("failed", f"{run.n_failed}"),
        ("slices/s", f"{slices_per_second(run, since_told):.0f}"),
        ("read", f"{size(run.n_bytes_in / seconds)}/s"),
        ("written", f"{size(run.n_bytes / seconds)}/s"),
    ]
    if run.n_skipped:
        figures.insert(1, ("written before", f"{run.n_skipped}"))
    if run.ending:
        return [*figures, (f"{run.ending} after", duration(run.seconds))]
    return [
        *figures,
        ("so far", duration(seconds)),
        ("left, about", "?" if left is None else duration(left)),
    ]


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
            [one.case_id, *map(duration, (one.load, one.slice, one.save, one.seconds))]
            for one in cases
        ],
    }


def _failures(failures: Sequence[FailureEvent]) -> dict[str, Any]:
    return {
        "title": "Last failures",
        "head": ["case", "step", "kind", "message"],
        "rows": [[one.case_id, one.step, one.kind, one.message] for one in failures[::-1]],
    }
