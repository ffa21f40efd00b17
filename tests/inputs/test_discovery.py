"""Datasets are recognised by their layout; what is near one, or odd in one, is said."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch

PAIRS = [
    {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
    {"image": "imagesTr/b.nii.gz"},
]


def lay(root: Path, *names: str, **described: object) -> None:
    """Make empty files; keywords are the content of dataset.json."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if described:
        (root / "dataset.json").write_text(json.dumps(described))


def tr(*names: str) -> list[str]:
    """Return the names of images to train with, of which b/c is the label of b."""
    return [f"imagesTr/{name}.nii.gz" for name in names]


def cases_of(dataset: LayoutMatch, root: Path) -> dict[str, list[str | None]]:
    """Return what each case is made of, relative to the root: its images, then its label."""

    def relative(path: str | None) -> str | None:
        return None if path is None else Path(path).relative_to(root).as_posix()

    assert [case.case_id for case in dataset.cases] == sorted(
        case.case_id for case in dataset.cases
    )
    return {
        case.case_id: [*map(relative, case.images), relative(case.label)] for case in dataset.cases
    }


# -- layouts -------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[str, list[str], dict[str, object], dict[str, list[str | None]]]] = {
    "nnunet": (
        "nnU-Net raw",
        [*tr("b_0000", "a_0000"), "labelsTr/a.nii.gz", "labelsTr/b.nii.gz"],
        {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"},
        {
            "a": ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"],
            "b": ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"],
        },
    ),
    "nnunet_two_modalities": (
        "nnU-Net raw",
        tr("a_0001", "a_0000"),
        {},
        {"a": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", None]},
    ),
    "nnunet_uncompressed": (
        "nnU-Net raw",
        ["imagesTr/a_0000.nii", "labelsTr/a.nii"],
        {},
        {"a": ["imagesTr/a_0000.nii", "labelsTr/a.nii"]},
    ),
    "nnunet_a_modality_is_missing_from_one_case": (
        "nnU-Net raw",
        tr("a_0000", "a_0001", "b_0001"),
        {},
        {
            "a": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", None],
            "b": ["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz", None],
        },
    ),
    "nnunet_a_modality_is_missing_from_all": (
        "nnU-Net raw",
        tr("a_0000"),
        {"modality": {"0": "T1", "1": "T2"}},
        {"a": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", None]},
    ),
    "nnunet_with_pairs_of_version_1": (
        "nnU-Net raw",
        [*tr("a_0000"), "labelsTr/a.nii.gz"],
        {"training": PAIRS, "modality": {"0": "CT"}},
        {"a": ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"]},
    ),
    "decathlon": (
        "Medical Segmentation Decathlon",
        [*tr("a", "b"), "labelsTr/a.nii.gz"],
        {"training": PAIRS, "test": ["./imagesTs/c.nii.gz"]},
        {"a": ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], "b": ["imagesTr/b.nii.gz", None]},
    ),
    "images_and_labels": (
        "images/ and labels/",
        ["images/a.nii.gz", "images/b.nii", "labels/b.nii.gz", "images/._a.nii.gz"],
        {},
        {"a": ["images/a.nii.gz", None], "b": ["images/b.nii", "labels/b.nii.gz"]},
    ),
    "bids": (
        "BIDS",
        [
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
            "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
            "sub-02/ses-2/func/sub-02_ses-2_bold.nii.gz",
            "derivatives/manual/sub-01/anat/sub-01_T1w_label-tumour_mask.nii.gz",
            "derivatives/manual/sub-02/ses-2/anat/sub-02_ses-2_dseg.nii.gz",
            "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        ],
        {},
        {
            "sub-01_T1w": [
                "sub-01/anat/sub-01_T1w.nii.gz",
                "derivatives/manual/sub-01/anat/sub-01_T1w_label-tumour_mask.nii.gz",
            ],
            "sub-02_ses-1_T1w": ["sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz", None],
            "sub-02_ses-2_T1w": [
                "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
                "derivatives/manual/sub-02/ses-2/anat/sub-02_ses-2_dseg.nii.gz",
            ],
        },
    ),
    "bids_labels_with_entities": (
        "BIDS",
        [
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-02/anat/sub-02_T1w.nii.gz",
            "derivatives/manual/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
            "derivatives/manual/sub-02/anat/sub-02_space-orig_desc-manual_dseg.nii.gz",
        ],
        {},
        {
            "sub-01_T1w": [
                "sub-01/anat/sub-01_T1w.nii.gz",
                "derivatives/manual/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
            ],
            "sub-02_T1w": [
                "sub-02/anat/sub-02_T1w.nii.gz",
                "derivatives/manual/sub-02/anat/sub-02_space-orig_desc-manual_dseg.nii.gz",
            ],
        },
    ),
    "brats_2021": (
        "a folder a case",
        [f"B_7/B_7_{name}.nii.gz" for name in ("flair", "seg", "t1", "t1ce", "t2")],
        {},
        {"B_7": [f"B_7/B_7_{name}.nii.gz" for name in ("flair", "t1", "t1ce", "t2", "seg")]},
    ),
    "brats_2023_a_modality_is_missing": (
        "a folder a case",
        ["B-7/B-7-t1n.nii.gz", "B-7/B-7-t2w.nii.gz", "B-8/B-8-t1n.nii.gz", "B-8/B-8-seg.nii.gz"],
        {},
        {
            "B-7": ["B-7/B-7-t1n.nii.gz", "B-7/B-7-t2w.nii.gz", None],
            "B-8": ["B-8/B-8-t1n.nii.gz", "B-8/B-8-t2w.nii.gz", "B-8/B-8-seg.nii.gz"],
        },
    ),
    "folder_whose_name_begins_a_files_name": (
        "a folder a case",
        ["c/ct.nii", "c/pet.nii", "d/ct.nii", "d/pet.nii"],
        {},
        {"c": ["c/ct.nii", "c/pet.nii", None], "d": ["d/ct.nii", "d/pet.nii", None]},
    ),
    "kits": (
        "a folder a case",
        ["case_1/imaging.nii.gz", "case_1/segmentation.nii.gz", ".git/x.nii.gz"],
        {},
        {"case_1": ["case_1/imaging.nii.gz", "case_1/segmentation.nii.gz"]},
    ),
}


@pytest.mark.parametrize(("layout", "files", "described", "cases"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_is_recognised_with_its_cases(tmp_path, layout, files, described, cases) -> None:
    lay(tmp_path, *files, **described)
    dataset = find_cases(tmp_path)
    assert dataset.layout == layout
    assert dataset.reason
    assert cases_of(dataset, tmp_path) == cases
    assert not dataset.problems


def test_files_that_macos_leaves_beside_others_are_no_cases(tmp_path) -> None:
    lay(
        tmp_path, *tr("a_0000", "._a_0000", "._b_0000"), "labelsTr/._a.nii.gz", "labelsTr/.DS_Store"
    )
    dataset = find_cases(tmp_path)
    assert cases_of(dataset, tmp_path) == {"a": ["imagesTr/a_0000.nii.gz", None]}
    assert not dataset.notes


def test_test_images_are_left_out_with_a_note_or_put_into_test(tmp_path) -> None:
    lay(tmp_path, *tr("a_0000"), "imagesTs/t_0000.nii.gz", "labelsTs/t.nii.gz")
    dataset = find_cases(tmp_path)
    assert list(cases_of(dataset, tmp_path)) == ["a"]
    assert dataset.notes == ["1 image in imagesTs left out; --include_test uses them for test"]
    dataset = find_cases(tmp_path, InputOptions(include_test=True))
    assert cases_of(dataset, tmp_path)["t"] == ["imagesTs/t_0000.nii.gz", "labelsTs/t.nii.gz"]
    assert {case.case_id: case.split for case in dataset.cases} == {"a": None, "t": "test"}
    assert not dataset.notes
    lay(tmp_path, "labelsTs/u.nii.gz")
    (note,) = find_cases(tmp_path, InputOptions(include_test=True)).notes
    assert note == "1 label without an image: labelsTs/u.nii.gz"


def test_test_labels_without_test_images_are_noted(tmp_path) -> None:
    lay(tmp_path, *tr("a_0000"), "labelsTs/t.nii", "labelsTs/t.nii.gz")
    dataset = find_cases(tmp_path, InputOptions(include_test=True))
    assert "no case has a label" in dataset.problems[0]
    assert dataset.notes == ["2 labels without an image: labelsTs/t.nii, labelsTs/t.nii.gz"]


def test_scans_of_one_bids_subject_are_one_group(tmp_path) -> None:
    lay(tmp_path, *LAYOUTS["bids"][1])
    groups = [case.group for case in find_cases(tmp_path).cases]
    assert groups == ["sub-01", "sub-02", "sub-02"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (tr("a_0000", "readme"), "1 file left out, no _0000 in the name: imagesTr/readme"),
        ([*tr("a_0000"), "labelsTr/z.nii.gz"], "1 label without an image: labelsTr/z.nii.gz"),
        (["images/a.nii", "labels/b.nii"], "1 label without an image: labels/b.nii"),
    ],
)
def test_what_is_left_out_is_noted(tmp_path, files, said) -> None:
    lay(tmp_path, *files)
    (note,) = find_cases(tmp_path).notes
    assert note.startswith(said)


# -- near misses and trouble ---------------------------------------------------------------------

NUMBERED = [f"liver_{number:04d}" for number in range(1, 13)]
MISSES = {
    "nothing": ([], {}, "there is no file in it"),
    "no_channels": (
        tr(*(f"liver_{number}" for number in range(12))),
        {},
        "nearest is nnU-Net raw: found 12 NIfTI files in imagesTr, none ends in _0000.nii.gz",
    ),
    "numbers_that_are_no_channels": (
        tr(*NUMBERED),
        {},
        "nearest is nnU-Net raw: found 12 NIfTI files in imagesTr, none ends in _0000.nii.gz",
    ),
    "pairs_that_are_gone": (
        ["readme"],
        {"training": PAIRS},
        "none of the 2 images that dataset.json",
    ),
    "loose_files": (["a.nii.gz", "b.nii"], {}, "nearest is "),
    "labels_alone": (
        ["labelsTr/a.nii.gz"],
        {},
        "1 volume, all named like labels, such as labelsTr/a.nii.gz; give the folder that holds",
    ),
}


@pytest.mark.parametrize(("files", "described", "said"), MISSES.values(), ids=MISSES)
def test_where_no_layout_fits_the_nearest_is_named(tmp_path, files, described, said) -> None:
    lay(tmp_path, *files, **described)
    with pytest.raises(DatasetError, match=re.escape(said)):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 100_000], ids=["cut", "not_utf8", "deep"]
)
def test_a_damaged_dataset_json_is_named(tmp_path, content) -> None:
    lay(tmp_path, *tr("a_0000"))
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        find_cases(tmp_path)


def test_a_dataset_json_may_begin_with_a_byte_order_mark(tmp_path) -> None:
    lay(tmp_path, *tr("a_0000"))
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "CT"}}', encoding="utf-8-sig")
    assert list(cases_of(find_cases(tmp_path), tmp_path)) == ["a"]


TROUBLE = {
    "image_twice": (["imagesTr/a_0000.nii.gz", "imagesTr/a_0000.nii"], "a_0000.nii"),
    "label_twice": ([*tr("a_0000"), "labelsTr/a.nii", "labelsTr/a.nii.gz"], "a.nii"),
    "case_ignored": (tr("a_0000", "A_0000"), "'A', 'a'"),
    "modality_twice": (["c/c_t1.nii", "c/c_t1.nii.gz"], "case c has two files for one modality"),
    "labels_of_two_hands": (
        ["c/c.nii", "c/seg_a.nii", "c/seg_b.nii"],
        "case c has 2 labels: seg_a",
    ),
    "equal_stems": (["images/a.nii", "images/a.nii.gz"], "images/a.nii and a.nii.gz"),
    "device": (tr("CON_0000"), "Windows reserves it for a device"),
    "test_and_train": ([*tr("a_0000"), "imagesTs/a_0000.nii.gz"], "'a' (2 times)"),
}


@pytest.mark.parametrize(("files", "said"), TROUBLE.values(), ids=TROUBLE)
def test_cases_with_the_same_id_are_a_problem(tmp_path, files, said) -> None:
    lay(tmp_path, *files)
    (problem,) = find_cases(tmp_path, InputOptions(include_test=True)).problems
    assert said in problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_in_place_of_a_description_is_not_waited_for(tmp_path) -> None:
    lay(tmp_path, *tr("a_0000"))
    os.mkfifo(tmp_path / "dataset.json")
    os.mkfifo(tmp_path / "cases.csv")
    assert [case.case_id for case in find_cases(tmp_path).cases] == ["a"]
    with pytest.raises(DatasetError, match="neither a folder nor a"):
        find_cases(tmp_path / "cases.csv")
