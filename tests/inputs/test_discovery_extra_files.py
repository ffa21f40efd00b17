"""What a dataset holds beside its cases is left out, and that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch


def _find(root: Path, files: list[str], *, include_test: bool = False, **described) -> LayoutMatch:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if described:
        (root / "dataset.json").write_text(json.dumps(described))
    return find_cases(root, InputOptions(include_test=include_test))


@pytest.mark.parametrize(
    ("files", "described", "n_images", "said"),
    [
        pytest.param(
            ["a/ct.nii", "b/ct.nii", "c/ct.nii", "d/ct.nii", "d/ct_old.nii"],
            {},
            1,
            "1 file left out, most cases have none of this name: d/ct_old.nii",
            id="an image that one folder has",
        ),
        pytest.param(
            ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz"],
            {"channel_names": {"0": "CT"}},
            1,
            "1 file left out, dataset.json has 1 channel: imagesTr/a_0001.nii.gz",
            id="a channel that dataset.json does not have",
        ),
        pytest.param(
            ["sub-01/anat/sub-01_T1w.nii.gz", "derivatives/m/sub-01/anat/sub-01_acq-x_dseg.nii.gz"],
            {},
            1,
            "1 label without an image: derivatives/m/sub-01/anat/sub-01_acq-x_dseg.nii.gz",
            id="a BIDS label of another scan",
        ),
    ],
)
def test_files_that_belong_to_no_case_are_left_out_and_named(
    tmp_path: Path, files: list[str], described: dict[str, object], n_images: int, said: str
) -> None:
    dataset = _find(tmp_path, files, **described)
    assert {len(case.images) for case in dataset.cases} == {n_images}
    assert said in dataset.notes
    assert not [text for text in dataset.problems if "no case has a label" not in text]


def test_folders_whose_images_have_different_names_are_all_read(tmp_path: Path) -> None:
    dataset = _find(tmp_path, ["a/scan_of_a.nii", "b/scan_of_b.nii", "c/scan_of_c.nii"])
    assert [len(case.images) for case in dataset.cases] == [1, 1, 1]
    assert not dataset.notes


def test_a_modality_of_half_the_folders_is_missing_in_the_others(tmp_path: Path) -> None:
    dataset = _find(tmp_path, ["a/t1.nii", "a/t2.nii", "b/t1.nii"])
    assert [len(case.images) for case in dataset.cases] == [2, 2]


def test_decathlon_test_images_are_left_out_with_a_note_or_put_into_test(tmp_path: Path) -> None:
    files = ["imagesTr/a.nii.gz", "imagesTs/b.nii.gz"]
    described = {"training": [{"image": "./imagesTr/a.nii.gz"}], "test": ["./imagesTs/b.nii.gz"]}
    without = _find(tmp_path, files, **described)
    assert [case.case_id for case in without.cases] == ["a"]
    assert any("--include_test" in note for note in without.notes)
    with_test = _find(tmp_path, files, include_test=True, **described)
    assert {case.case_id: case.split for case in with_test.cases} == {"a": None, "b": "test"}
