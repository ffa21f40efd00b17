"""Folders of splits, and input folders that are a part of a dataset only."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

IMAGE = np.random.default_rng(3).integers(-1000, 1000, (8, 9, 5)).astype(np.int16)
LABEL = (IMAGE > 500).astype(np.uint8)


def lay(root: Path, images: str, labels: str = "") -> Path:
    """Write volumes of some names, each with values of its own."""
    for array, names in ((IMAGE, images), (LABEL, labels)):
        for number, name in enumerate(names.split()):
            path = root / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.roll(array, number, axis=0), np.diag([1, 2, 3, 1])), path)
    return root


def plan(invoke, root: Path, *options: object) -> dict[str, object]:
    result = invoke("plan", "--input_dir", root, "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def splits_of(shown) -> dict[str, str]:
    return {case["case_id"]: case["split"] for case in shown["cases"]}


# -- folders of splits -----------------------------------------------------------------------------

STATED = {"a": "train", "b": "train", "c": "val", "d": "test"}
NAMES = (
    ("train", "val", "test"), ("Training", "Validation", "Testing"), ("training", "valid", "TEST"),
    ("train_data", "dev", "test_data"), ("tr", "va", "ts"),
)  # fmt: skip


@pytest.mark.parametrize("names", NAMES, ids="/".join)
@pytest.mark.parametrize("kinds", [("images", "labels"), ("imagesTr", "labelsTr"), ("img", "gt")])
def test_folders_of_splits_give_the_splits(tmp_path, invoke, names, kinds) -> None:
    train, val, test = names
    images, labels = (
        f"{train}/{kind}/a {train}/{kind}/b {val}/{kind}/c {test}/{kind}/d" for kind in kinds
    )
    shown = plan(invoke, lay(tmp_path, images, labels), "--train_ratio", 0.5)
    assert splits_of(shown) == STATED
    assert {file["role"] for file in shown["files"]} == {"image", "label"}


FOLDERS = ("train/a/{}", "train/b/{}", "val/c/{}", "test/d/{}")


@pytest.mark.parametrize(
    ("options", "prefix"),
    [((), ""), (("--images", "*/*/img.nii.gz", "--labels", "*/*/gt.nii.gz"), "{}_")],
    ids=["layout", "patterns"],
)
def test_folders_of_splits_hold_folders_of_cases(tmp_path, invoke, options, prefix) -> None:
    images, labels = (" ".join(FOLDERS).replace("{}", name) for name in ("img", "gt"))
    shown = plan(invoke, lay(tmp_path, images, labels), "--train_ratio", 0.5, *options)
    expected = {prefix.format(split) + case_id: split for case_id, split in STATED.items()}
    assert splits_of(shown) == expected
    assert {file["role"] for file in shown["files"]} == {"image", "label"}


def test_folders_of_splits_win_over_a_file_of_splits(tmp_path, invoke) -> None:
    scans = lay(tmp_path / "scans", "train/images/a val/images/b", "train/labels/a val/labels/b")
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["b"], "val": ["a"]}))
    shown = plan(invoke, scans, "--splits", file)
    assert splits_of(shown) == {"a": "train", "b": "val"}
    (note,) = (note for note in shown["notes"] if "split of every case" in note)
    assert note == "--splits has no effect: the dataset states the split of every case"
    assert not any("splits.json" in note for note in shown["notes"])


def test_files_of_cases_that_a_file_of_splits_lacks_are_left_out(tmp_path, invoke) -> None:
    scans = lay(tmp_path / "scans", "images/a images/b", "labels/a labels/b")
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["a"]}))
    files = plan(invoke, scans, "--splits", file)["files"]
    assert {file["path"]: file["detail"] for file in files if file["role"] == "left out"} == {
        "images/b.nii.gz": "not in splits.json",
        "labels/b.nii.gz": "not in splits.json",
    }


def test_a_folder_for_testing_without_labels_is_left_out(tmp_path, invoke) -> None:
    lay(tmp_path, "train/images/a val/images/b test/images/c", "train/labels/a val/labels/b")
    shown = plan(invoke, tmp_path)
    assert splits_of(shown) == {"a": "train", "b": "val"}
    details = {file["path"]: file["detail"] for file in shown["files"]}
    assert details["test/images/c.nii.gz"] == "for testing; --include_test uses it"
    shown = plan(invoke, tmp_path, "--include_test", "--allow_missing_labels")
    assert splits_of(shown) == {"a": "train", "b": "val", "c": "test"}


def test_the_only_folder_of_splits_that_is_used_is_split_by_ratios(tmp_path, invoke) -> None:
    lay(tmp_path, "train/images/a train/images/b test/images/c", "train/labels/a train/labels/b")
    shown = plan(invoke, tmp_path, "--train_ratio", 0.5, "--val_ratio", 0.5)
    assert sorted(splits_of(shown).values()) == ["train", "val"]


def test_what_is_left_out_in_a_folder_of_a_split_has_its_path(tmp_path, invoke) -> None:
    lay(tmp_path, "train/images/a val/images/b", "train/labels/a val/labels/b val/labels/z")
    shown = plan(invoke, tmp_path)
    details = {file["path"]: file["detail"] for file in shown["files"]}
    assert details["val/labels/z.nii.gz"] == "without an image"
    assert "in val/: 1 label without an image: labels/z.nii.gz" in shown["notes"]


def test_folders_for_validation_beside_images_have_a_reason(tmp_path, invoke) -> None:
    shown = plan(invoke, lay(tmp_path, "images/a images_val/b", "labels/a"))
    details = {file["path"]: file["detail"] for file in shown["files"]}
    why = "in images_val; a manifest with a split may use them"
    assert details["images_val/b.nii.gz"] == why


# -- parts of a dataset ----------------------------------------------------------------------------

DEEPER = {
    "a case": ("p1/t1 p1/t2 p2/t1 p2/t2", "p1/seg p2/seg", "p1", "."),
    "the only case": ("p1/t1 p1/t2", "p1/seg", "p1", "."),
    "a case with masks": ("s0/ct", "s0/segmentations/liver s0/segmentations/spleen", "s0", "."),
    "a subject": ("sub-1/anat/sub-1_T1w", "derivatives/m/sub-1/anat/sub-1_dseg", "sub-1", "."),
    "a datatype": ("sub-1/anat/sub-1_T1w", "derivatives/m/sub-1_dseg", "sub-1/anat", "."),
    "a session": ("sub-1/ses-2/anat/sub-1_ses-2_T1w", "", "sub-1", "."),
    "raw data": (
        "rawdata/sub-1/anat/sub-1_T1w", "derivatives/m/sub-1/anat/sub-1_dseg", "rawdata", "."
    ),
    "a subject of raw data": (
        "rawdata/sub-1/anat/sub-1_T1w", "derivatives/m/sub-1/anat/sub-1_dseg", "rawdata/sub-1", "."
    ),
    "derivatives": (
        "sub-1/anat/sub-1_T1w", "derivatives/m/sub-1/anat/sub-1_dseg", "derivatives", "."
    ),
    "images of nnU-Net": ("D1_X/imagesTr/a_0000", "D1_X/labelsTr/a", "D1_X/imagesTr", "D1_X"),
    "labels of nnU-Net": ("D1_X/imagesTr/a_0000", "D1_X/labelsTr/a", "D1_X/labelsTr", "D1_X"),
    "images": ("images/ct_1 images/ct_2", "masks/ct_1 masks/ct_2", "images", "."),
}  # fmt: skip


@pytest.mark.parametrize(("images", "labels", "part", "whole"), DEEPER.values(), ids=DEEPER)
def test_the_folder_above_is_named(tmp_path, invoke, images, labels, part, whole) -> None:
    root = lay(tmp_path / "scans", images, labels)
    result = invoke("run", "-i", root / part, "-o", tmp_path / "out", "--num_workers", 0)
    assert result.exit_code == 2
    assert f"did you mean --input_dir {root / whole}?" in result.stderr
    assert not (tmp_path / "out").exists()
    files = plan(invoke, root / whole)["files"]
    assert {file["role"] for file in files} == ({"image", "label"} if labels else {"image"})


OTHER_PROJECTS = {
    "masks of other images": ("scans/ct_1 scans/ct_2", "masks/brain_8 masks/brain_9", "scans"),
    "cases beside predictions": ("scans/p1/t1 scans/p2/t1", "predictions/run/x", "scans"),
    "raw data without labels": (
        "rawdata/sub-1/anat/sub-1_T1w derivatives/f/sub-1/anat/sub-1_desc-x_T1w", "", "rawdata"
    ),
    "a subject without labels": (
        "sub-1/anat/sub-1_T1w", "derivatives/m/sub-2/anat/sub-2_dseg", "sub-1"
    ),
    "other derivatives": ("sub-1/anat/sub-1_T1w derivatives/sub-1_desc-x_T1w", "", "derivatives"),
}  # fmt: skip


@pytest.mark.parametrize(("images", "labels", "part"), OTHER_PROJECTS.values(), ids=OTHER_PROJECTS)
def test_folders_without_labels_of_the_input_may_lie_beside_it(
    tmp_path, invoke, images, labels, part
) -> None:
    shown = plan(invoke, lay(tmp_path / "all", images, labels) / part)
    assert shown["cases"]
    assert "no case has a label; slices will hold images only" in shown["notes"]


@pytest.mark.parametrize("options", [["--layout", "one_folder"], ["--allow_missing_labels"]])
def test_images_are_read_without_the_labels_beside_them_on_request(
    tmp_path, invoke, options
) -> None:
    lay(tmp_path, "images/ct_1 images/ct_2", "masks/ct_1 masks/ct_2")
    assert len(plan(invoke, tmp_path / "images", *options)["cases"]) == 2


def test_a_case_with_others_beside_it_is_read_with_a_note(tmp_path, invoke) -> None:
    lay(tmp_path, "B-1/B-1_t1 B-1/B-1_t2 B-2/B-2_t1 B-2/B-2_t2", "B-1/B-1_seg B-2/B-2_seg")
    shown = plan(invoke, tmp_path / "B-1")
    note = f"B-2 beside B-1 has files of the same names; --input_dir {tmp_path} reads both as cases"
    assert note in shown["notes"]
    assert len(plan(invoke, tmp_path)["cases"]) == 2
