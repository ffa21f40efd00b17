"""A clip range that does not suit the scans, as `plan`, `run`, `merge` and `report` tell it."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pytest

from dask_slicer.execution import quick_look
from dask_slicer.output.journal import last_records

SHAPE = (8, 9, 10)
CT_ABDOMEN = ("--clip_min", -160, "--clip_max", 240)
NOTE = "more than half of the bright voxels lie outside clip_min -160, clip_max 240 in "


def ct(dtype: str = "int16") -> np.ndarray:
    """Return a body of 0 to 100 HU in air, which is most of the volume and has noise."""
    volume = np.random.default_rng(1).normal(-1000, 8, SHAPE).clip(-1024)
    volume[2:6, 2:7, :] = np.random.default_rng(2).uniform(0, 100, (4, 5, 10))
    return volume.astype(dtype)


def mr(dtype: str = "int16") -> np.ndarray:
    """Return tissue of 300 to 900 in noise of 0 to 30, which is most of the volume."""
    volume = np.random.default_rng(1).uniform(0, 30, SHAPE)
    volume[2:6, 2:7, :] = np.random.default_rng(2).uniform(300, 900, (4, 5, 10))
    return volume.astype(dtype)


@pytest.fixture
def directories(dataset, tmp_path) -> list[object]:
    return ["--input_dir", dataset.root, "--output_dir", tmp_path / "slices"]


def run(invoke, directories, *options: object):
    return invoke("run", *directories, "--num_workers", 0, *options)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_the_abdomen_range_over_an_mr_is_told_in_the_last_lines_of_a_run(
    dataset, directories, invoke, dtype
) -> None:
    dataset.add("ct_1", ct(dtype))
    for name in ("mr_1", "mr_2", "mr_3", "mr_4"):
        dataset.add(name, mr(dtype))
    result = run(invoke, directories, *CT_ABDOMEN)
    assert result.exit_code == 0
    *_, wrote, note, _, _ = result.stdout.splitlines()
    assert wrote.startswith("Wrote 50 slices of 5 cases")
    assert f"Note: {NOTE}4 cases (mr_1, mr_2, mr_3 and 1 more): check that these limits" in note
    again = run(invoke, directories, *CT_ABDOMEN)  # also of cases that an earlier run wrote
    assert "Nothing to do" in again.stdout
    assert f"Note: {NOTE}4 cases" in again.stdout


@pytest.mark.parametrize("options", [(), ("--clip_max", 2000), ("--clip_min", -5)])
def test_a_range_that_suits_the_scans_and_no_range_are_not_told(
    dataset, directories, invoke, options
) -> None:
    dataset.add("mr_1", mr())
    assert "bright voxels" not in invoke("plan", *directories, *options).stdout
    assert "bright voxels" not in run(invoke, directories, *options).stdout


def test_plan_looks_at_a_few_cases_with_different_headers(dataset, directories, invoke) -> None:
    for name in ("ct_1", "ct_2", "ct_3"):
        dataset.add(name, ct())
    dataset.add("mr_1", mr("uint16"))
    result = invoke("plan", *directories, *CT_ABDOMEN)
    assert result.exit_code == 0
    assert f"Note: {NOTE}1 case (mr_1)" in result.stdout
    assert "(2 of 4 cases were looked at)" in result.stdout
    (note,) = json.loads(invoke("plan", *directories, *CT_ABDOMEN, "--json").stdout)["notes"]
    assert note.startswith(NOTE)


def test_plan_reads_no_voxel_without_a_clip_range(
    dataset, directories, invoke, monkeypatch
) -> None:
    dataset.add("mr_1", mr())
    monkeypatch.setattr(quick_look, "load_volume", lambda *_: pytest.fail("voxels were read"))
    assert invoke("plan", *directories).exit_code == 0


def test_plan_reads_no_more_than_its_limit(dataset, directories, invoke, monkeypatch) -> None:
    dataset.add("mr_1", mr())
    monkeypatch.setattr(quick_look, "_MOST_BYTES", mr().nbytes)  # without the label
    result = invoke("plan", *directories, *CT_ABDOMEN)
    assert (result.exit_code, "bright voxels" in result.stdout) == (0, False)


def test_a_scan_that_cannot_be_read_does_not_fail_the_plan(dataset, directories, invoke) -> None:
    dataset.add("mr_1", mr("uint16"))
    dataset.add("mr_2", mr())
    path = dataset.image_path("mr_2")
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole)[:-9])
    result = invoke("plan", *directories, *CT_ABDOMEN)
    assert result.exit_code == 0
    assert f"Note: {NOTE}1 case (mr_1)" in result.stdout


def test_partitions_and_their_merge_tell_their_cases(dataset, directories, invoke) -> None:
    for name in ("mr_1", "mr_2"):
        dataset.add(name, mr())
    result = run(invoke, directories, *CT_ABDOMEN, "--shard", "1/2")
    assert f"Note: {NOTE}1 case (mr_1)" in result.stdout
    run(invoke, directories, *CT_ABDOMEN, "--shard", "2/2")
    assert f"Note: {NOTE}2 cases (mr_1, mr_2)" in invoke("merge", directories[-1]).stdout


def test_the_report_names_the_cases(dataset, directories, invoke, tmp_path) -> None:
    dataset.add("ct_1", ct())
    dataset.add("mr_1", mr())
    run(invoke, directories, *CT_ABDOMEN)
    assert invoke("report", tmp_path / "slices").exit_code == 0
    page = (tmp_path / "slices" / "report.html").read_text(encoding="utf-8")
    assert f"Note: {NOTE}1 case (mr_1)" in page


def test_a_journal_of_an_earlier_version_is_read_as_before(
    dataset, directories, invoke, tmp_path
) -> None:
    dataset.add("mr_1", mr())
    run(invoke, directories, *CT_ABDOMEN)
    journal = tmp_path / "slices" / "journal.jsonl"
    text, n = re.subn(r',"clipped_share":[^,}]+', "", journal.read_text())
    assert n == 1
    journal.write_text(text)
    (record,) = last_records(journal)
    assert record.clip_fits
    again = run(invoke, directories, *CT_ABDOMEN)
    assert again.exit_code == 0
    assert "Skipped 1 case" in again.stdout
    assert "bright voxels" not in again.stdout


def test_windows_and_the_statistics_of_other_scans(dataset, directories, invoke, tmp_path) -> None:
    for name in ("mr_1", "mr_2"):
        dataset.add(name, mr())
    result = run(invoke, directories, "--ct_windows", "lung,subdural")  # each shows a part
    assert "bright voxels" not in result.stdout
    names = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
    values = dict(zip(names, (40, 40, 30, -500, 500, -160, 240), strict=True))
    file = tmp_path / "ct.json"
    file.write_text(json.dumps({"foreground_intensity_properties_per_channel": {"0": values}}))
    options = ("--overwrite", "--normalize", "dataset", "--statistics", file)
    result = run(invoke, directories, *options)
    assert "outside the percentiles in the statistics of the dataset in 2 cases" in result.stdout
