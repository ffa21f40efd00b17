"""Failures that are tried again, up to `--retries` times, and those that are not."""

from __future__ import annotations

from collections import Counter

import pytest

from dask_slicer import errors
from dask_slicer.execution import graph

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
