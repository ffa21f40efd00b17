"""nnU-Net raw folders: channels or cases by number, names of labels, parts beside imagesTr."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dask_slicer.errors import DatasetError
from dask_slicer.inputs.discovery import find_cases
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch


def find(root: Path, files: str, content: object = None, **options: object) -> LayoutMatch:
    """Return the cases of made-up files, `.nii.gz` unless they have a suffix."""
    for file in files.split():
        path = root / (file if "." in file else f"{file}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if content is not None:
        (root / "dataset.json").write_text(json.dumps(content))
    return find_cases(root, InputOptions(**options))  # type: ignore[arg-type]  # of a table


def described(dataset: LayoutMatch, root: Path) -> str:
    """Return the cases as text: id, images > label, split."""

    def short(path: str) -> str:
        return Path(path).relative_to(root).as_posix().removesuffix(".nii.gz")

    return "; ".join(
        f"{case.case_id}: {' '.join(map(short, case.images))}"
        + (f" > {short(case.label)}" if case.label else "")
        + (f" {case.split}" if case.split else "")
        for case in dataset.cases
    )


CASES = {
    "labels_named_like_the_first_channel": (
        "imagesTr/a_0000 imagesTr/a_0001 imagesTr/b_0000 imagesTr/b_0001 "
        "labelsTr/a_0000 labelsTr/b_0000",
        None,
        "a: imagesTr/a_0000 imagesTr/a_0001 > labelsTr/a_0000; "
        "b: imagesTr/b_0000 imagesTr/b_0001 > labelsTr/b_0000",
    ),
    "labels_named_like_the_only_channel": (
        "imagesTr/a_0000 labelsTr/a_0000", None, "a_0000: imagesTr/a_0000 > labelsTr/a_0000"),
    "one_of_them_without_a_label": (
        "imagesTr/a_0000 imagesTr/b_0000 labelsTr/a_0000",
        None,
        "a_0000: imagesTr/a_0000 > labelsTr/a_0000; b_0000: imagesTr/b_0000",
    ),
    "validation_of_amos": (
        "imagesTr/amos_0001 labelsTr/amos_0001 imagesTr/amos_0004 labelsTr/amos_0004 "
        "imagesVa/amos_0008 labelsVa/amos_0008",
        None,
        "amos_0001: imagesTr/amos_0001 > labelsTr/amos_0001 train; "
        "amos_0004: imagesTr/amos_0004 > labelsTr/amos_0004 train; "
        "amos_0008: imagesVa/amos_0008 > labelsVa/amos_0008 val",
    ),
    "file_ending": (
        "imagesTr/a_0000 imagesTr/a_0000.nii labelsTr/a.nii", {"file_ending": ".nii"},
        "a: imagesTr/a_0000.nii > labelsTr/a.nii",
    ),
    "file_ending_of_no_file": (
        "imagesTr/a_0000 labelsTr/a", {"file_ending": ".nii"}, "a: imagesTr/a_0000 > labelsTr/a"),
    "ids_that_are_no_paths": ("imagesTr/a_0000", {"training": ["a", "b"]}, "a: imagesTr/a_0000"),
    "pairs_of_version_1_on_windows": (
        "imagesTr/a_0000 labelsTr/a",
        {"training": [{"image": ".\\imagesTr\\a.nii.gz", "label": "labelsTr\\a.nii.gz"}]},
        "a: imagesTr/a_0000 > labelsTr/a",
    ),
    "pairs_of_version_1_with_other_folders": (
        "im/a_0000 im/b_0000 labelsTr/a labelsTr2/a",
        {"training": [{"image": "./im/a.nii.gz", "label": "./labelsTr2/a.nii.gz"}]},
        "a: im/a_0000 > labelsTr2/a",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "content", "cases"), CASES.values(), ids=CASES)
def test_cases_of_a_raw_folder(tmp_path, files, content, cases) -> None:
    dataset = find(tmp_path, files, content)
    assert described(dataset, tmp_path) == cases
    assert dataset.layout == "nnU-Net raw"
    assert not dataset.problems


def test_splits_of_the_user_win_over_images_for_validation(tmp_path) -> None:
    dataset = find(tmp_path, "imagesTr/a_0000 imagesVa/b_0000", splits=Path("s.json"))
    assert [case.split for case in dataset.cases] == [None, None]


def test_what_is_left_out_has_a_reason(tmp_path) -> None:
    files = "imagesTr/a_0000 imagesTr/a_0000.nii labelsTr/a imagesTs/t_0000 labelsTs/t imagesVa/v"
    dataset = find(tmp_path, files, {"file_ending": ".nii.gz"})
    for_testing = "for testing; --include_test uses it"
    assert dataset.left_out == {
        "imagesTr/a_0000.nii": "file_ending in dataset.json is .nii.gz",
        "imagesTs/t_0000.nii.gz": for_testing,
        "labelsTs/t.nii.gz": for_testing,
        "imagesVa/v.nii.gz": "no _0000 in the name",
    }


def test_one_case_with_a_label_named_like_its_first_channel_is_not_clear(tmp_path) -> None:
    files = "imagesTr/a_0000 imagesTr/a_0001 labelsTr/a_0000"
    (problem,) = find(tmp_path, files).problems
    assert "as if the number at the end of a name were not a channel" in problem
    dataset = find(tmp_path, files, {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"x": 1}})
    assert described(dataset, tmp_path) == "a: imagesTr/a_0000 imagesTr/a_0001 > labelsTr/a_0000"
    assert (dataset.channel_names, dataset.label_names) == (("T1", "T2"), {1: "x"})


def test_numbers_without_labels_may_be_those_of_patients(tmp_path) -> None:
    files = " ".join(f"imagesTr/liver_{number:04d}" for number in range(5))
    (problem,) = find(tmp_path, files).problems
    assert "or a case each (--images 'imagesTr/*')?" in problem
    names = {str(number): f"b{number}" for number in range(5)}
    assert not find(tmp_path, files, {"channel_names": names}).problems


@pytest.mark.parametrize("folder", ["labelsTr2", "masksTr", "segTr"])
def test_labels_in_a_folder_of_another_name_are_a_problem(tmp_path, folder) -> None:
    (problem,) = find(tmp_path, f"imagesTr/a_0000 {folder}/a").problems
    assert f"{folder}/a.nii.gz" in problem
    assert "--allow_missing_labels" in problem


def test_modalities_with_names_are_refused_with_the_options_that_decide(tmp_path) -> None:
    files = "imagesTr/C-1__CT imagesTr/C-1__PT labelsTr/C-1 imagesTr/C-2__CT imagesTr/C-2__PT"
    words = "--images 'imagesTr/*__CT.nii.gz' --images 'imagesTr/*__PT.nii.gz' --labels 'labelsTr/"
    with pytest.raises(DatasetError, match=re.escape(words)):
        find(tmp_path, f"{files} labelsTr/C-2")


def test_a_missing_channel_has_the_suffix_of_the_dataset(tmp_path) -> None:
    content = {"file_ending": "nii", "channel_names": {"0": "T1", "1": "T2"}}
    dataset = find(tmp_path, "imagesTr/a_0000.nii", content)
    assert described(dataset, tmp_path) == "a: imagesTr/a_0000.nii imagesTr/a_0001.nii"


def test_a_suffix_that_no_reader_reads_is_named(tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"file_ending in dataset\.json is \.png, a suffix that"):
        find(tmp_path, "imagesTr/a_0000.png", {"file_ending": ".png"})


def test_pairs_of_version_1_in_several_folders_are_refused(tmp_path) -> None:
    content = {"training": [{"image": "x/a.nii.gz"}, {"image": "y/b.nii.gz"}]}
    with pytest.raises(DatasetError, match=r"in several folders.*: x, y; name the files in a"):
        find(tmp_path, "x/a_0000 y/b_0000", content)


def test_pairs_of_version_1_that_are_not_there_or_not_listed_are_noted(tmp_path) -> None:
    content = {"training": [{"image": "imagesTr/a.nii.gz"}, {"image": "imagesTr/b.nii.gz"}]}
    content["training"][0]["label"] = "labelsTr/a.nii.gz"
    files = "imagesTr/a_0000 imagesTr/c_0000 labelsTr/a labelsTr/c"
    dataset = find(tmp_path, files, content)
    assert dataset.notes == [
        "1 image left out, not in dataset.json: imagesTr/c_0000.nii.gz",
        "1 case in dataset.json without an image: b",
        "1 label left out, not in dataset.json: labelsTr/c.nii.gz",
    ]
