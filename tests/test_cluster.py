"""A case that is run again on a cluster is really run again, not answered from memory."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path

import cloudpickle
from dask.delayed import Delayed, delayed

from dask_slicer import cluster
from dask_slicer.cases import Case
from dask_slicer.errors import CaseError, Unexpected
from dask_slicer.journal import CommittedCase
from dask_slicer.lots import Lot
from dask_slicer.plans import CasePlan


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


def test_a_case_that_failed_is_computed_anew_under_the_same_key(tmp_path: Path) -> None:
    # Workers cannot import this file: the function travels by value.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def graph_of(lot: Lot) -> Delayed:
        (case,) = lot
        return delayed(_fail_twice)(case.case_id, tmp_path, dask_key_name=("save", case.case_id))

    queue = deque([(CasePlan(case=Case(case_id="liver", images=())),)])
    outcomes = []
    with cluster.local_client(1, memory_limit=2**30, dashboard_address="none") as client:
        for lot, outcome in cluster.execute(
            client, lambda: queue.popleft() if queue else (), graph_of
        ):
            outcomes.append(outcome)
            if isinstance(outcome, CaseError):
                queue.append(lot)
    assert [getattr(outcome, "message", "committed") for outcome in outcomes] == [
        "attempt 0",
        "attempt 1",
        "committed",
    ]
