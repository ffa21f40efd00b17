"""What `dask-slicer watch` draws."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from dask_slicer.monitoring.screen import picture
from dask_slicer.monitoring.snapshot import Snapshot, TaskInfo, WorkerInfo
from dask_slicer.monitoring.state import Failure, RunState, SlowCase, SplitState

RUN = RunState(
    run_id="1f", output_dir="/out", host="node7", process="4711", client="Client-1",
    n_cases=120, n_skipped=20, n_done=30, n_failed=10, n_slices=600,
    n_bytes=20_000_000, work=190, work_done=70, seconds=70.0, n_bytes_in=70_000_000,
    splits={"train": SplitState(n_todo=80, n_done=25, n_failed=10, n_slices=500),
            "val": SplitState(n_todo=20, n_done=5, n_slices=100)},
    kinds={"Timeout": 1, "CorruptFile": 8, "NonFinite": 1},
    slowest=tuple(SlowCase(case_id=f"[ct]_{n}", load=1.5, slice=0.5, save=10.0) for n in range(5)),
    failures=tuple(
        Failure(case_id=f"ct_{n}", step="load", kind="CorruptFile", message="cut")
        for n in reversed(range(10))
    ),
)  # fmt: skip
WORKERS = tuple(
    WorkerInfo(name=str(n), tasks=(TaskInfo(step="save", name=f"[case]_{n}", seconds=1.24),))
    for n in range(40)
)
VIEW = Snapshot(runs=(RUN,), workers=WORKERS)


def drawn(view: Snapshot, *, width: int = 100, height: int | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(picture(view, "tcp://node7:8786", console, height=height))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_screen_has_the_tables_of_the_run_page() -> None:
    lines = drawn(VIEW, width=120)
    assert lines[:2] == ["tcp://node7:8786", "/out (process 4711 on node7)"]
    assert lines[2].startswith("40 of 100 cases, 10 failed, about 2 min 0 s left, ")
    shown = [" ".join(line.split()) for line in lines]
    assert "Splits Failures by kind Slowest cases" in shown
    assert "train 25 of 80 10 500 CorruptFile 8 [ct]_0 1.5 s 0.5 s 10.0 s 12.0 s" in shown
    assert "val 5 of 20 0 100 NonFinite 1 [ct]_1 1.5 s 0.5 s 10.0 s 12.0 s" in shown
    assert "39 0% 0 bytes save [case]_39 1.2 s" in shown
    assert shown[-6:] == [
        "case step kind message",
        *(f"ct_{n} load CorruptFile cut" for n in (9, 8, 7, 6, 5)),
    ]


@pytest.mark.parametrize("width", [60, 100, 160])
@pytest.mark.parametrize("height", [20, 24, 30, 50, 100])
def test_a_terminal_shows_figures_workers_and_failures_whatever_its_height(width, height) -> None:
    lines = drawn(VIEW, width=width, height=height)
    assert len(lines) < height
    assert lines[3].startswith("40 of 100 cases, 10 failed, about 2 min 0 s left, ")
    assert sum("[case]_" in line for line in lines) >= 2
    assert any(line.startswith("40 workers, 40 threads") for line in lines)
    assert lines[-1].startswith("ct_5")
    assert any("val" in line for line in lines) == (height > 24)


def test_a_scheduler_without_a_run_is_shown_as_such() -> None:
    assert drawn(Snapshot()) == [
        "tcp://node7:8786",
        "No dask-slicer run on this scheduler",
        "",
        "no worker",
    ]


def test_a_lost_worker_is_red_and_a_case_named_gone_is_not() -> None:
    gone = WorkerInfo(name="5", status="gone", unseen=4.0)
    failure = replace(RUN.failures[0], message="gone")
    view = Snapshot(runs=(replace(RUN, failures=(failure,)),), workers=(gone,))
    console = Console(
        file=io.StringIO(), width=100, force_terminal=True, color_system="standard", no_color=False
    )
    console.print(picture(view, "", console))
    lines = console.file.getvalue().splitlines()
    assert ["31m" in line for line in lines if "gone" in line] == [True, False]
