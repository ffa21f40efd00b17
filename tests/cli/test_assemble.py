"""The command assemble: what it prints, its exit status, and where it runs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from predicted import predict, run

from dask_slicer.cli.options import PLACE_OPTIONS
from dask_slicer.config.run_settings import JobSettings, LocalSettings, SchedulerSettings
from dask_slicer.inputs.phantom import write_dataset
from dask_slicer.utils.signals import Interrupted


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("places")
    write_dataset(folder / "scans", n_cases=3, shape=(24, 20, 10), spacing=(12.0, 12.0, 18.0))
    output = run(folder / "scans", folder / "out", window_size=0)
    return output, predict(output, folder / "predictions")


def test_place_options_are_the_settings_of_a_place() -> None:
    models = (LocalSettings, SchedulerSettings, JobSettings)
    assert sorted(PLACE_OPTIONS) == sorted(name for model in models for name in model.model_fields)


def command(places: tuple[Path, Path], volumes: Path, *options: object) -> list[str]:
    output, predictions = places
    words = ("assemble", output, "--predictions", predictions, "--output_dir", volumes, *options)
    return [*map(str, words)]


def test_volumes_are_written_and_counted(places, tmp_path, invoke) -> None:
    arguments = command(places, tmp_path / "volumes", "--num_workers", 0, "--metrics")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "Assemble: 3 cases in this process" in result.output
    assert "Wrote 3 volumes to" in result.output
    assert "1.000" in result.output
    again = invoke(*arguments)
    assert again.exit_code == 0
    assert "Wrote 0 volumes, 3 skipped" in again.output
    page = invoke("report", str(tmp_path / "volumes"))
    assert page.exit_code == 0
    assert "Metrics, train" in (tmp_path / "volumes" / "report.html").read_text(encoding="utf-8")


def test_a_failed_case_is_named_and_the_exit_status_is_1(places, tmp_path, invoke) -> None:
    output, predictions = places
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in predictions.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    np.save(copy / "phantom_001_004.npy", np.zeros((2, 2)))
    result = invoke(*command((output, copy), tmp_path / "volumes", "--num_workers", 0))
    assert result.exit_code == 1
    assert "1 case failed (1 GeometryMismatch)" in result.output
    assert "phantom_001_004.npy has shape 2×2" in result.output
    assert len(list((tmp_path / "volumes").glob("*.nii.gz"))) == 2
    assert invoke("report", str(tmp_path / "volumes")).exit_code == 0
    page = (tmp_path / "volumes" / "report.html").read_text(encoding="utf-8")
    assert "; 1 failed" in page
    assert "phantom_001_004.npy has shape 2×2" in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threshold", "0.5"), "needs kind probabilities or logits"),
        (("--keep_probabilities",), "needs kind probabilities or logits"),
        (("--kind", "logit"), "Did you mean"),
        (("--fill", "-1"), "fill"),
        (("--kind", "logits", "--threshold", "2"), "threshold"),
        (("--predictions", "nowhere"), "is no folder"),
        (("--source", "nowhere"), "nowhere does not exist"),
        (("--cores", "0"), "cores"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    places, tmp_path, invoke, options, words
) -> None:
    result = invoke(*command(places, tmp_path / "volumes", *options))
    assert result.exit_code == 2
    assert words.lower() in result.output.lower()
    assert not (tmp_path / "volumes").exists()


def test_a_folder_of_predictions_counts_once(places, tmp_path, invoke) -> None:
    result = invoke(*command(places, tmp_path / "volumes", "--predictions", places[1]))
    assert result.exit_code == 2
    assert f"predictions names {places[1]} twice" in result.output


def test_a_stopped_call_says_so_and_leaves_no_metrics_of_other_volumes(
    places, tmp_path, invoke, monkeypatch
) -> None:
    volumes = tmp_path / "volumes"
    options = ("--num_workers", 0, "--metrics")
    assert invoke(*command(places, volumes, *options)).exit_code == 0

    def stop(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("dask_slicer.assembly.assemble._run", stop)
        stopped = invoke(*command(places, volumes, *options, "--fill", 1))
    assert stopped.exit_code == 130
    assert "Stopped. Finished cases are kept" in stopped.output
    assert not [path.name for path in volumes.iterdir() if path.name != "assembly.jsonl"]
    again = invoke(*command(places, volumes, *options))
    assert "Wrote 3 volumes to" in again.output
    assert len(list(volumes.glob("*.nii.gz"))) == 3


def test_what_is_missing_is_named(places, invoke) -> None:
    result = invoke("assemble", str(places[0]))
    assert result.exit_code == 2
    assert "assemble needs --predictions and --output_dir" in result.output


@pytest.mark.slow
def test_a_running_scheduler_assembles(places, tmp_path, invoke, started_scheduler) -> None:
    volumes = tmp_path / "volumes"
    with started_scheduler(tmp_path, n_workers=2) as scheduler:
        result = invoke(*command(places, volumes, "--scheduler", scheduler.address))
    assert result.exit_code == 0, result.output
    assert f" of {scheduler.address}" in result.output
    for path in volumes.glob("*.nii.gz"):
        (label,) = places[0].parent.glob(f"scans/labelsTr/{path.name}")
        np.testing.assert_array_equal(
            np.asarray(nib.load(path).dataobj), np.asarray(nib.load(label).dataobj)
        )
