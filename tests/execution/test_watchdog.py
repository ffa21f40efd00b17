"""Lost workers, counted by the events of a scheduler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dask_slicer.execution.watchdog import _running_tasks, count_lost_workers, last_event


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


def worker_of(*keys: object, executing: int | None = None) -> Any:
    tasks = [SimpleNamespace(key=key) for key in keys]
    return SimpleNamespace(
        address="tcp://w:1",
        nthreads=1,
        nanny="tcp://w:2",
        processing=tasks,
        executing=() if executing is None else (tasks[executing],),
    )


@pytest.mark.parametrize(
    ("worker", "expected"),
    [
        (worker_of(("save", "a", 1)), {"a": True}),
        # Several parts of a case wait for each other on a worker, and of none is it known to run.
        (worker_of(("save", "a", 1), ("save", "a", 2)), {"a": True}),
        (worker_of(("save", "a", 2), ("load", "b")), {"a": False, "b": False}),
        (worker_of(("save", "a", 2), ("load", "b"), executing=1), {"b": True}),
        (worker_of(("save", "a", 2), ("sum-123", 0, 1)), {"a": False}),
    ],
    ids=["one part", "parts", "another case", "which is known", "another program"],
)
def test_parts_of_a_case_count_as_the_case(worker, expected) -> None:
    scheduler: Any = SimpleNamespace(workers={worker.address: worker})
    running, is_busy = _running_tasks(scheduler)
    assert is_busy
    assert {name: task.is_certain for (name, _), task in running.items()} == expected
    assert {address for _, address in running} == {worker.address}
