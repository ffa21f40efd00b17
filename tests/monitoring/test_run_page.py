"""The page of runs on a scheduler's own server: what it says, where it is, and that it is light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from distributed import Client
from repository import ROOT

from dask_slicer.cluster import client as client_module
from dask_slicer.cluster import local
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.snapshot import (
    EventLog,
    Snapshot,
    TaskInfo,
    WorkerInfo,
    scheduler_snapshot,
)
from dask_slicer.monitoring.state import (
    TOPIC,
    Failure,
    RunState,
    SlowCase,
    SplitState,
)
from dask_slicer.monitoring.tables import content
from dask_slicer.records import FailedCase

pytestmark = pytest.mark.versions

NAME = "<img src=x onerror=alert(1)>"
RUN = RunState(
    run_id="1f", output_dir="/out", host="node7", process="4711", client="Client-1",
    n_cases=120, n_skipped=20, n_done=30, n_failed=10, n_slices=600,
    n_bytes=20_000_000, work=190, work_done=70, seconds=100.0, n_bytes_in=70_000_000,
    splits={"train": SplitState(n_todo=80, n_done=25, n_failed=10, n_slices=500),
            "": SplitState(n_todo=20, n_done=5, n_slices=100)},
    kinds={"Timeout": 2, "CorruptFile": 8, "NonFinite": 2},
    slowest=(SlowCase(case_id=NAME, load=1.5, slice=0.5, save=10.0),),
    failures=tuple(
        Failure(case_id=f"ct_{n}", step="load", kind="CorruptFile", message="cut")
        for n in range(11, 1, -1)
    ),
)  # fmt: skip
WORKER = WorkerInfo(name="0", tasks=(TaskInfo(step="save", name="ct_031", seconds=1.24),))
VIEW = Snapshot(runs=(RUN,), workers=(WORKER,), n_waiting=2)


def rows(title: str, view: Snapshot = VIEW) -> list[list[str]]:
    (run,) = content(view)["runs"]
    return [row for table in run["tables"] if table["title"] == title for row in table["rows"]]


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Splits", [["train", "25 of 80", "10", "500"], ["none", "5 of 20", "0", "100"]]),
        ("Failures by kind", [["CorruptFile", "8"], ["NonFinite", "2"], ["Timeout", "2"]]),
        ("Slowest cases", [[NAME, "1.5 s", "0.5 s", "10.0 s", "12.0 s"]]),
        ("Last failures", [[f"ct_{n}", "load", "CorruptFile", "cut"] for n in range(11, 1, -1)]),
    ],
)
def test_the_run_page_has_all_tables(title, expected) -> None:
    assert rows(title) == expected


def test_empty_tables_are_left_out() -> None:
    early = replace(RUN, splits={}, kinds={}, slowest=(), failures=())
    (run,) = content(Snapshot(runs=(early,)))["runs"]
    assert run["tables"] == []


@pytest.mark.parametrize(
    ("changed", "since_told", "expected"),
    [
        (
            {}, 100.0,
            {"cases": "40 of 100", "skipped": "20", "failed": "10", "slices/s": "3",
             "read": "350.0 kB/s", "written": "100.0 kB/s", "so far": "3 min 20 s",
             "left": "about 5 min 43 s"},
        ),
        (
            {"ending": "stopped", "n_skipped": 0}, 100.0,
            {"cases": "40 of 120", "failed": "10", "slices/s": "6", "read": "700.0 kB/s",
             "written": "200.0 kB/s", "stopped after": "1 min 40 s"},
        ),
        (
            {"n_done": 0, "n_failed": 0, "n_skipped": 0, "n_slices": 0, "n_bytes": 0,
             "n_bytes_in": 0, "work_done": 0}, 0.0,
            {"cases": "0 of 120", "failed": "0", "slices/s": "0", "read": "0 bytes/s",
             "written": "0 bytes/s", "so far": "1 min 40 s",
             "left": "unknown time"},
        ),
    ],
)  # fmt: skip
def test_the_figures_of_a_run(changed, since_told, expected) -> None:
    (run,) = content(Snapshot(runs=(replace(RUN, **changed).later(since_told),)))["runs"]
    assert dict(run["figures"]) == expected


def test_workers_are_listed_with_their_current_case() -> None:
    workers = content(VIEW)["workers"]
    assert workers["rows"] == [["0", "0%", "0 bytes", "save", "ct_031", "1.2 s"]]
    assert workers["foot"].endswith("2 graphs waiting for a worker")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local.local_client(1, memory_limit=2**30, dashboard_address="127.0.0.1:0") as client:
        yield client


def answer(client: Client, path: str) -> str:
    link = client.dashboard_link.replace("/status", path)
    with urllib.request.urlopen(link, timeout=30) as response:
        assert response.status == 200
        return response.read().decode("utf-8")


def runs_of(client: Client) -> list[dict[str, Any]]:
    return json.loads(answer(client, "/dask-slicer/state.json"))["runs"]


def test_the_page_of_our_own_scheduler_shows_published_runs(client) -> None:
    link = client.dashboard_link
    assert client_module.run_page_link(client, link) == link.removesuffix("status") + "dask-slicer"
    assert answer(client, "/dask-slicer") == answer(client, "/dask-slicer/")
    assert runs_of(client) == []
    client.log_event(TOPIC, "nonsense")
    client.log_event(TOPIC, asdict(replace(RUN, client=client.id)))
    deadline = time.monotonic() + 60
    while not (found := runs_of(client)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = found
    assert run["title"] == "/out"
    assert not run["is_over"]
    assert run["tables"][-1]["rows"][0] == ["ct_11", "load", "CorruptFile", "cut"]


class _Counting(EventLog):
    """Counts what it is told."""

    n_told = 0

    def add(self, at: float, content: object) -> None:
        type(self).n_told += 1
        EventLog.add(self, at, content)


def test_each_event_is_read_once_however_often_the_page_is_loaded() -> None:
    log = [(float(n), asdict(replace(RUN, n_done=n, seconds=float(n)))) for n in range(1, 4)]
    scheduler = SimpleNamespace(
        get_events=lambda _: tuple(log), clients=(), workers={}, queued=(), unrunnable=()
    )
    known = _Counting()
    known.update(scheduler_snapshot(known.last_event, scheduler))
    known.update(scheduler_snapshot(known.last_event, scheduler))
    assert _Counting.n_told == 1  # of a run, only the last
    assert known.runs["1f"] == (replace(RUN, n_done=3, seconds=3.0), 3.0)
    log.append((4.0, asdict(replace(RUN, n_done=9, seconds=4.0))))
    known.update(scheduler_snapshot(known.last_event, scheduler))
    assert _Counting.n_told == 2
    assert known.runs["1f"] == (replace(RUN, n_done=9, seconds=4.0), 4.0)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (("save", "ct_7"), ("save", "ct_7")),
        (("save", "ct_7", 3), ("save", "ct_7, part 3")),
        (("sum-123", 0, 3), ("other", "('sum-123', 0, 3)")),
        ("sum-of-many", ("other", "sum-of-many")),
    ],
)
def test_workers_show_the_part_of_a_large_case(key, expected) -> None:
    task = namedtuple("Task", ["key"])(key)  # hashable, as those of Dask
    worker = SimpleNamespace(
        **{"name": "0", "host": "node7", "metrics": {}, "memory_limit": 0, "last_seen": 0.0},
        **{"processing": [task], "nthreads": 1, "executing": {task: 2.0}},
        status=SimpleNamespace(name="running"),
    )
    scheduler = SimpleNamespace(
        get_events=lambda _: (), clients=(), workers={"0": worker}, queued=(), unrunnable=()
    )
    (shown,) = scheduler_snapshot(0.0, scheduler)["workers"]
    assert [(task.step, task.name) for task in shown.tasks] == [expected]


def test_the_last_failures_of_a_run_are_kept_and_the_last_runs() -> None:
    run = RunState(run_id="first")
    for n in range(50):
        failed = FailedCase(case_id=f"ct_{n}", step="load", kind="CorruptFile", message="cut")
        run = run.with_failed(failed, split="train")
    assert [failure.case_id for failure in run.failures] == [f"ct_{n}" for n in range(49, 39, -1)]
    heard = EventLog()
    heard.add(0.0, asdict(run))
    for n in range(100):
        heard.add(2.0, asdict(replace(RUN, run_id=str(n))))
    assert set(heard.runs) == {str(n) for n in range(100)}


def test_a_run_whose_client_is_gone_has_stopped(client) -> None:
    client.log_event(TOPIC, asdict(replace(RUN, run_id="3d", client="Client-gone")))
    client.log_event(TOPIC, asdict(replace(RUN, client=client.id, ending="ended", seconds=101)))
    deadline = time.monotonic() + 60
    while ["stopped after", "1 min 40 s"] not in runs_of(client)[0]["figures"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = runs_of(client)
    assert run["is_over"]


@pytest.mark.parametrize(
    "path", ["/status", "/info/main/workers.html", "/health", "/json/counts.json"]
)
def test_the_pages_of_dask_are_still_there(client, path) -> None:
    assert answer(client, path)


def test_a_setting_that_already_names_the_page_is_kept() -> None:
    with dask.config.set({"distributed.scheduler.http.routes": ["one", client_module.OUR_ROUTES]}):
        assert list(client_module.run_page_setting().values()) == [
            ["one", client_module.OUR_ROUTES]
        ]


def test_the_run_page_imports_little_on_a_scheduler() -> None:
    program = "import sys, dask_slicer.monitoring.run_page; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = {name.partition(".")[0] for name in shown.stdout.split()}
    assert "tornado" in imported
    assert not imported & {"numpy", "dask", "nibabel", "zarr", "pydantic", "rich", "click"}


ROUTES = "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES"


def variable_of_the_docs() -> str:
    """Return the line of docs/hpc.md that gives a scheduler of one's own the page."""
    text = (ROOT / "docs" / "hpc.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if ROUTES in line]
    return line


@pytest.mark.slow
def test_a_scheduler_started_by_hand_has_the_page_if_set_up_as_documented(
    tmp_path, invoke, started_scheduler
) -> None:
    script = f'{variable_of_the_docs()}; printf "%s" "${ROUTES}"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shown = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | {"PATH": path},
    )  # fmt: skip
    routes = {ROUTES: shown.stdout}
    write_dataset(tmp_path / "scans", n_cases=2, shape=(24, 22, 9))
    with started_scheduler(tmp_path, n_workers=1, everywhere=routes) as started:
        result = invoke(
            *("run", "--input_dir", tmp_path / "scans", "--output_dir", tmp_path / "slices"),
            *("--scheduler", started.address),
        )
        assert result.exit_code == 0, result.output
        (page,) = [
            line.removeprefix("Run page: ")
            for line in result.output.splitlines()
            if line.startswith("Run page: ")
        ]
        with Client(started.address) as client:
            (run,) = runs_of(client)
            assert (run["n_done"], run["is_over"]) == (2, True)
            assert answer(client, "/health")
        with urllib.request.urlopen(page, timeout=30) as response:
            assert response.status == 200


@pytest.mark.slow
def test_no_link_is_shown_for_a_scheduler_without_the_page(
    tmp_path, invoke, started_scheduler
) -> None:
    write_dataset(tmp_path / "scans", n_cases=2, shape=(24, 22, 9))
    with started_scheduler(tmp_path, n_workers=1) as started:
        result = invoke(
            *("run", "--input_dir", tmp_path / "scans", "--output_dir", tmp_path / "slices"),
            *("--scheduler", started.address),
        )
    assert result.exit_code == 0, result.output
    assert "Run page" not in result.output
