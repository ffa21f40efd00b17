"""Trees of made-up patients: what is read without a problem is paired rightly, file by file."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dask_slicer.errors import DatasetError
from dask_slicer.inputs import discovery
from dask_slicer.inputs.accounting import account
from dask_slicer.inputs.label_check import check_labels
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.tree import FileTree

ROOT = Path("/scans")
# Ids that are easily mistaken for each other, or for words.
PATIENTS = [
    *("1", "01", "001", "10", "2", "p1", "p2", "p01", "anna", "anna_1", "anna_2", "bert", "bert_1"),
    *("p1_2019", "p2_2019", "1_2019", "tumor_5", "lesion_6", "CT7", "ct_8", "mr_8", "case_0000"),
    *("case_0001", "NDARAB123GT5", "x-1", "x_1", "x.1", "Müller", "img_3", "scan9", "patient 7"),
]
IMAGE_NAMES = ["{}", "{}_ct", "{}_t1", "{}-T2", "image_{}", "img{}", "volume-{}", "{}_0000", "t1"]
LABEL_NAMES = ["{}", "{}_seg", "{}-label", "{}_gt", "mask_{}", "label{}", "segmentation-{}", "seg"]
LABEL_NAMES += ["{}_t1_seg", "{}_organs", "{}_lesion", "truth"]
IMAGE_FOLDERS = ["images", "img", "imagesTr", "scans", "ct", "t1", "data", "{}", "{}/pre", ""]
LABEL_FOLDERS = ["labels", "masks", "labelsTr", "gt", "segmentations", "{}", "{}/seg", ""]


@st.composite
def trees(draw) -> dict[str, tuple[str, str]]:
    """Return patient and role by path."""
    patients = draw(st.lists(st.sampled_from(PATIENTS), min_size=1, max_size=5, unique=True))
    folders = [
        *((draw(st.sampled_from(IMAGE_FOLDERS)), "image") for _ in range(draw(st.integers(1, 2)))),
        *((draw(st.sampled_from(LABEL_FOLDERS)), "label") for _ in range(draw(st.integers(0, 2)))),
    ]
    files: dict[str, tuple[str, str]] = {}
    for folder, role in folders:
        name = draw(st.sampled_from(IMAGE_NAMES if role == "image" else LABEL_NAMES))
        if "{}" not in folder + name:
            name += "_{}"
        for patient in patients:
            if draw(st.integers(0, 5)) == 0:
                continue  # this patient lacks the file
            path = f"{folder}/{name}.nii.gz".lstrip("/")
            if not patient[0].isdecimal():  # img0001, but img_anna
                path = re.sub(r"(?<=[a-z]){}", "_{}", path)
            path = path.replace("{}", patient)
            if path in files:
                return {}  # one name for two files: no such tree
            files[path] = (patient, role)
    return files


def read(files: dict[str, tuple[str, str]]) -> LayoutMatch | None:
    """Return what the tree is read as, None if it is refused."""
    tree = FileTree(ROOT, list(files))
    try:
        match = discovery._first_match(tree, InputOptions())
    except DatasetError:
        return None
    if match.layout == "nnU-Net raw":
        return None  # numbers at the end are channels there, also if they were drawn for patients
    match.files = account(tree, match)
    check_labels(tree, match, allow_missing=False)
    return None if match.problems else match


# A label whose name and folder say nothing is found by its voxels, not by its name.
def _is_named(path: str) -> bool:
    return any(word in path for word in ("seg", "label", "gt", "mask", "truth"))


@settings(max_examples=600)
@given(trees())
def test_no_case_has_files_of_two_patients_or_a_label_as_an_image(files) -> None:
    match = read(files)
    for case in [] if match is None else match.cases:
        images = [files.get(Path(path).relative_to(ROOT).as_posix()) for path in case.images]
        labels = [files.get(Path(path).relative_to(ROOT).as_posix()) for path in case.label_files]
        # A file that is not there fails the case by name, and so does a case without images.
        if None in images or None in labels or not images:
            continue
        if not all(_is_named(path) for path, (_, role) in files.items() if role == "label"):
            continue
        assert {role for _, role in images} == {"image"}, case
        assert {role for _, role in labels} <= {"label"}, case
        assert len({patient for patient, _ in (*images, *labels)}) == 1, case


@given(trees())
def test_every_file_has_a_role_and_a_reason(files) -> None:
    match = read(files)
    if match is not None:
        assert {role.path for role in match.files} >= set(files)
        assert all(role.detail for role in match.files if role.role == "left out")
