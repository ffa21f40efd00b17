"""Planes and grids: however a file stores its axes, the same voxels in the same places."""

from __future__ import annotations

import re
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat

from dask_slicer.core.geometry import (
    Grid,
    align,
    axis_codes,
    check_affine,
    plane_orientation,
    reorient,
    spacing,
)
from dask_slicer.errors import GeometryMismatch
from dask_slicer.inputs.readers import read_voxels

# Every way to store a volume: which canonical axis each stored axis is, and whether it runs back.
STORAGES = [
    (axes, flips) for axes in permutations(range(3)) for flips in product((1, -1), repeat=3)
]
# Each voxel has a value of its own, no two sides are equal.
PHANTOM = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
SPACING = (2.0, 1.5, 3.0)
# As the documentation says it: slice index, rows, columns.
DIRECTIONS = {
    "axial": ("I→S", "A→P", "R→L"),
    "coronal": ("A→P", "S→I", "R→L"),
    "sagittal": ("R→L", "S→I", "A→P"),
}
RAS = dict(zip("RASLPI", [*np.eye(3), *-np.eye(3)], strict=True))


def turned(x: float, y: float, z: float) -> np.ndarray:
    """Return an affine off the origin, its axes turned by angles in degrees."""
    directions = euler2mat(*np.deg2rad((z, y, x)))
    return nib.affines.from_matvec(directions * SPACING, (-7.0, 11.0, 5.0))


OBLIQUE = turned(14, -9, 11)
AFFINES = {"straight": turned(0, 0, 0), "oblique": OBLIQUE}
each_storage = pytest.mark.parametrize("storage", STORAGES, ids=str)
each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
each_plane = pytest.mark.parametrize("plane", [*DIRECTIONS, "i", "j", "k"])


def store(array: np.ndarray, affine: np.ndarray, storage: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume and its affine as a file of another axis order would hold them."""
    axes, flips = storage
    to_canonical = np.diag([0.0, 0.0, 0.0, 1.0])
    for stored_axis, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        to_canonical[axis, stored_axis] = flip
        if flip < 0:
            to_canonical[axis, 3] = array.shape[axis] - 1
    stored = array.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    return stored, affine @ to_canonical


def stack(array: np.ndarray, affine: np.ndarray, plane: str) -> tuple[np.ndarray, np.ndarray]:
    orientation = plane_orientation(affine, plane)
    seen = reorient(array, orientation)
    grid = Grid(shape=array.shape, affine=affine, name="image").reoriented(orientation)
    assert seen.shape == grid.shape
    assert np.shares_memory(seen, array)
    assert not np.signbit(grid.affine[grid.affine == 0]).any(), "-0.0 would be written out"
    return seen, grid.affine


def places(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return where in the world each value of the phantom lies: a naive loop over voxels."""
    found = np.full((array.size, 3), np.nan)
    for index in np.ndindex(array.shape):
        found[array[index]] = (affine @ (*index, 1))[:3]
    return found


def grid_of(affine: np.ndarray, name: str, shape: tuple[int, int, int] = PHANTOM.shape) -> Grid:
    return Grid(shape=shape, affine=affine, name=name)


@each_affine
@each_storage
def test_a_stack_does_not_depend_on_how_the_volume_is_stored(
    storage: tuple, affine: np.ndarray
) -> None:
    stored, stored_affine = store(PHANTOM, affine, storage)
    for plane in DIRECTIONS:
        expected, expected_affine = stack(PHANTOM, affine, plane)
        found, found_affine = stack(stored, stored_affine, plane)
        assert np.array_equal(found, expected)
        assert np.allclose(found_affine, expected_affine, rtol=0, atol=1e-9)


@each_affine
@each_storage
def test_every_voxel_keeps_its_place_in_the_world(storage: tuple, affine: np.ndarray) -> None:
    stored, stored_affine = store(PHANTOM, affine, storage)
    expected = places(stored, stored_affine)
    for plane in (*DIRECTIONS, "i", "j", "k"):
        assert np.allclose(places(*stack(stored, stored_affine, plane)), expected, atol=1e-9)


@each_affine
@each_storage
def test_stacks_are_those_that_simpleitk_makes_of_the_file(
    storage: tuple, affine: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(*store(PHANTOM, affine, storage)), path)
    lps = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    z_y_x = sitk.GetArrayFromImage(lps)  # z grows to S, y to P, x to L
    expected = {
        "axial": z_y_x,
        "coronal": z_y_x[::-1].transpose(1, 0, 2),
        "sagittal": z_y_x[::-1].transpose(2, 0, 1),
    }
    header, stored = read_voxels(path)
    for plane, array in expected.items():
        assert np.array_equal(stack(stored, header.affine, plane)[0], array)
    _, axial = stack(stored, header.affine, "axial")
    for z, y, x in product((0, 5), (0, 4), (0, 3)):
        to_l, to_p, to_s = lps.TransformIndexToPhysicalPoint((x, y, z))
        assert np.allclose((axial @ (z, y, x, 1))[:3], (-to_l, -to_p, to_s), atol=1e-4)


@each_affine
@pytest.mark.parametrize("plane", DIRECTIONS)
def test_axes_grow_in_the_directions_of_the_design(plane: str, affine: np.ndarray) -> None:
    for storage in STORAGES:
        _, found = stack(*store(PHANTOM, affine, storage), plane)
        for axis, direction in enumerate(DIRECTIONS[plane]):
            start, _, end = direction.partition("→")
            assert np.array_equal(RAS[start], -np.array(RAS[end]))
            step = found[:3, axis] / np.linalg.norm(found[:3, axis])
            assert step @ RAS[end] > 0.9
            assert axis_codes(found)[axis] == end


def test_the_first_slices_are_the_lowest_the_foremost_and_the_right_most() -> None:
    image = np.full((4, 5, 6), 0)
    image[:, :, 0], image[:, 4, :], image[3, :, :] = 1, 1, 1  # RAS: inferior, anterior, right
    for plane in DIRECTIONS:
        seen, _ = stack(image, np.eye(4), plane)
        assert seen[0].all()
        assert not seen[1].all()


def test_spacing_follows_slice_row_and_column() -> None:
    expected = {"axial": (3.0, 1.5, 2.0), "coronal": (1.5, 3.0, 2.0), "sagittal": (2.0, 3.0, 1.5)}
    for storage, plane in product(STORAGES, expected):
        _, affine = stack(*store(PHANTOM, OBLIQUE, storage), plane)
        assert spacing(affine) == pytest.approx(expected[plane])


@pytest.mark.parametrize(("plane", "axes"), [("i", (0, 1, 2)), ("j", (1, 0, 2)), ("k", (2, 0, 1))])
def test_planes_of_the_file_take_its_axis_first_and_flip_nothing(
    plane: str, axes: tuple[int, int, int]
) -> None:
    for storage in STORAGES:
        stored, affine = store(PHANTOM, OBLIQUE, storage)
        seen, seen_affine = stack(stored, affine, plane)
        assert np.array_equal(seen, stored.transpose(axes))
        assert np.allclose(seen_affine, affine[:, [*axes, 3]])


@each_affine
@each_plane
def test_image_and_label_may_be_stored_differently(plane: str, affine: np.ndarray) -> None:
    for image_storage in (STORAGES[0], STORAGES[13], STORAGES[47]):
        image, image_affine = store(PHANTOM, affine, image_storage)
        image_grid = grid_of(image_affine, "image", image.shape)
        expected, expected_affine = stack(image, image_affine, plane)
        for label_storage in STORAGES:
            label, label_affine = store(PHANTOM, affine, label_storage)
            label_grid = grid_of(label_affine, "label", label.shape)
            orientations, grid = align([image_grid, label_grid], plane)
            assert np.array_equal(reorient(image, orientations[0]), expected)
            assert np.array_equal(reorient(label, orientations[1]), expected)
            assert np.array_equal(grid.affine, expected_affine)
            assert (grid.shape, grid.name) == (expected.shape, "image")


angles = st.floats(-180, 180)


@given(angles, angles, angles, st.sampled_from(STORAGES), st.sampled_from([*DIRECTIONS, "k"]))
def test_image_and_label_match_however_the_patient_is_rotated(
    x: float, y: float, z: float, storage: tuple, plane: str
) -> None:
    affine = turned(x, y, z)
    label, label_affine = store(PHANTOM, affine, storage)
    grids = [grid_of(affine, "image"), grid_of(label_affine, "label", label.shape)]
    orientations, _ = align(grids, plane)
    for orientation in orientations:
        assert sorted(orientation[:, 0]) == [0, 1, 2]
        assert set(np.abs(orientation[:, 1])) == {1}
    assert np.array_equal(reorient(PHANTOM, orientations[0]), reorient(label, orientations[1]))


def moved(affine: np.ndarray, voxels: tuple = (0, 0, 0), *, scale: float = 1.0) -> np.ndarray:
    change = np.diag([scale, scale, scale, 1.0])
    change[:3, 3] = voxels
    return affine @ change


ELSEWHERE = {
    "one_voxel_along_x": (moved(OBLIQUE, (1, 0, 0)), 2.0, 1.0),
    "one_voxel_along_y": (moved(OBLIQUE, (0, -1, 0)), 1.5, 1.0),
    "one_voxel_along_z": (moved(OBLIQUE, (0, 0, 1)), 3.0, 1.0),
    "0.11_voxel_along_x": (moved(OBLIQUE, (0.11, 0, 0)), 0.22, 0.11),
    "0.11_voxel_along_y": (moved(OBLIQUE, (0, 0.11, 0)), 0.165, 0.11),
    "0.11_voxel_along_z": (moved(OBLIQUE, (0, 0, -0.11)), 0.33, 0.11),
    # Off at the far corner only: 0.11 voxel after 5 voxels along z.
    "larger_voxels": (moved(OBLIQUE, scale=1.022), 0.022 * np.hypot(6, np.hypot(6, 15)), 0.11),
    # Of equal shape and from the same first voxel, but the other way round.
    "flipped_about_its_first_voxel": (OBLIQUE @ np.diag([-1.0, 1, 1, 1]), 6.0, 3.0),
    "mirrored_in_the_world": (np.diag([-1.0, 1, 1, 1]) @ OBLIQUE, None, None),
    "another_patient_position": (moved(OBLIQUE, (500, 0, 0)), 1000.0, 500.0),
}


@pytest.mark.parametrize("plane", ["axial", "sagittal", "j"])
@pytest.mark.parametrize(("affine", "mm", "voxels"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_shifted_label_is_refused_with_its_distance(
    affine: np.ndarray, mm: float | None, voxels: float | None, plane: str
) -> None:
    with pytest.raises(GeometryMismatch, match="the label lies up to") as caught:
        align([grid_of(OBLIQUE, "image"), grid_of(affine, "the label")], plane)
    if mm is not None:
        stated = re.search(r"up to (\S+) mm \((\S+) voxels\)", str(caught.value)).groups()
        assert [float(number) for number in stated] == pytest.approx([mm, voxels], rel=5e-3)


@pytest.mark.parametrize(
    "affine",
    [
        pytest.param(moved(OBLIQUE, (0.09, 0, 0)), id="0.09_along_x"),
        pytest.param(moved(OBLIQUE, (0, -0.09, 0)), id="0.09_along_y"),
        pytest.param(moved(OBLIQUE, (0.09, -0.09, 0.09)), id="0.09_along_each"),
        pytest.param(moved(OBLIQUE, scale=1.018), id="0.09_at_the_far_corner"),
        pytest.param(OBLIQUE.astype(np.float32).astype(np.float64), id="rounded_to_float32"),
    ],
)
def test_less_than_a_tenth_of_a_voxel_is_rounding(affine: np.ndarray) -> None:
    label, label_affine = store(PHANTOM, affine, STORAGES[29])
    grids = [grid_of(OBLIQUE, "image"), grid_of(label_affine, "label", label.shape)]
    orientations, grid = align(grids, "axial")
    expected, expected_affine = stack(PHANTOM, OBLIQUE, "axial")
    assert np.array_equal(reorient(label, orientations[1]), expected)
    assert np.array_equal(grid.affine, expected_affine), "the image's affine decides"


def test_another_shape_is_refused_with_both_shapes() -> None:
    grids = [grid_of(np.eye(4), "image"), grid_of(np.eye(4), "labels/a.nii", (4, 5, 7))]
    with pytest.raises(
        GeometryMismatch, match=r"labels/a\.nii has shape 7×5×4, the first image 6×5×4"
    ):
        align(grids, "axial")


def test_a_shifted_modality_is_named() -> None:
    shifted = moved(np.eye(4), (0, 1, 0))
    grids = [grid_of(np.eye(4), "t1"), grid_of(np.eye(4), "t2"), grid_of(shifted, "flair")]
    with pytest.raises(GeometryMismatch, match="flair lies up to 1 mm"):
        align(grids, "coronal")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param([(1, 0, 0), (0, 0, 0), (0, 0, 1)], "singular", id="zero_column"),
        pytest.param([(0, 0, 0), (0, 0, 0), (0, 0, 0)], "singular", id="all_zero"),
        pytest.param([(1, 2, 3), (2, 4, 6), (0, 0, 1)], "singular", id="parallel_columns"),
        pytest.param([(1, 0, 0), (0, 1, 0), (1, 1, 0)], "singular", id="all_in_one_plane"),
        pytest.param([(np.nan, 0, 0), (0, 1, 0), (0, 0, 1)], "NaN or Inf", id="nan"),
        pytest.param([(1, 0, 0), (0, np.inf, 0), (0, 0, 1)], "NaN or Inf", id="inf"),
        pytest.param([*np.eye(3), (0, np.nan, 0)], "NaN or Inf", id="nan_origin"),
    ],
)
def test_an_affine_that_gives_voxels_no_place_is_refused(columns: list, message: str) -> None:
    with pytest.raises(GeometryMismatch, match=message):
        check_affine(nib.affines.from_matvec(np.array(columns[:3]).T, *columns[3:]))


@pytest.mark.parametrize("mm", [1e-6, 1e-3, 1.0, 1e4], ids="{:g}_mm".format)
def test_an_affine_may_have_voxels_of_any_size(mm: float) -> None:
    check_affine(OBLIQUE @ np.diag([mm, mm, 50 * mm, 1.0]))


def test_an_affine_of_absurd_voxels_is_refused() -> None:
    with pytest.raises(GeometryMismatch, match=r"gives voxels of 2\.7e\+38 mm; repair"):
        check_affine(np.diag([1.0, 2.7e38, 3.0, 1.0]))
