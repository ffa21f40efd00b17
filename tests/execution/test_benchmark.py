"""The benchmark command: what it measures, what it concludes, what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dask_slicer
from dask_slicer.measuring import Measurement, measure
from dask_slicer.phantom import write_dataset
from dask_slicer.sweep import Row, choose_cases, default_workers, judge, rows


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch) -> None:
    monkeypatch.setattr("dask_slicer.sweep._PAUSE", 0.0)


def measured(n_workers: int, seconds: float, *, cpu: float = 8.0, busy: float = 8.0) -> Measurement:
    return Measurement(
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
            2, "CPU", "4 CPUs are there", id="more_could_be_tried",
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
def test_the_verdict_names_a_number_and_what_holds_it_back(
    measurements, num_workers, bottleneck, says
) -> None:
    verdict = judge(table(*measurements), n_cpus=4)
    assert (verdict.num_workers, verdict.bottleneck) == (num_workers, bottleneck)
    assert says in verdict.reason


@pytest.mark.parametrize(
    ("n_cpus", "expected"), [(1, (0, 1)), (3, (0, 1, 2, 3)), (16, (0, 1, 2, 4, 8, 16))]
)
def test_powers_of_two_up_to_all_cpus_are_tried(n_cpus, expected) -> None:
    assert default_workers(n_cpus) == expected


def test_cases_are_spread_over_the_dataset_and_sound(dataset, tmp_path) -> None:
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


def test_the_command_tells_and_keeps_what_it_found_and_removes_its_slices(
    dataset, tmp_path, invoke
) -> None:
    for case_id in "abc":
        dataset.add(case_id)
    output = tmp_path / "bench"
    result = invoke(
        *("benchmark", "--input_dir", dataset.root, "--output_dir", output, "--workers", "0,1"),
        *("--repeats", 2, "--cases", 2, "--window_size", 1, "--dashboard_address", "none"),
    )
    assert result.exit_code == 0, result.output
    assert "2 cases, " in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Use --num_workers ")
    found = json.loads((output / "results.json").read_text())
    assert [run["n_workers"] for run in found["runs"]] == [0, 1, 0, 1]
    assert [row["n_workers"] for row in found["rows"]] == [0, 1]
    assert found["config"]["window_size"] == 1
    assert found["cases"] == 2
    assert found["num_workers"] in (0, 1)
    assert {path.name for path in output.iterdir()} <= {"results.json", "speedup.png"}


def test_a_plot_is_drawn_where_matplotlib_is_installed(dataset, tmp_path, invoke) -> None:
    pytest.importorskip("matplotlib")
    dataset.add("a")
    result = invoke(
        *("benchmark", "--input_dir", dataset.root, "--output_dir", tmp_path / "bench"),
        *("--workers", "0", "--repeats", 1),
    )
    assert result.exit_code == 0, result.output
    plot = (tmp_path / "bench" / "speedup.png").read_bytes()
    assert plot.startswith(b"\x89PNG")
    assert f"Plot: {tmp_path / 'bench' / 'speedup.png'}" in result.stdout


def test_without_matplotlib_the_rest_is_done_and_the_extra_is_named(
    dataset, tmp_path, invoke, monkeypatch
) -> None:
    monkeypatch.setattr("dask_slicer.benchmark.find_spec", lambda name: None)
    dataset.add("a")
    result = invoke(
        *("benchmark", "--input_dir", dataset.root, "--output_dir", tmp_path / "bench"),
        *("--workers", "0", "--repeats", 1),
    )
    assert result.exit_code == 0, result.output
    assert "dask_slicer[plot]" in result.stdout
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {"results.json"}


def test_without_a_dataset_phantoms_are_made(tmp_path, invoke, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"n_cases": 2, "shape": (16, 16, 8)}
    monkeypatch.setattr(
        "dask_slicer.benchmark.ensure_dataset", lambda folder, **_: write_dataset(folder, **small)
    )
    result = invoke("benchmark", "--workers", "0", "--repeats", 1, "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("Use --num_workers 0.")
    assert (tmp_path / "dask_slicer_benchmark" / "phantoms" / "imagesTr").is_dir()
    assert (
        json.loads((tmp_path / "dask_slicer_benchmark" / "results.json").read_text())["cases"] == 2
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["--workers", "two"], "--workers must be numbers", id="no_number"),
        pytest.param(["--workers", "1,-1"], "--workers must be numbers", id="negative"),
        pytest.param(["--workers", ""], "--workers must be numbers", id="nothing"),
        pytest.param(["--num_workers", "2"], "--workers N,N... instead", id="num_workers"),
        pytest.param(["--scheduler", "tcp://127.0.0.1:1"], "leave out --scheduler", id="scheduler"),
        pytest.param(["--cluster", "slurm"], "leave out --cluster", id="cluster"),
        pytest.param(["--repeats", "0"], "--repeats", id="repeats"),
    ],
)
def test_what_cannot_be_swept_is_one_line(dataset, tmp_path, invoke, options, says) -> None:
    dataset.add("a")
    result = invoke(
        *("benchmark", "--input_dir", dataset.root, "--output_dir", tmp_path / "bench", *options)
    )
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_more_workers_than_cases_are_not_tried(dataset, tmp_path, invoke) -> None:
    dataset.add("a")
    result = invoke(
        *("benchmark", "--input_dir", dataset.root, "--output_dir", tmp_path / "bench"),
        *("--workers", "0,2,4", "--repeats", 1),
    )
    assert result.exit_code == 0, result.output
    assert "Note: 1 case, too few for 2, 4 workers" in result.stdout
    found = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert [run["n_workers"] for run in found["runs"]] == [0]


def test_a_case_that_fails_ends_the_benchmark_with_one_line(dataset, tmp_path, invoke) -> None:
    dataset.add("a")
    dataset.add("b")
    whole = bytearray(dataset.image_path("b").read_bytes())
    whole[-8] ^= 0xFF
    dataset.image_path("b").write_bytes(whole)
    result = invoke(
        *("benchmark", "--input_dir", dataset.root, "--output_dir", tmp_path / "bench"),
        *("--workers", "0", "--repeats", 1),
    )
    assert result.exit_code == 2
    assert "1 case failed" in result.stderr
    assert list((tmp_path / "bench").iterdir()) == []
