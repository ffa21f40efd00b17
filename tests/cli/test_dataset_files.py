"""Manifests, datalists, nnU-Net folders through the command line: exit status and messages."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import dask_slicer


@pytest.fixture
def tree(dataset):
    """Return a function that writes volumes, labels by name, and text files into a dataset."""

    def write(names: str, **texts: object) -> Path:
        rng = np.random.default_rng(1)
        for name in names.split():
            array = rng.integers(0, 9, (8, 9, 10)).astype(np.int16)
            if "la" in name.partition("/")[0] or "mask" in name:
                array = (array > 5).astype(np.uint8)
            dataset.write(dataset.root / f"{name}.nii.gz", array, np.eye(4))
        for name, text in texts.items():
            path = dataset.root / name.replace("_dot_", ".")
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        return dataset.root

    return write


@pytest.fixture
def command(tmp_path, invoke):
    """Return a function that runs a command on an input, with an output of its own."""

    def call(name: str, input_dir: Path, *options: object):
        workers = ["--num_workers", 0] if name == "run" else []
        return invoke(
            *(name, "--input_dir", input_dir, "--output_dir", tmp_path / "slices"),
            *(*workers, *options),
        )

    return call


PAIR = {"image": "im/a.nii.gz", "label": "la/a.nii.gz"}
ONE = {"training": [PAIR]}
AB = "im/a la/a im/b la/b"
HEADER = "case_id,image,label"

# Volumes, texts, name of the file to give ("" for the folder), options, exit status of run, words.
SITUATIONS = {
    "header_with_empty_names": (
        AB, {"m_dot_csv": f"{HEADER},,\na,im/a.nii.gz,la/a.nii.gz,,\n"}, "m.csv", [], 2,
        "2 columns of the header without a name: number 4, 5 of 5"),
    "semicolons_bom_and_windows_paths": (
        AB, {"m_dot_csv": "\ufeffcase_id;image;label\r\na;im\\a.nii.gz;la\\A.nii.gz\r\n"},
        "m.csv", [], 0, "10 slices of 1 case"),
    "tabs": (AB, {"m_dot_tsv": "case_id\timage\na\tim/a.nii.gz\n"}, "m.tsv", [], 0,
             "10 slices of 1 case"),
    "a_drive": (AB, {"m_dot_csv": "case_id,image\na,C:\\a.nii\n"}, "m.csv", [], 2, "a drive of"),
    "a_column_seg": (
        AB, {"m_dot_csv": "case_id,image,seg\na,im/a.nii.gz,la/a.nii.gz\n"}, "m.csv", [], 2,
        "has a column seg, which is not read; if it names the labels, call it label"),
    "a_column_flair": (
        AB, {"m_dot_csv": f"{HEADER},flair\na,im/a.nii.gz,la/a.nii.gz,im/b.nii.gz\n"}, "m.csv",
        [], 2, "call it image:flair for a modality"),
    "an_empty_cell": (
        AB, {"m_dot_csv": "case_id,image,image_2\na,im/a.nii.gz,im/b.nii.gz\nb,im/b.nii.gz,\n"},
        "m.csv", [], 1, "(no file in the column image_2)"),
    "labels_of_another_folder": (
        "im/a la2/a la/a", {"dataset_dot_json": {"training": [PAIR | {"label": "la2/a.nii.gz"}]}},
        "", [], 0, "10 slices of 1 case"),
    "a_listed_label_that_is_missing": (
        "im/a", {"dataset_dot_json": ONE}, "", [], 1, "a: MissingFile"),
    "a_test_list_that_is_not_understood": (
        AB, {"dataset_dot_json": ONE | {"test": [1]}}, "", ["--include_test"], 2,
        "entry 1 under `test` of dataset.json is neither a path nor an object"),
    "a_test_list_that_is_not_read": (
        AB, {"dataset_dot_json": ONE | {"test": [1]}}, "", [], 0, "images for testing left out"),
    "a_section_of_another_name": (
        AB, {"dataset_dot_json": ONE | {"extra": [PAIR]}}, "", [], 2, "lists images under extra"),
    "several_labels": (
        AB, {"dataset_dot_json": {"training": [PAIR | {"label": ["la/a.nii.gz", "la/b.nii.gz"]}]}},
        "", [], 2, "give a manifest with a column label:NAME"),
    "a_datalist_of_any_name": (AB, {"fold_dot_json": ONE}, "fold.json", [], 0, "MONAI datalist"),
    "json_of_another_kind": (AB, {"x_dot_json": {"a": 1}}, "x.json", [], 2, "expected a list of c"),
    "a_fold_without_a_datalist": (
        "images/a", {}, "", ["--datalist_fold", 1], 2, "--datalist_fold needs a datalist"),
    "a_layout_for_a_file": (
        AB, {"fold_dot_json": ONE}, "fold.json", ["--layout", "nnunet"], 2,
        "--layout nnunet is for a folder, and"),
    "nnunet_cases_anywhere": (
        AB, {"dataset_dot_json": {"channel_names": {"0": "CT"}, "dataset": {
            "x": {"images": ["im/a.nii.gz"], "label": "la/a.nii.gz"}}}}, "", [], 0,
        "10 slices of 1 case"),
    "modalities_with_names": (
        "imagesTr/C__CT imagesTr/C__PT labelsTr/C", {}, "", [], 2,
        "--images 'imagesTr/*__CT.nii.gz' --images 'imagesTr/*__PT.nii.gz' --labels"),
    "labels_in_another_folder": (
        "imagesTr/a_0000 labelsTr2/a", {}, "", [], 2, "no case has a label, which would leave out"),
    "numbers_that_are_cases": (
        "imagesTr/amos_0001 labelsTr/amos_0001 imagesTr/amos_0007 labelsTr/amos_0007", {}, "", [],
        0, "20 slices of 2 cases"),
    "numbers_that_are_not_clear": (
        "imagesTr/amos_0001 labelsTr/amos_0001 imagesTr/amos_0007", {}, "", [], 2,
        "1 image without one: amos_0007.nii.gz; name the files in a manifest"),
    "images_for_validation": (
        "imagesTr/a_0000 labelsTr/a imagesVa/b_0000 labelsVa/b", {}, "", [], 0, "1 train, 1 val"),
    "labels_named_like_images": (
        "imagesTr/a_0000 labelsTr/a_0000", {}, "", [], 0, "10 slices of 1 case"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "texts", "file", "options", "status", "words"), SITUATIONS.values(), ids=SITUATIONS
)
def test_a_situation_has_its_exit_status_and_message(
    tree, command, names, texts, file, options, status, words
) -> None:
    ratios = ["--train_ratio", 1]
    result = command("run", tree(names, **texts) / file, *ratios, *options)
    assert result.exit_code == status, result.output
    assert words in " ".join(result.output.split())


def test_a_name_in_another_unicode_form_is_read(tree, command) -> None:
    name = unicodedata.normalize("NFD", "Müller")
    root = tree(f"im/{name}", m_dot_csv="case_id,image\na,im/Müller.nii.gz\n")
    assert command("run", root / "m.csv").exit_code == 0


def test_folds_and_validation_give_the_splits(tree, command, tmp_path) -> None:
    folds = [{"image": f"im/{name}.nii.gz", "fold": n} for n, name in enumerate("abc")]
    root = tree("im/a im/b im/c", fold_dot_json={"training": folds})
    result = command("plan", root / "fold.json", "--datalist_fold", 2, "--json")
    splits = json.loads(result.stdout)["splits"]
    assert splits == {"train": ["a", "b"], "val": ["c"], "test": []}


def test_names_in_dataset_json_are_kept_in_the_output(tree, command, tmp_path) -> None:
    names = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
    root = tree(AB, dataset_dot_json=ONE | names)
    assert command("run", root).exit_code == 0
    info = json.loads((tmp_path / "slices" / "dataset_info.json").read_text())
    assert (info["channel_names"], info["label_names"]) == ({"0": "CT"}, {"1": "liver"})


# -- --write_manifest ----------------------------------------------------------------------------


def test_a_written_manifest_gives_the_same_cases_groups_and_splits(
    dataset, command, tmp_path
) -> None:
    for case_id in ("p1_a", "p1_b", "p2_a", "p3_a"):
        dataset.add(case_id)
        dataset.add(case_id, channel=1, label=None)
    (dataset.root / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "T2"}}')
    manifest = tmp_path / "cases.csv"
    options = ["--group_regex", "^(p\\d)"]
    result = command("plan", dataset.root, *options, "--write_manifest", manifest)
    assert result.exit_code == 0
    assert f"Wrote 4 cases to {manifest}" in result.output
    assert manifest.read_text().splitlines()[0] == "case_id,image:T1,image:T2,label,group,split"
    before = dask_slicer.plan(
        input_dir=dataset.root, output_dir=tmp_path / "x", group_regex="^(p\\d)"
    )
    after = dask_slicer.plan(input_dir=manifest, output_dir=tmp_path / "x", seed=7)
    assert after.splits == before.splits
    assert [case.group for case in after.cases] == [case.group for case in before.cases]
    assert [case.case.files for case in after.cases] == [case.case.files for case in before.cases]
    assert after.channel_names == ("T1", "T2")
    assert command("run", manifest).exit_code == 0


def test_a_manifest_is_written_beside_json_and_never_over_a_file(
    dataset, command, tmp_path
) -> None:
    dataset.add("a")
    manifest = tmp_path / "cases.csv"
    result = command("plan", dataset.root, "--json", "--write_manifest", manifest)
    assert json.loads(result.stdout)["num_cases"] == 1
    text = manifest.read_text()
    result = command("plan", dataset.root, "--write_manifest", manifest)
    assert result.exit_code == 2
    assert "exists; remove it, or give another name" in result.stderr
    assert manifest.read_text() == text


@pytest.mark.parametrize(
    ("name", "words"), [("cases.txt", "must end in .csv"), ("no/cases.csv", "there is no folder")]
)
def test_a_manifest_needs_a_place(dataset, command, tmp_path, name, words) -> None:
    dataset.add("a")
    result = command("plan", dataset.root, "--write_manifest", tmp_path / name)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_dataset_with_problems_can_be_written_to_be_mended(dataset, command, tmp_path) -> None:
    for case_id in ("a", "A"):
        dataset.add(case_id)
    result = command("plan", dataset.root, "--write_manifest", tmp_path / "cases.csv")
    assert result.exit_code == 1
    assert (tmp_path / "cases.csv").read_text().count("\n") == 3
    assert "cases.csv; correct it before a run, which takes it as it is" in " ".join(
        result.stdout.split()
    )
