"""Missing modalities, grids and orientations by setting, notes on headers, images like labels."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from affines import oblique

from dask_slicer import RunConfig, SliceDataset, open_output
from dask_slicer.planning.headers import case_digest
from dask_slicer.planning.planner import make_plan

SHAPE = (7, 8, 5)


class Scans:
    def __init__(self, root: Path, invoke) -> None:
        self.root, self.output, self._invoke = root / "scans", root / "slices", invoke

    def save(self, name: str, array: np.ndarray | None = None, affine=None, *, qform=None) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is None:
            array = np.random.default_rng(sum(name.encode())).integers(-99, 999, SHAPE, np.int16)
        image = nib.Nifti1Image(array, oblique() if affine is None else affine)
        if qform is not None:
            image.set_qform(qform, 1)
        nib.save(image, path)

    def run(self, *options: object, command: str = "run"):
        settings = ["--num_workers", 0, "--window_size", 0]
        return self._invoke(command, "-i", self.root, "-o", self.output, *settings, *options)

    def metadata(self, case_id: str) -> dict:
        path = next(self.output.rglob(f"{case_id}_000.npz"))
        return json.loads(np.load(path)["metadata"].item())

    def digest(self, case_id: str) -> str:
        lines = (self.output / "journal.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["case_id"] == case_id]
        return records[-1]["digest"]


@pytest.fixture
def scans(tmp_path, invoke) -> Scans:
    return Scans(tmp_path, invoke)


LABEL = np.zeros(SHAPE, np.uint8)
LABEL[2:5, 2:6, 1:3] = 1


# -- missing modalities ----------------------------------------------------------------------------


def folders(scans: Scans) -> None:
    for case_id in "abc":
        for name in ("t1", "t2"):
            scans.save(f"{case_id}/{name}.nii.gz")
    (scans.root / "b/t1.nii.gz").unlink()


def nnunet(scans: Scans) -> None:
    for case_id in "abc":
        for channel in (0, 1):
            scans.save(f"imagesTr/{case_id}_000{channel}.nii.gz")
    (scans.root / "imagesTr/b_0000.nii.gz").unlink()


def manifest(scans: Scans) -> None:
    rows = ["case_id,image,image_2"]
    for case_id in "abc":
        scans.save(f"{case_id}_2.nii.gz")
        scans.save(f"{case_id}_1.nii.gz")
        rows.append(
            f"{case_id},{'' if case_id == 'b' else f'{case_id}_1.nii.gz'},{case_id}_2.nii.gz"
        )
    (scans.root / "manifest.csv").write_text("\n".join(rows))


@pytest.mark.parametrize("lay", [folders, nnunet, manifest])
def test_a_missing_modality_fails_its_case_or_is_filled_with_zeros(scans, lay) -> None:
    lay(scans)
    result = scans.run()
    assert result.exit_code == 1
    assert "b: MissingFile" in result.output
    digest = scans.digest("a")
    for command in ("plan", "run"):
        result = scans.run("--missing_modality", "zero", command=command)
        assert result.exit_code == 0
        assert "1 case without all images, zeros in their place (" in result.output
        assert "1): b" in result.output
    assert scans.digest("a") == digest
    first, second = open_output(scans.output).volume("b")[0]
    assert not first.any()
    assert second.any()
    described = scans.metadata("b")
    assert described["source_file"][0] is None
    assert described["norm_stats"]["min"][0] == described["norm_stats"]["max"][0] == 0
    plan = json.loads(scans.run("--missing_modality", "zero", "--json", command="plan").stdout)
    assert plan["cases"][1]["images"][0] is None
    assert (
        "No problems"
        in scans._invoke("verify", scans.output, "--deep", 9, "--num_workers", 0).output
    )


def test_a_case_without_any_image_is_not_filled(scans) -> None:
    manifest(scans)
    (scans.root / "b_2.nii.gz").unlink()
    result = scans.run("--missing_modality", "zero")
    assert result.exit_code == 1
    assert "b: MissingFile" in result.output


def test_a_link_to_nothing_is_not_filled(scans) -> None:
    folders(scans)
    (scans.root / "b/t1.nii.gz").symlink_to(scans.root / "not_fetched")
    result = scans.run("--missing_modality", "zero")
    assert result.exit_code == 1
    assert "b: MissingFile" in result.output


def test_a_case_is_sliced_again_when_its_image_is_there(scans) -> None:
    folders(scans)
    scans.run("--missing_modality", "zero")
    scans.save("b/t1.nii.gz")
    assert scans.run("--missing_modality", "zero").exit_code == 0
    assert open_output(scans.output).volume("b")[0][0].any()


# -- grids and orientations ------------------------------------------------------------------------


def shifted(mm: float) -> np.ndarray:
    affine = oblique()
    affine[0, 3] += mm
    return affine


def test_other_modalities_need_another_output(scans) -> None:
    for name in ("a/t1.nii.gz", "a/t2.nii.gz", "b/t1.nii.gz", "b/t2.nii.gz"):
        scans.save(name)
    assert scans.run("--modalities", "t1,t2").exit_code == 0
    result = scans.run("--modalities", "t2,t1", "--only", "a")
    assert result.exit_code == 2
    assert "modalities was t1,t2, is now t2,t1; use another --output_dir" in result.output
    result = scans.run()
    assert result.exit_code == 2
    assert "modalities was t1,t2, is now none" in result.output


T1, T2 = ["--images", "*/t1.nii.gz"], ["--images", "*/t2.nii.gz"]
SERIES = ["--images", "*/t4.nii.gz"]
CHANNELS = {
    "images": ([*T1, *T2], [*T2, *T1]),
    "labels": ([*T1, "--labels", "*/x_seg.nii.gz"], [*T1, "--labels", "*/y_seg.nii.gz"]),
    "label_name": (["--label_name", "x_seg"], ["--label_name", "y_seg"]),
    "volumes": ([*SERIES, "--volumes", "0"], [*SERIES, "--volumes", "1"]),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_one_case_does_not_get_other_channels_or_labels_than_the_others(scans, name) -> None:
    for case_id in "ab":
        scans.save(f"{case_id}/t1.nii.gz")
        scans.save(f"{case_id}/t2.nii.gz")
        scans.save(f"{case_id}/t4.nii.gz", np.zeros((*SHAPE, 2), np.int16))
        scans.save(f"{case_id}/x_seg.nii.gz", LABEL)
        scans.save(f"{case_id}/y_seg.nii.gz", LABEL)
    if name == "label_name":
        for case_id in "ab":
            (scans.root / case_id / "t4.nii.gz").unlink()
    before, after = CHANNELS[name]
    before, after = ([*options, "--allow_missing_labels"] for options in (before, after))
    assert scans.run(*before).exit_code == 0
    result = scans.run(*after, "--only", "a")
    assert result.exit_code == 2
    assert f"was made with other settings: {name} was " in result.output
    assert scans.run(*before, "--only", "a").exit_code == 0
    assert scans.run(*after).exit_code == 0  # all cases are written again


def test_digests_of_files_in_other_units_are_not_those_of_earlier_versions(scans, tmp_path) -> None:
    for case_id, unit in (("a", "mm"), ("b", "micron")):
        image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
        image.header.set_xyzt_units(unit)
        (scans.root / case_id).mkdir(parents=True)
        nib.save(image, scans.root / case_id / "t1.nii.gz")
    config = RunConfig(input_dir=scans.root, output_dir=tmp_path / "out")
    for case in make_plan(config).cases:
        files = [(case.sources[0], *sizes_of(case.case.images[0]))]
        of_earlier_versions = case_digest(replace(case, header_notes=()), config, files)
        assert (case.digest == of_earlier_versions) == (case.case_id == "a")


def sizes_of(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def test_a_label_takes_the_affine_of_the_image_on_request(scans) -> None:
    scans.save("a/t1.nii.gz")
    scans.save("a/seg.nii.gz", LABEL, shifted(9))
    scans.save("b/t1.nii.gz")
    scans.save("b/seg.nii.gz", LABEL)
    result = scans.run()
    assert result.exit_code == 1
    assert "--label_grid image" in result.output
    digest = scans.digest("b")
    result = scans.run("--label_grid", "image")
    assert result.exit_code == 0
    assert (
        "1 file: takes the affine of the image, --label_grid image: a/seg.nii.gz" in result.output
    )
    assert scans.digest("b") != digest
    labels = [
        np.stack([item["label"] for item in SliceDataset(scans.output, None, cases=[case_id])])
        for case_id in "ab"
    ]
    np.testing.assert_array_equal(*labels)


def test_the_qform_is_used_on_request(scans) -> None:
    turned = oblique() @ np.diag([-1.0, 1, 1, 1])
    for case_id in "ab":
        scans.save(f"{case_id}/t1.nii.gz", qform=turned)
    result = scans.run()
    assert result.exit_code == 0
    assert "2 files: sform and qform disagree (by" in result.output
    assert "--orientation_from qform takes the other: a/t1.nii.gz, b/t1.nii.gz" in result.output
    scans._invoke("report", scans.output)
    assert "sform and qform disagree" in (scans.output / "report.html").read_text()
    by_sform = open_output(scans.output).volume("a")[0]
    notes = scans.metadata("a")["header_notes"]
    assert notes[0].startswith("a/t1.nii.gz: sform and qform disagree")
    assert scans.run("--orientation_from", "qform").exit_code == 0
    by_qform = open_output(scans.output).volume("a")[0]
    np.testing.assert_array_equal(by_qform, by_sform[:, :, ::-1])


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_file_name_that_is_no_text_is_noted_all_the_same(scans) -> None:
    scans.save("a/t1.nii.gz", qform=oblique() @ np.diag([-1.0, 1, 1, 1]))
    (scans.root / "a/t1.nii.gz").rename(scans.root / os.fsdecode(b"a/t1\xff.nii.gz"))
    assert scans.run().exit_code == 0
    assert "\\udcff.nii.gz: sform and qform disagree" in scans.metadata("a")["header_notes"][0]
    assert open_output(scans.output).cases == ["a"]


def test_headers_without_contradictions_add_nothing_to_the_metadata(scans) -> None:
    scans.save("a/t1.nii.gz")
    assert scans.run().exit_code == 0
    assert "header_notes" not in scans.metadata("a")


def test_names_of_labels_in_headers_are_kept_unless_cases_disagree(scans) -> None:
    for case_id, names in (("a", "liver spleen"), ("b", "liver kidney")):
        first, second = names.split()
        scans.save(f"{case_id}/t1.nii.gz", affine=np.diag([-1.0, -1, 1, 1]))
        header = (
            "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\n"
            f"sizes: {' '.join(map(str, SHAPE))}\n"
            "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n"
            f"Segment0_Name:={first}\nSegment0_LabelValue:=1\n"
            f"Segment1_Name:={second}\nSegment1_LabelValue:=2\n\n"
        )
        path = scans.root / case_id / "t1_seg.seg.nrrd"
        path.write_bytes(header.encode() + LABEL.tobytes("F"))
    result = scans.run()
    assert result.exit_code == 0
    note = "headers of labels disagree on value 2: spleen in a, kidney in b"
    assert note in result.output
    assert "label_names" not in open_output(scans.output).summary
    shutil.rmtree(scans.root / "b")
    shutil.rmtree(scans.output)
    assert scans.run().exit_code == 0
    assert open_output(scans.output).summary["label_names"] == {"1": "liver", "2": "spleen"}


# -- images like labels ----------------------------------------------------------------------------


def test_an_image_like_a_label_map_is_refused_before_the_run(scans) -> None:
    for case_id in "ab":
        scans.save(f"{case_id}/x.nii.gz")
        scans.save(f"{case_id}/y.nii.gz", LABEL)
    for command in ("plan", "run"):
        result = scans.run(command=command)
        assert result.exit_code == (2 if command == "run" else 1)
        assert "y.nii.gz looks like a label map (uint8, values 0, 1)" in result.output
        assert "--images and --labels" in result.output
    assert not scans.output.exists()


def test_an_image_like_a_label_map_that_only_some_cases_have_fails_these(scans) -> None:
    scans.save("a/x.nii.gz")
    scans.save("b/x.nii.gz", LABEL.repeat(2, axis=0).repeat(20, axis=1).repeat(8, axis=2))
    (scans.root / "b/x.nii.gz").write_bytes((scans.root / "b/x.nii.gz").read_bytes() + b"\0" * 9000)
    result = scans.run()
    assert result.exit_code == 1
    assert "b: UnsupportedImage (load)" in result.output
    assert "looks like a label map by its voxels" in result.output
    assert open_output(scans.output).cases == ["a"]


@pytest.mark.parametrize("paths", [["a/t1.nii.gz"], ["images/a.nii.gz", "labels/a.nii.gz"]])
def test_an_image_that_is_named_so_is_not_looked_at(scans, paths) -> None:
    for number, path in enumerate(paths, start=1):
        scans.save(path, LABEL * number)
    assert scans.run().exit_code == 0


LABELS_WITH_IMAGE_WORDS = {
    "beside the image": ["{}/ct.nii.gz", "{}/ct_leber.nii.gz"],
    "with the case in the name": ["{}/{}_t1.nii.gz", "{}/{}_t1_hippocampus.nii.gz"],
    "among images": ["images/{}.nii.gz", "images/{}_leber.nii.gz"],
    "a number each": ["images/ct_{}.nii.gz", "images/leber_{}.nii.gz"],
    "in one folder": ["{}_ct.nii.gz", "{}_ct_leber.nii.gz"],
    "among modalities": ["{}/t1.nii.gz", "{}/t1_leber.nii.gz", "{}/seg.nii.gz"],
    "in anat of BIDS": [
        *("sub-{}/anat/sub-{}_T1w.nii.gz", "sub-{}/anat/leber.nii.gz"),
        "sub-{}/anat/sub-{}_seg.nii.gz",
    ],
    "in a pipeline of BIDS": [
        *("sub-{}/anat/sub-{}_T1w.nii.gz", "derivatives/me/sub-{}/anat/sub-{}_T1w_leber.nii.gz"),
    ],
}


@pytest.mark.parametrize("names", LABELS_WITH_IMAGE_WORDS.values(), ids=LABELS_WITH_IMAGE_WORDS)
def test_a_label_map_with_a_free_name_beside_a_word_for_images_is_refused(scans, names) -> None:
    image, *labels = names
    for case_id in ("1", "2"):
        scans.save(image.replace("{}", case_id))
        for label in labels:
            scans.save(label.replace("{}", case_id), LABEL)
    result = scans.run()
    assert result.exit_code == 2
    assert re.search(r"(leber|hippocampus)\S*\.nii\.gz\S* .*label map", result.output)
    assert "--images" in result.output


def test_a_case_without_an_image_is_refused_in_a_line(scans) -> None:
    for case_id in "ab":
        scans.save(f"{case_id}/label.nii.gz", LABEL)
        scans.save(f"{case_id}/tissue/skull_mask.nii.gz", LABEL)
    result = scans.run()
    assert result.exit_code == 2
    assert "every volume in the folders of cases is named like a label" in result.output


def test_a_manifest_says_what_is_an_image(scans) -> None:
    scans.save("x.nii.gz", LABEL)
    (scans.root / "manifest.csv").write_text("case_id,image\na,x.nii.gz\n")
    assert scans.run().exit_code == 0


def test_a_header_that_says_label_is_no_image(scans) -> None:
    for case_id in "ab":
        scans.save(f"{case_id}/t1.nii.gz")
    path = scans.root / "b/t1.nii.gz"
    image = nib.load(path)
    image.header.set_intent("label")
    nib.save(image, scans.root / "b/new.nii.gz")
    (scans.root / "b/new.nii.gz").replace(path)
    result = scans.run()
    assert result.exit_code == 1
    assert "the header says that this is a label map" in result.output
