"""Progress of a run on a terminal and in a batch log."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import dask_slicer
from dask_slicer.cli import display
from dask_slicer.inputs.case import Case
from dask_slicer.monitoring import terminal
from dask_slicer.monitoring.observer import Observer
from dask_slicer.monitoring.progress_line import seconds_left
from dask_slicer.monitoring.publisher import ProgressPublisher
from dask_slicer.output.checks import Issue
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.records import CommittedCase, FailedCase

MEGABYTE = 1_000_000
PLAN = RunPlan(
    config=dask_slicer.RunConfig(input_dir="/in", output_dir="/out"),
    layout="folders", reason="", cases=(), splits={},
)  # fmt: skip


def case(case_id: str, megabytes: int, *, problem: FailedCase | None = None) -> CasePlan:
    return CasePlan(
        case=Case(case_id=case_id, images=()),
        shape=(10, 1000, 50 * megabytes),
        voxel_bytes=megabytes * MEGABYTE,
        problem=problem,
    )


def failed(case_id: str, step: str = "load") -> FailedCase:
    return FailedCase(case_id=case_id, step=step, kind="CorruptFile", message="cut")


def written(case_id: str) -> CommittedCase:
    return CommittedCase(
        case_id=case_id, split="train", digest="", shape=(1, 1, 1, 1), spacing=(1.0, 1.0, 1.0),
        statistics=(), slices=(), seconds={},
    )  # fmt: skip


TO_RUN = [case("whole_body", 399), case("head", 99), case("bad", 0, problem=failed("bad", "plan"))]


@pytest.mark.parametrize(
    ("ended", "part"),
    [
        ([], 0.0),
        ([failed("bad", "plan")], 0.0),
        ([failed("bad", "plan"), written("head")], 0.2),
        ([written("whole_body")], 0.8),
        # What fails does so mostly at once, and it is not known what the others take.
        ([failed("whole_body")], 0.0),
        ([failed("whole_body"), written("head")], 1.0),
        ([written("whole_body"), written("head"), failed("bad", "plan")], 1.0),
    ],
)
def test_time_left_weighs_cases_by_their_work(ended, part) -> None:
    publisher = ProgressPublisher(Observer())
    publisher.planned(PLAN, todo=TO_RUN, skipped=2)
    to_run = {case.case_id: case for case in TO_RUN}
    for record in ended:
        publisher.case_finished(to_run[record.case_id], record)
    run = publisher.state
    assert (run.n_cases, run.n_skipped, run.n_todo, run.n_ended) == (5, 2, 3, len(ended))
    assert run.work_done / run.work == pytest.approx(part, abs=0.004)
    left = seconds_left(run)
    if part:
        assert left == pytest.approx(run.seconds * (1 - part) / part, abs=0.01 * run.seconds + 0.05)
    else:
        assert left is None


def test_the_progress_line_gives_counts_and_time_left(monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    shown = terminal.RunDisplay(Console(file=io.StringIO()), quiet=True)
    publisher = ProgressPublisher(shown)
    publisher.planned(PLAN, todo=TO_RUN, skipped=0)
    to_run = {case.case_id: case for case in TO_RUN}
    publisher.case_finished(to_run["bad"], failed("bad", "plan"))
    clock[0] = 110.0
    assert shown._words() == "1 of 3 cases, 1 failed, unknown time left, 0 slices/s, 10.0 s so far"
    publisher.case_finished(to_run["whole_body"], written("whole_body"))
    assert shown._words() == "2 of 3 cases, 1 failed, about 2.5 s left, 0 slices/s, 10.0 s so far"


def test_verify_counts_cases(monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    shown = display.OutputDisplay(Console(file=io.StringIO()), quiet=True)
    shown.checked(written("a"), 4, ())
    clock[0] = 102.0
    assert shown._words() == "1 of 4 cases, 0 failed, about 6.0 s left, 0 slices/s, 2.0 s so far"
    shown.checked(written("b"), 4, [Issue(path="x", message="is gone")])
    assert shown._words() == "2 of 4 cases, 1 failed, about 2.0 s left, 0 slices/s, 2.0 s so far"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_progress_bar_takes_one_terminal_line_and_gives_the_time_left(
    width, monkeypatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    todo = [case(f"ct_{number}", 10) for number in range(1200)]
    with terminal.RunDisplay(console) as shown:
        publisher = ProgressPublisher(shown)
        publisher.planned(PLAN, todo=todo, skipped=0)
        for one in todo[:300]:
            publisher.case_finished(one, written(one.case_id))
        clock[0] = 854.0
        shown._bar.refresh()
        drawn = screen.getvalue().splitlines()[-1].rpartition("\r")[2].replace("\x1b[2K", "")
    assert re.match("Slicing ━* *300 of 1200 cases, 0 failed, about 37 min 42 s", drawn)
    assert len(drawn) <= width
