"""BIDS and trees like it: which image has which label, and what is left out, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts import bids
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.tree import FileTree

ROOT = Path("/scans")
BOTH = ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz"]
T1 = BOTH[:1]
ISLES = [
    f"rawdata/sub-strokecase000{n}/ses-0001/{folder}/sub-strokecase000{n}_ses-0001_{suffix}.nii.gz"
    for n in (1, 2)
    for folder, suffix in (("anat", "FLAIR"), ("dwi", "adc"), ("dwi", "dwi"))
]
ISLES_LABELS = [
    f"derivatives/sub-strokecase000{n}/ses-0001/sub-strokecase000{n}_ses-0001_msk.nii.gz"
    for n in (1, 2)
]
ATLAS = "R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym"


def matched(files: list[str], **options: Any) -> LayoutMatch:
    return bids.match(FileTree(ROOT, files), InputOptions(**options))


def labels_of(match: LayoutMatch) -> dict[str, str | None]:
    """Return the label of each case, relative to the root."""
    return {
        case.case_id: case.label and Path(case.label).relative_to(ROOT).as_posix()
        for case in match.cases
    }


LABELS = {
    "VerSe": (
        [
            "rawdata/sub-gl003/sub-gl003_dir-ax_ct.nii.gz",
            "derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
        ],
        {"sub-gl003_dir-ax_ct": "derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz"},
    ),
    "VerSe20, a part of it": (
        [
            "d/rawdata/sub-verse400/sub-verse400_split-verse253_ct.nii.gz",
            "d/rawdata/sub-verse400/sub-verse400_split-verse260_ct.nii.gz",
            "d/derivatives/sub-verse400/sub-verse400_split-verse253_seg-vert_msk.nii.gz",
        ],
        {
            "sub-verse400_split-verse253_ct": "d/derivatives/sub-verse400/"
            "sub-verse400_split-verse253_seg-vert_msk.nii.gz",
            "sub-verse400_split-verse260_ct": None,
        },
    ),
    "ATLAS 2": (
        [f"{ATLAS}_T1w.nii.gz", f"{ATLAS}_label-L_desc-T1lesion_mask.nii.gz"],
        {
            "sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w": f"{ATLAS}_label-L_desc-T1lesion_mask"
            ".nii.gz"
        },
    ),
    "a label of another suffix": (
        [*T1, "derivatives/labels/sub-1/anat/sub-1_T2w_seg-manual.nii.gz"],
        {"sub-1_T1w": None},
    ),
    "the suffix decides": (
        [
            *BOTH,
            "derivatives/labels/sub-1/anat/sub-1_T1w_lesion-manual.nii.gz",
            "derivatives/labels/sub-1/anat/sub-1_T2w_gmseg-manual.nii.gz",
        ],
        {
            "sub-1_T1w": "derivatives/labels/sub-1/anat/sub-1_T1w_lesion-manual.nii.gz",
            "sub-1_T2w": "derivatives/labels/sub-1/anat/sub-1_T2w_gmseg-manual.nii.gz",
        },
    ),
    "a suffix of their own decides": (
        ["sub-1/anat/sub-1_a.nii", "sub-1/anat/sub-1_b.nii", "sub-1/anat/sub-1_desc-x_b_dseg.nii"],
        {"sub-1_a": None, "sub-1_b": "sub-1/anat/sub-1_desc-x_b_dseg.nii"},
    ),
    "several raters, of whom one": (
        [*T1, "derivatives/m/sub-1/anat/sub-1_T1w_rater-2_mask.nii.gz"],
        {"sub-1_T1w": "derivatives/m/sub-1/anat/sub-1_T1w_rater-2_mask.nii.gz"},
    ),
    "a label of another session": (
        ["sub-1/anat/sub-1.nii", "derivatives/m/sub-1/ses-2/anat/sub-1_ses-2_mask.nii"],
        {"sub-1": None},
    ),
    "the space decides": (
        [*BOTH, "derivatives/m/sub-1/anat/sub-1_space-T2w_dseg.nii.gz"],
        {"sub-1_T1w": None, "sub-1_T2w": "derivatives/m/sub-1/anat/sub-1_space-T2w_dseg.nii.gz"},
    ),
    "a label in the space of the image, and another": (
        [
            *T1,
            "derivatives/m/sub-1/anat/sub-1_dseg.nii.gz",
            "derivatives/m/sub-1/anat/sub-1_space-MNI_dseg.nii.gz",
        ],
        {"sub-1_T1w": "derivatives/m/sub-1/anat/sub-1_dseg.nii.gz"},
    ),
    "a label beside its image": (
        [*T1, "sub-1/anat/sub-1_dseg.nii.gz"],
        {"sub-1_T1w": "sub-1/anat/sub-1_dseg.nii.gz"},
    ),
    "a weak word beside an image": (
        [*T1, "sub-1/anat/sub-1_T1w_lesion.nii.gz"],
        {"sub-1_T1w": "sub-1/anat/sub-1_T1w_lesion.nii.gz"},
    ),
    "an image in a pipeline that says labels": (
        [*T1, "derivatives/synthseg/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz"],
        {"sub-1_T1w": None},
    ),
    "the pipeline says labels": (
        [*T1, "derivatives/labels/sub-1/anat/sub-1_T1w.nii.gz"],
        {"sub-1_T1w": "derivatives/labels/sub-1/anat/sub-1_T1w.nii.gz"},
    ),
    "deep in derivatives": (
        [*T1, "derivatives/a/b/sub-1/anat/sub-1_label-x_mask.nii.gz"],
        {"sub-1_T1w": "derivatives/a/b/sub-1/anat/sub-1_label-x_mask.nii.gz"},
    ),
    "flat derivatives": (
        [*T1, "derivatives/sub-1_dseg.nii.gz"],
        {"sub-1_T1w": "derivatives/sub-1_dseg.nii.gz"},
    ),
    "a label for two images of a session": (
        [*BOTH, "sub-1/anat/sub-1_dseg.nii.gz"],
        dict.fromkeys(("sub-1_T1w", "sub-1_T2w"), "sub-1/anat/sub-1_dseg.nii.gz"),
    ),
    "a subject whose name is spelled in two ways": (
        [
            "sub-Mu\u0308/anat/sub-Mu\u0308_T1w.nii",
            "derivatives/m/sub-M\u00fc/sub-M\u00fc_dseg.nii",
        ],
        {"sub-Mu\u0308_T1w": "derivatives/m/sub-M\u00fc/sub-M\u00fc_dseg.nii"},
    ),
    "an acquisition named tumor": (
        ["sub-1/anat/sub-1_acq-tumorseg_T1w.nii", "sub-1/anat/sub-1_T1w.nii"],
        {"sub-1_acq-tumorseg_T1w": None, "sub-1_T1w": None},
    ),
    "datasets beside each other": (
        ["a/sub-1/anat/sub-1_T1w.nii", "b/derivatives/m/sub-1/anat/sub-1_dseg.nii"],
        {"sub-1_T1w": None},
    ),
}


@pytest.mark.parametrize(("files", "labels"), LABELS.values(), ids=LABELS)
def test_a_label_belongs_to_the_image_whose_entities_it_repeats(files, labels) -> None:
    match = matched(files)
    assert labels_of(match) == labels
    assert not match.problems
    images = {Path(path).relative_to(ROOT).as_posix() for c in match.cases for path in c.images}
    assert images | {*filter(None, labels.values())} | match.left_out.keys() == set(files)


LEFT_OUT = {
    "sub-1/func/sub-1_task-x_bold.nii.gz": "--images 'sub-*/func/*_bold.nii.gz' reads it",
    "sub-1/dwi/sub-1_dwi.nii.gz": "in dwi/",
    "sub-1/anat/sub-1_T1w_defacemask.nii.gz": "mask of the brain or of a removed face",
    "derivatives/f/sub-1/anat/sub-1_desc-brain_mask.nii.gz": "mask of the brain or",
    "derivatives/f/sub-1/anat/sub-1_T1w_brainmask.nii.gz": "--label_name uses it",
    "derivatives/f/sub-1/anat/sub-1_label-GM_probseg.nii.gz": "probabilities, no label map",
    "derivatives/f/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz": "in derivatives/, and not named",
    "sourcedata/sub-1/anat/sub-1_T1w.nii.gz": "in sourcedata/",
}


def test_other_files_are_left_out_with_a_reason_and_are_no_problem(tmp_path) -> None:
    for path in (*T1, *LEFT_OUT):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    match = find_cases(tmp_path)
    assert [(case.case_id, case.label) for case in match.cases] == [("sub-1_T1w", None)]
    assert (match.problems, match.notes) == ([], [])
    reasons = {role.path: role.detail for role in match.files if role.role == "left out"}
    assert reasons.keys() == LEFT_OUT.keys()
    for path, reason in LEFT_OUT.items():
        assert reason in reasons[path]


SEVERAL = [
    *T1,
    "derivatives/labels/sub-1/anat/sub-1_T1w_lesion-manual.nii.gz",
    "derivatives/labels/sub-1/anat/sub-1_T1w_label-cyst_mask.nii.gz",
    "derivatives/other/sub-1/anat/sub-1_desc-aseg_dseg.nii.gz",
    "derivatives/other/sub-1/anat/sub-1_desc-brain_mask.nii.gz",
]
NAMES = {
    "lesion-manual": 1,
    "lesion": 1,
    "liver": None,
    "cyst": 2,
    "label-cyst": 2,
    "label-cyst_mask": 2,
    "aseg": 3,
    "DSEG": 3,
    "brain": 4,
}


@pytest.mark.parametrize(("name", "number"), NAMES.items())
def test_label_name_chooses_among_several_labels(name, number) -> None:
    match = matched(SEVERAL, label_name=name)
    if number is None:
        assert match.problems[0].startswith(f"no label is called {name} (--label_name); labels are")
        return
    assert (labels_of(match), match.problems) == ({"sub-1_T1w": SEVERAL[number]}, [])
    others = {*SEVERAL[1:4]} - {SEVERAL[number]}
    assert {match.left_out[path] for path in others} == {
        f"not the label that --label_name {name} chooses"
    }


def test_several_labels_are_refused_with_the_names_to_choose_from(tmp_path, invoke) -> None:
    for path in SEVERAL:
        (tmp_path / "scans" / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(
            nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), tmp_path / "scans" / path
        )
    command = ("run", "-i", tmp_path / "scans", "-o", tmp_path / "slices", "--num_workers", 0)
    refused = invoke(*command)
    assert refused.exit_code == 2
    assert (
        "1 case with several labels, such as sub-1_T1w: label-cyst_mask, lesion-manual, "
        "desc-aseg_dseg; choose one, such as --label_name label-cyst_mask" in refused.stderr
    )
    assert invoke(*command, "--label_name", "cyst").exit_code == 0


def test_labels_that_may_belong_to_two_datatypes_are_refused() -> None:
    (problem,) = matched([*ISLES, *ISLES_LABELS]).problems
    assert problem == (
        f"2 labels may belong to images in anat or dwi, such as {ISLES_LABELS[0]}; choose, such as "
        "--images 'rawdata/sub-*/ses-*/dwi/*_dwi.nii.gz' "
        "--labels 'derivatives/sub-*/ses-*/*_msk.nii.gz'"
    )


PUBLIC = {
    "VerSe": (LABELS["VerSe"][0], 0, "Plan: 1 case"),
    "ATLAS 2": (LABELS["ATLAS 2"][0], 0, "Plan: 1 case"),
    "ISLES 2022": ([*ISLES, *ISLES_LABELS], 2, "--labels 'derivatives/sub-*/ses-*/*_msk.nii.gz'"),
}


@pytest.mark.parametrize(("files", "status", "text"), PUBLIC.values(), ids=PUBLIC)
def test_public_datasets_are_read_or_refused(tmp_path, invoke, files, status, text) -> None:
    for path in files:
        (tmp_path / "scans" / path).parent.mkdir(parents=True, exist_ok=True)
        voxels = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
        nib.save(voxels, tmp_path / "scans" / path)
    command = ("run", "-i", tmp_path / "scans", "-o", tmp_path / "slices", "--num_workers", 0)
    result = invoke(*command)
    assert result.exit_code == status
    assert text in result.output


def test_labels_of_a_datatype_that_is_not_read_stop_a_run(tmp_path) -> None:
    label = "derivatives/m/sub-1/dwi/sub-1_dwi_seg.nii.gz"
    for path in (*T1, "sub-1/dwi/sub-1_dwi.nii.gz", label):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (problem,) = find_cases(tmp_path).problems
    assert (
        f"no case has a label, which would leave out 1 file named like labels: {label}" in problem
    )


@pytest.mark.parametrize(
    "path", ["derivatives/me/sub-1/anat/sub-2_T1w_seg.nii.gz", "sub-1/anat/sub-2_T2w.nii.gz"]
)
def test_a_file_in_the_folder_of_another_subject_is_refused(path) -> None:
    (problem,) = matched([*T1, path]).problems
    assert problem.startswith(
        f"1 file in the folder of another subject than the name says: {path}; move or rename"
    )


def test_a_folder_for_each_case_is_not_bids() -> None:
    files = ["sub-1/sub-1_t1.nii.gz", "sub-1/sub-1_t2.nii.gz", "sub-1/sub-1_seg.nii.gz"]
    assert not matched(files).cases
    assert len(matched([*files, "derivatives/m/sub-1/sub-1_t1_dseg.nii.gz"]).cases) == 2


def test_a_label_for_two_images_is_noted() -> None:
    (note,) = matched([*BOTH, "sub-1/anat/sub-1_dseg.nii.gz"]).notes
    assert note.startswith("1 label without an image's suffix in the name, used for several images")


def test_the_suffix_that_all_images_share_is_the_name_of_the_channel() -> None:
    assert matched(T1).channel_names == ("T1w",)
    assert matched(BOTH).channel_names == ()


def test_names_of_labels_come_from_a_single_table(tmp_path) -> None:
    files = [*T1, "sub-1/anat/sub-1_dseg.nii.gz", "derivatives/dseg.tsv"]
    (tmp_path / "derivatives").mkdir()
    (tmp_path / files[-1]).write_text("index\tname\n0\tbackground\n1\tliver\nx\ty\n3\ttumour\n")
    match = bids.match(FileTree(tmp_path, files), InputOptions())
    assert match.label_names == {1: "liver", 3: "tumour"}
    files.append("derivatives/other_dseg.tsv")
    assert not bids.match(FileTree(tmp_path, files), InputOptions()).label_names


def test_participants_are_compared_with_the_subjects(tmp_path) -> None:
    files = [*T1, "sub-2/anat/sub-2_T1w.nii.gz", "participants.tsv"]
    table = tmp_path / "participants.tsv"
    table.write_text("\ufeffparticipant_id\tgroup\nsub-1\tpatient\n3\tcontrol\n", encoding="utf-8")
    match = bids.match(FileTree(tmp_path, files), InputOptions())
    assert match.notes == [
        "participants.tsv lacks 1 subject: sub-2",
        "1 participant without an image: sub-3",
    ]
    assert [case.group for case in match.cases] == ["sub-1", "sub-2"]
    table.write_bytes(b"\xff\xfe\x00")
    assert bids.match(FileTree(tmp_path, files), InputOptions()).notes == [
        "participants.tsv lists no participant: it must be UTF-8 text with tabs between columns, "
        "and have the column participant_id"
    ]
