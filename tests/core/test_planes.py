"""Views of a volume in each plane: those that loading it in that plane gives."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from affines import oblique

from dask_slicer.core.geometry import Grid, align, reorient
from dask_slicer.core.planes import change_of_axes, in_memory, in_plane
from dask_slicer.core.slices import slice_views, slice_volume
from dask_slicer.core.steps.steps import Steps
from dask_slicer.core.volume import Volume, Voxels

PLANES = ("axial", "coronal", "sagittal", "i", "j", "k")
ORDERS = [*product(permutations(range(3)), product((1, -1), repeat=3))]


def loaded(plane: str, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """Return a volume in a plane, as a file with its axes in some order is loaded."""
    stored = np.asfortranarray(np.random.default_rng(5).integers(0, 99, (4, 5, 6)), np.int16)
    affine = oblique()
    affine[:3, :3] = affine[:3, :3] @ (np.eye(3)[list(order)] * signs)
    (orientation,), grid = align([Grid(shape=stored.shape, affine=affine, name="image")], plane)
    voxels = Voxels(stored=reorient(stored, orientation))
    label = Voxels(stored=(voxels.stored > 60).astype(np.uint8))
    return Volume(
        image=(voxels,),
        label=label,
        affine=grid.affine,
        orientation=orientation,
        stored_affine=affine,
    )


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_a_volume_turned_into_a_plane_is_that_loaded_in_it(order, signs) -> None:
    volumes = {plane: loaded(plane, order, signs) for plane in PLANES}
    for first, second in product(PLANES, PLANES):
        turned, expected = in_plane(volumes[first], second), volumes[second]
        np.testing.assert_array_equal(turned.image[0].stored, expected.image[0].stored)
        np.testing.assert_array_equal(turned.label.stored, expected.label.stored)
        np.testing.assert_array_equal(turned.affine, expected.affine)
        np.testing.assert_array_equal(turned.orientation, expected.orientation)
        assert np.shares_memory(turned.image[0].stored, volumes[first].image[0].stored)
        change = change_of_axes(volumes[first], turned)
        again = reorient(volumes[first].image[0].stored, change)
        np.testing.assert_array_equal(again, expected.image[0].stored)
    assert in_memory(volumes["axial"]).image[0].stored.flags.c_contiguous


@pytest.mark.parametrize(("order", "signs"), ORDERS[::5])
@pytest.mark.parametrize("steps", [Steps(), Steps(spacing=(1.1, 1.1, 1.1), crop="label")])
def test_the_slices_of_several_planes_are_those_of_each(order, signs, steps) -> None:
    volume = loaded("axial", order, signs)
    views = [in_plane(volume, plane) for plane in PLANES]
    for stack, plane in zip(slice_views(views, steps=steps), PLANES, strict=True):
        alone = slice_volume(loaded(plane, order, signs), steps=steps)
        assert stack.statistics == alone.statistics
        np.testing.assert_array_equal(stack.affine, alone.affine)
        np.testing.assert_array_equal(stack.label, alone.label)
        assert stack.label_counts == alone.label_counts
        planes = zip(stack.planes({*stack.kept}), alone.planes({*alone.kept}), strict=True)
        for (index, (image,)), (other, (expected,)) in planes:
            assert index == other
            np.testing.assert_array_equal(image, expected)
