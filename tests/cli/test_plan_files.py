"""The role of every file in `dask-slicer plan`, and a plan without an output directory."""

from __future__ import annotations

import json
import re

import pytest

import dask_slicer
from dask_slicer.config.schema import NO_OUTPUT
from dask_slicer.errors import UsageError


@pytest.fixture
def scans(dataset):
    for case_id in ("a", "b"):
        dataset.add(case_id)
    image = dataset.image_path("a").read_bytes()
    (dataset.root / "labelsTr" / "z.nii.gz").write_bytes(image)
    (dataset.root / "old").mkdir()
    (dataset.root / "old" / "a.nii.gz").write_bytes(image)
    (dataset.root / "old" / "a.dcm").write_bytes(b"")
    return dataset.root


def test_the_plan_has_a_table_of_files_by_kind(scans, tmp_path, invoke) -> None:
    result = invoke("plan", "--input_dir", scans, "--output_dir", tmp_path / "slices")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [re.split("  +", line.strip()) for line in result.stdout.splitlines()]
    assert rows[rows.index(["number", "files", "such as"]) + 1 :][:5] == [
        ["2", "image channel 0", "imagesTr/a_0000.nii.gz"],
        ["2", "label", "labelsTr/a.nii.gz"],
        ["1", "left out: not part of the layout nnU-Net raw", "old/a.nii.gz"],
        ["1", "left out: without an image", "labelsTr/z.nii.gz"],
        ["1", "not read: DICOM is not read; dcm2niix makes NIfTI", "old/a.dcm"],
    ]
    assert "Note: 1 .dcm file: DICOM is not read; dcm2niix makes NIfTI" in result.stdout


def test_the_plan_as_json_lists_every_file(scans, invoke) -> None:
    plan = json.loads(invoke("plan", "--input_dir", scans, "--json").stdout)
    assert [(f["path"], f["role"], f["case_id"]) for f in plan["files"]] == [
        ("imagesTr/a_0000.nii.gz", "image", "a"),
        ("imagesTr/b_0000.nii.gz", "image", "b"),
        ("labelsTr/a.nii.gz", "label", "a"),
        ("labelsTr/b.nii.gz", "label", "b"),
        ("labelsTr/z.nii.gz", "left out", None),
        ("old/a.dcm", "not read", None),
        ("old/a.nii.gz", "left out", None),
    ]
    assert plan["files"][4]["detail"] == "without an image"


def test_a_plan_in_a_notebook_shows_the_files(scans) -> None:
    html = dask_slicer.plan(input_dir=scans)._repr_html_()
    assert "left out: without an image" in html
    assert "labelsTr/z.nii.gz" in html
    assert NO_OUTPUT not in html


def test_a_plan_needs_no_output_dir(scans, tmp_path, invoke, monkeypatch) -> None:
    monkeypatch.chdir(scans)  # the folder of the scans is no output either
    result = invoke("plan", "--input_dir", ".")
    assert (result.exit_code, result.stderr) == (0, "")
    assert NO_OUTPUT not in result.stdout
    assert " free" not in result.stdout
    plan = json.loads(invoke("plan", "-i", ".", "--json").stdout)
    assert plan["config"]["output_dir"] is None
    assert plan["disk_free_bytes"] is None
    assert plan["output_bytes_estimate"] > 0
    assert "output_dir may be left out" in invoke("plan", "--help").stdout


def test_a_plan_without_an_output_dir_cannot_be_run(scans, tmp_path) -> None:
    plan = dask_slicer.plan(input_dir=scans)
    assert repr(plan) == "RunPlan(2 cases, 20 axial slices)"
    for use in (dask_slicer.run, dask_slicer.submit, dask_slicer.build_graphs):
        with pytest.raises(UsageError, match="output_dir"):
            use(plan)
    report = dask_slicer.run(plan, output_dir=tmp_path / "out", num_workers=0, progress=False)
    assert not report.remaining
    assert dask_slicer.plan(plan).config.has_output is False
