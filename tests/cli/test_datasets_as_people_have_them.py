"""Datasets as people have them, through the command line: exit status and the words that matter."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

IMAGE = np.random.default_rng(3).integers(-1000, 1000, (8, 9, 5)).astype(np.int16)
LABEL = (IMAGE > 500).astype(np.uint8)
SERIES = np.stack([np.roll(IMAGE, number, axis=1) for number in range(3)], axis=3)
AFFINE = np.diag([1.0, 2, 3, 1])
SHIFTED = np.array([[1.0, 0, 0, 9], [0, 2, 0, 9], [0, 0, 3, 9], [0, 0, 0, 1]])


def nifti(array, affine=AFFINE, edit: Callable[[bytearray], None] | None = None, **header) -> bytes:
    """Return a NIfTI-1 file; `edit` changes its bytes, and `header` calls setters of nibabel."""
    image = nib.Nifti1Image(array, affine)
    for name, value in header.items():
        getattr(image.header, f"set_{name}")(*value)
    content = bytearray(image.to_bytes())
    if edit:
        edit(content)
    return bytes(content)


def quaternion(length: float) -> Callable[[bytearray], None]:
    def edit(content: bytearray) -> None:
        struct.pack_into("<hh", content, 252, 1, 0)  # the codes of qform and sform
        struct.pack_into("<3f", content, 256, 0.6 * length, 0.8 * length, 0)

    return edit


def codes(qform: int, sform: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into("<hh", content, 252, qform, sform)


def pair(image: object, label: object) -> dict[str, object]:
    return {"images/a.nii": image, "labels/a.nii": label}


def masks(*structures: str) -> dict[str, object]:
    return {f"s{n}/segmentations/{name}.nii": LABEL for n in (0, 1) for name in structures}


def of_two(folder: str, content: object) -> dict[str, object]:
    return {f"{folder}/{case}.nii": content for case in "ab"}


def brats(*names: str) -> str:
    return " ".join(f"B-{case}/B-{case}-{name}" for case in (1, 2, 3) for name in names)


TASK01 = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd"},
    "labels": {"0": "background", "1": "edema"},
    "training": [
        {"image": f"./imagesTr/{case}.nii", "label": f"./labelsTr/{case}.nii"} for case in "ab"
    ],
}
SERIES_AND_LABELS = of_two("images", SERIES) | of_two("labels", LABEL)
TASK01_FILES = of_two("imagesTr", SERIES) | of_two("labelsTr", LABEL)
MASK_OF = "derivatives/m/sub-{0}/anat/sub-{0}_{1}"
T1W = "sub-1/anat/sub-1_T1w sub-2/anat/sub-2_T1w"
T1W_OF_FOUR = " ".join(f"sub-{number}/anat/sub-{number}_T1w" for number in range(1, 5))
PARTICIPANTS = {
    "participants.tsv": "participant_id\tsex\tfamily\nsub-1\tF\tx\n2\tF\tx\nsub-3\tM\ty\n"
    "sub-4\tM\tn/a\n"
}
GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"
TWO_FORMS = nifti(IMAGE, qform=(SHIFTED, 1), sform=(AFFINE, 1))

# Images, labels, other files, options, exit status of run, words of its output.
SITUATIONS = {
    # -- the roles of files ----------------------------------------------------------------------
    "a label map beside folders of images": (
        "1/pre/FLAIR 1/pre/T1 2/pre/FLAIR 2/pre/T1", "1/segm 2/segm", {}, [], 0,
        "Channels: 0 pre/FLAIR, 1 pre/T1"),
    "a word that all names have": (
        "images/tumor_1 images/tumor_2", "", {}, [], 0, "no case has a label"),
    "labels of free names in cases": (
        "1/ct 2/ct", "1/final 2/final", {}, [], 2, "looks like a label map (uint8, values 0, 1)"),
    "a label of a free name in one case": (
        "1/t1 2/t1 3/t1", "3/liver", {}, [], 2,
        "leave out 3/liver.nii.gz, a label map by its voxels"),
    "a stray label among images": (
        "images/1 images/2", "images/liver labels/1_seg", {}, ["--allow_missing_labels"], 2,
        "images/liver.nii.gz looks like a label map"),
    "a label that is named like an image": (
        "ct4_t1", "ct4_liver", {}, [], 2, "ct4_liver.nii.gz looks like a label map"),
    "a header that says label": (
        "images/a", "", {"images/b.nii": nifti(LABEL, intent=("label",))}, [], 1,
        "the header says that this is a label map (intent code label)"),
    "labels in a folder within": (
        "images/a", "images/labels/a", {}, [], 2, "no case has a label, which would leave out 1"),
    "labels that are allowed to be missing": (
        "images/a", "images/labels/a", {}, ["--allow_missing_labels"], 0,
        "left out 1 file named like labels: images/labels/a.nii.gz"),
    "a manifest that hides a folder of labels": (
        "images/a", "labels/a", {"manifest.csv": "case_id,image\na,images/a.nii.gz\n"}, [], 2,
        "no case has a label, which would leave out 1 file named like labels: labels/a.nii.gz"),
    "a description that hides a folder of labels": (
        "images/a", "labels/a", {"dataset.json": {"training": ["images/a.nii.gz"]}}, [], 2,
        "no case has a label, which would leave out 1 file named like labels: labels/a.nii.gz"),
    "numbers without labels": (
        " ".join(f"imagesTr/amos_000{number}" for number in range(5)), "", {}, [], 2,
        "channels of one case (--layout nnunet), or a case each (--images 'imagesTr/*')?"),
    "numbers with gaps": (
        "imagesTr/amos_0001 imagesTr/amos_0007", "labelsTr/amos_0001", {}, [], 2,
        "but the dataset has 1 image without one: amos_0007.nii.gz"),
    "an unpaired label": (
        "volume-0 volume-1", "segmentation-0 segmentation-7", {}, [], 1,
        "1 label without an image: segmentation-7.nii.gz"),
    "two labels of one image": (
        "images/a images/b", "labels/a labels/b labels/a_seg", {}, [], 0,
        "1 label left out, beside another label of the image (--images and --labels choose): "
        "labels/a_seg.nii.gz"),
    "two labels of one image in nnU-Net": (
        "imagesTr/a_0000", "labelsTr/a labelsTr/a_seg", {}, [], 0,
        "1 label left out, beside another label of the image (--images and --labels choose): "
        "labelsTr/a_seg.nii.gz"),
    "the other labels of one image": (
        "images/a images/b", "labels/a labels/b labels/a_seg labels/b_seg", {},
        ["--images", "images/*.nii.gz", "--labels", "labels/*_seg.nii.gz"], 0, "2 cases"),
    "two folders of labels beside imagesTr": (
        "imagesTr/a_0000", "labelsTr/a labelsTr2/a", {}, [], 0,
        "left out 1 file named like labels: labelsTr2/a.nii.gz; --images GLOB --labels GLOB "
        "chooses files"),
    "the other folder of labels beside imagesTr": (
        "imagesTr/a_0000", "labelsTr/a labelsTr2/a", {},
        ["--images", "imagesTr/*_0000.nii.gz", "--labels", "labelsTr2/*.nii.gz"], 0, "1 case"),
    # -- BIDS ------------------------------------------------------------------------------------
    **{
        f"BIDS {suffix}": (
            T1W, f"{MASK_OF.format(1, suffix)} {MASK_OF.format(2, suffix)}", {}, [], 0,
            "2 images in sub-*/anat, each a case, grouped by subject")
        for suffix in ("dseg", "mask", "msk", "T1w_lesion-manual", "T1w_gmseg-manual",
                       "label-lesion_roi")
    },
    "BIDS, several masks": (
        T1W, f"{MASK_OF.format(1, 'dseg')} {MASK_OF.format(1, 'desc-x_mask')}", {}, [], 2,
        "1 case with several labels"),
    "BIDS, a mask of several": (
        "sub-1/anat/sub-1_T1w", f"{MASK_OF.format(1, 'dseg')} {MASK_OF.format(1, 'desc-x_mask')}",
        {}, ["--label_name", "dseg"], 0, "5 slices of 1 case"),
    "BIDS, other datatypes": (
        "sub-1/func/sub-1_bold", "", {}, [], 2, "--images 'sub-*/func/*_bold.nii.gz'"),
    "BIDS, masks of the brain": (
        T1W, f"{MASK_OF.format(1, 'desc-brain_mask')} sub-1/anat/sub-1_mod-T1w_defacemask", {}, [],
        0, "10 slices of 2 cases"),
    "BIDS, a table of participants": (
        T1W, "", {"participants.tsv": "participant_id\nsub-1\nsub-3\n"}, [], 0,
        "participants.tsv lacks 1 subject: sub-2"),
    "BIDS, folds by a column of participants": (
        T1W_OF_FOUR, "", PARTICIPANTS, ["--folds", 2, "--stratify", "sex"], 0,
        "Fold 1: 2 train, 2 val (sex F: 1, M: 1)"),
    "BIDS, groups by a column of participants": (
        T1W_OF_FOUR, "", PARTICIPANTS, ["--folds", 3, "--group_column", "family"], 0,
        "Note: 1 case without a value in the column family, each in the group of its own patient: "
        "sub-4_T1w"),
    "BIDS, more folds than groups": (
        T1W_OF_FOUR, "", PARTICIPANTS, ["--folds", 4, "--group_column", "family"], 2,
        "4 folds need 4 groups of cases (patients) that are not for test, there are 3"),
    "BIDS, a column that no participant has": (
        T1W_OF_FOUR, "", PARTICIPANTS, ["--stratify", "age"], 2,
        "no case has a value in such a column of a manifest or participants.tsv; there are sex, "
        "family"),
    "VerSe": (
        "rawdata/sub-v1/sub-v1_ct", "derivatives/sub-v1/sub-v1_seg-vert_msk", {}, [], 0,
        "BIDS (1 image in sub-*"),
    # -- masks of structures ---------------------------------------------------------------------
    "masks by name": (
        "s0/ct s1/ct", "", masks("spleen", "liver"), [], 0, "Structures: 1 liver, 2 spleen"),
    "masks in an order": (
        "s0/ct s1/ct", "", masks("liver", "spleen", "aorta"), ["--structures", "spleen,liver"], 0,
        "Structures: 1 spleen, 2 liver"),
    "masks in another case": (
        "s0/ct s1/ct", "", masks("liver", "Spleen"), ["--structures", "spleen,Liver"], 0,
        "Structures: 1 Spleen, 2 liver"),
    "a structure by the end of its name": (
        "s0/ct s1/ct", "", masks("left_lung", "liver"), ["--structures", "lung"], 0,
        "Structures: 1 left_lung"),
    "more structures than values": (
        "s0/ct s1/ct", "", masks(*(f"s{n:03d}" for n in range(256))), [], 2,
        "256 structures have values up to 256, which do not fit --label_dtype uint8; use "
        "--label_dtype uint16"),
    "masks that overlap": (
        "s0/ct s1/ct", "", masks("liver", "spleen"), [], 0, "masks overlap in 2 cases"),
    "masks that must not overlap": (
        "s0/ct s1/ct", "", masks("liver", "spleen"), ["--overlap", "error"], 1,
        "the masks of liver and spleen share"),
    "a mask an organ": (
        "c/c_IMG_CT", "c/c_OAR_Brainstem c/c_OAR_Eye_L", {}, [], 0,
        "Structures: 1 Brainstem, 2 Eye_L"),
    # -- no case ---------------------------------------------------------------------------------
    "DICOM": (
        "", "", {f"x/{n}.dcm": b"0" for n in range(12)}, [], 2,
        "12 .dcm files: DICOM is not read; dcm2niix makes NIfTI"),
    "a folder above": (
        "Dataset1_X/imagesTr/a_0000", "Dataset1_X/labelsTr/a", {}, [], 2,
        "its folder Dataset1_X is a dataset (nnU-Net raw, 1 case); did you mean --input_dir"),
    "nothing": ("", "", {}, [], 2, "there is no file in it"),
    "two datasets": (
        "new/images/a test/images/c", "new/labels/a test/labels/c", {}, [], 2,
        "its folders new, test are datasets (the first: images/ and labels/, 1 case)"),
    "training and testing apart": (
        "train/images/a test/images/c", "train/labels/a test/labels/c", {}, [], 0,
        "(train/, test/ give the splits; in train/, images/ has 1 volume, labels/ has 1, paired"),
    "training and validation of different modalities": (
        "train/t1/a val/flair/b", "train/labels/a val/labels/b", {}, [], 2,
        "train/t1/ and val/flair/ have different modalities, which would be one channel; name the "
        "files in a manifest, or give one folder, such as --input_dir"),
    "training and validation of different modalities in folders of cases": (
        "train/a/t1 val/b/flair", "train/a/seg val/b/seg", {}, [], 2,
        "train/ and val/ have different modalities, which would be one channel; name the files"),
    "words for labels inside the ids": (
        "c1_totalseg_image c2_sct_image", "c1_totalseg_label c2_sct_label", {}, [], 0,
        "one folder has 2 images and 2 labels, paired by name"),
    "training and testing with cases of one name": (
        "train/images/a test/images/a", "train/labels/a test/labels/a", {}, [], 2,
        "1 case with the same name in train/ and test/: a; a case needs a name of its own: rename "
        "the files, name all cases in a manifest, or give one folder, such as --input_dir"),
    "images and labels in the folder of each case": (
        "p1/images/ct p2/images/ct", "p1/labels/ct p2/labels/ct", {}, [], 2,
        "read all with --images '*/images/*' --labels '*/labels/*'"),
    "these patterns": (
        "p1/images/ct p2/images/ct", "p1/labels/ct p2/labels/ct", {},
        ["--images", "*/images/*", "--labels", "*/labels/*"], 0, "10 slices of 2 cases"),
    "labels alone": (
        "", "a_seg b_seg", {}, [], 2,
        "all are named like labels, so give --input_dir the folder of both"),
    "a level deeper": (
        "p1/study/t1 p2/study/t1", "p1/study/seg p2/study/seg", {}, [], 2,
        "--images '*/*/t1.nii.gz' --labels '*/*/seg.nii.gz'"),
    # -- 4D and modalities -----------------------------------------------------------------------
    "4D": (
        "", "", SERIES_AND_LABELS, [], 2,
        "--volumes channels takes them as channels of one image, --volumes frames makes each a"),
    "a single case of 4D": (
        "", "", pair(SERIES, LABEL), [], 2, "1 case of 4D images only"),
    "a 4D case beside another": (
        "images/b", "labels/b", pair(SERIES, LABEL), [], 1, "expected one 3D volume, found 3"),
    "4D as channels": ("", "", SERIES_AND_LABELS, ["--volumes", "channels"], 0, "2 volume 2"),
    "4D as frames": ("", "", SERIES_AND_LABELS, ["--volumes", "frames"], 0, "Plan: 6 cases"),
    "4D images and labels as frames": (
        "", "", of_two("images", SERIES) | of_two("labels", (SERIES > 500).astype(np.uint8)),
        ["--volumes", "frames"], 0, "Plan: 6 cases"),
    "a volume of 4D": ("", "", SERIES_AND_LABELS, ["--volumes", "2"], 0, "10 slices of 2 cases"),
    "a volume that is not there": (
        "", "", SERIES_AND_LABELS, ["--volumes", "7"], 1, "has no volume 7: it has 3"),
    "Task01": (
        "", "", TASK01_FILES | {"dataset.json": TASK01}, [], 0,
        "Channels: 0 FLAIR, 1 T1w, 2 t1gd"),
    "Task01, some of its modalities": (
        "", "", TASK01_FILES | {"dataset.json": TASK01},
        ["--volumes", "channels", "--modalities", "t1gd,FLAIR"], 0, "Channels: 0 t1gd, 1 FLAIR"),
    "Task01 with a name too few": (
        "", "", TASK01_FILES | {"dataset.json": TASK01 | {"modality": {"0": "FLAIR", "1": "T1"}}},
        [], 2, "names 2 channels (FLAIR, T1), but its 4D images hold 3 volumes"),
    "BraTS until 2021": (
        "B/B_t1 B/B_t1ce B/B_t2 B/B_flair", "B/B_seg", {}, [], 0,
        "Channels: 0 flair, 1 t1, 2 t1ce, 3 t2"),
    "BraTS from 2023": (
        brats("t1n", "t1c", "t2w", "t2f"), brats("seg"), {}, ["--modalities", "t1c,t1n"], 0,
        "Channels: 0 t1c, 1 t1n"),
    "a missing modality": (
        brats("t1c") + " B-1/B-1-t1n B-2/B-2-t1n", brats("seg"), {}, [], 1,
        "B-3/B-3-t1n.nii.gz: no such file"),
    "a missing modality of zeros": (
        brats("t1c") + " B-1/B-1-t1n B-2/B-2-t1n", brats("seg"), {},
        ["--missing_modality", "zero"], 0,
        "1 case without all images, zeros in their place (t1n 1): B-3"),
    # -- oddities of NIfTI -----------------------------------------------------------------------
    "micron and metre": (
        "", "", pair(nifti(IMAGE, AFFINE @ np.diag([1e3, 1e3, 1e3, 1]), xyzt_units=("micron",)),
                     nifti(LABEL, AFFINE @ np.diag([1e-3, 1e-3, 1e-3, 1]), xyzt_units=("meter",))),
        [], 0, "5 slices of 1 case"),
    "a quaternion slightly longer than 1": (
        "", "", pair(nifti(IMAGE, edit=quaternion(1.009)), nifti(LABEL, edit=quaternion(1))), [],
        0, "5 slices of 1 case"),
    "a quaternion much longer than 1": (
        "", "", pair(nifti(IMAGE, edit=quaternion(1.05)), nifti(LABEL)), [], 1,
        "the quaternion of the qform is 1.05 long"),
    "a label without orientation": (
        "", "", pair(nifti(IMAGE), nifti(LABEL, edit=codes(0, 0))), [], 1,
        "has no orientation, so its place is a guess"),
    "forms that contradict each other": (
        "", "", pair(TWO_FORMS, nifti(LABEL)), [], 0,
        "sform and qform disagree (by 15.6 mm at a corner); the sform is used"),
    "the other form": (
        "", "", pair(TWO_FORMS, nifti(LABEL, SHIFTED)), ["--orientation_from", "qform"], 0,
        "the qform is used"),
    "forms that are the cause": (
        "", "", pair(TWO_FORMS, nifti(LABEL, SHIFTED)), [], 1, "--orientation_from qform"),
    "a spacing that is not that of the affine": (
        "", "", pair(nifti(IMAGE, edit=lambda b: struct.pack_into("<3f", b, 80, 10, 10, 10)),
                     nifti(LABEL)), [], 0,
        "pixdim 10 × 10 × 10 mm and the spacing of the affine 1 × 2 × 3 mm disagree"),
    "a label of another affine": (
        "", "", pair(nifti(IMAGE), nifti(LABEL, SHIFTED)), [], 1, "--label_grid image"),
    "a label that takes the affine of the image": (
        "", "", pair(nifti(IMAGE), nifti(LABEL, SHIFTED)), ["--label_grid", "image"], 0,
        "takes the affine of the image, --label_grid image: labels/a.nii"),
    "a label that is the same file": (
        "a", "", {"manifest.csv": "case_id,image,label\na,a.nii.gz,a.nii.gz\n"}, [], 1,
        "is the same file as the image"),
    "a label with the same voxels": (
        "", "", pair(IMAGE, IMAGE), [], 1, "has the same voxels as image"),
    "a label with NaN": (
        "", "", pair(IMAGE, np.where(LABEL, np.nan, 1).astype(np.float32)), [], 1,
        "the label holds NaN"),
    "a pointer of Git LFS": ("", "", pair(GIT_LFS, LABEL), [], 1, "a pointer of Git LFS"),
    "a pointer of git-annex": (
        "", "", pair(b"/annex/objects/MD5E-s123--abc.nii.gz\n", LABEL), [], 1, "git-annex"),
    "a web page": ("", "", pair(b"<!DOCTYPE html><html></html>", LABEL), [], 1, "is a web page"),
    "CIFTI": (
        "", "", pair(nifti(np.zeros((1, 1, 1, 1, 7, 9), np.float32),
                           edit=lambda b: struct.pack_into("<h", b, 68, 3006)), LABEL), [], 1,
        "CIFTI: values of surfaces and grey matter"),
    "5D": (
        "", "", pair(np.zeros((3, 4, 5, 1, 3), np.float32), LABEL), [], 1,
        "expected a 3D volume, found 5D"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("images", "labels", "files", "options", "status", "words"), SITUATIONS.values(), ids=SITUATIONS
)
def test_a_dataset_has_its_exit_status_and_words(
    tmp_path, invoke, images, labels, files, options, status, words
) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    volumes = {f"{name}.nii.gz": np.roll(IMAGE, n) for n, name in enumerate(images.split())}
    volumes |= {f"{name}.nii.gz": np.roll(LABEL, n) for n, name in enumerate(labels.split())}
    for name, content in (volumes | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            nib.save(nib.Nifti1Image(content, AFFINE), path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    directories = ["--input_dir", root, "--output_dir", tmp_path / "slices"]
    result = invoke("run", *directories, "--num_workers", 0, "--train_ratio", 1, *options)
    assert result.exit_code == status, result.output
    assert words in " ".join(result.output.split())
    assert (tmp_path / "slices").exists() == (status != 2)
