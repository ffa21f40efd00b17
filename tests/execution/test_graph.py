"""Small cases share a graph; large ones, and those that failed in company, have their own."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

import dask_slicer
from dask_slicer.errors import DiskFull
from dask_slicer.execution import executor, futures
from dask_slicer.execution.case_queue import CaseQueue
from dask_slicer.execution.graph import Batcher, batch_graph, batch_work, target_of
from dask_slicer.execution.tasks import Target
from dask_slicer.inputs.case import Case
from dask_slicer.output.journal import last_records
from dask_slicer.planning.plan import CasePlan

SMALL, MEDIUM, LARGE = 4_000, 2_000_000, 20_000_000


def batcher_of(
    sizes: list[int], *, n_threads: int = 1, enough: int = batch_work(1, None)
) -> Batcher:
    queue = deque(
        CasePlan(case=Case(case_id=str(number), images=()), voxel_bytes=size, shape=(8, 16, 16))
        for number, size in enumerate(sizes)
    )
    return Batcher(queue, n_threads=n_threads, enough=enough)


def lengths(batcher: Batcher) -> list[int]:
    dealt = []
    while batch := batcher.next():
        dealt.append(len(batch))
    return dealt


@pytest.mark.parametrize(
    ("sizes", "n_threads", "expected"),
    [
        pytest.param([], 1, [], id="none"),
        pytest.param([LARGE] * 3, 1, [1, 1, 1], id="large"),
        pytest.param([SMALL] * 400, 1, [32] * 12 + [16], id="small"),
        pytest.param([SMALL] * 400, 20, [5] * 80, id="every_thread_gets_four"),
        pytest.param([SMALL] * 8, 4, [1] * 8, id="few"),
        pytest.param([MEDIUM] * 14, 1, [3, 3, 3, 3, 2], id="medium"),
        pytest.param([SMALL, LARGE] * 8, 1, [1] * 16, id="a_large_one_ends_a_batch"),
        pytest.param([LARGE, *[SMALL] * 11], 1, [1, 3, 3, 3, 2], id="small_ones_after_a_large"),
    ],
)
def test_small_cases_are_batched_until_they_are_worth_a_graph(sizes, n_threads, expected) -> None:
    assert lengths(batcher_of(sizes, n_threads=n_threads)) == expected


@pytest.mark.parametrize(
    ("n_threads", "memory_limit", "expected"),
    [
        pytest.param(0, None, 8_000_000, id="none_yet"),
        pytest.param(1, None, 8_000_000, id="one"),
        pytest.param(2, None, 8_000_000, id="two"),
        pytest.param(16, None, 64_000_000, id="a_node"),
        pytest.param(64, None, 256_000_000, id="many"),
        pytest.param(1000, None, 256_000_000, id="very_many"),
        pytest.param(64, 1_600_000_000, 100_000_000, id="little_memory"),
        pytest.param(64, 32_000_000, 8_000_000, id="hardly_any_memory"),
    ],
)
def test_the_work_of_a_batch_depends_on_threads_and_memory(
    n_threads, memory_limit, expected
) -> None:
    assert batch_work(n_threads, memory_limit) == expected


def test_a_batch_is_filled_up_to_its_target() -> None:
    batcher = batcher_of([LARGE] * 1000, n_threads=64, enough=64_000_000)
    assert lengths(batcher) == [3] * 333 + [1]


def test_cases_are_batched_before_workers_arrive() -> None:
    assert lengths(batcher_of([SMALL] * 8, n_threads=0)) == [2, 2, 2, 2]


class _Client:
    """A client of workers that are there, or still to come."""

    def __init__(self, n_threads: int, limits: Sequence[int], planned: int = 0) -> None:
        self._limits = limits
        self._n_threads = n_threads
        self.cluster = SimpleNamespace(plan=range(planned))

    def scheduler_info(self, n_workers: int) -> dict[str, object]:
        workers = [{"memory_limit": limit, "nthreads": 1} for limit in self._limits]
        return {"workers": dict(enumerate(workers))}

    def nthreads(self) -> dict[str, int]:
        return {"": self._n_threads} if self._n_threads else {}


def _execute(monkeypatch, client: _Client, outcome_of, *, timeout: float | None = None):
    """Run many cases of 2 MB without workers; return the batches and the outcomes."""
    batches = []

    def execute(client, next_batch, graph_of, **options):
        while len(batches) < 10 and (batch := next_batch(0)):
            batches.append(batch)
            yield batch, outcome_of(batch)

    monkeypatch.setattr(futures, "run_graphs", execute)
    queue = CaseQueue(
        [
            CasePlan(
                case=Case(case_id=str(number), images=()), voxel_bytes=MEDIUM, shape=(8, 16, 16)
            )
            for number in range(30_000)
        ]
    )
    target = Target(
        output_dir="",
        temporary=".tmp",
        settings=dask_slicer.RunConfig(input_dir="a", output_dir="b"),
    )
    found = []
    for case, outcome in executor._execute_on(client, queue, target, timeout):
        found.append((case, outcome))
        if isinstance(outcome, DiskFull):
            queue.clear()
    return batches, found


@pytest.mark.parametrize(
    ("client", "timeout", "expected"),
    [
        pytest.param(_Client(2, [0, 0]), None, 3, id="two_workers"),
        pytest.param(_Client(64, [0] * 64), None, 114, id="many_workers"),
        pytest.param(_Client(64, [10**12] * 64), None, 114, id="of_much_memory"),
        pytest.param(_Client(64, [10**12, 10**9, 0]), None, 27, id="one_has_little_memory"),
        pytest.param(_Client(64, [0] * 64), 5, 3, id="with_a_time_limit"),
        pytest.param(_Client(0, [], planned=64), None, 3, id="workers_still_to_come"),
    ],
)
def test_a_run_makes_batches_that_suit_its_workers(monkeypatch, client, timeout, expected) -> None:
    batches, _ = _execute(monkeypatch, client, lambda batch: [None] * len(batch), timeout=timeout)
    assert len(batches[0]) == expected


def test_a_full_disk_is_reported_at_once_and_not_retried(monkeypatch) -> None:
    batches, found = _execute(
        monkeypatch, _Client(64, [0] * 64), lambda batch: [DiskFull("full") for _ in batch]
    )
    assert [len(batch) for batch in batches] == [114]
    assert [case for case, _ in found] == [*batches[0]]


def test_every_case_is_in_one_batch_and_in_order() -> None:
    batcher = batcher_of([SMALL, SMALL, LARGE, MEDIUM, SMALL, LARGE, LARGE, SMALL] * 5)
    dealt = []
    while batch := batcher.next():
        dealt += [int(case.case_id) for case in batch]
    assert dealt == list(range(40))


def test_a_case_that_failed_in_a_batch_runs_next_and_alone() -> None:
    batcher = batcher_of([SMALL] * 64)
    first = batcher.next()
    assert len(first) == 16
    batcher.retry_unbatched(first[3])
    batcher.retry_unbatched(first[5])
    assert (batcher.next(), batcher.next()) == ((first[5],), (first[3],))
    assert lengths(batcher) == [16, 16, 16]


def test_a_case_that_failed_in_a_batch_keeps_a_graph_of_its_own() -> None:
    first = CasePlan(case=Case(case_id="a", images=()), voxel_bytes=SMALL, shape=(8, 16, 16))
    others = [
        CasePlan(case=Case(case_id=name, images=()), voxel_bytes=SMALL, shape=(8, 16, 16))
        for name in "bcdefgh"
    ]
    queue = deque([first, *others])
    batcher = Batcher(queue, n_threads=0)
    assert len(batcher.next()) == 2
    batcher.retry_unbatched(first)
    assert batcher.next() == (first,)
    queue.appendleft(first)  # a run tries it again
    assert batcher.next() == (first,)


def test_a_suspected_case_runs_alone() -> None:
    batcher = batcher_of([SMALL] * 8)
    (suspect, _), *_ = taken = [batcher.next(), batcher.next()]
    batcher.retry_isolated(suspect)
    assert not batcher.ran_isolated(taken[0])
    assert len(batcher.next(1)) == len(batcher.next(2)) == 2
    assert batcher.next(3) == ()  # others are in flight
    assert batcher.next(0) == (suspect,)
    assert batcher.ran_isolated((suspect,))
    batcher.retry_unbatched(taken[1][0])
    assert batcher.next(1) == ()  # it must be alone
    assert batcher.next(0) == (taken[1][0],)


def test_a_graph_of_several_cases_has_three_tasks_named_after_the_steps(dataset, tmp_path) -> None:
    for case_id in "abc":
        dataset.add(case_id)
    config = dask_slicer.RunConfig(input_dir=dataset.root, output_dir=tmp_path / "slices")
    config.output_dir.mkdir()
    graph = batch_graph(dask_slicer.plan(config).cases, target_of(config))
    assert sorted(graph.__dask_graph__().keys()) == [
        (step, "a / 2 more") for step in ("load", "save", "slice")
    ]
    records = graph.compute(scheduler="synchronous")
    assert [record.case_id for record in records] == ["a", "b", "c"]
    assert len(list(config.output_dir.glob("*/*.npz"))) == sum(len(r.slices) for r in records) > 0


def test_a_bad_case_of_a_batch_fails_alone(dataset, tmp_path, invoke) -> None:
    names = [f"c{number:02d}" for number in range(24)]
    for name in names:
        dataset.add(name)
    for name in ("c04", "c05"):  # the header is fine, the voxels are not: the worker finds out
        whole = bytearray(dataset.image_path(name).read_bytes())
        whole[-8] ^= 0xFF
        dataset.image_path(name).write_bytes(whole)
    output = tmp_path / "slices"
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 2),
        *("--dashboard_address", "none"),
    )
    assert result.exit_code == 1
    failures = list(csv.DictReader((output / "failures.csv").open()))
    assert [(f["case_id"], f["step"], f["kind"]) for f in failures] == [
        ("c04", "load", "CorruptFile"),
        ("c05", "load", "CorruptFile"),
    ]
    records = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
    assert sorted(record["case_id"] for record in records) == names
    good = {record["case_id"] for record in records if record["status"] == "committed"}
    assert good == set(names) - {"c04", "c05"}
    assert {path.name[:3] for path in output.glob("*/*.npz")} == good


def test_a_case_may_be_named_like_a_batch(dataset, tmp_path, invoke) -> None:
    # The first batch holds four cases; the last case has a batch, and so a graph, of its own.
    names = ["a", *(f"a {number:02d}" for number in range(15)), "a and 3 more"]
    assert names == sorted(names)
    for name in names:
        dataset.add(name)
    result = invoke(
        *("run", "--input_dir", dataset.root, "--output_dir", tmp_path / "slices"),
        *("--num_workers", 1, "--dashboard_address", "none"),
    )
    assert result.exit_code == 0, result.output
    assert {path.name[:-8] for path in (tmp_path / "slices").glob("*/*.npz")} == set(names)


def test_graphs_computed_by_hand_write_only_slices(dataset, tmp_path) -> None:
    dataset.add("a")
    config = dask_slicer.RunConfig(input_dir=dataset.root, output_dir=tmp_path / "slices")
    config.output_dir.mkdir()
    (graph,) = dask_slicer.build_graphs(dask_slicer.plan(config)).values()
    graph.compute(scheduler="synchronous")
    assert [path.name for path in config.output_dir.iterdir()] == ["train"]


def test_the_largest_cases_are_run_first(dataset, slice_dataset) -> None:
    for name, n_slices in (("a", 4), ("b", 9), ("c", 6), ("d", 9)):
        dataset.add(name, np.zeros((8, 9, n_slices), np.int16))
    output = slice_dataset()
    records = sorted(last_records(output / "journal.jsonl"), key=lambda record: record.at)
    assert [record.case_id for record in records] == ["b", "d", "c", "a"]


@pytest.mark.parametrize("result", [[DiskFull("full")], [], "nonsense"])
def test_a_batch_without_a_result_for_each_case_fails_by_name(result) -> None:
    batch = (SimpleNamespace(case_id="a"), SimpleNamespace(case_id="b"))
    outcomes = executor._outcomes(batch, result)
    assert [outcome.kind for outcome in outcomes] == ["Unexpected", "Unexpected"]
    assert f"returned no record but {type(result).__name__}" in str(outcomes[0])
