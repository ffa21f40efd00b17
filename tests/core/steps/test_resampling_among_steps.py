"""Crop, spacing and in-plane size one after the other: the places of voxels, and the way back."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from affines import oblique
from scipy import ndimage

from dask_slicer.core.geometry import Grid, plane_orientation, reorient, spacing
from dask_slicer.core.slices import SliceStack, slice_volume
from dask_slicer.core.steps.cropping import crop, cropped_affine, grown_box, label_box, uncrop
from dask_slicer.core.steps.resampling import (
    resample_image,
    resample_label,
    resampled_affine,
    resampled_shape,
)
from dask_slicer.core.steps.sizing import (
    fit_in_plane,
    restore_label,
    size_image,
    size_label,
    sized_affine,
)
from dask_slicer.core.steps.steps import Steps
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.inputs.phantom import make_phantom

SHEAR = np.array([[1, 0.2, -0.1], [0, 1, 0.15], [0, 0, 1]])


def sliced(
    images: list[np.ndarray], affine: np.ndarray, plane: str, steps: Steps, label=None
) -> tuple[np.ndarray, SliceStack]:
    """Return the slices of images as a file holds them, (n_images, n_slices, height, width)."""
    orientation = plane_orientation(affine, plane)
    arrays = [None if array is None else reorient(array, orientation) for array in (label, *images)]
    volume = Volume(
        image=tuple(Voxels(stored=array) for array in arrays[1:]),
        label=None if label is None else Voxels(stored=arrays[0]),
        affine=Grid(shape=images[0].shape, affine=affine, name="image")
        .reoriented(orientation)
        .affine,
        orientation=orientation,
    )
    stack = slice_volume(volume, normalize="none", label_dtype="int32", steps=steps)
    return np.stack([planes for _, planes in stack.planes(range(stack.shape[0]))], axis=1), stack


def places(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return the world coordinates of all voxels, (3, *shape)."""
    return np.moveaxis(
        nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0
    )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("shear", [np.eye(3), SHEAR], ids=["oblique", "sheared"])
def test_world_coordinates_stay_in_all_48_orders(shear, plane) -> None:
    steps = Steps(
        crop=((1, 14), (0, 12), (2, 13)), spacing=(1.1, 1.7, 0.9), size=(9, 31), resample_order=1
    )
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = oblique()
        axes = np.eye(3)[list(order)].T * signs * (1.0, 2.0, 1.5)
        affine[:3, :3] = affine[:3, :3] / spacing(affine) @ shear @ axes
        images, stack = sliced(list(places((14, 13, 15), affine)), affine, plane, steps)
        expected = places(stack.shape, stack.affine)
        stored = places(stack.shape, np.linalg.inv(affine) @ stack.affine)
        first, last = (np.reshape(ends, (3, 1, 1, 1)) for ends in ((1, 0, 2), (13, 11, 12)))
        seen = ((stored >= first) & (stored <= last)).all(axis=0)
        assert seen.mean() > 0.1
        assert np.abs(images - expected)[:, seen].max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_slices_of_real_scans_are_what_scipy_and_simpleitk_find_at_their_places(
    real_scans, plane
) -> None:
    steps = Steps(spacing=(3.0, 2.2, 2.5), size=(150, 160))
    for path in sorted(real_scans.glob("*/image.nii.gz")):
        scan = nib.load(path)
        if scan.ndim > 3:
            continue
        image = np.asarray(scan.dataobj)
        mask = np.asarray(nib.load(path.with_name("label.nii.gz")).dataobj) != 0
        (slices,), stack = sliced([image], scan.affine, plane, steps, mask.astype(np.uint8))
        stored = places(stack.shape, np.linalg.inv(scan.affine) @ stack.affine)
        n = np.reshape(image.shape, (3, 1, 1, 1))
        inside = ((stored > -0.5 - 1e-6) & (stored < n - 0.5 + 1e-6)).all(axis=0)
        at = stored.copy()
        if stack.grid.nearest_axis is not None:
            orientation = plane_orientation(scan.affine, plane)
            axis = orientation[:, 0].tolist().index(stack.grid.nearest_axis)
            flip = orientation[axis, 1]  # of two equally near, the later one in the slices' order
            nearest = flip * np.floor(flip * at[axis] + 0.5 + 1e-6)
            at[axis] = nearest.clip(0, image.shape[axis] - 1)
        low, high = float(image.min()), float(image.max())
        found = ndimage.map_coordinates(image.astype(float), at, order=3, mode="nearest")
        found = np.where(inside, found.clip(low, high), low)
        assert np.abs(slices - found).max() <= 1e-4 * (high - low), path
        share = ndimage.map_coordinates(mask.astype(float), at, order=1, mode="nearest")
        np.testing.assert_array_equal(stack.label, inside & (share > 0.5 + 1e-9))
        if stack.grid.nearest_axis is None:
            found = by_simpleitk(image, scan.affine, stack.shape, stack.affine).clip(low, high)
            # Its splines go on as mirror images beyond the edges.
            deep = ((stored > 9) & (stored < n - 10)).all(axis=0)
            assert np.abs(slices - found)[deep].max(initial=0) <= 1e-4 * (high - low), path


def by_simpleitk(
    image: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], new_affine: np.ndarray
) -> np.ndarray:
    """Return an image, (i, j, k), resampled by B-splines onto a grid of (slice, row, column)."""
    grid = sitk.Image(shape[::-1], sitk.sitkFloat64)
    source = sitk.GetImageFromArray(image.astype(float).T)
    for each, matrix in ((source, affine), (grid, new_affine[:, [2, 1, 0, 3]])):
        mm = np.array(spacing(matrix))
        each.SetSpacing(mm.tolist())
        lps = np.diag([-1.0, -1, 1]) @ matrix[:3]
        each.SetDirection((lps[:, :3] / mm).ravel().tolist())
        each.SetOrigin(lps[:, 3].tolist())
    return sitk.GetArrayFromImage(sitk.Resample(source, grid, sitk.Transform(), sitk.sitkBSpline))


def test_voxels_keep_their_places_and_labels_come_back() -> None:
    rng = np.random.default_rng(8)
    phantom = make_phantom((160, 140, 60), spacing=(2.0, 2.0, 3.0), rng=rng)
    orientation = plane_orientation(phantom.affine, "coronal")
    label = reorient(phantom.label, orientation)
    affine = phantom.affine @ nib.orientations.inv_ornt_aff(orientation, phantom.label.shape)
    index = np.moveaxis(np.indices(label.shape), 0, -1)
    world = np.moveaxis(nib.affines.apply_affine(affine, index), -1, 0).astype(np.float32)

    mm = spacing(affine)
    box = grown_box(label_box(label), label.shape, spacing=mm, margin=5)
    cropped = crop(label, box)
    shape = resampled_shape(cropped.shape, mm, (1.5, 1.5, 1.5))
    resampled, _ = resample_label(cropped, shape)
    in_plane = fit_in_plane(shape[1:], (128, 256))
    sized, lost = size_label(resampled, in_plane)
    assert lost == {}

    new_affine = cropped_affine(affine, box)
    new_affine = resampled_affine(new_affine, cropped.shape, shape)
    new_affine = sized_affine(new_affine, in_plane)
    expected = nib.affines.apply_affine(new_affine, np.moveaxis(np.indices(sized.shape), 0, -1))
    organs = sized > 0
    organs[[*range(12), *range(-12, 0)]] = False  # where a spline is bent by edge values
    organs[:, [*range(25), *range(-25, 0)]] = False
    assert organs.any()
    for axis, coordinate in enumerate(world):
        image = resample_image(crop(coordinate, box), shape)
        image = size_image(image, in_plane, fill=float(image.min()))
        assert np.abs(image - expected[..., axis])[organs].max() < 0.02

    restored, _ = resample_label(restore_label(sized, in_plane), cropped.shape)
    back = uncrop(restored, box, label.shape)
    both = np.count_nonzero((back == label) & (label > 0))
    assert 2 * both / (np.count_nonzero(back) + np.count_nonzero(label)) >= 0.97
