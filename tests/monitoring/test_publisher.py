"""What a run publishes on its scheduler, from begin to end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import faults
import pytest

import dask_slicer
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.observer import Observer, RunReport
from dask_slicer.monitoring.publisher import ProgressPublisher
from dask_slicer.monitoring.state import TOPIC, RunState, from_event
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase, FailedCase

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

# Few enough that each has a graph of its own.
N_CASES = 10


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=N_CASES, shape=(24, 22, 9), seed=5)
    return root


@pytest.mark.slow
def test_progress_is_published_from_start_to_end(
    scans, tmp_path, invoke, started_scheduler
) -> None:
    from distributed import Client

    poison = faults.variables({"phantom_001": "raise", "phantom_007": "slow"})
    with started_scheduler(tmp_path, n_workers=1, **poison) as started:
        result = invoke(
            *("run", "--input_dir", scans, "--output_dir", tmp_path / "slices", "--retries", 0),
            *("--scheduler", started.address),
        )
        assert result.exit_code == 1, result.output
        with Client(started.address, set_as_default=False) as client:
            states = [from_event(event) for _, event in client.get_events(TOPIC)]
        shown = invoke("watch", started.address, "--once").stdout
    assert len({one.run_id for one in states}) == 1
    assert [one.n_ended for one in states] == sorted(one.n_ended for one in states)
    last = states[-1]
    assert (last.n_cases, last.n_skipped, last.n_done, last.n_failed) == (10, 0, 9, 1)
    written = [path.stat().st_size for path in tmp_path.rglob("*.npz")]
    assert (last.n_slices, last.n_bytes, last.ending) == (len(written), sum(written), "ended")
    assert [one.ending for one in states[:-1]] == [""] * (len(states) - 1)
    assert len(states) <= 2 + 2 * last.seconds
    (failure,) = last.failures
    assert (failure.case_id, failure.step, failure.kind) == ("phantom_001", "load", "Unexpected")
    assert "10 of 10 cases, 1 failed" in shown
    assert "ended after" in shown


class _Noting(Observer):
    """Takes note of the names of what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("_") and name != "told":
            self.told.append(name)
        return super().__getattribute__(name)


def cases(names: str) -> list[CasePlan]:
    return [CasePlan(case=Case(case_id=name, images=()), split="train") for name in names]


def test_the_publisher_forwards_every_call_to_its_observer() -> None:
    noting = _Noting()
    telling = ProgressPublisher(noting)
    plan = dask_slicer.RunPlan(config=None, layout="", reason="", cases=(), splits={})
    failed = FailedCase(case_id="a", step="load", kind="CorruptFile", message="cut")
    report = RunReport(
        output_dir="", n_committed=0, n_skipped=0, n_slices=0, n_bytes=0, remaining=0,
        failures=(), elapsed_seconds=0.0,
    )  # fmt: skip
    telling.observer.planning("searching", 1, None)
    telling.observer.connected("here")
    telling.planned(plan, todo=cases("a"), skipped=0)
    telling.observer.note("a note")
    telling.case_finished(*cases("a"), failed)
    telling.observer.finished(report)
    public = [name for name in vars(Observer) if not name.startswith("_")]
    # The state comes with the plan, and with each case.
    assert sorted(noting.told) == sorted([*public, "progress"])


class _Client:
    """A client whose scheduler is told something, or not."""

    id = "Client-1"

    def __init__(self, log_event: Callable[[str, object], None]) -> None:
        self.log_event = log_event


def _run_through(client: _Client) -> None:
    telling = ProgressPublisher(Observer())
    plan = dask_slicer.RunPlan(config=None, layout="", reason="", cases=(), splits={})
    with telling.publishing_to(client, run_id="1f", output_dir="/out"):
        telling.planned(plan, todo=cases("abc"), skipped=1)
        for case_id in "abc":
            telling.case_finished(
                *cases(case_id),
                FailedCase(case_id=case_id, step="load", kind="CorruptFile", message="cut"),
            )


@pytest.mark.timeout(60)
def test_a_scheduler_that_never_answers_does_not_delay_a_run() -> None:
    answer = threading.Event()
    try:
        _run_through(_Client(lambda topic, event: answer.wait()))
    finally:
        answer.set()


def test_the_next_event_makes_up_for_a_lost_one() -> None:
    heard: list[object] = []
    refusals = iter([True])

    def log_event(topic: str, event: object) -> None:
        if next(refusals, False):
            raise OSError("broken")
        heard.append(from_event(event))

    telling = ProgressPublisher(Observer())
    plan = dask_slicer.RunPlan(config=None, layout="", reason="", cases=(), splits={})
    with telling.publishing_to(_Client(log_event), run_id="1f", output_dir="/out"):
        telling.planned(plan, todo=cases("abc"), skipped=1)
        deadline = time.monotonic() + 60
        while not heard:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        telling.case_finished(
            *cases("a"), FailedCase(case_id="a", step="plan", kind="CorruptFile", message="cut")
        )
    (begun, last) = heard
    assert (begun.n_cases, begun.n_skipped, begun.n_ended, begun.ending) == (4, 1, 0, "")
    assert [failure.case_id for failure in last.failures] == ["a"]
    assert (last.n_failed, last.ending) == (1, "ended")
    assert begun.work * 2 == last.work * 3


def test_a_case_that_is_written_counts_with_its_slices() -> None:
    heard: list[RunState] = []
    telling = ProgressPublisher(Observer())
    plan = dask_slicer.RunPlan(config=None, layout="", reason="", cases=(), splits={})
    case = CommittedCase(
        case_id="a", split="train", digest="", shape=(1, 1, 1, 1), spacing=(1.0, 1.0, 1.0),
        statistics=(), slices=(), seconds={},
    )  # fmt: skip
    client = _Client(lambda topic, event: heard.append(from_event(event)))
    with suppress(KeyboardInterrupt), telling.publishing_to(client, run_id="1f", output_dir="/out"):
        telling.planned(plan, todo=cases("a"), skipped=0)
        telling.case_finished(*cases("a"), case)
        raise KeyboardInterrupt
    assert (heard[-1].n_done, heard[-1].n_bytes, heard[-1].ending) == (1, case.n_bytes, "stopped")
