"""Options that say which file is an image, and which a label; what is read without them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

IMAGE = np.random.default_rng(3).integers(-1000, 1000, (8, 9, 5)).astype(np.int16)
LABEL = (IMAGE > 500).astype(np.uint8)


@pytest.fixture
def scans(tmp_path) -> Path:
    return tmp_path / "scans"


def lay(root: Path, images: list[str], labels: list[str]) -> None:
    """Write volumes: each image has its own values, each label is of its image's place in line."""
    for array, names in ((IMAGE, images), (LABEL, labels)):
        for number, name in enumerate(names):
            path = root / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.roll(array, number, axis=0), np.diag([1, 2, 3, 1])), path)


def run(invoke, root: Path, *options: object):
    out = root.parent / "out"
    directories = ("--input_dir", root, "--output_dir", out, "--num_workers", 0)
    return invoke("run", *directories, *options), out


def is_paired(out: Path) -> bool:
    """Return whether each label is that of its image: where the image is over 500."""
    slices = sorted(out.rglob("*.npz"))
    for path in slices:
        with np.load(path) as arrays:
            middle = arrays["image"].shape[0] // 2
            image, label = arrays["image"][middle], arrays["label"]
            if not np.array_equal(image > 500, label > 0):
                return False
    return bool(slices)


PAIRED = {
    "BTCV": (["img/img0001", "img/img0002"], ["label/label0001", "label/label0002"]),
    "LiTS in folders": (["volumes/volume-0"], ["segmentations/segmentation-0"]),
    "LiTS": (["volume-0", "volume-1"], ["segmentation-0", "segmentation-1"]),
    "masks": (["images/a", "images/b"], ["masks/a", "masks/b"]),
    "words": (["images/x", "images/y"], ["labels/x_seg", "labels/y_seg"]),
    "ACDC": (
        ["p1/p1_frame01", "p1/p1_frame12", "p2/p2_frame01", "p2/p2_frame09"],
        ["p1/p1_frame01_gt", "p1/p1_frame12_gt", "p2/p2_frame01_gt", "p2/p2_frame09_gt"],
    ),
    "FLARE": (["TrainingImg/train_000_0000"], ["TrainingMask/train_000"]),
    "PROMISE12": (["Case00", "Case01"], ["Case00_segmentation", "Case01_segmentation"]),
    "two spellings": (
        ["images/Mu\u0308ller", "images/Case1"], ["labels/M\u00fcller", "labels/case1"]
    ),
    **{
        name: (["p1/T1", "p2/T1"], [f"p1/{name}", f"p2/{name}"])
        for name in (
            *("truth", "segm", "segTRI", "aparc+aseg", "ground_truth", "LabelsForTraining"),
            *("LabelsForTesting", "GT", "lesion", "msk", "annotation", "manual", "roi"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize(("images", "labels"), PAIRED.values(), ids=PAIRED)
def test_images_get_their_own_labels(scans, invoke, images, labels) -> None:
    lay(scans, images, labels)
    result, out = run(invoke, scans, "--no_normalize")
    assert result.exit_code == 0, result.stderr
    assert is_paired(out)


def test_the_pairing_is_shown(scans, invoke) -> None:
    lay(scans, ["img/img0001"], ["label/label0001"])
    result = invoke("plan", "--input_dir", scans, "--output_dir", scans.parent / "out")
    assert result.exit_code == 0
    assert "such as img0001 and label0001" in " ".join(result.stdout.split())


REFUSED = {
    "labels of other patients": (
        ["images/anna_1"],
        ["labels/bert_1"],
        ["(bert_1) pairs with one in images/ (anna_1)", "--images"],
    ),
    "several places": (
        ["1/pre/FLAIR", "1/pre/T1", "1/orig/FLAIR", "1/orig/T1"],
        ["1/segm"],
        ["--modalities pre/FLAIR,pre/T1", "--images"],
    ),
    "several labels": (["1/ana"], ["1/seg_ana", "1/segTRI"], ["2 labels", "--label_name"]),
    "two folders of labels": (["images/a"], ["labels/a", "masks/a"], ["--label_name labels"]),
    "two folders of images": (["t1/a", "t2/a"], ["labels/a"], ["--images 't1/*' --images 't2/*'"]),
    "labels alone": ([], ["1/segm", "2/segm"], ["named like a label", "--images", "manifest"]),
    "maps and masks": (
        ["1/ct", "2/ct"],
        ["1/seg", "2/segmentations/liver", "2/segmentations/spleen"],
        ["1 case with a label map (1), but 1 with a mask", "--structures", "manifest"],
    ),
    "no word at all": (["anna"], ["bert"], ["--images '*' takes each as a case"]),
    "sites": (
        ["siteA/001", "siteA/002", "siteB/001", "siteB/002"], [], ["--images '*/*.nii.gz'"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("images", "labels", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_sure_is_refused_before_anything_is_written(
    scans, invoke, images, labels, words
) -> None:
    lay(scans, images, labels)
    result, out = run(invoke, scans)
    assert result.exit_code == 2
    assert not list(out.rglob("*.npz"))
    for word in words:
        assert word in result.stderr


CHOSEN = {
    "several places": (
        ["1/pre/T1", "1/orig/T1"], ["1/segm"], ["--modalities", "pre/T1"], ["1"]
    ),
    "several labels": (["1/ana"], ["1/seg_ana", "1/segTRI"], ["--label_name", "seg_ana"], ["1"]),
    "two folders of labels": (
        ["images/a"], ["labels/a", "masks/a"], ["--label_name", "labels"], ["a"]
    ),
    "no word at all": (
        ["i/anna", "i/bert"],
        ["x/anna", "x/bert"],
        ["--images", "i/*.nii.gz", "--labels", "x/*.nii.gz"],
        ["anna", "bert"],
    ),
    "a layout": (
        ["images/volume-1"], ["images/segmentation-1"], ["--layout", "one_folder"], ["volume-1"]
    ),
    "a label with a free name": (["1/ct"], ["1/liver"], ["--label_name", "liver"], ["1"]),
}  # fmt: skip


@pytest.mark.parametrize(("images", "labels", "options", "ids"), CHOSEN.values(), ids=CHOSEN)
def test_the_option_that_a_message_names_decides(
    scans, invoke, images, labels, options, ids
) -> None:
    lay(scans, images, labels)
    result, out = run(invoke, scans, "--no_normalize", *options)
    assert result.exit_code == 0, result.stderr
    assert is_paired(out)
    splits = json.loads((out / "splits.json").read_text())
    assert sorted(case_id for split in splits.values() for case_id in split) == ids


def test_the_order_of_modalities_is_that_of_the_option(scans, invoke) -> None:
    lay(scans, ["B_1/B_1-t1c", "B_1/B_1-t1n", "B_1/B_1-t2f"], ["B_1/B_1-seg"])
    result, out = run(invoke, scans, "--no_normalize", "--modalities", "t2f,t1c")
    assert result.exit_code == 0
    first = min(out.rglob("*.npz"))
    with np.load(first) as arrays:
        t2f, t1c = arrays["image"][0::2], arrays["image"][1::2]
    for name, image in (("t1c", t1c), ("t2f", t2f)):
        run(invoke, scans, "--no_normalize", "--modalities", name, "--overwrite")
        with np.load(first) as arrays:
            assert np.array_equal(arrays["image"], image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layout", "bids", "--images", "*"], "take the place of a layout"),
        (["--labels", "*"], "needs images"),
        (["--images", "x*"], "--images 'x*' matches no volume in"),
        (["--layout", "nnunet"], "with --layout nnunet: no NIfTI file in imagesTr"),
        (["--label_name", "sgm"], "there is no such name"),
        (["--structures", "liver"], "--structures liver: "),
        (["--modalities", "T2"], "--modalities T2: there is no such name"),
        (["--modalities", "T1,t1"], "names an image twice"),
    ],
)
def test_an_option_that_does_not_fit_is_a_usage_error(scans, invoke, options, words) -> None:
    lay(scans, ["1/T1"], ["1/segm"])
    result, _ = run(invoke, scans, *options)
    assert result.exit_code == 2
    assert words in result.stderr
