"""Manifests name cases outright: CSV or JSON, paths relative to the manifest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dask_slicer.config.schema import RunConfig
from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.manifest import find_manifest, read_manifest
from dask_slicer.planning.planner import make_plan

HEADER = "case_id,image,label,group,split\n"


def read(tmp_path: Path, content: str | bytes, name: str = "m.csv") -> list[tuple]:
    """Return what the cases of a manifest are, with paths relative to its folder."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    cases = read_manifest(path).cases

    def short(file: str | None) -> str | None:
        return file and Path(file).relative_to(tmp_path).as_posix()

    return [
        (case.case_id, tuple(map(short, case.images)), short(case.label), case.group, case.split)
        for case in cases
    ]


HOLE = [("b", ("b.nii", "(no file in the column image_2)"), None, None, None)]
CSV = {
    "semicolons": ("case_id;image;group\na;a.nii;1,5\n", [("a", ("a.nii",), None, "1,5", None)]),
    "tabs": ("case_id\timage\na\ta.nii\n", ["a"]),
    "columns_in_capitals": (
        "Case_ID,IMAGE,Split\na,a.nii,Train\n",
        [("a", ("a.nii",), None, None, "train")],
    ),
    "rows_without_cells": ("case_id,image\na,a.nii\n,\n", ["a"]),
    "backslashes": (
        "case_id,image\na,x\\a.nii\n",
        [("a", ("x/a.nii",), None, None, None)],
    ),
    "one_volume_of_a_4d_file": (
        "case_id,image\na,./a.nii[2]\n",
        [("a", ("a.nii[2]",), None, None, None)],
    ),
    "named_modalities_in_the_order_of_the_header": (
        "case_id,image:FLAIR,Image: T1\nb,,b1.nii\na,a0.nii,a1.nii\n",
        [
            ("b", ("(no file in the column image:FLAIR)", "b1.nii"), None, None, None),
            ("a", ("a0.nii", "a1.nii"), None, None, None),
        ],
    ),
    "all_columns": (
        HEADER + "a,x/a.nii.gz,y/a.nii.gz,p1,train\n",
        [("a", ("x/a.nii.gz",), "y/a.nii.gz", "p1", "train")],
    ),
    "the_least": ("case_id,image\na,a.nii\nb,b.nii\n", ["a", "b"]),
    "any_order_of_columns": ("image,case_id\na.nii,a\n", ["a"]),
    "byte_order_mark": ("\ufeffcase_id,image\na,a.nii\n", ["a"]),
    "windows_line_ends": ("case_id,image\r\na,a.nii\r\n", ["a"]),
    "empty_lines": ("case_id,image\n\na,a.nii\n\n", ["a"]),
    "no_last_line_end": ("case_id,image\na,a.nii", ["a"]),
    "spaces": ("case_id, image , label\na, a.nii ,\n", ["a"]),
    "blank_label": ("case_id,image,label\na,a.nii,\n", ["a"]),
    "short_row": ("case_id,image,label\na,a.nii\n", ["a"]),
    "quotes": (
        'case_id,image\na,"with, comma.nii"\n',
        [("a", ("with, comma.nii",), None, None, None)],
    ),
    "modalities_in_the_order_of_their_numbers": (
        "case_id,image_10,image_2,image\na,k.nii,j.nii,i.nii\n",
        [("a", ("i.nii", "j.nii", "k.nii"), None, None, None)],
    ),
    "a_modality_is_missing_from_one_case": (
        "case_id,image,image_2\na,a.nii,a2.nii\nb,b.nii,\n",
        [("a", ("a.nii", "a2.nii"), None, None, None), *HOLE],
    ),
    "another_modality_is_missing_from_each_case": (
        "case_id,image,image_2,image_3\na,a.nii,a2.nii,\nb,b.nii,,b3.nii\n",
        [
            ("a", ("a.nii", "a2.nii", "(no file in the column image_3)"), None, None, None),
            ("b", ("b.nii", "(no file in the column image_2)", "b3.nii"), None, None, None),
        ],
    ),
    "paths_up_and_down": (
        "case_id,image\na,x/../a.nii\n",
        ["a"],
    ),
}


@pytest.mark.parametrize(("content", "expected"), CSV.values(), ids=CSV)
def test_a_csv_manifest_is_read(tmp_path, content, expected) -> None:
    full = [
        (entry, (f"{entry}.nii",), None, None, None) if isinstance(entry, str) else entry
        for entry in expected
    ]
    assert read(tmp_path, content) == full


@pytest.mark.parametrize(
    "described",
    [
        [{"case_id": "a", "image": "a.nii", "label": None}],
        {"cases": [{"case_id": "a", "image": "a.nii", "label": ""}]},
    ],
    ids=["list", "under_cases"],
)
def test_a_json_manifest_is_read(tmp_path, described) -> None:
    assert read(tmp_path, json.dumps(described), "m.json") == [("a", ("a.nii",), None, None, None)]


def test_relative_paths_are_relative_to_the_manifest(tmp_path, monkeypatch) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "m.csv").write_text("case_id,image,label\na,../a.nii,/data/a.nii\n")
    monkeypatch.chdir("/")
    (case,) = read_manifest(tmp_path / "lists" / "m.csv").cases
    assert case.files == (str(tmp_path / "a.nii"), "/data/a.nii")


def test_a_manifest_wins_over_the_layout_of_its_folder(tmp_path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "a_0000.nii").touch()
    (tmp_path / "manifest.csv").write_text("case_id,image,age\nb,b.nii,7\n")
    dataset = find_cases(tmp_path)
    assert dataset.layout == "manifest"
    assert "manifest.csv" in dataset.reason
    assert [case.case_id for case in dataset.cases] == ["b"]
    assert dataset.notes == [
        "columns of manifest.csv that are read for --group_column and --stratify only: age"
    ]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["manifest.csv", "manifest.json"], "manifest.csv"),
        (["manifest.json", "cases.csv"], "manifest.json"),
        (["cases.csv"], "cases.csv"),
        (["cases.csv", "more.csv"], None),
        (["other.txt"], None),
    ],
)
def test_the_only_manifest_of_a_folder_is_used(tmp_path, files, found) -> None:
    for name in files:
        (tmp_path / name).write_text("case_id,image\n")
    (tmp_path / "demographics.csv").write_text("subject,age\n")
    assert find_manifest(tmp_path) == (None if found is None else tmp_path / found)


def test_masks_are_numbered_in_the_order_of_their_columns(tmp_path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "case_id,image,label:spleen,label:empty,label:Liver\na,a.nii,,,l.nii\nb,b.nii,s.nii,,l2.nii\n"
    )
    dataset = read_manifest(path)
    assert [
        [(mask.structure, Path(mask.path).name, mask.value) for mask in case.masks]
        for case in dataset.cases
    ] == [[("Liver", "l.nii", 3)], [("spleen", "s.nii", 1), ("Liver", "l2.nii", 3)]]
    assert dataset.structures == ("spleen", "empty", "Liver")


def test_grid_and_orientation_of_a_case_are_read(tmp_path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "case_id,image:CT,label_grid,orientation_from\na,a.nii,Image,qform\nb,b.nii,,\n"
    )
    dataset = read_manifest(path)
    assert dataset.channel_names == ("CT",)
    assert [(case.label_grid, case.orientation_from) for case in dataset.cases] == [
        ("image", "qform"),
        ("own", "sform"),
    ]


def test_columns_that_name_no_volume_are_ignored_with_a_note(tmp_path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "case_id,image,label,old_mask,age,n_labels,site\na,a.nii,b.nii,c.nii,7,3,x.dcm\n"
    )
    (note,) = read_manifest(path).notes
    words = "columns of m.csv that are read for --group_column and --stratify only: "
    assert note == f"{words}old_mask, age, n_labels, site"


def test_volumes_that_a_manifest_does_not_name_are_left_out(tmp_path) -> None:
    for name in ("a.nii", "b.nii", "deep/c.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "manifest.tsv").write_text("case_id\timage\na\ta.nii[0]\n")
    dataset = find_cases(tmp_path)
    assert dataset.left_out == {
        "b.nii": "not in manifest.tsv",
        "deep/c.nii.gz": "not in manifest.tsv",
    }
    assert [role.role for role in dataset.files] == ["image", "left out", "left out"]


REFUSED = {
    "bad_split": (HEADER + "a,a.nii,,,training\n", "split must be one of train, val, test, got "),
    "split_for_some": (HEADER + "a,a.nii,,,train\nb,b.nii,,,\n", "but not to b (1 in all)"),
    "no_case_id_column": ("id,image\na,a.nii\n", "must have the columns case_id and image"),
    "no_image_column": ("case_id,path\na,a.nii\n", "must have the columns case_id and image"),
    "no_case_id": ("case_id,image\na,a.nii\n,b.nii\n", "has no case_id in line 3"),
    "long_row": ("case_id,image\na,a.nii,x\n", "line 2 has more fields than the header"),
    "a_column_twice": ("case_id,image,image\na,a.nii,b.nii\n", "image"),
    "empty_column_names": (
        "case_id,image,label,,\na,a.nii,b.nii,,\n",
        "2 columns of the header without a name: number 4, 5 of 5",
    ),
    "one_empty_column_name": ("case_id,,image\na,,a.nii\n", "number 2 of 3; remove it, or add"),
    "a_column_twice_in_other_letters": ("case_id,image,Image\na,a,b\n", "image is given twice"),
    "seg": ("case_id,image,seg\na,a.nii,s.nii\n", "column seg, which is not read; if it names"),
    "gt_without_suffix": ("case_id,image,GT\na,a.nii,s\n", "call it label"),
    "a_modality": ("case_id,image,t2\na,a.nii,t.nii[1]\n", "call it image:t2 for a modality"),
    "numbered_and_named": ("case_id,image,image:T2\na,a.nii,b.nii\n", "name all columns"),
    "label_and_masks": (
        "case_id,image,label,label:liver\na,a.nii,b.nii,c.nii\n",
        "gives both label and label:liver in line 2",
    ),
    "grid": ("case_id,image,label_grid\na,a.nii,mine\n", "must be one of own, image, got mine"),
    "form": ("case_id,image,orientation_from\na,a.nii,x\n", "must be one of sform, qform"),
    "a_drive": ("case_id,image\na,C:\\scans\\a.nii\n", "is on a drive of Windows"),
    "open_quote": ('case_id,image\na,"a.nii\n', 'a quotation mark (") is not closed'),
    "not_utf8": (b"case_id,image\n\xe9,a.nii\n", "is not UTF-8 text"),
    "utf16": ("case_id,image\na,a.nii\n".encode("utf-16"), "is not UTF-8 text"),
    "no_rows": ("case_id,image\n", "names no case"),
    "empty": ("", "names no case"),
}
REFUSED_JSON = {
    "cut": ('[{"case_id": "a"', "cannot read the manifest"),
    "an_object": ('{"a": "a.nii"}', "expected a list of cases"),
    "a_number": ("7", "expected a list of cases"),
    "case_that_is_no_object": ('["a"]', "case 1 is not an object"),
    "no_case_id": ('[{"case_id": "a", "image": "a"}, {"image": "b"}]', "no case_id in case 2"),
    "image_that_is_no_text": ('[{"case_id": "a", "image": ["a.nii"]}]', "image"),
    "deep": ("[" * 100_000, "cannot read the manifest"),
}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        *[pytest.param("m.csv", *row, id=f"csv_{row_id}") for row_id, row in REFUSED.items()],
        *[
            pytest.param("m.json", *row, id=f"json_{row_id}")
            for row_id, row in REFUSED_JSON.items()
        ],
    ],
)
def test_a_manifest_that_is_wrong_is_refused_by_name(tmp_path, name, content, said) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=re.escape(said)) as caught:
        find_cases(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case_id", ["../x", "a/b", "CON", "a:b"])
def test_ids_that_are_no_file_names_and_ids_twice_are_problems(tmp_path, case_id) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"case_id,image\n{case_id},a.nii\nb,b.nii\nB,b.nii\nc,c.nii\nc,d.nii\n")
    first, second = find_cases(path).problems
    assert f"case id {case_id!r} is not a plain file name" in first
    assert second.endswith("count as equal: 'b', 'B', 'c' (2 times)")


@pytest.mark.parametrize(
    "image", ["a\0.nii", "a\ud800.nii", "a" * 5000], ids=["nul", "half", "long"]
)
def test_an_impossible_path_fails_its_case(tmp_path, image) -> None:
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "b.nii")
    path = tmp_path / "m.json"
    path.write_text(
        json.dumps([{"case_id": "a", "image": image}, {"case_id": "b", "image": "b.nii"}])
    )
    plan = make_plan(RunConfig(input_dir=path, output_dir=tmp_path / "slices"))
    assert [failure.case_id for failure in plan.failures] == ["a"]


def test_an_input_that_is_another_file_or_missing_is_refused(tmp_path) -> None:
    (tmp_path / "a.nii").touch()
    for path, said in ((tmp_path / "a.nii", "is neither a folder"), (tmp_path / "z", "not exist")):
        with pytest.raises(DatasetError, match=said):
            find_cases(path)
