"""Datasets with a mask for each structure: numbers, overlaps, changes between runs."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from affines import oblique

from dask_slicer import SliceDataset, open_output
from dask_slicer.inputs import discovery
from dask_slicer.inputs.case import Case, Mask
from dask_slicer.inputs.layouts.base import InputOptions, LayoutMatch
from dask_slicer.inputs.load import load_volume
from dask_slicer.inputs.tree import FileTree

SHAPE = (8, 9, 10)


def match_segmentations(tree: FileTree, options: InputOptions) -> LayoutMatch:
    """Match <case>/ct.nii.gz beside <case>/segmentations/<structure>.nii.gz."""
    result = LayoutMatch("masks", "segmentations")
    for case_id in sorted({path.split("/")[0] for path in tree.volumes}):
        masks = [
            Mask(structure=Path(path).name.removesuffix(".nii.gz"), path=tree.absolute(path))
            for path in tree.within(f"{case_id}/segmentations")
        ]
        image = tree.absolute(f"{case_id}/ct.nii.gz")
        result.add_case(case_id, [image], masks=masks, stated=True)
    return result


class Masks:
    def __init__(self, root: Path, invoke) -> None:
        self.root, self.output, self._invoke = root / "scans", root / "slices", invoke

    def add(self, case_id: str, affine=None, mask_affine=None, **masks: np.ndarray) -> None:
        affine = oblique() if affine is None else affine
        image = np.random.default_rng(sum(case_id.encode())).integers(-99, 99, SHAPE, np.int16)
        self.save(f"{case_id}/ct.nii.gz", image, affine)
        for name, mask in masks.items():
            path = f"{case_id}/segmentations/{name}.nii.gz"
            self.save(path, mask, affine if mask_affine is None else mask_affine)

    def save(self, name: str, array: np.ndarray, affine: np.ndarray) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    def run(self, *options: object, command: str = "run"):
        workers = ["--num_workers", 0, "--window_size", 0]
        directories = ["-i", self.root, "-o", self.output]
        return self._invoke(command, *directories, *workers, *options)

    def values(self, case_id: str) -> dict[int, int]:
        """Return the number of voxels of each label value in the slices of a case."""
        labels = [item["label"] for item in SliceDataset(self.output) if item["case_id"] == case_id]
        values, counts = np.unique(np.stack(labels), return_counts=True)
        return {int(v): int(n) for v, n in zip(values, counts, strict=True) if v}

    def metadata(self, case_id: str) -> dict:
        path = next(self.output.rglob(f"{case_id}_000.npz"))
        return json.loads(np.load(path)["metadata"].item())

    @property
    def structures(self) -> dict[str, int]:
        return json.loads((self.output / "structures.json").read_text())


@pytest.fixture
def scans(tmp_path, invoke, monkeypatch) -> Masks:
    monkeypatch.setattr(discovery, "LAYOUTS", {"m": SimpleNamespace(match=match_segmentations)})
    return Masks(tmp_path, invoke)


def box(start: int, end: int, value: int = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[start:end, 2:4, 3:6] = value
    return mask


def test_structures_are_numbered_by_name_and_counted(scans) -> None:
    scans.add("a", spleen=box(0, 2), liver=box(4, 5))
    scans.add("b", liver=box(3, 6, 255))
    assert scans.run().exit_code == 0
    assert scans.structures == {"liver": 1, "spleen": 2}
    assert scans.values("a") == {1: 6, 2: 12}
    assert scans.values("b") == {1: 18}
    info = open_output(scans.output).summary
    assert info["label_voxels"] == {"1": 24, "2": 12}
    assert "overlapping_voxels" not in info
    assert (
        "No problems"
        in scans._invoke("verify", scans.output, "--deep", 5, "--num_workers", 0).output
    )


def test_a_structure_that_comes_later_is_added_at_the_end(scans) -> None:
    scans.add("a", spleen=box(0, 2))
    scans.run()
    scans.add("b", aorta=box(3, 6))
    assert scans.run().exit_code == 0
    assert scans.structures == {"spleen": 1, "aorta": 2}
    assert (scans.values("a"), scans.values("b")) == ({1: 12}, {2: 18})


def test_the_order_of_structures_is_that_of_the_option_and_stays(scans) -> None:
    scans.add("a", spleen=box(0, 2), liver=box(4, 5))
    result = scans.run("--structures", "spleen,liver")
    assert result.exit_code == 0
    assert "Structures: 1 spleen, 2 liver" in result.output
    assert scans.structures == {"spleen": 1, "liver": 2}
    digests = (scans.output / "journal.jsonl").read_bytes()
    assert scans.run().exit_code == 0
    assert (scans.output / "journal.jsonl").read_bytes() == digests
    result = scans.run("--structures", "liver,spleen")
    assert result.exit_code == 2
    assert "structures was spleen,liver, is now liver,spleen" in result.output
    result = scans.run("--structures", "spleen,liver,lever", "--overwrite")
    assert result.exit_code == 2
    assert "lever: no case has a mask of it; did you mean liver?" in result.output
    assert scans.run("--structures", "liver,spleen", "--overwrite").exit_code == 0
    assert scans.structures == {"liver": 1, "spleen": 2}


def test_overlapping_voxels_go_to_the_first_structure_and_are_counted(scans) -> None:
    scans.add("a", liver=box(0, 4), tumor=box(3, 6))
    scans.add("b", liver=box(0, 4))
    result = scans.run()
    assert result.exit_code == 0
    assert "masks overlap in 1 case: 6 voxels are counted for the first" in result.output
    assert scans.values("a") == {1: 24, 2: 12}
    assert open_output(scans.output).summary["overlapping_voxels"] == 6
    assert scans.metadata("a")["overlapping_voxels"] == 6
    scans._invoke("report", scans.output)
    assert "6 voxels in the masks of two structures" in (scans.output / "report.html").read_text()
    assert "overlapping_voxels" not in scans.metadata("b")
    result = scans.run("--overlap", "error")
    assert result.exit_code == 1
    assert "LabelValues" in result.output
    assert "the masks of liver and tumor share 6 voxels" in result.output


def test_a_mask_that_is_a_label_map_fails_its_case(scans) -> None:
    scans.add("a", liver=box(0, 4) + box(3, 6))
    scans.add("b", liver=box(0, 4))
    result = scans.run()
    assert result.exit_code == 1
    assert "found 0, 1, 2 in" in result.output
    assert "liver.nii.gz" in result.output
    assert "--label_name" in result.output


def test_a_case_whose_masks_changed_is_sliced_again(scans) -> None:
    scans.add("a", liver=box(0, 4))
    scans.add("b", liver=box(0, 4))
    scans.run()
    scans.add("b", liver=box(0, 2))
    assert scans.run().exit_code == 0
    assert (scans.values("a"), scans.values("b")) == ({1: 24}, {1: 12})
    (scans.root / "b/segmentations/liver.nii.gz").unlink()
    assert scans.run("--allow_missing_labels").exit_code == 0


def test_masks_on_another_grid_are_refused_by_plan(scans) -> None:
    shifted = oblique()
    shifted[0, 3] += 5
    scans.add("a", mask_affine=shifted, liver=box(0, 4))
    result = scans.run(command="plan")
    assert result.exit_code == 1
    assert "GeometryMismatch" in result.output
    assert "label" in result.output
    assert "liver.nii.gz lies up to 5 mm" in result.output


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_masks_stored_along_other_axes_fit_the_image(scans, plane) -> None:
    rng = np.random.default_rng(3)
    masks = {name: (rng.random(SHAPE) > 0.8).astype(np.uint8) for name in ("liver", "spleen")}
    scans.add("a", liver=masks["liver"])
    spleen = nib.Nifti1Image(masks["spleen"], oblique())
    target = nib.orientations.axcodes2ornt("SLP")
    turned = spleen.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(spleen.affine), target)
    )
    path = scans.save("a/segmentations/spleen.nii.gz", np.asanyarray(turned.dataobj), turned.affine)
    assert scans.run("--plane", plane).exit_code == 0
    expected = np.where(masks["liver"], 1, masks["spleen"] * 2)
    reference = sitk.GetArrayFromImage(
        sitk.DICOMOrient(sitk.ReadImage(str(scans.root / "a/ct.nii.gz")), "LPS")
    )
    item = next(i for i in SliceDataset(scans.output) if i["case_id"] == "a")
    assert item["label"].shape == item["image"].shape[1:]
    spleen_itk = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    liver_itk = sitk.DICOMOrient(
        sitk.ReadImage(str(scans.root / "a/segmentations/liver.nii.gz")), "LPS"
    )
    by_itk = np.where(sitk.GetArrayFromImage(liver_itk), 1, sitk.GetArrayFromImage(spleen_itk) * 2)
    assert reference.shape == by_itk.shape
    labels = np.stack([i["label"] for i in SliceDataset(scans.output)])
    if plane == "axial":
        np.testing.assert_array_equal(labels, by_itk)
    assert labels.sum() == expected.sum()


def test_more_structures_than_a_dtype_holds_are_told(scans) -> None:
    masks = {f"rib_{number:03d}": np.zeros(SHAPE, np.uint8) for number in range(256)}
    masks["rib_255"] = box(0, 1)
    scans.add("a", **masks)
    result = scans.run()
    assert result.exit_code == 2
    assert "values up to 256, which do not fit --label_dtype uint8" in result.output
    assert "use --label_dtype uint16" in result.output
    assert not scans.output.exists()
    assert scans.run("--label_dtype", "uint16").exit_code == 0
    assert scans.values("a") == {256: 6}


def test_the_plan_as_json_has_the_masks_and_memory_for_one_at_a_time(scans) -> None:
    scans.add("a", **{f"rib_{number}": box(0, 1) for number in range(20)})
    plan = json.loads(scans.run("--json", command="plan").stdout)
    (case,) = plan["cases"]
    assert case["label"] is None
    assert case["masks"]["rib_3"] == str(scans.root / "a/segmentations/rib_3.nii.gz")
    assert case["peak_bytes"] < 10 * 2 * np.prod(SHAPE)
    assert not scans.output.exists()


def test_one_mask_at_a_time_is_in_memory(scans) -> None:
    shape = (128, 128, 64)
    image = np.zeros(shape, np.int16)
    mask = np.zeros(shape, np.uint8)
    mask[10:90, 10:90, 5:40] = 1
    path = str(scans.save("a.nii.gz", image, oblique()))
    mask_path = str(scans.save("m.nii.gz", mask, oblique()))
    masks = tuple(Mask(structure=f"s{n}", path=mask_path, value=n) for n in range(1, 31))
    case = Case(case_id="a", images=(path,), masks=masks)
    tracemalloc.start()
    volume = load_volume(case, "sagittal")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image.nbytes + 3.5 * mask.nbytes
    assert volume.label.stored.max() == 1
    assert volume.n_overlapping == 29 * np.count_nonzero(mask)


def test_partitions_with_other_structures_are_refused(scans) -> None:
    for case_id in "ab":
        scans.add(case_id, liver=box(0, 1))
    assert scans.run("--shard", "1/2").exit_code == 0
    assert scans.structures == {"liver": 1}
    scans.add("b", liver=box(0, 1), aorta=box(3, 4))
    result = scans.run("--shard", "2/2")
    assert result.exit_code == 2
    assert "other structures" in result.output


@pytest.mark.parametrize(
    "content", ['{"liver": 1, "spleen": 1}', '{"liver": 1.5, "spleen": 2}', '{"liver": 0}', "[]"]
)
def test_damaged_structures_json_is_told(scans, content) -> None:
    scans.add("a", liver=box(0, 1))
    scans.run()
    (scans.output / "structures.json").write_text(content)
    assert "structures.json is damaged" in scans.run().output
    assert "structures.json" in scans._invoke("verify", scans.output, "--num_workers", 0).output


@pytest.mark.parametrize("content", [None, '{"liver": 2}', '{"aorta": 1}', "[]"])
@pytest.mark.parametrize("cut", ["npz", "zarr"])
def test_verify_restores_structures_json(scans, content, cut) -> None:
    scans.add("a", liver=box(0, 1))
    scans.add("b", liver=box(0, 1), spleen=box(3, 4))
    scans.run("--format", cut)
    path = scans.output / "structures.json"
    before = path.read_bytes()
    path.unlink() if content is None else path.write_text(content)
    result = scans._invoke("verify", scans.output, "--repair", "--num_workers", 0)
    assert result.exit_code == 1
    assert "structures.json" in result.output
    assert path.read_bytes() == before
    assert scans._invoke("verify", scans.output, "--num_workers", 0).exit_code == 0
    assert "2 cases" in scans.run("--format", cut).output


def test_verify_needs_no_structures_json_without_masks(scans) -> None:
    scans.add("a")
    scans.run()
    assert not (scans.output / "structures.json").exists()
    assert scans._invoke("verify", scans.output, "--num_workers", 0).exit_code == 0


def test_masks_of_a_real_scan_give_its_label_map(scans, real_scans) -> None:
    folder = real_scans / "ct_torso_3mm_totalseg"
    (scans.root / "a").mkdir(parents=True)
    (scans.root / "a/ct.nii.gz").symlink_to(folder / "image.nii.gz")
    label = sitk.ReadImage(str(folder / "label.nii.gz"))
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(label, "LPS"))
    values = np.unique(expected)[1:]
    (scans.root / "a/segmentations").mkdir()
    for value in values:
        path = scans.root / f"a/segmentations/s{value:03d}.nii.gz"
        sitk.WriteImage(sitk.Cast(label == int(value), sitk.sitkUInt8), str(path))
    assert scans.run("--format", "zarr").exit_code == 0
    merged = np.stack([item["label"] for item in SliceDataset(scans.output)])
    np.testing.assert_array_equal(np.append(0, values)[merged], expected)
