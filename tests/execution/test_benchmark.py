"""Benchmarks: what is measured, and what is concluded."""

from __future__ import annotations

from pathlib import Path

import pytest

import dask_slicer
from dask_slicer.execution.benchmark import (
    Measurement,
    Row,
    choose_cases,
    default_workers,
    measure,
    recommend,
    rows,
)
from dask_slicer.inputs.phantom import write_dataset


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch) -> None:
    monkeypatch.setattr("dask_slicer.execution.benchmark._PAUSE", 0.0)


def measured(
    n_workers: int, seconds: float, *, cpu: float = 8.0, busy: float = 8.0, wait: float = 0.0
) -> Measurement:
    return Measurement(
        cpu_wait_seconds=wait,
        n_workers=n_workers, seconds=seconds, start_seconds=1.0, busy_seconds=busy,
        cpu_seconds=cpu, n_cases=4, n_slices=400, n_failed=0, bytes_in=8_000_000,
        bytes_out=40_000_000, peak_rss=100_000_000,
    )  # fmt: skip


def table(*measurements: Measurement, n_cpus: int = 4) -> list[Row]:
    return rows(measurements, n_cpus=n_cpus)


def test_a_row_holds_medians_and_what_follows_from_them() -> None:
    one, two = table(
        measured(2, 4.0), measured(1, 9.0), measured(1, 8.0), measured(2, 90.0), measured(1, 7.0),
        measured(2, 5.0),
    )  # fmt: skip
    assert (one.n_workers, one.seconds, one.speedup, one.efficiency) == (1, 8.0, 1.0, 1.0)
    assert (two.n_workers, two.seconds, two.speedup, two.efficiency) == (2, 5.0, 1.6, 0.8)
    assert (two.slices_per_second, two.megabytes_in_per_second) == (80.0, 1.6)
    assert (two.megabytes_out_per_second, two.peak_rss) == (8.0, 100_000_000)
    assert (two.busy, two.cpu) == (0.8, 0.8)


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        pytest.param([(0, 8.0), (1, 8.0), (4, 2.0)], {0: 1.0, 1: 1.0, 4: 4.0}, id="one_worker"),
        pytest.param([(0, 8.0), (2, 5.0)], {0: 1.0, 2: 1.6}, id="this_process"),
        pytest.param([(2, 4.0), (4, 2.0)], {2: 1.0, 4: 2.0}, id="the_fewest"),
    ],
)
def test_speedup_is_against_one_worker_or_else_the_fewest(tried, expected) -> None:
    found = table(*(measured(n, seconds) for n, seconds in tried))
    assert {row.n_workers: row.speedup for row in found} == expected


def test_efficiency_of_the_fewest_workers_is_one() -> None:
    assert [row.efficiency for row in table(measured(2, 4.0), measured(4, 2.5))] == [1.0, 0.8]


def test_more_workers_than_cpus_are_not_expected_to_compute_at_once() -> None:
    (row,) = table(measured(8, 4.0, cpu=8.0, busy=32.0), n_cpus=2)
    assert (row.cpu, row.busy) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("measurements", "num_workers", "bottleneck", "says"),
    [
        pytest.param(
            [measured(1, 8.0), measured(2, 4.1), measured(4, 2.1)],
            4, "CPU", "95%", id="scales",
        ),
        pytest.param(
            [measured(1, 8.0), measured(2, 4.1)],
            2, "CPU", "this machine has 4 CPUs", id="more_could_be_tried",
        ),
        pytest.param(
            [measured(1, 8.0), measured(2, 4.1), measured(4, 4.0, busy=15.0)],
            2, "CPU", "98%", id="fewest_that_are_about_as_fast",
        ),
        pytest.param(
            [measured(1, 8.0, cpu=3.0), measured(2, 4.0, cpu=3.0)],
            2, "disk", "wait for files", id="disk",
        ),
        pytest.param(
            [measured(1, 8.0), measured(2, 4.0, busy=6.2, cpu=5.9)],
            2, "CPU", "74%", id="idle_is_not_waiting_for_the_disk",
        ),
        pytest.param(
            [measured(1, 8.0, busy=3.0, cpu=3.0), measured(4, 8.0, busy=3.0, cpu=3.0)],
            1, "scheduler", "too small, or too few", id="scheduler",
        ),
    ],
)  # fmt: skip
def test_the_recommendation_names_a_number_and_what_holds_it_back(
    measurements, num_workers, bottleneck, says
) -> None:
    advice = recommend(table(*measurements), n_cpus=4)
    assert (advice.num_workers, advice.bottleneck) == (num_workers, bottleneck)
    assert says in advice.reason


@pytest.mark.parametrize(
    ("wait", "bottleneck", "says"),
    [
        (0.0, "disk", "compute for 38% of the time, and wait for files to be read or written in"),
        (1.0, "disk", "in the rest, and for a CPU for 12%"),
        (4.5, "CPU", "and wait for a CPU, which others use, for 56%"),
    ],
)
def test_waiting_for_a_cpu_is_not_waiting_for_the_disk(wait, bottleneck, says) -> None:
    advice = recommend(table(measured(2, 4.0, cpu=3.0, wait=wait)), n_cpus=4)
    assert advice.bottleneck == bottleneck
    assert says in advice.reason


@pytest.mark.parametrize(
    ("seconds", "num_workers", "as_fast"),
    [
        ({1: [8.0, 9.0], 2: [4.0, 4.5]}, 2, ()),
        ({1: [8.0, 9.0], 2: [4.0, 8.5]}, 2, (1,)),
        ({1: [8.0, 9.0], 2: [4.0, 4.5], 4: [3.9, 4.4]}, 2, (4,)),
        ({0: [3.0, 5.0], 1: [3.5, 4.5], 2: [2.0, 2.2]}, 2, ()),
        ({1: [4.0], 2: [4.0]}, 1, ()),  # one run says nothing of how times vary
    ],
    ids=["clear", "one slow run", "more are no faster", "others overlap", "one run each"],
)
def test_numbers_of_workers_whose_times_overlap_are_named(seconds, num_workers, as_fast) -> None:
    found = table(*(measured(n, value) for n, values in seconds.items() for value in values))
    advice = recommend(found, n_cpus=4)
    assert (advice.num_workers, advice.as_fast) == (num_workers, as_fast)
    assert {row.n_workers: [row.fastest, row.slowest] for row in found} == {
        n: [min(values), max(values)] for n, values in seconds.items()
    }


@pytest.mark.parametrize(
    ("n_cpus", "expected"), [(1, (0, 1)), (3, (0, 1, 2, 3)), (16, (0, 1, 2, 4, 8, 16))]
)
def test_powers_of_two_up_to_all_cpus_are_tried(n_cpus, expected) -> None:
    assert default_workers(n_cpus) == expected


def test_benchmark_cases_are_spread_over_the_dataset(dataset, tmp_path) -> None:
    for number in range(9):
        dataset.add(f"c{number}")
    dataset.image_path("c0").write_bytes(b"no scan")
    config = dask_slicer.RunConfig(input_dir=dataset.root, output_dir=tmp_path / "out")
    chosen, files = choose_cases(config, n_cases=4)
    assert chosen.only == ("c1", "c3", "c5", "c7")
    assert files == [
        str(path)
        for name in chosen.only
        for path in (dataset.image_path(name), dataset.label_path(name))
    ]
    assert len(choose_cases(config, n_cases=40)[0].only) == 8


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_run_is_measured(tmp_path: Path, n_workers: int) -> None:
    write_dataset(tmp_path / "scans", n_cases=3, shape=(64, 64, 24))
    config = dask_slicer.RunConfig(
        input_dir=tmp_path / "scans", output_dir=tmp_path / "slices", num_workers=n_workers,
        dashboard_address="none",
    )  # fmt: skip
    found = measure(config)
    files = list((tmp_path / "slices").glob("*/*.npz"))
    sources = list((tmp_path / "scans").glob("*/*.nii.gz"))
    assert (found.n_workers, found.n_cases, found.n_failed) == (n_workers, 3, 0)
    assert found.n_slices == len(files) > 0
    assert found.bytes_out == sum(path.stat().st_size for path in files)
    assert found.bytes_in == sum(path.stat().st_size for path in sources)
    assert found.peak_rss > 10_000_000
    assert found.start_seconds > 0
    # What one thread did cannot have taken longer than it took.
    assert 0 < found.busy_seconds <= found.seconds
    assert found.cpu_seconds > 0
