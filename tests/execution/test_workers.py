"""Where cases run changes nothing in what is written: here, on workers, on somebody's scheduler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from slice_formats import FOLDERS, FORMATS, options

import dask_slicer
from dask_slicer.cluster import client, local
from dask_slicer.execution import workers
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.monitoring.observer import Observer

pytestmark = pytest.mark.versions

N_CASES = 12
QUIET_DASHBOARD = ("--dashboard_address", "none")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_dataset(root, n_cases=N_CASES, shape=(24, 22, 9), seed=5)
    return root


@pytest.fixture(scope="module")
def written_here(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what a run in this process writes."""
    return in_this_process(scans, tmp_path_factory.mktemp("here") / "slices")


def in_this_process(scans: Path, output: Path, **settings: object) -> dict[str, bytes]:
    place = {"input_dir": scans, "output_dir": output, "num_workers": 0}
    dask_slicer.run(place | settings, progress=False)
    return contents(output)


def contents(output: Path) -> dict[str, bytes]:
    paths = [path for name in FOLDERS for path in (output / name).rglob("*") if path.is_file()]
    paths += [output / "slices.csv", output / "splits.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("format_", "n_workers"),
    [
        *[("npz", 2), ("png", 2), ("files", 2)],
        *(pytest.param("npz", n, marks=pytest.mark.slow) for n in (1, 4, -1)),
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in ("png", "files")),
    ],
)
def test_any_number_of_workers_writes_the_same_bytes(
    scans, tmp_path, invoke, format_, n_workers
) -> None:
    result = invoke(
        *("run", "--input_dir", scans, "--output_dir", tmp_path / "slices"),
        *("--num_workers", n_workers, *QUIET_DASHBOARD, *options(format_, tmp_path)),
    )
    assert result.exit_code == 0, result.output
    expected = in_this_process(scans, tmp_path / "here", **FORMATS[format_])
    assert len(expected) > N_CASES
    assert contents(tmp_path / "slices") == expected


@pytest.mark.slow
def test_a_process_can_run_twice_on_workers(scans, written_here, tmp_path) -> None:
    # In a process of its own, so that distributed is first imported by the first run.
    program = f"""
import dask_slicer
if __name__ == "__main__":
    for name in ("first", "second"):
        config = dask_slicer.RunConfig(
            input_dir={str(scans)!r}, output_dir=name, num_workers=2, dashboard_address="none"
        )
        dask_slicer.run(config)
"""
    (tmp_path / "twice.py").write_text(program)
    result = subprocess.run(
        [sys.executable, "twice.py"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "first") == contents(tmp_path / "second") == written_here


def test_the_settings_of_dask_stay_unchanged(scans, tmp_path, invoke) -> None:
    import dask
    import distributed  # noqa: F401, its import adds defaults

    before = dask.config.serialize(dask.config.config)
    result = invoke(
        *("run", "--input_dir", scans, "--output_dir", tmp_path / "slices"),
        *("--num_workers", 1, *QUIET_DASHBOARD, "--only", "phantom_001"),
    )
    assert result.exit_code == 0, result.output
    assert dask.config.serialize(dask.config.config) == before


def test_a_lost_scheduler_is_noticed_soon_by_default() -> None:
    import dask

    tcp, connect = "distributed.comm.timeouts.tcp", "distributed.comm.timeouts.connect"
    with client.client_timeouts():
        assert (dask.config.get(tcp), dask.config.get(connect)) == ("20s", "10s")
    with dask.config.set({tcp: "40s"}), client.client_timeouts():
        assert (dask.config.get(tcp), dask.config.get(connect)) == ("40s", "10s")
    assert (dask.config.get(tcp), dask.config.get(connect)) == ("30s", "30s")


@pytest.mark.slow
def test_spawned_workers_write_the_same_as_on_macos_and_windows(
    scans, written_here, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(local.sys, "platform", "darwin")
    report = dask_slicer.run(
        {"input_dir": scans, "output_dir": tmp_path / "slices", "num_workers": 2},
        dashboard_address="none",
        progress=False,
    )
    assert report.n_committed == N_CASES
    assert contents(tmp_path / "slices") == written_here


# -- somebody's scheduler ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory, started_scheduler):
    with started_scheduler(tmp_path_factory.mktemp("dask"), n_workers=2) as started:
        yield started


@pytest.mark.parametrize("option", ["--scheduler", "--scheduler_file"])
def test_a_running_scheduler_is_used_and_left_running(
    scans, written_here, scheduler, tmp_path, invoke, option
) -> None:
    where = scheduler.address if option == "--scheduler" else scheduler.file
    result = invoke(
        *("run", "--input_dir", scans, "--output_dir", tmp_path / "slices", option, where),
        *("--num_workers", 7),
    )
    assert result.exit_code == 0, result.output
    assert "--num_workers has no effect: a running scheduler has its own" in result.stdout
    assert scheduler.address in result.stdout
    assert contents(tmp_path / "slices") == written_here
    assert scheduler.process.poll() is None


GB = 10**9


@pytest.mark.parametrize(
    ("num_workers", "memory", "expected", "said"),
    [
        (-1, 64 * GB, 8, ""),
        (-1, GB // 2, 2, "only 2 of 8 CPUs are used"),
        (4, GB // 2, 4, "use --num_workers 2"),
    ],
    ids=["room for all CPUs", "lowered to what fits", "as asked, with a warning"],
)
def test_the_number_of_workers_is_limited_by_memory_only_by_default(
    dataset, tmp_path: Path, monkeypatch, num_workers: int, memory: int, expected: int, said: str
) -> None:
    dataset.add("small")
    notes: list[str] = []
    observer = Observer()
    monkeypatch.setattr(observer, "note", notes.append)
    monkeypatch.setattr(workers.system, "cpu_count", lambda: 8)
    monkeypatch.setattr(workers.system, "memory_bytes", lambda: memory)
    config = dask_slicer.RunConfig(
        input_dir=dataset.root, output_dir=tmp_path / "slices", num_workers=num_workers
    )
    plan = dask_slicer.plan(config)
    assert workers._n_workers(config, 20, plan.peak_bytes, observer) == expected
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)


@pytest.mark.parametrize(
    ("given", "n_cpus", "n_cases", "expected", "said"),
    [
        ({}, 8, 20, 4, ""),
        ({}, 2, 20, 2, ""),
        ({"num_workers": 4}, 2, 20, 4, "4 workers share 2 CPUs; --num_workers 2 takes less memory"),
        ({"num_workers": 4}, 2, 2, 2, ""),
        ({"num_workers": 4}, 4, 20, 4, ""),
        ({"num_workers": -1}, 2, 20, 2, ""),
    ],
    ids=["default", "few CPUs", "as asked, noted", "few cases", "as many", "all CPUs"],
)
def test_the_default_number_of_workers_is_at_most_that_of_the_cpus(
    monkeypatch, given, n_cpus, n_cases, expected, said
) -> None:
    notes: list[str] = []
    observer = Observer()
    monkeypatch.setattr(observer, "note", notes.append)
    monkeypatch.setattr(workers.system, "cpu_count", lambda: n_cpus)
    monkeypatch.setattr(workers.system, "memory_bytes", lambda: 64 * GB)
    config = dask_slicer.RunConfig(input_dir="a", output_dir="b", **given)
    assert workers._n_workers(config, n_cases, GB, observer) == expected
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)
