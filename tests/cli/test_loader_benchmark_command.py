"""`benchmark --loader`: what it prints, what it leaves behind, what it refuses."""

from __future__ import annotations

import json
import signal

import pytest

from dask_slicer.cli import benchmark
from dask_slicer.training import loader_benchmark


@pytest.fixture
def slices(dataset, slice_dataset):
    """Return an output of integers, in Zarr."""
    for case_id in "ab":
        dataset.add(case_id)
    return slice_dataset(format="zarr", dtype="source")


@pytest.fixture(autouse=True)
def _without_torch_on_an_idle_machine(monkeypatch) -> None:
    monkeypatch.setattr("dask_slicer.utils.system.cpu_share_in_use", lambda: 0.0)
    monkeypatch.setattr(loader_benchmark, "torch_device", lambda: None)


def test_the_command_prints_a_table_and_a_call_and_saves_both(slices, tmp_path, invoke) -> None:
    before = sorted(slices.rglob("*"))
    folder = tmp_path / "bench"
    result = invoke(
        *("benchmark", "--loader", slices, "--output_dir", folder, "--workers", "0,1,2"),
        *("--batch_size", 4, "--repeats", 2, "--seconds", "0.02", "--window_size", 1),
    )
    assert result.exit_code == 0, result.output
    saved = json.loads((folder / "loader.json").read_text())
    lines = [line for line in result.stdout.splitlines() if line.startswith(("float32", "source"))]
    # A first pass; float32 and integers with 0, 1 and 2 threads; normalised with 1 and 2; a cache.
    assert len(lines) == len(saved["rows"]) == 10
    assert "2 threads, first pass" in lines[0]
    assert sum("normalised" in line for line in lines) == 2
    assert len(saved["passes"]) == 1 + 2 * 9
    assert (saved["batch_size"], saved["shape"][0]) == (4, 3)
    assert result.stdout.splitlines()[-1].startswith(f"Use {saved['call']}: ")
    assert saved["call"].startswith(f"SliceDataset({str(slices)!r}, window_size=1")
    assert f"Bottleneck: {saved['bottleneck']} (" in result.stdout
    assert "DataLoader is not measured without torch" in result.stdout
    assert sorted(slices.rglob("*")) == before
    assert [path.name for path in folder.iterdir()] == ["loader.json"]


def test_the_table_fits_a_terminal_of_80_columns(slices, tmp_path, invoke, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = invoke(
        *("benchmark", "--loader", slices, "--output_dir", tmp_path / "bench"),
        *("--workers", "0,2", "--repeats", 1, "--seconds", "0.01"),
    )
    assert "…" not in result.stdout


def test_quiet_prints_the_call_alone(slices, tmp_path, invoke) -> None:
    result = invoke(
        *("benchmark", "--loader", slices, "--output_dir", tmp_path / "bench", "--quiet"),
        *("--workers", "1", "--repeats", 1, "--seconds", "0.01"),
    )
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1


def test_unequal_sizes_are_named_with_what_to_do(dataset, slice_dataset, tmp_path, invoke) -> None:
    dataset.add("a")
    output = slice_dataset(plane="axial,coronal")
    result = invoke(
        *("benchmark", "--loader", output, "--output_dir", tmp_path / "bench"),
        *("--workers", "1", "--repeats", 1, "--seconds", "0.01"),
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "Note: slices have 2 sizes, but a batch needs one. Only the 10 slices of 5×" in text
    assert "--size, or choose `cases` or `plane`" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["--clip_min", "0"], "leave out --clip_min", id="setting"),
        pytest.param(["--input_dir", "scans"], "leave out --input_dir", id="input_dir"),
        pytest.param(["--config", "ct_lung"], "leave out --config", id="config"),
        pytest.param(["--cases", "3"], "leave out --cases", id="cases"),
        pytest.param(["--overwrite"], "leave out --overwrite", id="flag"),
        pytest.param(["more"], "leave out the argument 'more'", id="argument"),
        pytest.param(["--num_workers", "2"], "--workers N,N... instead", id="num_workers"),
        pytest.param(["--workers", "two"], "--workers must be numbers", id="workers"),
        pytest.param(["--plane", "sagittal"], "not of sagittal", id="plane"),
        pytest.param(["--batch_size", "0"], "--batch_size", id="batch_size"),
        pytest.param(["--seconds", "0"], "--seconds", id="seconds"),
    ],
)
def test_options_of_the_other_benchmark_are_refused(slices, invoke, options, says) -> None:
    result = invoke("benchmark", "--loader", slices, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("options", [["--batch_size", "4"], ["--seconds", "1"]])
def test_options_of_loaders_need_an_output(invoke, options) -> None:
    result = invoke("benchmark", *options)
    assert result.exit_code == 2
    assert f"Error: {options[0]} needs --loader" in result.stderr


def test_what_is_no_output_is_refused_in_one_line(tmp_path, invoke) -> None:
    result = invoke("benchmark", "--loader", tmp_path / "none")
    assert result.exit_code == 2
    assert "none is not an output of dask-slicer" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_results_do_not_go_into_the_output(slices, invoke) -> None:
    result = invoke("benchmark", "--loader", slices, "--output_dir", slices)
    assert result.exit_code == 2
    assert "--output_dir is where results are written" in result.stderr
    assert not (slices / "loader.json").exists()


def test_ctrl_c_ends_it_without_results(slices, tmp_path, invoke, monkeypatch) -> None:
    read_first = benchmark.loader_benchmark.first_pass

    def interrupted(*arguments: object, **options: object) -> object:
        read_first(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr(benchmark.loader_benchmark, "first_pass", interrupted)
    result = invoke(
        *("benchmark", "--loader", slices, "--output_dir", tmp_path / "bench"),
        *("--workers", "1", "--repeats", 1, "--seconds", "0.01"),
    )
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert not list((tmp_path / "bench").iterdir())
