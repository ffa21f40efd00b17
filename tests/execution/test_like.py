"""The same slices for other scans: `--like` takes over what decides a slice, and nothing else."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from slice_formats import FOLDERS, FORMATS
from step_settings import EVERY_STEP

import dask_slicer
from dask_slicer.execution.verify import verify
from dask_slicer.inputs.phantom import write_dataset

PLACE = {"num_workers": 0, "dashboard_address": "none"}
# Of the steps, those that no label is needed for.
WITHOUT_LABEL = {
    **EVERY_STEP,
    **{"center": "volume", "percentiles": None, "normalize": "dataset"},
    **{"keep_empty_in": "train", "min_foreground": 0.001, "window_size": 1},
}
NEW = ("phantom_001", "phantom_003")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_dataset(folder, n_cases=5, shape=(36, 32, 14), spacing=(8.0, 8.0, 12.0))
    return folder


@pytest.fixture(scope="module")
def new_scans(scans, tmp_path_factory) -> dict[str, Path]:
    """Return the scans of two cases, with and without labels."""
    folders = {}
    for name in ("labelled", "unlabelled"):
        folders[name] = tmp_path_factory.mktemp(name)
        for part in ("imagesTr", "labelsTr") if name == "labelled" else ("imagesTr",):
            (folders[name] / part).mkdir()
            for path in (scans / part).iterdir():
                if path.name.startswith(NEW):
                    shutil.copy2(path, folders[name] / part)
    return folders


def first_run(scans: Path, output: Path, **settings: object) -> Path:
    report = dask_slicer.run(
        {"input_dir": scans, "output_dir": output} | PLACE | settings, progress=False
    )
    assert not report.failures
    return output


def slices(output: Path) -> dict[str, bytes]:
    """Return the files of slices of the new cases, whatever their split."""
    return {
        path.name: _members(path) for path in output.glob("*/*.npz") if path.name.startswith(NEW)
    }


def _members(path: Path) -> bytes:
    """Return the content of a slice, without its split, which is in its metadata."""
    with np.load(path) as arrays:
        metadata = json.loads(str(arrays["metadata"]))
        del metadata["split"]
        contents = [arrays[name].tobytes() for name in sorted(arrays) if name != "metadata"]
    return b"".join([*contents, json.dumps(metadata, sort_keys=True).encode()])


@pytest.mark.parametrize("format_", FORMATS)
def test_the_same_scan_gives_the_same_bytes(scans, new_scans, tmp_path, invoke, format_) -> None:
    settings = WITHOUT_LABEL | {"min_foreground": 0.0, "keep_empty": 1.0} | FORMATS[format_]
    if format_ == "png":  # its levels are those of limits
        settings |= {"normalize": "none"}
    # All cases for test from the start: the bytes of slices say which split they are in.
    statistics = first_run(scans, tmp_path / "train", **settings) / "statistics.json"
    if format_ != "png":
        settings["statistics"] = statistics
    first = first_run(scans, tmp_path / "first", train_ratio=0.0, val_ratio=0.0, **settings)
    result = invoke(
        *("run", "--like", first, "-i", new_scans["labelled"], "-o", tmp_path / "second"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 0, result.output
    second = tmp_path / "second"
    written = {
        path.relative_to(second): path.read_bytes()
        for top in FOLDERS
        for path in (second / top).rglob("*")
        if path.is_file() and path.suffix != ".txt" and path.name != "zarr.json"
    }
    assert len(written) > (1 if format_ == "files" else 4)
    for path, content in written.items():
        assert content == (first / path).read_bytes(), path
    if format_ != "png":
        assert (second / "statistics.json").read_bytes() == statistics.read_bytes()
    assert not verify(second, deep=10, num_workers=0).issues


def test_cases_without_labels_have_every_slice(scans, new_scans, tmp_path, invoke) -> None:
    table = tmp_path / "list.csv"
    table.write_text("case_id,slice_index\nphantom_000,3\nphantom_002,5\n")
    first = first_run(scans, tmp_path / "first", slice_list=table, **WITHOUT_LABEL)
    result = invoke(
        *("run", "--like", first, "-i", new_scans["unlabelled"], "-o", tmp_path / "second"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 0, result.output
    all_ = first_run(
        scans,
        tmp_path / "all",
        statistics=first / "statistics.json",
        **WITHOUT_LABEL | {"min_foreground": 0.0, "keep_empty": 1.0},
    )
    with (tmp_path / "second" / "slices.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {row["split"] for row in rows} == {"test"}
    assert {Path(row["path"]).name for row in rows} == slices(all_).keys()


@pytest.mark.parametrize("kind", ["groups and folds", "patterns"])
def test_what_belongs_to_the_other_dataset_stays_there(
    scans, new_scans, tmp_path, invoke, kind
) -> None:
    patterns = {"images": ("imagesTr/*_0000.nii.gz",), "labels": "labelsTr/*.nii.gz"}
    source, settings = scans, patterns
    if kind == "groups and folds":
        source, settings = tmp_path / "scans.csv", {"group_column": "patient", "folds": 2}
        pairs = zip(
            *(sorted((scans / part).iterdir()) for part in ("imagesTr", "labelsTr")), strict=True
        )
        rows = [
            f"phantom_00{number},{image},{label},{'AABBC'[number]}"
            for number, (image, label) in enumerate(pairs)
        ]
        source.write_text("\n".join(["case_id,image,label,patient", *rows]))
    first = first_run(source, tmp_path / "first", spacing="6,4,4", **settings)
    result = invoke(
        *("run", "--like", first, "-i", new_scans["labelled"], "-o", tmp_path / "out"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 0, result.output
    assert "no effect" not in result.output
    assert not {"splits_final.json", "cases.json"} & {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert slices(tmp_path / "out").keys() == slices(first).keys() != set()


def test_all_cases_are_for_test_whatever_the_dataset_states(scans, tmp_path, invoke) -> None:
    first = first_run(scans, tmp_path / "first", spacing="6,4,4", keep_empty=0.0)
    table = tmp_path / "scans.csv"
    images = sorted((scans / "imagesTr").iterdir())
    rows = [
        f"{split},{image},{split}"
        for split, image in zip(("train", "val"), images[:2], strict=True)
    ]
    table.write_text("\n".join(["case_id,image,split", *rows]))
    command = ("run", "--like", first, "-i", table, "-o", tmp_path / "out", "--num_workers", 0)
    for _ in range(2):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
        assert "_ratio" not in result.output
        splits = json.loads((tmp_path / "out" / "splits.json").read_text())
        assert splits == {"train": [], "val": [], "test": ["train", "val"]}


def test_an_output_with_splits_of_the_dataset_keeps_them(scans, tmp_path) -> None:
    image = sorted((scans / "imagesTr").iterdir())[0]
    table, output = tmp_path / "scans.csv", tmp_path / "out"
    table.write_text(f"case_id,image,split\none,{image},train\n")
    first_run(table, output)
    ratios = {"train_ratio": 0, "val_ratio": 0, "allow_missing_labels": True}
    config = output / "config.yaml"
    text = config.read_text().replace("train_ratio: 0.8", "train_ratio: 0.0\nval_ratio: 0.0")
    config.write_text(text.replace("allow_missing_labels: false", "allow_missing_labels: true"))
    first_run(table, output, **ratios)
    assert json.loads((output / "splits.json").read_text())["train"] == ["one"]


def test_like_an_output_that_is_like_another(scans, new_scans, tmp_path, invoke) -> None:
    first = first_run(scans, tmp_path / "0", **WITHOUT_LABEL)
    for number in (1, 2):
        result = invoke(
            *("run", "--like", tmp_path / f"{number - 1}", "-i", new_scans["unlabelled"]),
            *("-o", tmp_path / f"{number}", "--num_workers", 0),
        )
        assert result.exit_code == 0, result.output
    assert slices(tmp_path / "1") == slices(tmp_path / "2") != {}
    # Each has all that it needs, also without the output that it was made like.
    shutil.rmtree(first)
    shutil.rmtree(tmp_path / "1")
    again = invoke("run", "-c", tmp_path / "2" / "config.yaml", "--num_workers", 0)
    assert again.exit_code == 0, again.output
    assert not verify(tmp_path / "2", deep=10, num_workers=0).issues


@pytest.mark.parametrize("setting", ["crop", "center", "foreground"])
def test_what_needs_a_label_is_refused_for_scans_without(
    scans, new_scans, tmp_path, invoke, setting
) -> None:
    first = first_run(scans, tmp_path / "first", size=24, **{setting: "label"})
    command = ("run", "--like", first, "-o", tmp_path / "out", "--num_workers", 0)
    result = invoke(*command, "-i", new_scans["unlabelled"])
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        f"Error: {setting} label needs labels, and no case of this dataset has one"
    ]
    assert not (tmp_path / "out").exists()
    assert invoke(*command, "-i", new_scans["labelled"]).exit_code == 0


def test_names_of_labels_are_not_needed_without_a_label(scans, new_scans, tmp_path, invoke) -> None:
    named = tmp_path / "named"
    shutil.copytree(scans, named)
    (named / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1, "spine": 4},
                "numTraining": 5,
                "file_ending": ".nii.gz",
            }
        )
    )
    first = first_run(named, tmp_path / "first", label_map="liver:2 spine:1 *:0")
    result = invoke(
        *("run", "--like", first, "-i", new_scans["unlabelled"], "-o", tmp_path / "out"),
        *("--num_workers", 0),
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--statistics", "other.json"), "statistics.json, so it cannot be"),
        (("--window_size", 3), "has window_size 1, so it cannot be 3"),
        (("--label_map", "1:2 *:0"), "has label_map"),
        (("-c", "ct_abdomen"), "so it cannot be"),
    ],
)
def test_other_settings_of_slices_are_refused(
    scans, new_scans, tmp_path, invoke, options, words
) -> None:
    first = first_run(scans, tmp_path / "first", **WITHOUT_LABEL)
    result = invoke(
        *("run", "--like", first, "-i", new_scans["unlabelled"], "-o", tmp_path / "out"), *options
    )
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert words in result.output
    assert not (tmp_path / "out").exists()


def test_the_same_settings_may_be_given_and_others_too(scans, new_scans, tmp_path, invoke) -> None:
    first = first_run(scans, tmp_path / "first", size=24)
    file = tmp_path / "like.yaml"
    file.write_text(
        f"like: {first}\ninput_dir: {new_scans['labelled']}\noutput_dir: {tmp_path / 'out'}\n"
        "size: 24\nfsync: true\n"
    )
    result = invoke("run", "-c", file, "--num_workers", 0, "--window_size", 2)
    assert result.exit_code == 0, result.output
    assert slices(tmp_path / "out") == slices(first)


@pytest.mark.parametrize("masks", ["spleen aorta liver", "spleen", ""])
def test_structures_keep_their_values(tmp_path, invoke, masks) -> None:
    array = np.arange(8 * 9 * 5, dtype=np.int16).reshape(8, 9, 5)

    def lay(name: str, structures: str) -> Path:
        for path, voxels in (
            ("ct", array),
            *((f"segmentations/{s}", None) for s in structures.split()),
        ):
            file = tmp_path / name / name / f"{path}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            voxels = (array % 7 == len(path) % 7).astype(np.uint8) if voxels is None else voxels
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), file)
        return tmp_path / name

    first = first_run(lay("old", "liver spleen"), tmp_path / "first", window_size=0)
    result = invoke(
        *("run", "--like", first, "-i", lay("new", masks), "-o", tmp_path / "out"),
        *("--num_workers", 0, "--layout", "folder_per_case"),
    )
    if masks == "spleen":
        assert result.exit_code == 2
        assert "--structures liver: " in result.output
        return
    assert result.exit_code == 0, result.output
    expected = {"1": "liver", "2": "spleen"} if masks else {}
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info.get("label_names", {}) == expected


def lay_modalities(root: Path, names: str) -> Path:
    """Write a folder a case, with an image for each name; the brightest is named like FLAIR."""
    for name in names.split():
        voxels = np.arange(8 * 9 * 5, dtype=np.int16).reshape(8, 9, 5)
        file = root / "a" / f"a_{name}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels + 1000 * (name == "flair"), np.eye(4)), file)
    return root


def lay_nnunet(root: Path, names: dict[str, str]) -> Path:
    (root / "imagesTr").mkdir(parents=True)
    for number, name in names.items():
        voxels = np.arange(8 * 9 * 5, dtype=np.int16).reshape(8, 9, 5)
        file = root / "imagesTr" / f"a_{int(number):04d}.nii.gz"
        nib.save(nib.Nifti1Image(voxels + 1000 * (name == "FLAIR"), np.eye(4)), file)
    content = {"channel_names": names, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content | {"numTraining": 1}))
    return root


@pytest.mark.parametrize("names", ["flair t1", "flair t1 t2", "flair t1x"])
def test_images_in_another_order_are_refused(tmp_path, invoke, names) -> None:
    settings = {"window_size": 0, "normalize": "none", "allow_missing_labels": True}
    first = first_run(
        lay_nnunet(tmp_path / "old", {"0": "T1", "1": "FLAIR"}), tmp_path / "first", **settings
    )
    new = lay_modalities(tmp_path / "new", names)
    command = ("run", "--like", first, "-i", new, "-o", tmp_path / "out", "--num_workers", 0)
    result = invoke(*command)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"Error: the images of a case are {', '.join(names.split())}, in {first} T1, FLAIR; choose "
        "the same, in the same order, with --modalities"
    ]
    assert not (tmp_path / "out").exists()
    plan = invoke("plan", "--like", first, "-i", new)
    assert (plan.exit_code, plan.stderr) == (2, result.stderr)
    if names != "flair t1x":
        assert invoke(*command, "--modalities", "t1,flair").exit_code == 0
        images = [
            dask_slicer.open_output(tmp_path / name).volume("a")[0] for name in ("first", "out")
        ]
        np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"0": "t1", "1": "flair"}, None),
        ({"0": "x", "1": "y"}, "images of a case are x, y, in "),
        ({"0": "t1", "1": "y"}, "make sure that these are the same, in the same order"),
        (None, None),
    ],
)
def test_images_whose_names_say_less_are_taken(tmp_path, invoke, names, words) -> None:
    settings = {"window_size": 0, "normalize": "none", "allow_missing_labels": True}
    known = {"0": "T1", "1": "FLAIR"}
    first = first_run(lay_nnunet(tmp_path / "old", known), tmp_path / "first", **settings)
    new = lay_nnunet(tmp_path / "new", names or known)
    if names is None:
        (new / "dataset.json").unlink()
    result = invoke(
        *("run", "--like", first, "-i", new, "-o", tmp_path / "out", "--num_workers", 0)
    )
    assert result.exit_code == 0, result.output
    assert ("images of a case are" in result.output) == (words is not None)
    assert words is None or words in result.output
