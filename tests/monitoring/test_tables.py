"""Tables of runs and workers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dask_slicer.monitoring.snapshot import Snapshot, TaskInfo, WorkerInfo, with_gone
from dask_slicer.monitoring.tables import worker_rows, workers_words

GB = 1_000_000_000
BUSY = WorkerInfo(
    name="0", host="node7", cpu=98.6, memory=GB, memory_limit=4 * GB,
    tasks=(TaskInfo(step="save", name="ct_031", seconds=1.24),),
)  # fmt: skip
IDLE = WorkerInfo(name="1", host="node7", cpu=1.0, memory=GB // 2)
PAUSED = replace(BUSY, name="2", host="node8", status="paused")
SILENT = replace(BUSY, name="3", unseen=75.0)
TWO = replace(
    BUSY, name="4", n_threads=2, tasks=(*BUSY.tasks, TaskInfo(step="load", name="ct_032"))
)  # fmt: skip
GONE = replace(IDLE, name="5", status="gone", cpu=0.0, memory=0, unseen=4.0)


@pytest.mark.parametrize(
    ("worker", "expected"),
    [
        (BUSY, [("0", "99%", "1.0 GB of 4.0 GB", "save", "ct_031", "1.2 s")]),
        (IDLE, [("1", "1%", "500.0 MB", "idle", "", "")]),
        (PAUSED, [("2", "99%", "1.0 GB of 4.0 GB", "paused save", "ct_031", "1.2 s")]),
        (
            SILENT,
            [("3", "99%", "1.0 GB of 4.0 GB", "save", "ct_031", "no heartbeat for 1 min 15 s")],
        ),
        (
            TWO,
            [
                ("4", "99%", "1.0 GB of 4.0 GB", "save", "ct_031", "1.2 s"),
                ("", "", "", "load", "ct_032", ""),
            ],
        ),
        (GONE, [("5", "", "", "gone", "", "no heartbeat for 4.0 s")]),
    ],
)
def test_a_worker_has_a_row_for_each_task(worker, expected) -> None:
    assert worker_rows([worker], most=10) == expected


@pytest.mark.parametrize(
    ("most", "n_whole", "last"),
    [
        (7, 7, ("5", "", "", "gone", "", "no heartbeat for 4.0 s")),
        (6, 4, ("… 1 more", "99%", "1.0 GB", "", "1 busy", "")),
        (4, 3, ("… 2 more", "197%", "2.0 GB", "", "2 busy", "")),
        (1, 0, ("5 workers", "395%", "4.5 GB", "", "4 busy", "")),
    ],
)
def test_workers_that_do_not_fit_are_summarised_in_the_last_row(most, n_whole, last) -> None:
    rows = worker_rows([BUSY, IDLE, PAUSED, SILENT, TWO, GONE], most=most)
    assert rows[-1] == last
    assert len(rows) == min(n_whole + (most < 7), most)


def test_a_thousand_workers_are_as_many_rows_as_fit() -> None:
    workers = [replace(BUSY, name=str(number)) for number in range(1000)]
    for most in range(1, 30):
        assert len(worker_rows(workers, most=most)) == most


def test_workers_are_in_the_order_of_their_names_and_gone_ones_are_shown_for_a_while() -> None:
    before = [replace(IDLE, name=name) for name in ("w-2", "w-10", "w-9")]
    seen = with_gone(before, [before[1]], elapsed=40.0)
    assert [(one.name, one.status) for one in seen] == [
        ("w-2", "gone"),
        ("w-9", "gone"),
        ("w-10", "running"),
    ]
    # One comes back under its name; what has been gone for over a minute is forgotten.
    assert with_gone(seen, [before[0]], elapsed=40.0) == (
        before[0],
        replace(before[1], status="gone", cpu=0.0, memory=0, unseen=40.0),
    )


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (Snapshot(), "no worker"),
        (Snapshot(n_waiting=3), "no worker; 3 graphs waiting for a worker"),
        (Snapshot(workers=(BUSY,)), "1 worker, 1 thread, 99% CPU, 1.0 GB"),
        (
            Snapshot(workers=(BUSY, PAUSED, TWO, GONE), n_waiting=1),
            "3 workers on 2 hosts (node7, node8), 4 threads, 296% CPU, 3.0 GB; "
            "1 graph waiting for a worker",
        ),
    ],
)
def test_totals_of_workers_in_words(view, expected) -> None:
    assert workers_words(view) == expected
