"""The benchmark command: what it prints, what it leaves behind, what it refuses."""

from __future__ import annotations

import json

import pytest

from dask_slicer.inputs.phantom import write_dataset


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch) -> None:
    monkeypatch.setattr("dask_slicer.execution.benchmark._PAUSE", 0.0)


@pytest.mark.slow
def test_the_command_prints_and_saves_results_and_removes_its_slices(
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
    assert "from - to" in result.stdout
    for row in found["rows"]:
        assert f"{row['fastest']:.2f} - {row['slowest']:.2f}" in result.stdout
    clear = "No clear winner" not in result.stdout
    assert clear == (not found["as_fast"])


def test_a_busy_machine_is_named(dataset, tmp_path, invoke, monkeypatch) -> None:
    dataset.add("a")
    arguments = ("benchmark", "--input_dir", dataset.root, "--output_dir", tmp_path / "bench")
    for in_use, is_noted in ((0.63, True), (0.05, False)):
        monkeypatch.setattr("dask_slicer.utils.system.cpu_share_in_use", lambda use=in_use: use)
        result = invoke(*arguments, "--workers", "0", "--repeats", 1)
        assert result.exit_code == 0, result.output
        assert ("Note: other programs use 63% of the CPUs" in result.stdout) == is_noted
        found = json.loads((tmp_path / "bench" / "results.json").read_text())
        assert found["machine"]["cpu_share_in_use_before"] == in_use
        assert "does not show how much times vary" in result.stdout


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
    monkeypatch.setattr("dask_slicer.cli.benchmark.find_spec", lambda name: None)
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
        "dask_slicer.cli.benchmark.ensure_dataset",
        lambda folder, **_: write_dataset(folder, **small),
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
def test_a_sweep_that_cannot_run_is_refused_in_one_line(
    dataset, tmp_path, invoke, options, says
) -> None:
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
