"""Lost workers, counted by the events of a scheduler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dask_slicer.execution.watchdog import count_lost_workers, last_event


def client_of(events: list[tuple[float, dict[str, Any]]]) -> Any:
    return SimpleNamespace(sync=lambda call, topic, **_: call(topic), get_events=lambda _: events)


def removal(*processing: object, expected: bool = False, computed: tuple[object, ...] = ()) -> dict:
    return {
        "action": "remove-worker",
        "processing-tasks": set(processing),
        "lost-computed-tasks": set(computed),
        "expected": expected,
    }


@pytest.mark.parametrize(
    ("event", "n_lost"),
    [
        (removal(("save", "a")), 1),
        (removal(computed=(("load", "a"),)), 1),
        (removal(("save", "a"), expected=True), 0),  # at the end of its job
        (removal(), 0),
        (removal(("sum-123", 1), "inc-5"), 0),
        ({"action": "add-worker"}, 0),
    ],
    ids=["a case runs", "a volume", "expected", "idle", "other programs", "another event"],
)
def test_a_worker_counts_as_lost_if_it_had_a_case(event, n_lost) -> None:
    client = client_of([(1.0, removal(("save", "z"))), (2.0, event)])
    assert count_lost_workers(client, after=1.0) == n_lost
    assert last_event(client) == 2.0


def test_a_scheduler_that_does_not_answer_has_lost_no_worker() -> None:
    assert count_lost_workers(SimpleNamespace(), after=0.0) == 0
    assert last_event(SimpleNamespace()) == 0.0
