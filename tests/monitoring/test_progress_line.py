"""Words of progress lines, and the time left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dask_slicer.monitoring.progress_line import progress_line, seconds_left
from dask_slicer.monitoring.state import RunState

RUN = RunState(
    run_id="1f", output_dir="/out", host="node7", process="4711", client="Client-1",
    n_cases=120, n_skipped=20, n_done=30, n_failed=10, n_slices=600,
    n_bytes=20_000_000, work=190, work_done=70, seconds=70.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "since_told", "expected"),
    [
        ({}, 0.0, 120.0),
        ({}, 35.0, 180.0),
        ({"work_done": 0}, 0.0, None),
        ({"n_done": 90, "work_done": 190}, 0.0, 0.0),
        ({"n_done": 0, "n_failed": 100, "work": 0, "work_done": 0}, 0.0, 0.0),
        ({"work": 0, "work_done": 0}, 0.0, None),  # told by an earlier version
        ({"ending": "stopped"}, 0.0, 0.0),
        ({"n_cases": 20}, 0.0, 0.0),
    ],
)
def test_the_time_left_is_that_of_the_work_left_at_the_rate_so_far(
    changed, since_told, expected
) -> None:
    run = replace(RUN, **changed)
    if run.n_todo == 0:
        run = replace(run, n_done=0, n_failed=0)
    assert seconds_left(run.later(since_told)) == expected


@pytest.mark.parametrize(
    ("changed", "since_told", "expected"),
    [
        (
            {}, 30.0,
            "40 of 100 cases, 10 failed, about 2 min 51 s left, 6 slices/s, 1 min 40 s so far, "
            "700.0 kB/s read, 200.0 kB/s written, 20 skipped",
        ),
        (
            {"n_skipped": 0, "ending": "ended"}, 30.0,
            "40 of 120 cases, 10 failed, 9 slices/s, ended after 1 min 10 s, 1.0 MB/s read, "
            "285.7 kB/s written",
        ),
        (
            {"n_done": 0, "n_failed": 0, "n_slices": 0, "n_bytes": 0, "n_bytes_in": 0,
             "work_done": 0}, 0.0,
            "0 of 100 cases, 0 failed, unknown time left, 0 slices/s, 1 min 10 s so far, "
            "0 bytes/s read, 0 bytes/s written, 20 skipped",
        ),
    ],
)  # fmt: skip
def test_progress_in_words(changed, since_told, expected) -> None:
    run = replace(RUN, **{"n_bytes_in": 70_000_000} | changed)
    assert progress_line(run.later(since_told)) == expected


def test_a_line_that_is_too_long_loses_its_least_important_part() -> None:
    assert progress_line(RUN, most=3) == "40 of 100 cases, 10 failed, about 2 min 0 s left"
