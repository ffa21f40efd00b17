"""Graphs that run on workers: their results come back once, in order, and not from memory."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import cloudpickle
import dask
import psutil
import pytest
from dask.delayed import Delayed, delayed

from dask_slicer.cluster import local
from dask_slicer.errors import CaseError, Unexpected, WorkerLost
from dask_slicer.execution import futures as futures_module
from dask_slicer.execution import watchdog
from dask_slicer.execution.tasks import CaseBatch
from dask_slicer.inputs.case import Case
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase

pytestmark = pytest.mark.versions


def _fail_twice(case_id: str, folder: Path) -> CommittedCase:
    attempt = len(list(folder.iterdir()))
    (folder / str(attempt)).touch()
    if attempt < 2:
        failure = Unexpected(f"attempt {attempt}")
        failure.retriable = True
        raise failure
    return CommittedCase(
        case_id=case_id, split="train", digest="", shape=(1, 1, 1, 1), spacing=(1.0, 1.0, 1.0),
        statistics=(), slices=(), seconds={},
    )  # fmt: skip


def test_a_failed_case_is_computed_again_under_the_same_key(tmp_path: Path) -> None:
    # Workers cannot import this file: the function travels by value.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def graph_of(lot: CaseBatch) -> Delayed:
        (case,) = lot
        return delayed(_fail_twice)(case.case_id, tmp_path, dask_key_name=("save", case.case_id))

    queue = deque([(CasePlan(case=Case(case_id="liver", images=())),)])
    outcomes = []
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        for lot, outcome in futures_module.run_graphs(
            client, lambda _: queue.popleft() if queue else (), graph_of
        ):
            outcomes.append(outcome)
            if isinstance(outcome, CaseError):
                queue.append(lot)
    assert [getattr(outcome, "one_line", "committed") for outcome in outcomes] == [
        "attempt 0",
        "attempt 1",
        "committed",
    ]


class _DiesWhenSent:
    """A result with which its worker goes down as it is sent."""

    def __reduce__(self):
        os._exit(7)


def _lost_then_bad(folder: Path) -> _DiesWhenSent:
    if any(folder.iterdir()):
        raise Unexpected("bad when made again")
    (folder / "made").touch()
    return _DiesWhenSent()


@pytest.mark.timeout(60)
def test_a_lost_result_that_cannot_be_recomputed_is_a_failure(tmp_path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    queue = deque(["liver"])
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        ((_, outcome),) = futures_module.run_graphs(
            client,
            lambda _: queue.popleft() if queue else None,
            lambda name: delayed(_lost_then_bad)(tmp_path, dask_key_name=("save", name)),
        )
    assert isinstance(outcome, Unexpected)
    assert outcome.one_line == "bad when made again"


class _StuckWhenSent:
    """A result that keeps its worker busy when it is first sent; that answers nobody meanwhile."""

    def __reduce__(self):
        if not getattr(self, "was_sent", False):
            self.was_sent = True
            time.sleep(10)
        return str, ("sent",)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_result_that_is_late_is_asked_for_again(monkeypatch) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(watchdog, "_RESULT_SECONDS", 1)
    names = ["stuck", *map(str, range(20))]
    queue = deque(names)

    def graph_of(name: str) -> Delayed:
        made = _StuckWhenSent if name == "stuck" else partial(time.sleep, 0.05)
        return delayed(made, pure=False)(dask_key_name=("save", name))

    with local.local_client(2, memory_limit=2**30, dashboard_address="none") as client:
        outcomes = dict(
            futures_module.run_graphs(
                client, lambda _: queue.popleft() if queue else None, graph_of
            )
        )
    assert outcomes == {"stuck": "sent"} | dict.fromkeys(names[1:])


class _FreezesWhenSent:
    """A result that stops its worker when it is first sent, until the worker is told to go on."""

    def __reduce__(self):
        if not getattr(self, "was_sent", False):
            self.was_sent = True
            os.kill(os.getpid(), signal.SIGSTOP)
        return str, ("sent",)


def _wait_until_stopped(process: int) -> None:
    while psutil.Process(process).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.timeout(60)
def test_a_worker_that_does_not_answer_holds_up_no_result_of_another(monkeypatch) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # Longer than the test may take: what waits for the frozen worker waits until the end.
    monkeypatch.setattr(watchdog, "_RESULT_SECONDS", 90)
    names = ["frozen", *map(str, range(40))]  # several times what may be in flight
    queue = deque(names)
    outcomes = {}
    with local.local_client(2, memory_limit=2**30, dashboard_address="none") as client:
        client.wait_for_workers(2)
        (frozen, process), (other, _) = client.run(os.getpid).items()

        def graph_of(name: str) -> Delayed:
            made, worker = partial(_wait_until_stopped, process), other
            if name == "frozen":
                made, worker = _FreezesWhenSent, frozen
            with dask.annotate(workers=[worker]):
                return delayed(made, pure=False)(dask_key_name=("save", name))

        for name, outcome in futures_module.run_graphs(
            client, lambda _: queue.popleft() if queue else None, graph_of
        ):
            outcomes[name] = outcome
            if set(names) - set(outcomes) == {"frozen"}:
                os.kill(process, signal.SIGCONT)
        events = [event for _, event in client.get_events("all")]
    assert outcomes == {"frozen": "sent"} | dict.fromkeys(names[1:])
    # Dask would wait for all results that it fetches together.
    assert {event["count"] for event in events if event["action"] == "gather"} == {1}


@pytest.mark.timeout(60)
def test_graphs_run_in_about_the_order_of_their_submission() -> None:
    # Named so that no order of names is that in which they are dealt.
    names = [f"case_{(number * 7) % 60:03d}" for number in range(60)]
    queue = deque(names)

    def graph_of(name: str) -> Delayed:
        loaded = delayed(time.sleep, pure=False)(0.005, dask_key_name=("load", name))
        return delayed(bool, pure=False)(loaded, dask_key_name=("save", name))

    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        ended = [
            name
            for name, _ in futures_module.run_graphs(
                client, lambda _: queue.popleft() if queue else None, graph_of
            )
        ]
    assert sorted(ended) == sorted(names)
    # Not one of the first to be sent waits until all that were sent later have run.
    assert max(abs(ended.index(name) - place) for place, name in enumerate(names)) < 12


class _Ended(deque):
    """Graphs that have ended, as `as_completed` has them."""

    thread_condition = threading.Condition()
    has_ready = deque.__len__
    __next__ = deque.popleft
    add = deque.append


def test_results_of_graphs_that_have_ended_are_fetched_together_and_lost_ones_again() -> None:
    all_are_asked_for = threading.Barrier(4, timeout=60)  # one by one, the second would never be
    futures = [Mock(key=("save", str(number)), status="finished") for number in range(4)]
    # What becomes of them when they are first asked for: the second is lost, the third only late.
    statuses = dict(zip(futures, ("finished", "lost", "finished", "finished"), strict=True))
    missing = {futures[1], futures[2]}

    def result(future: Mock) -> object:
        if future in statuses:
            future.status = statuses.pop(future)
            all_are_asked_for.wait()
            if future in missing:
                return watchdog.LOST
        return future.key[1]

    results = futures_module._Results(_Ended(futures), Mock(result=result))
    fetched = []
    try:
        while len(fetched) < len(futures):
            fetched += results.poll()
    finally:
        results.close()
    assert dict(fetched) == {future: future.key[1] for future in futures}
    assert [future.release.call_count for future in futures] == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_end_of_a_worker_is_reported_although_its_nanny_learns_it_later(monkeypatch) -> None:
    monkeypatch.setattr("distributed.nanny.WorkerProcess._init_msg_interval", 3)
    queue = deque(["liver"])
    with local.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        ((_, outcome),) = futures_module.run_graphs(
            client,
            lambda _: queue.popleft() if queue else None,
            lambda name: delayed(os._exit)(7, dask_key_name=("save", name)),
        )
    assert isinstance(outcome, WorkerLost)
    assert "exited with status 7" in outcome.one_line
