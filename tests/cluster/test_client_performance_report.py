"""`--performance_report`: written wherever the workers are; no empty file where there is none."""

from __future__ import annotations

import pytest

import dask_slicer
from dask_slicer.inputs.phantom import write_dataset

pytestmark = pytest.mark.versions


def scans(folder):
    write_dataset(folder / "scans", n_cases=3, shape=(24, 22, 9))
    return ("run", "--input_dir", folder / "scans", "--output_dir", folder / "slices")


@pytest.mark.slow
def test_a_run_on_local_workers_writes_it(tmp_path, invoke) -> None:
    report = tmp_path / "report.html"
    result = invoke(
        *scans(tmp_path), "--num_workers", 1, "--performance_report", report,
        *("--dashboard_address", "none"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = report.read_text(encoding="utf-8")
    assert "<html" in text
    assert '"slice","phantom_002"' in text  # in the task stream


@pytest.mark.slow
def test_a_run_on_a_shared_scheduler_writes_it(tmp_path, invoke, started_scheduler) -> None:
    report = tmp_path / "report.html"
    with started_scheduler(tmp_path, n_workers=1) as scheduler:
        result = invoke(
            *scans(tmp_path), "--scheduler", scheduler.address, "--performance_report", report
        )
    assert result.exit_code == 0, result.output
    assert '"slice","phantom_002"' in report.read_text(encoding="utf-8")


def test_without_workers_a_note_is_printed_and_no_empty_file_is_left(tmp_path, invoke) -> None:
    report = tmp_path / "report.html"
    result = invoke(*scans(tmp_path), "--num_workers", 0, "--performance_report", report)
    assert result.exit_code == 0
    assert "Note: --performance_report has no effect without workers" in result.output
    assert not report.exists()


def test_the_file_of_an_earlier_run_stays_if_this_run_has_none(tmp_path) -> None:
    report = tmp_path / "report.html"
    report.write_text("an earlier one")
    scans(tmp_path)
    config = dask_slicer.RunConfig(
        input_dir=tmp_path / "scans", output_dir=tmp_path / "slices", num_workers=0,
        performance_report=report,
    )  # fmt: skip
    dask_slicer.run(config)
    assert report.read_text() == "an earlier one"


def test_upload_code_in_this_process_is_noted(tmp_path, invoke) -> None:
    result = invoke(*scans(tmp_path), "--num_workers", 0, "--upload_code")
    assert "Note: --upload_code has no effect" in result.output
