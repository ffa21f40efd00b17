"""The state of a run as an event of its scheduler, there and back."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import msgpack
import pytest

from dask_slicer.monitoring.snapshot import runs_to_show
from dask_slicer.monitoring.state import Failure, RunState, SlowCase, SplitState, from_event

RUN = RunState(
    run_id="1f", output_dir="/out", host="node7", process="4711", client="Client-1",
    n_cases=120, n_skipped=20, n_done=30, n_failed=10, n_slices=600,
    n_bytes=20_000_000, work=190, work_done=70, seconds=70.0,
)  # fmt: skip
DETAILED = replace(
    RUN,
    n_bytes_in=70_000_000,
    splits={"train": SplitState(n_todo=80, n_done=25, n_failed=10, n_slices=500),
            "val": SplitState(n_todo=20, n_done=5, n_slices=100)},
    kinds={"Timeout": 1, "CorruptFile": 8, "NonFinite": 1},
    slowest=(SlowCase(case_id="ct_3", load=1.5, slice=0.5, save=10.0),),
    failures=(Failure(case_id="ct_7", step="load", kind="CorruptFile", message="cut"),),
)  # fmt: skip


@pytest.mark.parametrize("told", [RUN, DETAILED, replace(RUN, ending="ended")])
def test_a_state_survives_the_round_trip_and_unknown_fields_are_ignored(told) -> None:
    assert from_event(asdict(told)) == told
    assert from_event(asdict(told) | {"mood": "good"}) == told


def test_a_state_published_by_an_earlier_version_lacks_the_details() -> None:
    later = {"n_bytes_in", "work", "work_done", "splits", "kinds", "slowest", "failures"}
    event = {name: value for name, value in asdict(DETAILED).items() if name not in later}
    assert from_event(event) == replace(RUN, work=0, work_done=0)


def test_an_event_is_plain_data() -> None:
    event = msgpack.unpackb(msgpack.packb(asdict(DETAILED)), use_list=False)
    assert from_event(event) == DETAILED
    assert from_event(json.loads(json.dumps(event))) == DETAILED


@pytest.mark.parametrize(
    "event",
    [
        *[None, "run", 7, [], {}, {"about": "run"}, {"about": ["run"]}, {"about": None}],
        asdict(DETAILED) | {"splits": ["train"]},
        asdict(DETAILED) | {"splits": {"train": 7}},
        asdict(DETAILED) | {"kinds": {"Timeout": "many"}},
        asdict(DETAILED) | {"slowest": [None]},
        asdict(DETAILED) | {"failures": [{"case_id": "ct_7"}]},
    ],
)
def test_foreign_events_under_our_topic_are_ignored(event) -> None:
    assert from_event(event) is None


OTHER = replace(RUN, run_id="2e", process="12", client="Client-2")
OVER = replace(RUN, run_id="0a", client="Client-0", ending="ended")
KILLED = replace(OTHER, ending="stopped")


@pytest.mark.parametrize(
    ("told", "process", "expected"),
    [
        ([OVER, RUN], None, [RUN]),
        ([RUN, OTHER], None, [RUN, KILLED][:1]),
        ([OVER], None, [OVER]),
        ([OVER, OTHER], None, [KILLED]),
        ([RUN, OTHER], ("node7", "12"), [KILLED]),
        ([RUN, OVER], ("node8", "4711"), []),
        ([], None, []),
    ],
)
def test_active_runs_are_shown_or_else_the_last_one(told, process, expected) -> None:
    # Client-2 is not there any more.
    assert runs_to_show(told, {"Client-1", "Client-0"}, process=process) == expected
