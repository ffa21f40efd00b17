"""Every volume of a dataset has a role, and labels are neither images nor left out unseen."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dask_slicer.inputs.accounting import account, file_kinds, unread_notes
from dask_slicer.inputs.case import Mask
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.label_check import check_labels
from dask_slicer.inputs.layouts.base import FileRole, InputOptions, LayoutMatch
from dask_slicer.inputs.tree import FileTree

ROOT = Path("/scans")


def lay(root: Path, *names: str) -> None:
    """Make empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def roles_of(tree: FileTree, match: LayoutMatch) -> dict[str, tuple[str, str, str]]:
    return {r.path: (r.role, r.detail, r.case_id) for r in account(tree, match)}


def test_every_volume_has_a_role() -> None:
    files = ["a/ct.nii", "a/seg.nii", "a/x.nii", "deep/a/b.nii", "a/1.dcm", "a/notes.txt"]
    tree = FileTree(ROOT, files)
    match = LayoutMatch("pairs", left_out={"a/x.nii": "a reason"}, channel_names=("CT",))
    match.add_case("a", [ROOT / "a/ct.nii"], ROOT / "a/seg.nii")
    assert roles_of(tree, match) == {
        "a/1.dcm": ("not read", "DICOM is not read; dcm2niix makes NIfTI", ""),
        "a/ct.nii": ("image", "CT", "a"),
        "a/seg.nii": ("label", "", "a"),
        "a/x.nii": ("left out", "a reason", ""),
        "deep/a/b.nii": ("left out", "not part of the layout pairs", ""),
    }


def test_a_file_of_two_cases_is_there_twice_and_a_missing_one_is_not() -> None:
    tree = FileTree(ROOT, ["4d.nii", "seg.nii"])
    match = LayoutMatch("frames")
    for number in (0, 1):
        match.add_case(f"t{number}", [ROOT / f"4d.nii[{number}]"], ROOT / "seg.nii")
    match.add_case("u", [ROOT / "gone.nii"])
    assert [(r.path, r.case_id) for r in account(tree, match)] == [
        ("4d.nii", "t0"), ("4d.nii", "t1"), ("seg.nii", "t0"), ("seg.nii", "t1"),
    ]  # fmt: skip


def test_an_empty_cell_of_a_manifest_is_no_file(tmp_path) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text("case_id,image,image_2\na,a.nii,a2.nii\nb,b.nii,\n")
    assert [role.path for role in find_cases(manifest).files] == ["a.nii", "a2.nii", "b.nii"]


def test_a_reason_does_not_repeat_that_a_file_is_left_out(tmp_path) -> None:
    for name in ("a/t1.nii", "a/stray.nii", "b/t1.nii", "c/t1.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    kinds = [kind for kind, _, _ in file_kinds(find_cases(tmp_path).files)]
    assert kinds == ["image t1", "left out: most cases have none of this name"]


def test_paths_are_compared_as_they_are_listed() -> None:
    names = ["Mu\u0308ller/ct.nii", "M\u00fcller/ct.nii"]
    match = LayoutMatch("pairs")
    match.add_case("one", [ROOT / names[0]])
    roles = roles_of(FileTree(ROOT, names), match)
    assert {path: role[0] for path, role in roles.items()} == dict(
        zip(names, ("image", "left out"), strict=True)
    )


def test_masks_of_many_structures_are_one_row() -> None:
    organs = [f"organ_{n:03d}" for n in range(117)]
    match = LayoutMatch("masks")
    for case_id in ("s0", "s1"):
        masks = [Mask(structure=o, path=f"/scans/{case_id}/{o}.nii") for o in organs]
        match.add_case(case_id, [ROOT / case_id / "ct.nii"], masks=masks)
    tree = FileTree(ROOT, [f"{s}/{name}.nii" for s in ("s0", "s1") for name in ("ct", *organs)])
    assert file_kinds(account(tree, match)) == [
        ("image channel 0", 2, "s0/ct.nii"),
        (
            "label 117 structures (organ_000, organ_001, organ_002 and 114 more)",
            234,
            "s0/organ_000.nii",
        ),
    ]


def test_kinds_are_in_the_order_of_their_use() -> None:
    roles = [
        FileRole(path=f"{n}.nii", role=role, detail=detail)
        for n, (role, detail) in enumerate(
            [
                ("not read", "DICOM"), ("left out", "x"), ("left out", "y"), ("left out", "y"),
                ("label", "liver"), ("image", "t2"), ("image", "t1"), ("image", "t1"),
            ]
        )
    ]  # fmt: skip
    assert [kind for kind, _, _ in file_kinds(roles)] == [
        "image t1", "image t2", "label liver", "left out: y", "left out: x", "not read: DICOM",
    ]  # fmt: skip


def test_files_of_formats_that_are_not_read_are_one_note() -> None:
    files = ["a.dcm", "b.IMA", "c.mnc", "d.par", "e.rec", "f.img", "g.hdr", "g.img", "h.png"]
    roles = account(FileTree(ROOT, files), LayoutMatch("none"))
    unread = {role.path for role in roles if role.role == "not read"}
    assert unread >= {"a.dcm", "b.IMA", "c.mnc", "d.par", "e.rec", "f.img", "h.png"}
    (note,) = unread_notes(roles)
    assert "1 .dcm file: DICOM is not read; dcm2niix makes NIfTI" in note
    assert ".png" not in note


def test_twenty_thousand_cases_are_accounted_for_in_a_second() -> None:
    files = [f"{folder}/c{n:05d}.nii.gz" for folder in ("images", "labels") for n in range(20_000)]
    tree = FileTree(ROOT, files)
    match = LayoutMatch("pairs")
    for path in tree.within("images"):
        match.add_case(path[7:13], [ROOT / path], ROOT / path.replace("images", "labels"))
    started = time.process_time()
    match.files = account(tree, match)
    check_labels(tree, match, allow_missing=False)
    assert [n for _, n, _ in file_kinds(match.files)] == [20_000, 20_000]
    assert time.process_time() - started < 2


REFUSED = {
    "labels of BIDS among others": (
        ["images/c1_seg.nii.gz", "images/c2_seg.nii.gz"],
        "2 images without a label, but named like labels: images/c1_seg.nii.gz",
    ),
    "labels by number": (
        ["images/label0001.nii.gz", "images/label0002.nii.gz"],
        "2 images without a label, but named like labels: images/label0001.nii.gz",
    ),
    "pairs in one folder": (
        ["images/volume-0.nii", "images/segmentation-0.nii"],
        "1 image without a label, but named like labels: images/segmentation-0.nii",
    ),
    "labels as pictures": (
        ["images/a.nii.gz", "labels/a.png"],
        "no case has a label, which would leave out 1 file named like labels: labels/a.png "
        "(pictures are not read",
    ),
    "a folder of tumours": (
        ["imagesTr/a_0000.nii.gz", "tumors/a.nii.gz"],
        "would leave out 1 file named like labels: tumors/a.nii.gz",
    ),
    "labels that dcm2niix did not convert": (
        ["images/a.nii.gz", "masks/a.dcm"],
        "would leave out 1 file named like labels: masks/a.dcm (DICOM is not read",
    ),
}


@pytest.mark.parametrize(("files", "problem"), REFUSED.values(), ids=REFUSED)
def test_labels_that_are_images_or_not_used_are_refused(tmp_path, files, problem) -> None:
    lay(tmp_path, *files)
    (text,) = find_cases(tmp_path).problems
    assert problem in text
    assert "--images GLOB --labels GLOB" in text


def test_a_word_that_images_have_makes_no_label_of_one_case_in_many(tmp_path) -> None:
    lay(tmp_path, "a/ct.nii", "b/ct.nii", "c/ct.nii", "c/ct_roi.nii")
    (problem,) = find_cases(tmp_path, allow_missing_labels=True).problems
    assert problem.startswith(
        "1 of 3 cases have a label, by a word that images have, too: c/ct_roi"
    )
    chosen = InputOptions(label_name="ct_roi")
    assert not find_cases(tmp_path, chosen, allow_missing_labels=True).problems


ACCEPTED = {
    "ids of a hospital": ["images/msk_001.nii.gz", "images/msk_002.nii.gz"],
    "pooled cohorts": ["images/BraTS_001.nii.gz", "images/MSK_002.nii.gz"],
    "iSeg": ["iSeg_01/T1.nii.gz", "HC_02/T1.nii.gz"],
    "a snapshot": ["images/a.nii.gz", "images/b.nii.gz", "qc/segmentation.png"],
    "an id with a tumour": [
        *("imagesTr/tumor_1_0000.nii.gz", "imagesTr/2_0000.nii.gz", "old/tumor_3.nii.gz"),
    ],
}


@pytest.mark.parametrize("files", ACCEPTED.values(), ids=ACCEPTED)
def test_ids_and_snapshots_are_no_labels(tmp_path, files) -> None:
    lay(tmp_path, *files)
    for allow_missing in (False, True):
        match = find_cases(tmp_path, allow_missing_labels=allow_missing)
        assert not match.problems
        assert not any("named like labels" in note for note in match.notes)


def test_other_labels_are_noted_where_labels_are_used(tmp_path) -> None:
    pairs = ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"]
    lay(tmp_path, *pairs, "more/v_0000.nii.gz", "more/v_seg.nii.gz")
    match = find_cases(tmp_path)
    (note,) = match.notes
    assert note.startswith("left out 1 file named like labels: more/v_seg.nii.gz; --images GLOB")
    assert not match.problems
    left_out = {role.path: role.detail for role in match.files if role.role == "left out"}
    why = "not part of the layout nnU-Net raw"
    assert left_out == {"more/v_0000.nii.gz": why, "more/v_seg.nii.gz": why}
