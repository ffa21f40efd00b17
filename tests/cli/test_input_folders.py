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


def test_folders_of_splits_win_over_a_file_of_splits(tmp_path, invoke) -> None:
    scans = lay(tmp_path / "scans", "train/images/a val/images/b", "train/labels/a val/labels/b")
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["b"], "val": ["a"]}))
    shown = plan(invoke, scans, "--splits", file)
    assert splits_of(shown) == {"a": "train", "b": "val"}
    assert "splits.json is not used: the dataset gives every case its split" in shown["notes"]


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
