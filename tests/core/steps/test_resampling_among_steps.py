"""Crop, spacing and in-plane size one after the other: the places of voxels, and the way back."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from dask_slicer.core.geometry import plane_orientation, reorient, spacing
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
from dask_slicer.inputs.phantom import make_phantom


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
