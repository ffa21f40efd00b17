"""Label maps are recognised by their names, and never taken for images."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_slicer.config.schema import RunConfig
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions
from dask_slicer.inputs.role_words import named_like_labels
from dask_slicer.planning.planner import make_plan


def lay(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("label", "images"),
    [
        ("truth", ["t1", "t2"]),
        ("segm", ["FLAIR", "T1"]),
        ("IBSR_01_segTRI", ["IBSR_01_ana"]),
        ("aparc+aseg", ["brain", "orig"]),
        ("ground_truth", ["image"]),
        ("groundtruth", ["image"]),
        ("LabelsForTraining", ["T1", "T1_1mm"]),
        ("LabelsForTesting", ["T1"]),
        ("GT", ["t2"]),
        ("case_01_gt", ["case_01"]),
        ("seg", ["flair", "t1", "t1ce", "t2"]),
        ("subject-1-label", ["subject-1-T1", "subject-1-T2"]),
        ("tumor", ["ct"]),
        ("mask_1", ["image_1"]),
        ("lesion_manual", ["flair"]),
        ("tumor_01_seg", ["tumor_01_t1", "tumor_01_t2"]),
        ("seg", ["t1", "t1_lesion_filled"]),
        ("CTMask", ["CT"]),
        ("wmh", ["FLAIR", "T1"]),
        ("brainmask", ["T1"]),
        ("gtv", ["t1c"]),
    ],
)
def test_the_label_of_a_case_is_told_from_its_images(label, images) -> None:
    assert named_like_labels([*images, label]) == [*([False] * len(images)), True]


@pytest.mark.parametrize(
    "names",
    [
        ["t1", "t2"],
        ["tumor_t1", "tumor_t2"],
        ["segment1", "maskless"],
        ["t1", "flair", "t1_lesion_filled"],
        ["t1", "t1_roi_crop"],
        ["pre_tumor", "post_tumor"],
        ["tumor"],
        ["1", "2"],
        ["", "é"],
    ],
)
def test_images_are_images(names) -> None:
    assert not any(named_like_labels(names))


def test_labels_of_both_kinds_are_labels() -> None:
    assert named_like_labels(["ct", "liver_seg", "tumor"]) == [False, True, True]


def test_a_mask_of_the_removed_face_is_no_label(tmp_path) -> None:
    mask = "derivatives/deface/sub-1/anat/sub-1_T1w_defacemask.nii.gz"
    lay(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", mask)
    dataset = find_cases(tmp_path)
    assert [case.label for case in dataset.cases] == [None]
    assert not dataset.problems


def test_several_labels_are_labels_although_all_share_a_word() -> None:
    assert named_like_labels(["liver_seg", "kidney_seg"]) == [True, True]


def test_a_folder_of_labels_only_is_refused(tmp_path, invoke) -> None:
    root = tmp_path / "scans"
    lay(root, "1/segm.nii.gz", "2/segm.nii.gz")
    command = ("run", "--input_dir", root, "--output_dir", tmp_path / "out", "--num_workers", 0)
    for more in ((), ("--allow_missing_labels",)):
        result = invoke(*command, *more)
        assert result.exit_code == 2
        assert "named like a label (1/segm.nii.gz, 2/segm.nii.gz)" in result.stderr
        assert "manifest" in result.stderr


def test_numbers_of_patients_are_not_channels(tmp_path) -> None:
    numbers = ("0001", "0004", "0005")
    lay(
        tmp_path,
        *(f"imagesTr/amos_{number}.nii.gz" for number in numbers),
        *(f"labelsTr/amos_{number}.nii.gz" for number in numbers),
        "imagesTs/amos_0600.nii.gz",
    )
    dataset = find_cases(tmp_path, InputOptions(include_test=True))
    assert not dataset.problems
    for case in dataset.cases[:3]:
        assert case.images == (str(tmp_path / "imagesTr" / f"{case.case_id}.nii.gz"),)
        assert case.label == str(tmp_path / "labelsTr" / f"{case.case_id}.nii.gz")
    assert [case.case_id for case in dataset.cases] == [
        *(f"amos_{number}" for number in numbers), "amos_0600",
    ]  # fmt: skip


def test_a_stray_label_does_not_make_channels_patients(tmp_path) -> None:
    lay(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/a_0000.nii.gz")
    dataset = find_cases(tmp_path)
    assert [case.case_id for case in dataset.cases] == ["a"]
    assert dataset.notes == ["1 label without an image: labelsTr/a_0000.nii.gz"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["imagesTr/amos_0007.nii.gz"], "1 image without one: amos_0007.nii.gz"),
        (
            ["imagesTr/amos_0000.nii.gz", "labelsTr/amos_0000.nii.gz"],
            "names with _0000 and other numbers: amos",
        ),
    ],
)
def test_numbers_that_may_be_patients_or_channels_are_refused(tmp_path, more, reason) -> None:
    lay(tmp_path, "imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", *more)
    (problem,) = find_cases(tmp_path).problems
    assert reason in problem


@pytest.mark.parametrize(
    ("files", "label"),
    [
        (
            ["images/a.nii.gz", "images/a_seg.nii.gz", "images/tumor_b.nii.gz"],
            "images/a_seg.nii.gz",
        ),
        (["images/volume-1.nii", "images/segmentation-1.nii"], "images/segmentation-1.nii"),
        (["imagesTr/p_1_0000.nii.gz", "imagesTr/seg_1_0000.nii.gz"], "imagesTr/seg_1_0000.nii.gz"),
    ],
)
def test_a_label_among_images_is_refused(tmp_path, files, label) -> None:
    lay(tmp_path, *files)
    dataset = find_cases(tmp_path, allow_missing_labels=True)
    assert any(f"named like labels: {label}" in problem for problem in dataset.problems)


@pytest.mark.parametrize(
    "files",
    [
        ["images/a.nii.gz", "images/mask_a.nii.gz", "labels/mask_a.nii.gz"],
        ["images/001.nii.gz", "images/tumor_001.nii.gz"],
        ["images/msk_1.nii.gz", "images/msk_2.nii.gz"],
        ["images/NDARAB123GT5.nii.gz", "images/NDARAB123.nii.gz"],
        ["sub-WMH01/anat/sub-WMH01_T1w.nii.gz", "sub-HC01/anat/sub-HC01_T1w.nii.gz"],
        [
            "sub-1/anat/sub-1_T1w.nii.gz",
            "derivatives/f/sub-1/func/sub-1_task-x_desc-brain_mask.nii.gz",
        ],
        ["Lesion_01/lesion_01.nii.gz", "Lesion_02/lesion_02.nii.gz"],
        ["p1/p1_ROI_CT.nii.gz", "p2/p2_ROI_CT.nii.gz"],
        [
            "sub-1/anat/sub-1_acq-tumor_T1w.nii.gz",
            "derivatives/f/sub-1/anat/sub-1_acq-tumor_desc-preproc_T1w.nii.gz",
        ],
    ],
)
def test_images_with_such_words_in_their_names_are_images(tmp_path, files) -> None:
    lay(tmp_path, *files)
    dataset = find_cases(tmp_path)
    assert not dataset.problems
    images = [name for name in files if not name.startswith(("labels/", "derivatives/"))]
    assert sorted(image for case in dataset.cases for image in case.images) == [
        str(tmp_path / name) for name in sorted(images)
    ]


def test_labels_behind_a_link_are_found_and_loops_end(tmp_path) -> None:
    lay(tmp_path, "scans/images/a.nii.gz", "elsewhere/a.nii.gz")
    scans = tmp_path / "scans"
    (scans / "masks").symlink_to(tmp_path / "elsewhere")
    (scans / "loop").symlink_to(scans)
    (scans / "itself").symlink_to("itself")
    dataset = find_cases(scans)
    assert [case.label for case in dataset.cases] == [str(scans / "masks/a.nii.gz")]


def test_a_manifest_that_is_given_is_obeyed_and_one_in_the_dataset_must_name_labels(
    dataset,
) -> None:
    dataset.add("a", label=None)
    (image,) = dataset.root.rglob("*.nii*")
    (dataset.root / "manifest.csv").write_text(f"case_id,image\na,{image}\n")
    (dataset.root / "masks").mkdir()
    (dataset.root / "masks" / image.name).write_bytes(image.read_bytes())
    output = dataset.root.parent / "out"
    assert not make_plan(
        RunConfig(input_dir=dataset.root / "manifest.csv", output_dir=output)
    ).problems
    (problem,) = make_plan(RunConfig(input_dir=dataset.root, output_dir=output)).problems
    assert "no case has a label, which would leave out 1 file named like labels: masks/" in problem


@pytest.mark.parametrize(
    "label",
    ["masks/x/a.nii.gz", "CTMasks/x/a.nii.gz", "docs/ground_truth/a.nii.gz"],
)
def test_labels_that_are_not_used_stop_a_run_until_it_is_wanted(
    dataset, tmp_path, invoke, label
) -> None:
    dataset.add("a")
    root = dataset.root
    (root / "images").mkdir(exist_ok=True)
    for image in root.rglob("*.nii*"):
        image.rename(root / "images" / "a.nii.gz")
        break
    for other in [*root.rglob("*")]:
        if other.is_file() and other.parent.name != "images":
            other.unlink()
    (root / label).parent.mkdir(parents=True, exist_ok=True)
    (root / label).write_bytes((root / "images/a.nii.gz").read_bytes())
    command = ("run", "--input_dir", root, "--output_dir", tmp_path / "out", "--num_workers", 0)
    refused = invoke(*command)
    assert refused.exit_code == 2
    assert f"1 file named like labels: {label}" in refused.stderr
    assert "--allow_missing_labels" in refused.stderr
    allowed = invoke(*command, "--allow_missing_labels")
    assert allowed.exit_code == 0
    assert f"left out 1 file named like labels: {label}" in allowed.stdout


def test_a_dataset_without_labels_needs_no_option(dataset) -> None:
    dataset.add("tumor_1", label=None)
    plan = make_plan(RunConfig(input_dir=dataset.root, output_dir=dataset.root.parent / "out"))
    assert not plan.problems
