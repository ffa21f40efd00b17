"""Paths of Windows, simulated: other drives, names of devices."""

from __future__ import annotations

import json
import ntpath
import os
from pathlib import PureWindowsPath
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dask_slicer.inputs import case
from dask_slicer.inputs.tree import FileTree


@pytest.fixture
def no_way_between_drives(monkeypatch) -> None:
    def relpath(path: str, start: str) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", relpath)


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        (r"C:\data\ct\a.nii", "ct/a.nii"),
        (r"C:\other\a.nii", "../other/a.nii"),
        (r"D:\scans\a.nii", "D:/scans/a.nii"),
        (r"\\server\share\a.nii", "//server/share/a.nii"),
    ],
)
def test_a_path_on_another_drive_stays_absolute(monkeypatch, path, relative) -> None:
    monkeypatch.setattr(case, "os", SimpleNamespace(path=ntpath, sep="\\", fspath=os.fspath))
    assert case.relative_path(path, r"C:\data") == relative


def test_a_manifest_may_name_scans_on_another_drive(
    dataset, tmp_path, invoke, no_way_between_drives
) -> None:
    for name in ("a", "b"):
        dataset.add(name)
    manifest = tmp_path / "lists" / "cases.csv"
    manifest.parent.mkdir()
    rows = [f"{name},{dataset.image_path(name)},{dataset.label_path(name)}\n" for name in "ab"]
    manifest.write_text("case_id,image,label\n" + "".join(rows))
    output = tmp_path / "slices"
    there = ("-i", manifest, "-o", output, "--num_workers", 0)
    assert invoke("run", *there).exit_code == 0
    assert json.loads((output / "dataset_info.json").read_text())["num_cases"] == 2
    assert "2 skipped" in invoke("run", *there).output
    result = invoke("plan", "-i", manifest, "--write_manifest", tmp_path / "lists" / "new.csv")
    assert result.exit_code == 0, result.output
    assert str(dataset.image_path("a")) in (tmp_path / "lists" / "new.csv").read_text()


def test_a_list_of_nnunet_with_images_on_another_drive_is_refused(
    dataset, invoke, no_way_between_drives
) -> None:
    dataset.root.mkdir()
    listed = {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]}
    description = listed | {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (dataset.root / "dataset.json").write_text(json.dumps(description))
    dataset.add("a")
    result = invoke("plan", "-i", dataset.root, "--layout", "nnunet")
    assert result.exit_code == 2, result.output
    assert "in several folders, or outside of" in " ".join(result.output.split())


NAMES = st.text(st.sampled_from("CONAUXPRNULTMcom1¹²03$. in"), max_size=8)


@given(NAMES)
@example("CONIN$")
@example("com¹")
@example("nul .txt")
def test_names_that_windows_reserves_are_refused_as_case_ids(name: str) -> None:
    if PureWindowsPath(name).is_reserved():
        assert case.case_id_problem(name) is not None


def test_an_output_in_the_dataset_is_known_by_any_of_its_names(tmp_path) -> None:
    # As on a disk that ignores case, where Slices is slices.
    root, output = tmp_path / "scans", tmp_path / "slices"
    for folder in (root / "ct", output / "train"):
        folder.mkdir(parents=True)
        (folder / "a.nii").touch()
    try:
        (root / "Slices").symlink_to(output, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    assert FileTree.scan(root, skip=output).paths == ("ct/a.nii",)
