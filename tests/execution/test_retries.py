"""Failures that are tried again, up to `--retries` times, and those that are not."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace

import pytest
from distributed import CancelledError

from dask_slicer import errors
from dask_slicer.execution import executor, futures, graph, watchdog
from dask_slicer.inputs.case import Case
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase

IO_ERROR = errors.as_case_error(OSError(5, "Input/output error"), step="load")


@pytest.mark.parametrize(
    ("error", "is_retried"),
    [
        (errors.WorkerLost("the worker that ran it was killed by signal 9"), True),
        (errors.Timeout("took longer than --timeout 1 s and was stopped"), True),
        (IO_ERROR, True),
        (errors.OutOfMemory("the system was out of memory"), False),
        (errors.CorruptFile("the file is cut off"), False),
        (errors.Unexpected("ValueError: a bug"), False),
    ],
    ids=lambda value: value.kind if isinstance(value, errors.CaseError) else "",
)
@pytest.mark.parametrize(("n_failures", "retries"), [(1, 2), (2, 2), (3, 2), (1, 0)])
def test_a_case_is_tried_again_if_that_may_help(
    dataset, tmp_path, invoke, monkeypatch, error, is_retried, n_failures, retries
) -> None:
    for name in "abc":
        dataset.add(name)
    compute_here, tries = graph.compute_here, Counter()

    def compute(case_graph):
        _, case_id = case_graph.key
        tries[case_id] += 1
        if case_id == "b" and tries[case_id] <= n_failures:
            raise error
        return compute_here(case_graph)

    monkeypatch.setattr(graph, "compute_here", compute)
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "out"),
        *("--num_workers", 0, "--retries", retries),
    )
    is_cured = is_retried and n_failures <= retries
    assert result.exit_code == (0 if is_cured else 1)
    n_tries = min(n_failures, retries) + 1 if is_retried else 1
    assert tries == {"a": 1, "b": n_tries, "c": 1}
    failures = tmp_path / "out" / "failures.csv"
    assert failures.exists() != is_cured
    assert is_cured or error.kind in failures.read_text()


@pytest.mark.parametrize("kind", [errors.WorkerLost, errors.OutOfMemory, errors.CorruptFile])
def test_cases_of_a_batch_that_failed_run_again_alone_before_one_fails(monkeypatch, kind) -> None:
    plans = {name: CasePlan(case=Case(case_id=name, images=(f"{name}.nii",))) for name in "abc"}
    ran: list[str] = []

    def committed(case: CasePlan) -> CommittedCase:
        return CommittedCase(
            case_id=case.case_id, split="train", digest="", shape=(1, 1, 1, 1),
            spacing=(1.0, 1.0, 1.0), statistics=(), slices=(), seconds={},
        )  # fmt: skip

    def run_graphs(client, next_batch, graph_of, **options):
        while batch := next_batch(0):
            ran.append("".join(case.case_id for case in batch))
            records = [committed(case) for case in batch]
            is_fatal = plans["b"] in batch
            yield batch, kind("b kills its worker") if is_fatal else records[0]

    monkeypatch.setattr(futures, "run_graphs", run_graphs)
    monkeypatch.setattr(executor, "memory_limit", lambda *_, **__: None)
    monkeypatch.setattr(executor, "count_threads", lambda _: 1)
    monkeypatch.setattr(graph, "_BATCHES_PER_THREAD", 1)  # all cases are one batch
    client = SimpleNamespace(nthreads=lambda: {})
    outcomes = executor._execute_on(
        client, deque(plans.values()), SimpleNamespace(settings=None), None
    )
    kinds = {case.case_id: type(outcome) for case, outcome in outcomes}
    assert kinds == {"a": CommittedCase, "b": kind, "c": CommittedCase}
    assert ran[0] == "abc"
    assert sorted(ran[1:]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("running", "another client cancelled the tasks of this run"),
        ("connecting", "the connection to the Dask scheduler at tcp://127.0.0.1:8786 was lost"),
    ],
)
def test_cancelled_tasks_are_not_computed_again(status, message) -> None:
    of_scheduler = {"address": "tcp://127.0.0.1:8786"}
    client = SimpleNamespace(scheduler_info=lambda **_: of_scheduler, status=status)

    def cancelled(timeout: float) -> None:
        raise CancelledError("a")

    future = SimpleNamespace(key=("load", "a"), status="cancelled", result=cancelled)
    error = watchdog.Watchdog(client, timeout=None).result(future)
    assert isinstance(error, errors.SchedulerError)
    assert str(error).startswith(message)
