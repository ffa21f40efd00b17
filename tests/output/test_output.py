"""Label volumes of an opened output: the map of the scan, whatever the format, and its affine."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from affines import oblique

from dask_slicer import open_output
from dask_slicer.errors import CorruptFile, UsageError

_FLIPPED = oblique() @ np.array([[0, 0, -1.0, 9], [-1.0, 0, 0, 8], [0, 1.0, 0, 0], [0, 0, 0, 1]])


def a_label(values: tuple[int, ...] = (0, 3, 250), dtype: str = "uint8") -> np.ndarray:
    """Return a map of unequal sides of which the last slices along k hold background only."""
    label = np.random.default_rng(5).choice(values, (8, 9, 10)).astype(dtype)
    label[..., 7:] = 0
    return label


@pytest.fixture(params=["npz", "zarr"])
def format_(request) -> str:
    return request.param


@pytest.mark.parametrize("plane", ["axial", "sagittal", "j"])
@pytest.mark.parametrize("affine", [oblique(), _FLIPPED], ids=["oblique", "flipped"])
def test_every_voxel_of_a_label_volume_is_that_of_the_scan_at_its_place(
    dataset, slice_dataset, format_, plane, affine
) -> None:
    dataset.add("a", label=a_label(), affine=affine)
    output = open_output(slice_dataset(format=format_, plane=plane))
    label, to_world = output.label("a")
    volume, of_volume = output.volume("a")
    assert (label.dtype, label.shape) == (np.int32, volume.shape)
    np.testing.assert_array_equal(to_world, of_volume)
    image = nib.load(dataset.label_path("a"))
    places = np.indices(label.shape).reshape(3, -1)
    to_file = np.linalg.inv(image.affine) @ to_world
    stored = to_file[:3, :3] @ places + to_file[:3, 3:]
    np.testing.assert_allclose(stored, np.rint(stored), atol=1e-3)
    of_scan = np.asarray(image.dataobj)[tuple(np.rint(stored).astype(int))]
    np.testing.assert_array_equal(label.ravel(), of_scan)


def test_an_axial_label_volume_is_that_of_simpleitk(dataset, slice_dataset, format_) -> None:
    dataset.add("a", label=a_label(), affine=np.diag([1.5, -2.0, 3.0, 1.0]))
    image = sitk.DICOMOrient(sitk.ReadImage(str(dataset.label_path("a"))), "LPS")
    label, affine = open_output(slice_dataset(format=format_)).label("a")
    np.testing.assert_array_equal(label, sitk.GetArrayFromImage(image))
    left, posterior, superior = image.TransformIndexToPhysicalPoint((2, 3, 5))
    np.testing.assert_allclose(affine @ [5, 3, 2, 1], [-left, -posterior, superior, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("values", "dtype", "unknown"),
    [((0, 3, 250), "uint8", -1), ((0, 70_000, -1, -9), "int32", -10)],
)
def test_slices_that_were_dropped_are_in_zarr_and_marked_from_npz(
    dataset, slice_dataset, values, dtype, unknown
) -> None:
    expected = np.moveaxis(a_label(values, dtype), 2, 0)
    dataset.add("a", label=a_label(values, dtype))
    settings = {"plane": "k", "min_foreground": 0.1, "label_dtype": dtype}
    label, _ = open_output(slice_dataset(output="z", format="zarr", **settings)).label("a")
    np.testing.assert_array_equal(label, expected)
    label, _ = open_output(slice_dataset(output="n", format="npz", **settings)).label("a")
    np.testing.assert_array_equal(label[:7], expected[:7])
    assert (label[7:] == unknown).all()


def test_a_case_without_a_label_or_without_slices_is_named(dataset, slice_dataset, format_) -> None:
    dataset.add("with")
    dataset.add("without", label=None)
    output = open_output(slice_dataset(format=format_, allow_missing_labels=True))
    with pytest.raises(UsageError, match=r"^without has no label in .*slices$"):
        output.label("without")
    with pytest.raises(UsageError, match=r"no slices of witout in .*did you mean without"):
        output.label("witout")


def test_a_case_of_which_no_slice_was_kept_is_named(dataset, slice_dataset, format_) -> None:
    dataset.add("empty", label=np.zeros((8, 9, 10), np.uint8))
    output = open_output(slice_dataset(format=format_, min_foreground=0.5))
    with pytest.raises(UsageError, match=r"no slices of empty in .*the run kept none of them"):
        output.volume("empty")


def test_a_damaged_label_names_case_and_file(dataset, slice_dataset, format_) -> None:
    dataset.add("a")
    folder: Path = slice_dataset(format=format_)
    for path in [*folder.rglob("a_004.npz"), *folder.rglob("a/label/c/0/0/0")]:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CorruptFile, match=r"case a: .*(a_004\.npz|label).*--repair"):
        open_output(folder).label("a")
