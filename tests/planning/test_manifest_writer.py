"""A manifest that was written reads back to the same cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.splits import SPLITS
from dask_slicer.inputs.case import Case, Mask
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.layouts.manifest import read_manifest
from dask_slicer.planning.manifest_writer import manifest_text

# Characters that need quotes in CSV, too.
LETTERS = st.text("aZ0é,;\" \t'#=[]-_", min_size=1, max_size=6).map(str.strip).filter(bool)
PATHS = st.builds(
    "/data/{}/{}.nii.gz{}".format, LETTERS, LETTERS, st.sampled_from(["", "[0]", "[12]"])
)
STRUCTURES = ("liver", "left kidney", "a,b")


@st.composite
def cases_of_one_dataset(draw: st.DrawFn) -> list[Case]:
    """Return cases with equal numbers of images, and with labels or masks."""
    n_images = draw(st.integers(1, 3))
    has_splits = draw(st.booleans())
    cases = []
    for case_id in draw(st.lists(LETTERS, min_size=1, max_size=4, unique=True)):
        masks = [
            Mask(structure=structure, path=draw(PATHS), value=value)
            for value, structure in enumerate(STRUCTURES, start=1)
            if draw(st.booleans())
        ]
        is_masked = draw(st.booleans())
        cases.append(
            Case(
                case_id=case_id,
                images=tuple(draw(PATHS) for _ in range(n_images)),
                label=None if is_masked else draw(st.none() | PATHS),
                masks=tuple(masks) if is_masked else (),
                group=draw(st.none() | LETTERS),
                split=draw(st.sampled_from(SPLITS)) if has_splits else None,
                stated=True,
                label_grid=draw(st.sampled_from(["own", "image"])),
                orientation_from=draw(st.sampled_from(["sform", "qform"])),
            )
        )
    return cases


def read_again(
    folder: Path,
    cases: list[Case],
    channel_names: tuple[str, ...] = (),
    label_names: dict[int, str] | None = None,
) -> LayoutMatch:
    path = folder / "cases.csv"
    text = manifest_text(cases, path, channel_names=channel_names, label_names=label_names)
    path.write_bytes(text.encode())
    return read_manifest(path)


@given(cases=cases_of_one_dataset(), is_named=st.booleans())
def test_cases_are_read_back(tmp_path_factory, cases, is_named) -> None:
    folder = tmp_path_factory.getbasetemp()
    names = ("T1, native", "T2", "CT")[: len(cases[0].images)] if is_named else ()
    dataset = read_again(folder, cases, names, dict(enumerate(STRUCTURES, start=1)))
    # A case whose group is its own id has none.
    assert dataset.cases == [
        replace(case, group=None) if case.group == case.case_id else case for case in cases
    ]
    assert dataset.channel_names == names
    assert not dataset.notes


TREES = {
    "nnunet": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0001.nii.gz",
               "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "imagesTs/t_0000.nii.gz"],
    "images_and_labels": ["images/a.nii", "images/b.nii.gz", "labels/b.nii.gz"],
    "bids": ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
             "derivatives/m/sub-01/anat/sub-01_T1w_dseg.nii.gz"],
    "folder_per_case": ["c/c_t1.nii", "c/c_t2.nii", "c/c_seg.nii", "d/d_t1.nii"],
}  # fmt: skip


@pytest.mark.parametrize("files", TREES.values(), ids=TREES)
def test_the_cases_of_every_layout_are_read_back(tmp_path, files) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    match = find_cases(tmp_path, InputOptions(include_test=True))
    cases = [replace(case, stated=True, split="train") for case in match.cases]
    assert len(cases) > 1 or files is TREES["folder_per_case"]
    assert read_again(tmp_path, cases, match.channel_names, match.label_names).cases == cases


def test_an_empty_cell_stays_empty(tmp_path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("case_id,image,image_2\na,a.nii,b.nii\nb,,c.nii\n")
    dataset = read_manifest(path)
    assert manifest_text(dataset.cases, path) == path.read_text()
    assert read_again(tmp_path, dataset.cases).cases == dataset.cases


def test_structures_that_no_case_has_keep_the_numbers_of_the_others(tmp_path) -> None:
    mask = Mask(structure="liver", path=str(tmp_path / "l.nii"), value=3)
    case = Case(case_id="a", images=(str(tmp_path / "a.nii"),), masks=(mask,), stated=True)
    text = manifest_text([case], tmp_path / "m.csv", label_names={1: "spleen", 3: "liver"})
    assert text == "case_id,image,label:spleen,label:value 2,label:liver\na,a.nii,,,l.nii\n"
    assert read_again(tmp_path, [case]).cases == [case]


def test_masks_without_numbers_are_in_the_order_of_the_cases(tmp_path) -> None:
    masks = tuple(Mask(structure=name, path=str(tmp_path / f"{name}.nii")) for name in "ba")
    case = Case(case_id="a", images=(str(tmp_path.parent / "a.nii"),), masks=masks)
    assert manifest_text([case], tmp_path / "m.csv") == (
        "case_id,image,label:b,label:a\na,../a.nii,b.nii,a.nii\n"
    )
