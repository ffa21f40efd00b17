"""What dataset.json and datalists list is read: Decathlon, MONAI, nnU-Net's `dataset`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch


def find(
    root: Path, files: list[str], content: object, name: str = "", **options: object
) -> LayoutMatch:
    """Return the cases of made-up files; with a name, those that this JSON file lists."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    (root / (name or "dataset.json")).write_text(json.dumps(content))
    return find_cases(root / name, InputOptions(**options))  # type: ignore[arg-type]  # of a table


def described(dataset: LayoutMatch, root: Path) -> dict[str, tuple[list[str], str | None, str]]:
    """Return images, label and split of each case."""

    def short(path: str) -> str:
        return Path(path).relative_to(root).as_posix()

    return {
        case.case_id: (
            [*map(short, case.images)],
            case.label and short(case.label),
            case.split or "",
        )
        for case in dataset.cases
    }


def pair(name: str, **others: object) -> dict[str, object]:
    return {"image": f"./im/{name}.nii.gz", "label": f"la/{name}.nii.gz", **others}


def files(*names: str) -> list[str]:
    return [f"{folder}/{name}.nii.gz" for name in names for folder in ("im", "la")]


def case(name: str, split: str = "") -> tuple[list[str], str, str]:
    return ([f"im/{name}.nii.gz"], f"la/{name}.nii.gz", split)


ONE = {"training": [pair("a")]}

LISTS: dict[str, tuple[list[str], object, dict[str, object], dict[str, object]]] = {
    "decathlon": (files("a", "b"), {"training": [pair("a"), pair("b")]}, {},
                  {"a": case("a"), "b": case("b")}),
    "folders_of_other_names": (
        ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "labelsTr2/a.nii.gz"],
        {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr2/a.nii.gz"}]}, {},
        {"a": (["imagesTr/a.nii.gz"], "labelsTr2/a.nii.gz", "")},
    ),
    "a_listed_label_that_is_missing_stays": (
        ["im/a.nii.gz"], ONE, {}, {"a": case("a")}),
    "test_is_left_out": (
        files("a", "t"), ONE | {"test": ["im/t.nii.gz"]}, {}, {"a": case("a")}),
    "test_as_strings": (
        files("a", "t"), ONE | {"test": ["im/t.nii.gz"]}, {"include_test": True},
        {"a": case("a"), "t": (["im/t.nii.gz"], None, "test")},
    ),
    "testing_as_objects": (
        files("a", "t"), ONE | {"testing": [pair("t")]}, {"include_test": True},
        {"a": case("a"), "t": case("t", "test")},
    ),
    "validation_gives_splits": (
        files("a", "v"), ONE | {"validation": [pair("v")]}, {},
        {"a": case("a", "train"), "v": case("v", "val")},
    ),
    "val_and_train_are_read_too": (
        files("a", "v"), {"train": [pair("a")], "val": [pair("v")]}, {},
        {"a": case("a", "train"), "v": case("v", "val")},
    ),
    "splits_of_the_user_win": (
        files("a", "v"), ONE | {"validation": [pair("v")]}, {"splits": Path("splits.json")},
        {"a": case("a"), "v": case("v")},
    ),
    "several_images": (
        ["x/B_1/B_1_t1.nii", "x/B_1/B_1_t1ce.nii"],
        {"training": [{"image": ["x/B_1/B_1_t1.nii", "x/B_1/B_1_t1ce.nii"]}]}, {},
        {"B_1": (["x/B_1/B_1_t1.nii", "x/B_1/B_1_t1ce.nii"], None, "")},
    ),
    "several_images_without_a_common_name": (
        ["x/7/t1.nii", "x/7/flair.nii", "x/7/seg.nii"],
        {"training": [{"image": ["x/7/t1.nii", "x/7/flair.nii"], "label": ["x/7/seg.nii"]}]}, {},
        {"7": (["x/7/t1.nii", "x/7/flair.nii"], "x/7/seg.nii", "")},
    ),
    "equal_names_in_folders": (
        ["d/p1/ct.nii", "d/p2/ct.nii"],
        {"training": [{"image": "d/p1/ct.nii"}, {"image": "d/p2/ct.nii"}]}, {},
        {"p1": (["d/p1/ct.nii"], None, ""), "p2": (["d/p2/ct.nii"], None, "")},
    ),
    "equal_names_at_several_depths": (
        ["p1/ct.nii", "d/p2/ct.nii"], {"training": ["p1/ct.nii", "d/p2/ct.nii"]}, {},
        {"p1_ct": (["p1/ct.nii"], None, ""), "d_p2_ct": (["d/p2/ct.nii"], None, "")},
    ),
    "equal_names_in_the_root_and_in_a_folder": (
        ["a.nii", "x/a.nii"], {"training": ["a.nii", "x/a.nii"]}, {},
        {"a": (["a.nii"], None, ""), "x_a": (["x/a.nii"], None, "")},
    ),
    "nnunet_dataset": (
        files("a", "b"),
        {"dataset": {"case 1": {"images": ["im/a.nii.gz", "im/b.nii.gz"], "label": "la/a.nii.gz"}}},
        {}, {"case 1": (["im/a.nii.gz", "im/b.nii.gz"], "la/a.nii.gz", "")},
    ),
    "windows_paths": (
        files("a"), {"training": [{"image": ".\\im\\a.nii.gz", "label": "la\\a.nii.gz"}]}, {},
        {"a": case("a")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["", "dataset_0.json"], ids=["folder", "file"])
@pytest.mark.parametrize(("made", "content", "options", "cases"), LISTS.values(), ids=LISTS)
def test_what_json_lists_is_read(tmp_path, made, content, options, cases, name) -> None:
    dataset = find(tmp_path, made, content, name, **options)
    assert described(dataset, tmp_path) == cases
    assert not dataset.problems
    assert all(case.stated for case in dataset.cases)


FOLDS = {"training": [pair("a", fold=0), pair("b", fold=1), pair("c", fold=0)]}


def test_a_fold_is_for_validation_if_the_user_says_so(tmp_path) -> None:
    made = files("a", "b", "c")
    dataset = find(tmp_path, made, FOLDS, datalist_fold=1)
    assert [case.split for case in dataset.cases] == ["train", "val", "train"]
    dataset = find(tmp_path, made, FOLDS)
    assert [case.split for case in dataset.cases] == [None] * 3
    assert any(
        "folds (0, 1), which are not used; --datalist_fold" in text for text in dataset.notes
    )
    with pytest.raises(DatasetError, match="no entry with fold 7; it has 0, 1"):
        find(tmp_path, made, FOLDS, datalist_fold=7)
    dataset = find(tmp_path, made, FOLDS | {"validation": [pair("c")]}, datalist_fold=1)
    assert "both choose cases for validation" in dataset.problems[0]
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "m.csv").write_text("case_id,image\na,im/a.nii.gz\n")
    with pytest.raises(DatasetError, match=r"--datalist_fold needs a datalist, and .* manifest"):
        find_cases(tmp_path / "m.csv", InputOptions(datalist_fold=0))


def test_paths_of_nnunet_may_begin_with_a_variable(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SCANS", str(tmp_path / "im"))
    content = {"dataset": {"a": {"images": ["$SCANS/a.nii.gz"], "label": "la/a.nii.gz"}}}
    dataset = find(tmp_path, files("a"), content)
    assert described(dataset, tmp_path) == {"a": case("a")}


PROBLEMS = {
    "a_section_of_another_name": (ONE | {"unlabeled": [{"image": "im/b.nii.gz"}]}, {},
                                  "lists images under unlabeled, which is not read"),
    "paths_under_another_name": (ONE | {"external": ["im/b.nii.gz"]}, {}, "under external"),
    "dataset_beside_training": (
        ONE | {"dataset": {"a": {"images": ["im/a.nii.gz"]}}}, {}, "images under training"),
    "labels_under_another_name": ({"training": [{"image": "im/a.nii.gz", "mask": "la/a.nii.gz"}]},
                                  {}, "name files under mask, which is not read; call it label"),
}  # fmt: skip
REFUSED = {
    "two_sections": (ONE | {"train": [pair("a")]}, {}, "under training and train; keep one"),
    "no_list": (ONE | {"validation": {"a": 1}}, {}, "`validation` of dataset.json must be a list"),
    "no_entry": (ONE | {"validation": [7]}, {}, "entry 1 under `validation` of dataset.json is"),
    "no_image": ({"training": [{"images": "im/a.nii.gz"}]}, {}, "has no `image` that is a path"),
    "no_path": ({"training": [{"image": "im/a.nii.gz", "label": 3}]}, {}, "a `label` that is no"),
    "several_labels": (
        {"training": [{"image": "im/a.nii.gz", "label": ["la/a.nii.gz", "la/b.nii.gz"]}]}, {},
        "lists 2 labels, and values of their structures are not known; give a manifest with a col"),
    "test_list": (ONE | {"test": [{"scan": "im/t.nii.gz"}]}, {"include_test": True},
                  "entry 1 under `test` of dataset.json has no `image`"),
    "nothing_there": ({"training": [pair("z")]}, {}, "none of the 1 images that dataset.json lists "
                      "exists"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "options", "words"), PROBLEMS.values(), ids=PROBLEMS)
def test_lists_that_would_be_left_out_are_problems(tmp_path, content, options, words) -> None:
    assert words in find(tmp_path, files("a", "b"), content, **options).problems[0]


@pytest.mark.parametrize(("content", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_content_that_is_not_understood_is_refused(tmp_path, content, options, words) -> None:
    with pytest.raises(DatasetError, match=re.escape(words)):
        find(tmp_path, files("a", "b"), content, **options)


def test_what_is_left_out_has_a_reason(tmp_path) -> None:
    content = ONE | {"test": [pair("t")]}
    dataset = find(tmp_path, files("a", "t", "x"), content)
    for_testing = "for testing; --include_test uses it"
    unlisted = "not in dataset.json"
    assert dataset.left_out == {
        "im/t.nii.gz": for_testing,
        "la/t.nii.gz": for_testing,
        "im/x.nii.gz": unlisted,
        "la/x.nii.gz": unlisted,
    }
    assert dataset.notes == [
        "1 image that dataset.json lists for testing left out; --include_test uses them for test",
        "2 volumes left out, not in dataset.json: im/x.nii.gz, la/x.nii.gz",
    ]


def test_a_test_list_that_is_not_understood_is_noted(tmp_path) -> None:
    dataset = find(tmp_path, files("a"), ONE | {"test": [7]})
    assert dataset.notes[0].startswith("images for testing left out: entry 1 under `test` of")


def test_other_files_of_a_labelled_entry_are_noted(tmp_path) -> None:
    dataset = find(tmp_path, files("a"), {"training": [pair("a", pseudo="x.nii.gz")]})
    assert dataset.notes == ["entries of dataset.json name files under pseudo, which is not read"]


NAMES = {
    "decathlon": (
        {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}},
        (("CT",), {1: "liver", 2: "tumour"}, None),
    ),
    "volumes_are_channels": (
        {"modality": {"1": "T1w", "0": "FLAIR"}, "labels": {}}, (("FLAIR", "T1w"), {}, "channels")),
    "nnunet": (
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "ignore": "2"}},
        (("CT",), {1: "liver", 2: "ignore"}, None),
    ),
    "regions": (
        {"labels": {"background": 0, "whole": [1, 2], "core": [2]}}, ((), {2: "core"}, None)),
    "odd": ({"modality": ["CT "], "labels": ["liver"]}, (("CT",), {}, None)),
    "gaps": ({"modality": {"0": "CT", "2": "PET"}, "labels": {"a": 1.5}}, ((), {}, None)),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), NAMES.values(), ids=NAMES)
def test_names_of_channels_and_labels_are_kept(tmp_path, content, expected) -> None:
    dataset = find(tmp_path, files("a"), ONE | content)
    assert (dataset.channel_names, dataset.label_names, dataset.volumes) == expected


def test_modalities_chooses_volumes_of_a_4d_file(tmp_path) -> None:
    content = ONE | {"modality": {"0": "FLAIR", "1": "T1w", "2": "T2w"}}
    dataset = find(tmp_path, files("a"), content, modalities=("t2w", "FLAIR"))
    images = ["im/a.nii.gz[2]", "im/a.nii.gz[0]"]
    assert described(dataset, tmp_path) == {"a": (images, "la/a.nii.gz", "")}
    assert dataset.channel_names == ("T2w", "FLAIR")
    dataset = find(tmp_path, files("a"), content, modalities=("t2w",), volumes="1")
    assert "--volumes 1 is not channels; use one of them" in " ".join(dataset.problems)


def test_a_datalist_of_another_name_is_named_where_nothing_is_found(tmp_path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(ONE))
    with pytest.raises(DatasetError, match=r"a datalist: --input_dir \S+list\.json reads it"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"channel_names": {"0": "CT"}, "numTraining": 1}, "expected a list of cases"),
        ({"training": []}, "lists no image for training; if it describes a folder in a known"),
        ([{"image": "a.nii"}], "must have the columns case_id and image"),
    ],
)
def test_a_json_file_of_another_kind_is_refused(tmp_path, content, words) -> None:
    with pytest.raises(DatasetError, match=words):
        find(tmp_path, files("a"), content, "x.json")


def test_a_json_manifest_is_known_by_its_content(tmp_path) -> None:
    dataset = find(tmp_path, files("a"), [{"case_id": "a", "image": "im/a.nii.gz"}], "dataset.json")
    assert dataset.layout == "manifest"
