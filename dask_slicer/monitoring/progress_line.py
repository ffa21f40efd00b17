"""Words of progress lines: the figures of a run, and its time left."""

from __future__ import annotations

from collections.abc import Sequence

from dask_slicer.monitoring.state import RunState
from dask_slicer.utils.formatting import format_bytes, format_time


def figures(run: RunState) -> list[tuple[str, str]]:
    """Return names and values of what a run has done, the most important first."""
    seconds = max(run.seconds, 1e-3)
    left = seconds_left(run)
    shown = [
        ("cases", f"{run.n_ended} of {run.n_todo}"),
        ("failed", f"{run.n_failed}"),
        ("left", "unknown time" if left is None else f"about {format_time(left)}"),
        ("slices/s", f"{run.n_slices / seconds:.0f}"),
        (f"{run.ending} after" if run.ending else "so far", format_time(run.seconds)),
        ("read", f"{format_bytes(run.n_bytes_in / seconds)}/s"),
        ("written", f"{format_bytes(run.n_bytes / seconds)}/s"),
        ("skipped", f"{run.n_skipped}"),
    ]
    hidden = {"left" if run.ending else "", "" if run.n_skipped else "skipped"}
    if run.n_done and not run.n_bytes_in:  # a journal has no size of scans
        hidden.add("read")
    return [figure for figure in shown if figure[0] not in hidden]


def figures_line(shown: Sequence[tuple[str, str]]) -> str:
    """Return figures on one line.

    >>> figures_line([("cases", "2 of 8"), ("failed", "0"), ("stopped after", "4.0 s")])
    '2 of 8 cases, 0 failed, stopped after 4.0 s'
    """
    return ", ".join(
        f"{name} {value}" if name.endswith(" after") else f"{value} {name}" for name, value in shown
    )


def progress_line(run: RunState, *, most: int | None = None) -> str:
    """Return the first `most` figures of a run, or all of them, on one line."""
    return figures_line(figures(run)[:most])


def seconds_left(run: RunState) -> float | None:
    """Return about how long a run will still take; None until a case is written."""
    if run.ending or run.n_ended == run.n_todo:
        return 0.0
    if not run.work_done:
        return None
    return run.seconds * (run.work - run.work_done) / run.work_done
