"""A folder without a case: the error names what is in it, and one way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions

NUMBERS = range(1, 6)


def lay(root: Path, *names: str) -> None:
    """Make empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def each(*patterns: str) -> list[str]:
    """Return the names that patterns with {n} give."""
    return [pattern.format(n=n) for pattern in patterns for n in NUMBERS]


TREES = {
    "nothing": ([], "there is no file in it"),
    "DICOM": (each("p{n}/1.dcm", "p{n}/2.dcm"), "10 .dcm files: DICOM is not read; dcm2niix"),
    "CHAOS": (
        each("CT/{n}/DICOM_anon/i_1.dcm", "CT/{n}/Ground/liver_GT_000.png"),
        "5 .dcm files: DICOM is not read; dcm2niix makes NIfTI (also 5 .png files)",
    ),
    "PAR/REC": (each("{n}.PAR", "{n}.REC"), "PAR/REC is not read; dcm2niix makes NIfTI"),
    "MINC": (["a.mnc.gz"], "1 .mnc.gz file: MINC is not read; mnc2nii makes NIfTI"),
    "arrays": (each("{n}.npy"), "5 .npy files: arrays without geometry are not read"),
    "an archive": (["scans.zip"], "1 .zip file: an archive is not read; unpack it"),
    "other files": (
        ["a.txt", "b.txt", "README"],
        "3 files, none of them a volume such as .nii.gz (2 .txt, 1 no suffix)",
    ),
    "nnU-Net one folder down": (
        each("Dataset001_X/imagesTr/c{n}_0000.nii.gz", "Dataset001_X/labelsTr/c{n}.nii.gz"),
        "its folder Dataset001_X is a dataset (nnU-Net raw, 5 cases); did you mean "
        "--input_dir {root}/Dataset001_X?",
    ),
    "BTCV two folders down": (
        each(
            "RawData/Testing/images/i{n}.nii.gz",
            "RawData/Training/images/i{n}.nii.gz",
            "RawData/Training/labels/i{n}.nii.gz",
        ),
        "its folder RawData is a dataset (images/ and labels/, 5 cases); did you mean "
        "--input_dir {root}/RawData?",
    ),
    "train and another": (
        each("train/images/{n}.nii", "train/labels/{n}.nii", "new/images/{n}.nii"),
        "its folders train, new are datasets (the first: images/ and labels/, 5 cases); give one, "
        "such as --input_dir {root}/train",
    ),
    "case and study": (
        each("case{n}/study/ct.nii.gz", "case{n}/study/seg.nii.gz"),
        "10 volumes 2 folders down, such as case1/study/ct.nii.gz; read them with "
        "--images '*/*/ct.nii.gz' --labels '*/*/seg.nii.gz'",
    ),
    "case and study, with the case in the name": (
        each("c{n}/s/c{n}_t1.nii", "c{n}/s/c{n}_t2.nii", "c{n}/s/c{n}_seg.nii"),
        "--images '*/*/*_t1.nii' --images '*/*/*_t2.nii' --labels '*/*/*_seg.nii'",
    ),
    "case and study, without labels": (
        each("c{n}/s/scan{n}.nii.gz"),
        "read them with --images '*/*/*.nii.gz'",
    ),
    "case and study, with a name that says nothing": (
        each("c{n}/s/ct.nii.gz", "c{n}/s/leber.nii.gz"),
        "--images '*/*/leber.nii.gz'; use --labels for a label map among leber.nii.gz",
    ),
    "folders of modalities": (
        each("t1/p{n}.nii.gz", "t2/p{n}.nii.gz"),
        "10 volumes in no known layout, such as t1/p1.nii.gz; name images and labels with --images",
    ),
    "labels alone": (
        each("labelsTr/{n}.nii.gz"),
        "5 volumes, all named like labels, such as labelsTr/1.nii.gz; give the folder that holds "
        "images and labels",
    ),
    "BIDS without anat": (
        each("sub-{n}/dwi/sub-{n}_dwi.nii.gz"),
        "no image in sub-*/anat or sub-*/ses-*/anat, but 5 in dwi; "
        "--images 'sub-*/dwi/*_dwi.nii.gz' reads them",
    ),
    "labels of BIDS alone": (
        each("sub-{n}/anat/sub-{n}_dseg.nii.gz"),
        "5 files named like labels: sub-1/anat/sub-1_dseg.nii.gz",
    ),
    "a label of one case": (
        ["a/s/ct.nii", "b/s/ct.nii", "masks/s/x.nii"],
        "3 volumes in no known layout, such as a/s/ct.nii; name images and labels with --images",
    ),
    "no layout": (
        ["x/y/z.nii.gz", "a/b/c/d/e.nii"],
        "2 volumes in no known layout, such as a/b/c/d/e.nii; name images and labels with --images",
    ),
}


@pytest.mark.parametrize(("files", "reason"), TREES.values(), ids=TREES)
def test_the_error_names_the_files_and_one_way_out(tmp_path, files, reason, invoke) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    lay(root, *files)
    result = invoke("plan", "--input_dir", root)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: no case found in {root}: ")
    assert reason.format(root=root) in line
    assert len(line) < 400


def test_dicom_files_without_a_suffix_are_recognised_by_their_bytes(tmp_path) -> None:
    (tmp_path / "IM_0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(DatasetError, match="1 file without a suffix: DICOM is not read; dcm2niix"):
        find_cases(tmp_path)


def test_a_layout_that_does_not_fit_says_what_it_lacks(tmp_path) -> None:
    lay(tmp_path, "imagesTr/a_0000.nii.gz")
    with pytest.raises(DatasetError, match="with --layout bids: no NIfTI file in sub-"):
        find_cases(tmp_path, InputOptions(layout="bids"))
    assert find_cases(tmp_path, InputOptions(layout="nnunet")).layout == "nnU-Net raw"


def test_a_folder_of_images_or_labels_names_the_folder_that_holds_both(tmp_path) -> None:
    lay(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii", "case/ct.nii", "case/segmentations/liver.nii")
    for folder in ("imagesTr", "labelsTr"):
        with pytest.raises(DatasetError) as caught:
            find_cases(tmp_path / folder)
        assert str(caught.value).endswith(f"did you mean --input_dir {tmp_path}?")
    with pytest.raises(DatasetError, match="named for labels alone; give the folder that holds"):
        find_cases(tmp_path / "case" / "segmentations")
