"""No run that succeeds has a label in an image channel, or drops a label that the plan hides."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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
    ]
)
IMAGE_NAMES = st.sampled_from(["t1", "t2", "flair", "ct", "image", "scan", "vol", "case", "anna"])
IDS = st.lists(
    st.sampled_from(["1", "2", "10", "p1", "p_2", "case_3", "A", "b07", "ct4", "tumor_5"]),
    min_size=1,
    max_size=3,
    unique=True,
)
Tree = tuple[list[str], list[str]]


def folder_per_case(ids: list[str], image: str, label: str) -> Tree:
    return [f"{i}/{image}" for i in ids], [f"{i}/{label}" for i in ids]


def prefixed(ids: list[str], image: str, label: str) -> Tree:
    return [f"{i}/{i}_{image}" for i in ids], [f"{i}/{i}_{label}" for i in ids]


def two_folders(ids: list[str], image: str, label: str) -> Tree:
    return [f"{image}/{i}" for i in ids], [f"{label}/{i}" for i in ids]


def images_and_labels(ids: list[str], image: str, label: str) -> Tree:
    return [f"images/{i}" for i in ids], [f"labels/{i}_{label}" for i in ids]


def one_folder(ids: list[str], image: str, label: str) -> Tree:
    return [f"{i}_{image}" for i in ids], [f"{i}_{label}" for i in ids]


def one_folder_words_first(ids: list[str], image: str, label: str) -> Tree:
    return [f"{image}-{i}" for i in ids], [f"{label}-{i}" for i in ids]


def nnunet(ids: list[str], image: str, label: str) -> Tree:
    return [f"imagesTr/{i}_0000" for i in ids], [f"labelsTr/{i}" for i in ids]


def full_names(ids: list[str], image: str, label: str) -> Tree:
    return [f"imagesTr/{i}_0001" for i in ids], [f"labelsTr/{i}_0001" for i in ids]


def bids(ids: list[str], image: str, label: str) -> Tree:
    names = ["".join(filter(str.isalnum, i)) for i in ids]
    return (
        [f"sub-{i}/anat/sub-{i}_T1w" for i in names],
        [f"derivatives/labels/sub-{i}/anat/sub-{i}_{label}" for i in names],
    )


def masks(ids: list[str], image: str, label: str) -> Tree:
    organs = ("liver", "spleen")
    return (
        [f"{i}/{image}" for i in ids],
        [f"{i}/segmentations/{organ}" for i in ids for organ in organs],
    )


PATTERNS: list[Callable[[list[str], str, str], Tree]] = [
    folder_per_case,
    prefixed,
    two_folders,
    images_and_labels,
    one_folder,
    one_folder_words_first,
    nnunet,
    full_names,
    bids,
    masks,
]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Draw the paths of images and of labels, without suffix; some files are missing or free."""
    ids = draw(IDS)
    pattern = draw(st.sampled_from(PATTERNS))
    images, labels = pattern(ids, draw(IMAGE_NAMES), draw(st.one_of(WORDS, FREE_NAMES)))
    kept = draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    if draw(st.booleans()):
        labels = [label for label, is_kept in zip(labels, kept, strict=True) if is_kept]
    folders = sorted({path.rpartition("/")[0] for path in images + labels} | {"", "other"})
    for folder in draw(st.lists(st.sampled_from(folders), max_size=2)):
        for name in draw(st.lists(st.one_of(WORDS, FREE_NAMES), max_size=2)):
            labels.append(f"{folder}/{name}".lstrip("/"))
    if draw(st.booleans()):  # a second modality
        images += [f"{path}_{draw(IMAGE_NAMES)}" for path in images]
    labels = sorted(set(labels) - set(images))
    return sorted(set(images)), labels


def write_tree(root: Path, tree: Tree, *, binary: bool) -> None:
    random = np.random.default_rng(7)
    images, labels = tree
    for path in images:
        voxels = random.integers(LOWEST_INTENSITY, 2000, SHAPE, dtype=np.int16)
        write_nifti(root / f"{path}.nii", voxels, np.eye(4))
    for path in labels:
        voxels = np.zeros(SHAPE, dtype=np.uint8)
        voxels[1:4, 1:4, 1:3] = 1
        if not binary:
            voxels[3:5, 2:4, 2:4] = 3
        write_nifti(root / f"{path}.nii", voxels, np.eye(4))


def check(tree: Tree, *, binary: bool, allow_missing: bool) -> bool:
    """Run a tree; return whether the run succeeded, and rightly."""
    images, labels = tree
    with tempfile.TemporaryDirectory() as folder:
        root, output = Path(folder) / "scans", Path(folder) / "slices"
        root.mkdir()
        for path in (*images, *labels):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_tree(root, tree, binary=binary)
        config = RunConfig(
            input_dir=root,
            output_dir=output,
            num_workers=0,
            window_size=0,
            normalize="none",
            allow_missing_labels=allow_missing,
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
    tree = pattern(["1", "2"], "ct", "seg")
    assert check(tree, binary=pattern is masks, allow_missing=False)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), binary=st.booleans(), allow_missing=st.booleans())
@example((["1/ct", "2/ct"], ["1/organs", "2/organs"]), False, False)
@example((["1/ct", "2/ct"], ["1/organs"]), True, False)
@example((["a_t1", "b_t1"], ["liver"]), False, True)
def test_a_label_is_never_an_image_nor_dropped_silently(tree, binary, allow_missing) -> None:
    check(tree, binary=binary, allow_missing=allow_missing)


@pytest.mark.slow
@settings(deadline=None, max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), binary=st.booleans(), allow_missing=st.booleans())
def test_a_label_is_never_an_image_in_many_trees(tree, binary, allow_missing) -> None:
    check(tree, binary=binary, allow_missing=allow_missing)
