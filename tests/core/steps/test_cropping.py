"""Crops: boxes against nnU-Net's definition, the grid that is left, and the way back."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.geometry import Grid, reorient
from dask_slicer.core.steps.cropping import (
    box_within,
    crop,
    cropped_affine,
    grown_box,
    label_box,
    nonzero_box,
    reoriented_box,
    uncrop,
)
from dask_slicer.core.volume import Voxels
from dask_slicer.errors import GeometryMismatch

SHAPE = (7, 8, 9)
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def limits(n: int) -> st.SearchStrategy[tuple[int, int]]:
    """Return strategies for the start and the stop of at least one voxel of n."""
    return st.integers(0, n - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(start + 1, n))
    )


BOXES = st.tuples(*map(limits, SHAPE))


def box_of_filled_hull(images: list[np.ndarray]) -> tuple[tuple[int, int], ...]:
    """Return nnU-Net's box: holes of the union of all that is not 0 are filled first."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")
    hull = ndimage.binary_fill_holes(np.any([image != 0 for image in images], axis=0))
    inside = np.argwhere(hull)
    return tuple(zip(inside.min(axis=0).tolist(), (inside.max(axis=0) + 1).tolist(), strict=True))


@given(
    seed=st.integers(0, 999),
    n_images=st.integers(1, 3),
    density=st.sampled_from([0.003, 0.05, 0.5]),
    axes=st.permutations([0, 1, 2]),
    dtype=st.sampled_from(["int16", "uint8", ">f4"]),
)
def test_the_box_of_what_is_not_zero_is_that_of_the_filled_hull(
    seed, n_images, density, axes, dtype
) -> None:
    rng = np.random.default_rng(seed)
    images = [(rng.random(SHAPE) < density).astype(dtype) for _ in range(n_images)]
    images[0][tuple(rng.integers(0, SHAPE))] = 3
    voxels = [
        Voxels(stored=np.ascontiguousarray(image.transpose(axes)).transpose(np.argsort(axes)))
        for image in images
    ]
    assert nonzero_box(voxels) == box_of_filled_hull(images)


def test_the_box_of_what_is_not_zero_is_that_of_intensities() -> None:
    stored = np.full((3, 4, 5), 1024, np.int16)
    stored[1, 2, 3] = 0
    box = ((1, 2), (2, 3), (3, 4))
    assert nonzero_box([Voxels(stored=stored, intercept=-1024.0)]) == box
    assert nonzero_box([Voxels(stored=stored, slope=0.5, intercept=-512.0)]) == box
    assert nonzero_box([Voxels(stored=stored - np.int16(1024), slope=0.5)]) == box


def test_the_box_of_what_is_not_zero_takes_nan_and_inf_as_0() -> None:
    stored = np.full((3, 4, 5), np.nan, np.float32)
    stored[0, 0, 0], stored[2, 3, 4], stored[1, 2, 3] = np.inf, -np.inf, 7
    assert nonzero_box([Voxels(stored=stored)]) == ((1, 2), (2, 3), (3, 4))


def test_without_a_voxel_the_box_is_the_whole_grid() -> None:
    nothing = np.zeros((3, 4, 5), np.uint8)
    assert nonzero_box([Voxels(stored=nothing)]) == label_box(nothing) == ((0, 3), (0, 4), (0, 5))


@given(box=BOXES)
def test_the_box_of_a_label_holds_all_of_it_and_no_more(box) -> None:
    label = np.zeros(SHAPE, np.int32)
    for end in range(2):
        label[tuple(ends[end] - end for ends in box)] = end - 2
    assert label_box(label) == box


@pytest.mark.parametrize(
    ("given_box", "expected"),
    [
        pytest.param([(1, 3), (2, 4), (0, 9)], ((1, 3), (2, 4), (0, 9)), id="as given"),
        pytest.param([(None, 3), (2, None), (None, None)], ((0, 3), (2, 8), (0, 9)), id="ends"),
        pytest.param([(-3, -1), (0, 99), (-99, 5)], ((4, 6), (0, 8), (0, 5)), id="as slices are"),
    ],
)
def test_a_given_box_is_read_as_slices_are(given_box, expected) -> None:
    assert box_within(given_box, SHAPE) == expected
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    by_slices = array[tuple(slice(*ends) for ends in given_box)]
    np.testing.assert_array_equal(crop(array, expected), by_slices)


@pytest.mark.parametrize("empty", [(3, 3), (5, 2), (7, None), (None, -7)])
def test_a_given_box_without_a_voxel_fails_the_case(empty) -> None:
    with pytest.raises(GeometryMismatch, match="holds no voxel of 7×8×9"):
        box_within([empty, (None, None), (1, None)], SHAPE)


@pytest.mark.parametrize(
    ("spacing", "margin", "expected"),
    [
        ((1.0, 1.0, 1.0), 0.0, ((3, 4), (3, 5), (3, 6))),
        ((1.0, 2.0, 5.0), 2.0, ((1, 6), (2, 6), (2, 7))),
        ((0.5, 0.9, 0.7), 0.9, ((1, 6), (2, 6), (1, 8))),
        ((1.0, 1.0, 1.0), 99.0, ((0, 7), (0, 8), (0, 9))),
    ],
)
def test_a_margin_is_rounded_outwards_and_ends_at_the_grid(spacing, margin, expected) -> None:
    box = ((3, 4), (3, 5), (3, 6))
    assert grown_box(box, SHAPE, spacing=spacing, margin=margin) == expected


def test_a_margin_of_whole_voxels_is_that_many_whatever_rounding_does() -> None:
    mm, margin = 0.1, 0.1 * 3
    assert margin / mm > 3
    box = grown_box(((50, 51),) * 3, (99, 99, 99), spacing=(mm,) * 3, margin=margin)
    assert box == ((47, 54),) * 3


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda value: str(value.tolist()))
def test_a_box_of_stored_axes_holds_the_same_voxels_in_every_plane(orientation) -> None:
    stored = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    box = ((1, 3), (0, 5), (4, 9))
    before = reorient(crop(stored, box), orientation)
    after = crop(reorient(stored, orientation), reoriented_box(box, SHAPE, orientation))
    np.testing.assert_array_equal(before, after)
    # And they lie in the same places.
    grid = Grid(shape=SHAPE, affine=oblique(), name="image")
    part = Grid(
        shape=crop(stored, box).shape, affine=cropped_affine(grid.affine, box), name="image"
    )
    np.testing.assert_allclose(
        part.reoriented(orientation).affine,
        cropped_affine(
            grid.reoriented(orientation).affine, reoriented_box(box, SHAPE, orientation)
        ),
    )


@given(box=BOXES)
def test_voxels_keep_their_places(box) -> None:
    affine = oblique()
    index = np.indices(SHAPE)
    moved = cropped_affine(affine, box)
    cropped = np.stack([crop(axis, box) for axis in index], axis=-1)
    np.testing.assert_allclose(
        nib.affines.apply_affine(moved, np.moveaxis(np.indices(cropped.shape[:3]), 0, -1)),
        nib.affines.apply_affine(affine, cropped),
    )
    assert not np.signbit(moved[moved == 0]).any(), "-0.0 would be written out"


@given(box=BOXES, fill=st.sampled_from([0, -1]), dtype=st.sampled_from(["int16", "float32"]))
def test_what_was_cut_out_is_put_back_in_its_place(box, fill, dtype) -> None:
    array = np.random.default_rng(7).integers(1, 99, SHAPE).astype(dtype)
    back = uncrop(crop(array, box), box, SHAPE, fill=fill)
    assert back.dtype == array.dtype
    inside = np.zeros(SHAPE, bool)
    inside[tuple(slice(*ends) for ends in box)] = True
    np.testing.assert_array_equal(back, np.where(inside, array, fill))
