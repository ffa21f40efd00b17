"""Labels through `run` and back through `assemble`: the same voxels, the same grid."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from affines import oblique
from predicted import assemble, predict, run

from dask_slicer.config.fields import PLANES
from dask_slicer.errors import UsageError

SHAPE = (5, 6, 7)
GRID = (
    *("pixdim", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"),
    *("qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim_info"),
)


def check_same(volume: Path, label: Path, image: Path) -> None:
    """Assert that a volume has the voxels of a label and the grid of an image."""
    got, expected, scan = nib.load(volume), nib.load(label), nib.load(image)
    header = scan.header
    if scan.ndim == 4:  # of which the first volume was used
        image = volume.with_name("first.nii")
        scan = scan.slicer[..., 0]
        nib.save(scan, image)
    np.testing.assert_array_equal(np.asarray(got.dataobj), np.asarray(expected.dataobj))
    assert got.shape == scan.shape
    for name in GRID:
        assert got.header[name].tobytes() == header[name].tobytes(), name
    read, source = sitk.ReadImage(str(volume)), sitk.ReadImage(str(image))
    assert read.GetSize() == source.GetSize()
    for method in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_array_equal(getattr(read, method)(), getattr(source, method)())
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(sitk.ReadImage(str(label)))
    )


def orders() -> list[np.ndarray]:
    """Return the 48 orders of axes, each turned a little."""
    affines = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        axes = np.zeros((4, 4))
        axes[3, 3] = 1
        for axis, (to, sign) in enumerate(zip(order, signs, strict=True)):
            axes[to, axis] = sign
        affines.append(oblique(12.0) @ axes)
    return affines


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for number, affine in enumerate(orders()):
        image = nib.Nifti1Image(rng.integers(-99, 99, SHAPE).astype(np.int16), affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(affine, code=int(number % 3))
        image.set_sform(affine, code=int(1 + number % 4))
        label = nib.Nifti1Image(rng.integers(0, 5, SHAPE).astype(np.uint8), affine, image.header)
        label.set_data_dtype(np.uint8)
        for name, volume in (("imagesTr", image), ("labelsTr", label)):
            (folder / name).mkdir(exist_ok=True)
            ending = "_0000.nii.gz" if name == "imagesTr" else ".nii.gz"
            nib.save(volume, folder / name / f"case_{number:02d}{ending}")
    return folder


def check_all(scans: Path, volumes: Path, report) -> None:
    assert not report.failures, report.failures
    names = sorted(path.name for path in (scans / "labelsTr").iterdir())
    assert report.n_written == len(names)
    for name in names:
        image = scans / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz")
        check_same(volumes / name, scans / "labelsTr" / name, image)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("format_", "window_size"),
    [
        ("npz", 0),
        pytest.param("npz", 2, marks=pytest.mark.slow),
        pytest.param("zarr", 0, marks=pytest.mark.slow),
    ],
)
def test_labels_in_48_orders_come_back(scans, tmp_path, plane, format_, window_size) -> None:
    settings = {"plane": plane, "format": format_, "window_size": window_size}
    output = run(scans, tmp_path / "out", **settings)
    predictions = predict(output, tmp_path / "predictions", whole=plane in "ijk")
    report = assemble(output, predictions, tmp_path / "volumes")
    check_all(scans, tmp_path / "volumes", report)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
def test_any_kind_of_file_in_any_folder(scans, tmp_path, suffix) -> None:
    output = run(scans, tmp_path / "out", plane=("coronal", "k"))
    predict(output, tmp_path / "predictions" / "some" / "folder", suffix=suffix)
    report = assemble(output, tmp_path / "predictions", tmp_path / "volumes")
    check_all(scans, tmp_path / "volumes", report)


@pytest.mark.parametrize(
    ("plane", "format_", "window_size"),
    [
        pytest.param(*each, marks=[] if each == ("axial", "zarr", 2) else pytest.mark.slow)
        for each in product(PLANES, ("npz", "zarr"), (0, 2))
    ],
)
def test_labels_of_real_scans_come_back(real_scans, tmp_path, plane, format_, window_size) -> None:
    scans = tmp_path / "scans"
    folders = [folder for folder in real_scans.iterdir() if (folder / "label.nii.gz").exists()]
    for folder in folders:
        for name, where in (
            ("image", f"imagesTr/{folder.name}_0000"),
            ("label", f"labelsTr/{folder.name}"),
        ):
            path = scans / f"{where}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(folder / f"{name}.nii.gz")
    settings = {"plane": plane, "format": format_, "window_size": window_size}
    output = run(scans, tmp_path / "out", label_dtype="int32", volumes="0", **settings)
    predictions = predict(output, tmp_path / "predictions")
    report = assemble(
        output,
        predictions,
        tmp_path / "volumes",
        metrics=(plane, format_, window_size) == ("axial", "npz", 0),
    )
    check_all(scans, tmp_path / "volumes", report)
    for labels in report.metrics.values():
        assert all(values["dice"]["mean"] == 1.0 for values in labels.values())


def test_outputs_of_earlier_versions_need_the_scans(scans, tmp_path) -> None:
    output = run(scans, tmp_path / "out")
    predictions = predict(output, tmp_path / "predictions")
    journal = output / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(
        "".join(
            json.dumps({k: v for k, v in json.loads(line).items() if k != "grid"}) + "\n"
            for line in lines
        )
    )
    report = assemble(output, predictions, tmp_path / "volumes")
    check_all(scans, tmp_path / "volumes", report)
    moved = scans.rename(scans.with_name("moved"))
    try:
        with pytest.raises(UsageError, match="name their place with --source"):
            assemble(output, predictions, tmp_path / "later")
        assert not (tmp_path / "later").exists()
        report = assemble(output, predictions, tmp_path / "volumes2", source=moved)
        check_all(moved, tmp_path / "volumes2", report)
    finally:
        moved.rename(scans)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii", ".mgz"])
def test_volumes_of_other_formats_lie_on_the_grid_of_the_scan(tmp_path, suffix) -> None:
    rng, folder = np.random.default_rng(1), tmp_path / "scans"
    image, label = rng.integers(0, 99, SHAPE).astype(np.int16), rng.integers(0, 4, SHAPE)
    affine = oblique(25.0)
    for name, array in (("imagesTr/a_0000", image), ("labelsTr/a", label.astype(np.uint8))):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".mgz":
            nib.save(nib.MGHImage(array, affine), path)
            continue
        nifti = tmp_path / "volume.nii"
        nib.save(nib.Nifti1Image(array, affine), nifti)
        sitk.WriteImage(sitk.ReadImage(str(nifti)), str(path))
    output = run(folder, tmp_path / "out", layout="nnunet")
    predictions = predict(output, tmp_path / "predictions")
    assert not assemble(output, predictions, tmp_path / "volumes").failures
    volume = nib.load(tmp_path / "volumes" / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(volume.dataobj), label)
    for form in (volume.affine, volume.get_qform(), volume.get_sform()):
        np.testing.assert_allclose(form, affine, atol=1e-5)
    read = sitk.ReadImage(str(tmp_path / "volumes" / "a.nii.gz"))
    if suffix != ".mgz":
        scan = sitk.ReadImage(str(folder / f"imagesTr/a_0000{suffix}"))
        for method in ("GetOrigin", "GetSpacing", "GetDirection"):
            np.testing.assert_allclose(getattr(read, method)(), getattr(scan, method)(), atol=1e-5)
