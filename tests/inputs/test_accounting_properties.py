"""No run that succeeds has a label in an image channel, or drops a label that the plan hides."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dask_slicer import run
from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import DaskSlicerError
from dask_slicer.inputs.phantom import write_nifti
from dask_slicer.planning.planner import make_plan

SHAPE = (6, 5, 4)
# Every voxel of an image is above this, every voxel of a label below.
LOWEST_INTENSITY = 1000

# By the words that the page on datasets lists.
WORDS = st.sampled_from(
    [
        *("seg", "label", "labels", "mask", "gt", "truth", "segmentation", "dseg", "msk"),
        *("lesion", "tumor", "roi", "manual", "annotation", "aparc+aseg", "segTRI"),
    ]
)
FREE_NAMES = st.sampled_from(
    [
        *("organs", "liver", "final", "reading2", "x", "anna", "lungs_v2", "laendo", "1", "p_1"),
        *("case", "copy", "new", "output", "result", "corrected", "t1_organs", "ct_liver"),
        *("maske", "ct_leber", "rater1", "SEG", "t1w_hippo", "image_v2"),
    ]
)
IMAGE_NAMES = st.sampled_from(["t1", "t2", "flair", "ct", "image", "scan", "vol", "case", "anna"])
IDS = st.lists(
    st.sampled_from(
        [
            *("1", "2", "10", "p1", "p_2", "case_3", "A", "b07", "ct4", "tumor_5", "T1", "mr-3"),
            *("img_3", "seg9", "2019-03-01", "MRN12A", "patient 7"),
        ]
    ),
    min_size=1,
    max_size=3,
    unique=True,
)
Tree = tuple[list[str], list[str]]
KINDS = st.sampled_from(["binary", "two values", "float", "16 bits", "many values"])


# The paths of an image and its labels: i is the id of the case, word the letters and digits of it.
PATTERNS = {
    "folder_per_case": ("{i}/{image}", ["{i}/{label}"]),
    "prefixed": ("{i}/{i}_{image}", ["{i}/{i}_{label}"]),
    "two_folders": ("{image}/{i}", ["{label}/{i}"]),
    "images_and_labels": ("images/{i}", ["labels/{i}_{label}"]),
    "one_folder": ("{i}_{image}", ["{i}_{label}"]),
    "one_folder_words_first": ("{image}-{i}", ["{label}-{i}"]),
    "nnunet": ("imagesTr/{i}_0000", ["labelsTr/{i}"]),
    "full_names": ("imagesTr/{i}_0001", ["labelsTr/{i}_0001"]),
    "bids": (
        "sub-{word}/anat/sub-{word}_T1w",
        ["derivatives/labels/sub-{word}/anat/sub-{word}_{label}"],
    ),
    "masks": ("{i}/{image}", ["{i}/segmentations/liver", "{i}/segmentations/spleen"]),
    "nested": ("{i}/study/{image}", ["{i}/study/{label}"]),
    "folder_of_labels": ("{i}/{image}", ["{i}/labels/{label}"]),
    "beside_images": ("images/{i}", ["images/{i}_{label}"]),
    "numbered": ("images/{image}_{i}", ["images/{label}_{i}"]),
}
# No word for labels, or a depth, that a layout knows: with a free name, the content decides.
REFUSED = {"nested", "beside_images", "numbered"}


def tree_of(pattern: str, ids: list[str], image: str, label: str) -> Tree:
    image_path, label_paths = PATTERNS[pattern]
    cases = [
        {"i": i, "word": "".join(filter(str.isalnum, i)), "image": image, "label": label}
        for i in ids
    ]
    return (
        [image_path.format_map(case) for case in cases],
        [path.format_map(case) for case in cases for path in label_paths],
    )


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Draw the paths of images and of labels, without suffix; some files are missing or free."""
    ids = draw(IDS)
    pattern = draw(st.sampled_from(list(PATTERNS)))
    names = draw(st.lists(IMAGE_NAMES, min_size=1, max_size=3, unique=True))
    label_name = draw(st.one_of(WORDS, FREE_NAMES))
    images = [path for name in names for path in tree_of(pattern, ids, name, label_name)[0]]
    labels = tree_of(pattern, ids, names[0], label_name)[1]
    kept = draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    if draw(st.booleans()):
        labels = [label for label, is_kept in zip(labels, kept, strict=True) if is_kept]
    folders = sorted({path.rpartition("/")[0] for path in images + labels} | {"", "other"})
    for folder in draw(st.lists(st.sampled_from(folders), max_size=2)):
        for name in draw(st.lists(st.one_of(WORDS, FREE_NAMES), max_size=2)):
            labels.append(f"{folder}/{name}".lstrip("/"))
    if draw(st.booleans()):
        images += [f"{path}_{draw(IMAGE_NAMES)}" for path in images]
    labels = sorted(set(labels) - set(images))
    return sorted(set(images)), labels


def label_map(kind: str) -> np.ndarray:
    voxels = np.zeros(SHAPE, dtype="f4" if kind == "float" else "u2" if "16" in kind else "u1")
    voxels[1:4, 1:4, 1:3] = 1
    if kind == "many values":
        voxels[:] = np.arange(12).repeat(10).reshape(SHAPE)
    elif kind != "binary":
        voxels[3:5, 2:4, 2:4] = 300 if kind == "16 bits" else 3
    return voxels


def write_tree(root: Path, tree: Tree, kind: str) -> None:
    random = np.random.default_rng(7)
    images, labels = tree
    for path in images:
        voxels = random.integers(LOWEST_INTENSITY, 2000, SHAPE, dtype=np.int16)
        write_nifti(root / f"{path}.nii", voxels, np.eye(4))
    for path in labels:
        write_nifti(root / f"{path}.nii", label_map(kind), np.eye(4))


def check(tree: Tree, kind: str, *, allow_missing: bool) -> bool:
    """Run a tree; return whether the run succeeded, and rightly."""
    images, labels = tree
    with tempfile.TemporaryDirectory() as folder:
        root, output = Path(folder) / "scans", Path(folder) / "slices"
        root.mkdir()
        for path in (*images, *labels):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_tree(root, tree, kind)
        config = RunConfig(
            input_dir=root,
            output_dir=output,
            num_workers=0,
            window_size=0,
            normalize="none",
            allow_missing_labels=allow_missing,
            label_dtype="uint16",
        )
        try:
            plan = make_plan(config)
            if plan.problems or plan.failures:
                return False
            report = run(config)
        except DaskSlicerError:
            return False
        if report.remaining:
            return False
        for path in output.rglob("*.npz"):
            with np.load(path) as arrays:
                assert arrays["image"].min() >= LOWEST_INTENSITY, f"{path.name}: a label as image"
                if "label" in arrays:
                    assert arrays["label"].max() < LOWEST_INTENSITY, f"{path.name}: the reverse"
        roles = {role.path: role for role in plan.files}
        for label in labels:
            role = roles[f"{label}.nii"]
            assert role.role in ("label", "left out"), role
            assert role.role == "label" or role.detail, role
        if labels and not allow_missing:
            assert any(role.role == "label" for role in plan.files), "all labels are left out"
    return True


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_patterns_themselves_are_read_or_refused(pattern) -> None:
    tree = tree_of(pattern, ["1", "2"], "ct", "seg")
    kind = "binary" if pattern in ("masks", "folder_of_labels") else "two values"
    assert check(tree, kind, allow_missing=False) is (pattern not in REFUSED)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), kind=KINDS, allow_missing=st.booleans())
@example((["1/ct", "2/ct"], ["1/organs", "2/organs"]), "two values", False)
@example((["1/ct", "2/ct"], ["1/organs"]), "binary", False)
@example((["a_t1", "b_t1"], ["liver"]), "many values", True)
@example((["1/t1", "2/t1"], ["1/t1_organs", "2/t1_organs"]), "16 bits", False)
@example((["ct4_t1"], ["ct4_liver"]), "binary", False)
@example((["ct4_t1"], ["ct4_1"]), "binary", False)
@example((["1/scan"], ["1/t1_organs"]), "binary", False)
@example((["images/1"], ["images/lesion"]), "binary", False)
@example((["1/t1", "2/t1", "3/t1"], ["3/liver"]), "binary", False)
@example((["1/case", "seg9/case"], []), "binary", False)
@example((["images/1", "images/2"], ["images/liver", "labels/1_seg"]), "binary", True)
def test_a_label_is_never_an_image_nor_dropped_silently(tree, kind, allow_missing) -> None:
    check(tree, kind, allow_missing=allow_missing)


@pytest.mark.slow
@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), kind=KINDS, allow_missing=st.booleans())
def test_a_label_is_never_an_image_in_many_trees(tree, kind, allow_missing) -> None:
    check(tree, kind, allow_missing=allow_missing)
