"""4D images as channels, frames or one volume, against SimpleITK."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from affines import oblique

from dask_slicer import SliceDataset, open_output
from dask_slicer.errors import UnsupportedImage
from dask_slicer.execution import resume, tasks
from dask_slicer.inputs import discovery
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.readers import read_header
from dask_slicer.inputs.tree import FileTree
from dask_slicer.planning import headers

SHAPE = (7, 8, 5)


def by_itk(path: Path, volume: int | None = None) -> np.ndarray:
    """Return (slice, row, column) of an axial stack."""
    image = sitk.ReadImage(str(path))
    if volume is not None:
        size = list(image.GetSize())
        size[3] = 0
        image = sitk.Extract(image, size, [0, 0, 0, volume])
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))


@pytest.fixture
def scans(tmp_path: Path, invoke):
    return Series(tmp_path, invoke)


class Series:
    """Cases of one image and one label, a folder each."""

    def __init__(self, root: Path, invoke) -> None:
        self.root, self.output, self._invoke = root / "scans", root / "slices", invoke

    def add(self, case_id: str, n_volumes: int, n_labels: int | None = 1, **more: int) -> None:
        rng = np.random.default_rng(sum(case_id.encode()))
        for name, count in {"t1": n_volumes, **more}.items():
            shape = SHAPE if count == 1 else (*SHAPE, count)
            self.save(f"{case_id}/{name}.nii.gz", rng.integers(-99, 999, shape, np.int16))
        if n_labels is not None:
            shape = SHAPE if n_labels == 1 else (*SHAPE, n_labels)
            self.save(f"{case_id}/seg.nii.gz", rng.integers(0, 3, shape, np.uint8))

    def save(self, name: str, array: np.ndarray) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, oblique()), self.root / name)

    def run(self, *options: object, command: str = "run"):
        settings = ["--num_workers", 0, "--window_size", 0, "--normalize", "none"]
        return self._invoke(command, "-i", self.root, "-o", self.output, *settings, *options)

    def volume(self, case_id: str) -> np.ndarray:
        return open_output(self.output).volume(case_id)[0]

    def label(self, case_id: str) -> np.ndarray:
        items = SliceDataset(self.output, None, cases=[case_id])
        return np.stack([item["label"] for item in items])


def test_volumes_are_channels(scans) -> None:
    scans.add("a", 3)
    scans.add("b", 3)
    result = scans.run("--volumes", "channels", command="plan")
    assert result.exit_code == 0
    assert "Channels: 0 volume 0, 1 volume 1, 2 volume 2" in result.output
    assert scans.run("--volumes", "channels").exit_code == 0
    for case_id in "ab":
        path = scans.root / case_id / "t1.nii.gz"
        expected = [by_itk(path, volume) for volume in range(3)]
        np.testing.assert_array_equal(scans.volume(case_id), np.stack(expected))
        np.testing.assert_array_equal(
            scans.label(case_id), by_itk(scans.root / case_id / "seg.nii.gz")
        )
    assert (
        "No problems"
        in scans._invoke("verify", scans.output, "--deep", 9, "--num_workers", 0).output
    )
    journal = (scans.output / "journal.jsonl").read_bytes()
    assert scans.run("--volumes", "channels").exit_code == 0
    assert (scans.output / "journal.jsonl").read_bytes() == journal


def test_a_4d_file_is_read_once_for_the_checksums_of_its_volumes(scans, monkeypatch) -> None:
    scans.add("a", 3)
    read: list[str] = []
    monkeypatch.setattr(tasks, "checksum", lambda path: read.append(Path(path).name) or 7)
    monkeypatch.setattr(resume, "checksum", lambda path: read.append(Path(path).name) or 7)
    assert scans.run("--volumes", "channels").exit_code == 0
    os.utime(scans.root / "a" / "t1.nii.gz", (9, 9))
    assert "1 skipped" in scans.run("--volumes", "channels", "--trust_size").output
    assert read == ["t1.nii.gz", "seg.nii.gz"] * 2


def test_the_channels_of_a_dataset_that_names_them_need_no_option(scans, monkeypatch) -> None:
    for case_id in ("BRATS_001", "BRATS_002"):
        scans.add(case_id, 4)

    def match_task01(tree: FileTree, options: InputOptions) -> LayoutMatch:
        result = LayoutMatch("Decathlon", "dataset.json", volumes="channels")
        result.channel_names = ("FLAIR", "T1w", "t1gd", "T2w")
        for case_id in ("BRATS_001", "BRATS_002"):
            image, label = (tree.absolute(f"{case_id}/{name}.nii.gz") for name in ("t1", "seg"))
            result.add_case(case_id, [image], label, stated=True)
        return result

    monkeypatch.setattr(discovery, "LAYOUTS", {"d": SimpleNamespace(match=match_task01)})
    result = scans.run()
    assert result.exit_code == 0
    assert "Channels: 0 FLAIR, 1 T1w, 2 t1gd, 3 T2w" in result.output
    expected = [by_itk(scans.root / "BRATS_002/t1.nii.gz", volume) for volume in range(4)]
    np.testing.assert_array_equal(scans.volume("BRATS_002"), np.stack(expected))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((3, 3, 2), "c: MissingFile (plan): found 2 of 3 images"),
        ((2, 2, 3), "c: UnsupportedImage (plan): it has 3 images, other cases 2; if they"),
    ],
)
def test_cases_with_other_numbers_of_volumes_fail(scans, numbers, words) -> None:
    for case_id, n_volumes in zip("abc", numbers, strict=True):
        scans.add(case_id, n_volumes)
    result = scans.run("--volumes", "channels")
    assert result.exit_code == 1
    assert words in result.output


@pytest.mark.filterwarnings("ignore:.*1 failed:UserWarning")
def test_one_volume_of_each_image_is_used(scans) -> None:
    scans.add("a", 3)
    scans.add("b", 2)
    scans.add("c", 1)
    scans.add("d", 3, 3)
    result = scans.run("--volumes", 2)
    assert result.exit_code == 1
    assert "b: UnsupportedImage" in result.output
    assert "has no volume 2: it has 2, counted from 0" in result.output
    np.testing.assert_array_equal(scans.volume("a"), by_itk(scans.root / "a/t1.nii.gz", 2))
    np.testing.assert_array_equal(scans.volume("c"), by_itk(scans.root / "c/t1.nii.gz"))
    np.testing.assert_array_equal(scans.label("d"), by_itk(scans.root / "d/seg.nii.gz", 2))


def test_the_option_without_a_4d_image_has_no_effect_and_says_so(scans) -> None:
    scans.add("a", 1)
    result = scans.run("--volumes", "frames")
    assert result.exit_code == 0
    assert "--volumes has no effect: no image is 4D" in result.output
    assert open_output(scans.output).cases == ["a"]


@pytest.mark.parametrize("n_labels", [1, 4])
def test_frames_are_cases_of_one_group(scans, n_labels) -> None:
    for case_id in ("p1", "p2", "p3", "p4"):
        scans.add(case_id, 4, n_labels)
    assert scans.run("--volumes", "frames").exit_code == 0
    for case_id in ("p1", "p4"):
        for frame in range(4):
            name = f"{case_id}_t{frame:03d}"
            image = by_itk(scans.root / case_id / "t1.nii.gz", frame)
            np.testing.assert_array_equal(scans.volume(name), image)
            volume = frame if n_labels > 1 else None
            label = by_itk(scans.root / case_id / "seg.nii.gz", volume)
            np.testing.assert_array_equal(scans.label(name), label)
    splits = json.loads((scans.output / "splits.json").read_text())
    patients = [{name.split("_")[0] for name in names} for names in splits.values()]
    assert sum(map(len, patients)) == 4
    assert sum(map(len, splits.values())) == 16


def test_frames_need_as_many_labels_or_one(scans) -> None:
    scans.add("a", 4, 3)
    scans.add("b", 4)
    result = scans.run("--volumes", "frames")
    assert result.exit_code == 1
    assert "t1.nii.gz holds 4 volumes, its label" in result.output
    assert "holds 3;" in result.output
    assert open_output(scans.output).cases == [f"b_t00{frame}" for frame in range(4)]


def test_frames_keep_group_and_split_of_a_manifest(scans) -> None:
    for case_id in "ab":
        scans.add(case_id, 2)
    manifest = scans.root / "manifest.csv"
    manifest.write_text(
        "case_id,image,label,group,split\n"
        "a,a/t1.nii.gz,a/seg.nii.gz,p,train\nb,b/t1.nii.gz,b/seg.nii.gz,q,test\n"
    )
    assert scans.run("--volumes", "frames").exit_code == 0
    splits = json.loads((scans.output / "splits.json").read_text())
    assert splits == {"train": ["a_t000", "a_t001"], "val": [], "test": ["b_t000", "b_t001"]}


def test_a_file_of_splits_names_all_frames_by_their_case(scans, tmp_path) -> None:
    for case_id in "abc":
        scans.add(case_id, 2)
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": ["a"], "val": ["b_t000", "b_t001"], "test": ["c"]}))
    assert scans.run("--volumes", "frames", "--splits", file).exit_code == 0
    splits = {"train": ["a"], "val": ["b"], "test": ["c"]}
    assert json.loads((scans.output / "splits.json").read_text()) == {
        split: [f"{name}_t00{frame}" for name in names for frame in (0, 1)]
        for split, names in splits.items()
    }
    file.write_text(json.dumps({"train": ["a", "b"], "val": ["a_t001"]}))
    result = scans.run("--volumes", "frames", "--splits", file, command="plan")
    assert result.exit_code == 2
    assert "puts a_t001 into train and val" in result.output


def test_the_volumes_of_a_single_case_are_asked_for_too(scans) -> None:
    scans.add("a", 3)
    for command in ("plan", "run"):
        result = scans.run(command=command)
        assert result.exit_code == 2
        assert "1 case of 4D images only" in result.output


def test_volumes_that_modalities_choose_are_4d(scans, invoke) -> None:
    scans.save("imagesTr/a.nii.gz", np.zeros((*SHAPE, 2), np.int16))
    pairs = {"modality": {"0": "FLAIR", "1": "T1"}, "training": ["imagesTr/a.nii.gz"]}
    (scans.root / "dataset.json").write_text(json.dumps(pairs))
    result = scans.run("--volumes", "channels", "--modalities", "T1", command="plan")
    assert result.exit_code == 0
    assert "Channels: 0 T1" in result.output
    assert "no image is 4D" not in result.output


def test_a_frame_named_like_another_case_is_refused(scans) -> None:
    scans.add("a", 2)
    scans.add("a_t001", 1)
    result = scans.run("--volumes", "frames")
    assert result.exit_code == 2
    assert "case ids must be unique" in result.output


def test_images_that_are_all_4d_are_refused_once_with_the_choices(scans) -> None:
    for case_id in "abc":
        scans.add(case_id, 3)
    for command in ("plan", "run"):
        result = scans.run(command=command)
        assert result.exit_code == 2
        assert result.output.count("expected one 3D volume") == 1
        for words in ("--volumes channels", "--volumes frames", "3 cases of 4D images only"):
            assert words in result.output


def test_a_4d_image_among_others_fails_its_case(scans) -> None:
    scans.add("a", 1)
    scans.add("b", 3)
    result = scans.run()
    assert result.exit_code == 1
    assert "b: UnsupportedImage" in result.output
    assert "--volumes channels" in result.output


@pytest.mark.parametrize("volumes", ["channels", "frames"])
def test_4d_images_beside_other_modalities_are_refused(scans, volumes) -> None:
    scans.add("a", 3, t2=1)
    scans.add("b", 1, t2=1)
    result = scans.run("--volumes", volumes)
    assert result.exit_code == 1
    assert "a: UnsupportedImage" in result.output
    assert "holds 3 volumes, but the case has 2 images" in result.output
    assert open_output(scans.output).cases == ["b"]


@pytest.mark.parametrize("volumes", ["channels", "frames", "1"])
def test_a_real_series_is_read_as_simpleitk_reads_it(real_scans, tmp_path, invoke, volumes) -> None:
    name = "mr_breast_dce4d_ucsfbr06"
    folder = tmp_path / "scans" / name
    folder.mkdir(parents=True)
    for file in ("image.nii.gz", "label.nii.gz"):
        (folder / file).symlink_to(real_scans / name / file)
    output = tmp_path / "slices"
    settings = ["--num_workers", 0, "--window_size", 0, "--normalize", "none"]
    command = ["run", "-i", tmp_path / "scans", "-o", output, *settings, "--format", "zarr"]
    assert invoke(*command, "--volumes", volumes).exit_code == 0
    cases = [f"{name}_t{frame:03d}" for frame in range(3)] if volumes == "frames" else [name]
    opened = open_output(output)
    assert opened.cases == cases
    image = np.concatenate([np.atleast_3d(opened.volume(case)[0])[None] for case in cases])
    numbers = [1] if volumes == "1" else range(3)
    expected = np.stack([by_itk(folder / "image.nii.gz", number) for number in numbers])
    np.testing.assert_array_equal(image.reshape(expected.shape), expected)


@pytest.mark.slow
def test_frames_run_on_a_scheduler_whose_workers_look_for_the_file(
    scans, started_scheduler, tmp_path
) -> None:
    scans.add("a", 2)
    with started_scheduler(tmp_path, n_workers=1) as scheduler:
        result = scans.run("--volumes", "frames", "--scheduler", scheduler.address)
    assert result.exit_code == 0, result.output
    assert open_output(scans.output).cases == ["a_t000", "a_t001"]


def test_a_layer_of_a_segmentation_keeps_its_own_names(scans) -> None:
    image = nib.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), np.diag([-1.0, -1, 1, 1]))
    (scans.root / "a").mkdir(parents=True)
    nib.save(image, scans.root / "a/t1.nii.gz")
    header = (
        "NRRD0004\ntype: uint8\ndimension: 4\nspace: left-posterior-superior\n"
        f"sizes: 2 {' '.join(map(str, SHAPE))}\nkinds: list domain domain domain\n"
        "space directions: none (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n"
        "Segment0_Name:=liver\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n"
        "Segment1_Name:=tumour\nSegment1_LabelValue:=1\nSegment1_Layer:=1\n\n"
    )
    label = np.ones((2, *SHAPE), np.uint8).tobytes("F")
    (scans.root / "a/t1_seg.seg.nrrd").write_bytes(header.encode() + label)
    assert scans.run("--volumes", 1).exit_code == 0
    assert open_output(scans.output).summary["label_names"] == {"1": "tumour"}


def test_a_volume_that_a_known_file_lacks_is_refused(scans) -> None:
    scans.add("a", 2)
    path = str(scans.root / "a/t1.nii.gz")
    known = {path: read_header(f"{path}[0]")}
    assert headers._header(f"{path}[1]", "sform", known).path == f"{path}[1]"
    with pytest.raises(UnsupportedImage, match=r"no volume \[2\]: it has 2"):
        headers._header(f"{path}[2]", "sform", known)
