"""Resampling: against SciPy and SimpleITK, on volumes of world coordinates, and there and back."""

from __future__ import annotations

import tracemalloc
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat

from dask_slicer.core.geometry import spacing
from dask_slicer.core.steps import operators
from dask_slicer.core.steps.resampling import (
    coarse_axis,
    resample_image,
    resample_label,
    resampled_affine,
    resampled_shape,
)
from dask_slicer.inputs.phantom import ORGANS, make_phantom

ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")

# Of the range of the input.
TOLERANCE = 1e-4
SIDES = st.tuples(*[st.integers(1, 14)] * 3)
SHAPES = {
    "all grow": ((12, 20, 31), (29, 25, 33)),
    "all shrink": ((41, 30, 23), (17, 21, 9)),
    "slices shrink, planes grow": ((50, 11, 13), (14, 19, 40)),
    "slices grow, planes shrink": ((14, 33, 29), (41, 12, 20)),
    "slices alone": ((9, 16, 15), (20, 16, 15)),
    "fewer slices alone": ((20, 16, 15), (9, 16, 15)),
    "rows alone": ((9, 16, 15), (9, 40, 15)),
    "columns alone": ((9, 16, 15), (9, 16, 7)),
    "the same": ((9, 16, 15), (9, 16, 15)),
    "one slice": ((1, 16, 15), (5, 9, 18)),
    "two slices": ((2, 16, 15), (7, 9, 18)),
    "to one voxel": ((6, 7, 8), (1, 1, 1)),
}
each_shape = pytest.mark.parametrize(("shape", "new_shape"), SHAPES.values(), ids=SHAPES)
each_order = pytest.mark.parametrize("order", [3, 1, 0])


def turned(x: float, y: float, z: float, mm: tuple[float, float, float]) -> np.ndarray:
    """Return an affine off the origin, its axes turned by angles in degrees."""
    return nib.affines.from_matvec(euler2mat(*np.deg2rad((z, y, x))) * mm, (-70.0, 110.0, 53.0))


AFFINES = {
    "straight": turned(0, 0, 0, (1.0, 1.0, 1.0)),
    "anisotropic": turned(0, 0, 0, (5.0, 0.7, 0.9)),
    "oblique": turned(14, -9, 11, (2.0, 1.5, 3.0)),
    "flipped": turned(14, -9, 11, (2.0, 1.5, 3.0)) @ np.diag([-1.0, 1, -1, 1]),
}
each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)


def zoomed(volume: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """Return what SciPy makes of a volume, in double precision."""
    factors = np.array(shape) / volume.shape
    result = ndimage.zoom(
        volume.astype(float), factors, order=order, mode="nearest", grid_mode=True
    )
    assert result.shape == shape
    return result.clip(volume.min(), volume.max())


def on_itk_grid(volume: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Return a volume as an image of SimpleITK, whose axes are in the other order, in LPS."""
    image = sitk.GetImageFromArray(volume)
    mm = spacing(affine)
    matrix = np.diag([-1, -1, 1]) @ affine[:3, :3] / mm
    image.SetSpacing(mm[::-1])
    image.SetDirection(matrix[:, ::-1].ravel().tolist())
    image.SetOrigin((np.array([-1, -1, 1]) * affine[:3, 3]).tolist())
    return image


def places(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return the world coordinates of all voxels, (3, *shape)."""
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def inside(
    shape: tuple[int, ...], affine: np.ndarray, world: np.ndarray, *, margin: float
) -> np.ndarray:
    """Return which places are in a grid and at least `margin` voxels from its outermost centres."""
    inverse = np.linalg.inv(affine)
    voxels = np.einsum("ij,j...->i...", inverse[:3, :3], world)
    voxels += inverse[:3, 3][:, None, None, None]
    last = np.array(shape)[:, None, None, None] - 1
    return ((voxels >= margin - 1e-6) & (voxels <= last - margin + 1e-6)).all(axis=0)


@each_shape
@each_order
def test_an_image_is_what_scipy_makes_of_it(shape, new_shape, order) -> None:
    image = np.random.default_rng(1).normal(50, 200, shape)
    result = resample_image(image, new_shape, order=order)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    error = np.abs(result - zoomed(image, new_shape, order)).max()
    assert error <= TOLERANCE * np.ptp(image)


@given(shape=SIDES, new_shape=SIDES, order=st.sampled_from([3, 1]), seed=st.integers(0, 99))
def test_an_image_of_any_shape_is_what_scipy_makes_of_it(shape, new_shape, order, seed) -> None:
    image = np.random.default_rng(seed).normal(size=shape)
    error = np.abs(resample_image(image, new_shape, order=order) - zoomed(image, new_shape, order))
    assert error.max() <= TOLERANCE * max(np.ptp(image), 1e-3)


@each_shape
@each_order
def test_small_blocks_give_the_same(monkeypatch, shape, new_shape, order) -> None:
    image = np.random.default_rng(1).normal(50, 200, shape)
    whole = resample_image(image, new_shape, order=order)
    for name, value in {"_BLOCK": 600, "_ROW": 64, "_TILE": 3}.items():
        monkeypatch.setattr(operators, name, value)
    parts = resample_image(image, new_shape, order=order)
    np.testing.assert_allclose(parts, whole, atol=1e-6 * np.ptp(image), rtol=0)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "int64", "float32", ">f8"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_how_voxels_are_stored_makes_no_difference(dtype, axes) -> None:
    image = np.random.default_rng(2).integers(0, 200, (9, 10, 11))
    stored = np.ascontiguousarray(image.astype(dtype).transpose(axes)[::-1, :, ::-1])
    view = stored[::-1, :, ::-1].transpose(np.argsort(axes))
    for shape in ((14, 7, 13), (5, 12, 13)):
        expected = resample_image(image.astype(np.float32), shape)
        np.testing.assert_array_equal(resample_image(view, shape), expected)


@pytest.mark.parametrize("offset", [0.0, -1000.0, 30_000.0])
def test_digits_are_kept_far_from_zero(offset) -> None:
    image = np.random.default_rng(3).random((12, 13, 14)).astype(np.float32) + np.float32(offset)
    error = np.abs(resample_image(image, (20, 9, 30)) - zoomed(image, (20, 9, 30), 3)).max()
    assert error <= max(TOLERANCE / 10, abs(np.spacing(np.float32(offset))))


@pytest.mark.parametrize("shape", [(12, 13, 14), (20, 6, 14)])
def test_the_nearest_voxels_keep_all_digits(shape) -> None:
    image = np.random.default_rng(3).normal(0, 1e-3, (12, 13, 14)).astype(np.float32)
    image[0, 0, 0] = -1e6
    nearest = [
        (2 * np.arange(n_new) + 1) * n // (2 * n_new)
        for n, n_new in zip(image.shape, shape, strict=True)
    ]
    np.testing.assert_array_equal(resample_image(image, shape, order=0), image[np.ix_(*nearest)])
    np.testing.assert_array_equal(resample_image(image, image.shape, order=3), image)


@each_order
def test_a_constant_image_stays_as_it_is_and_none_leaves_its_range(order) -> None:
    constant = np.full((5, 6, 7), np.float32(0.1))
    assert (resample_image(constant, (9, 4, 8), order=order) == np.float32(0.1)).all()
    steps = np.zeros((8, 8, 8), np.int16)
    steps[:, 4:] = 100
    result = resample_image(steps, (12, 20, 5), order=order)
    assert (result.min(), result.max()) == (0, 100)


@each_affine
@pytest.mark.parametrize("order", [3, 1])
def test_a_volume_of_its_world_coordinates_stays_one(affine, order) -> None:
    shape = (34, 40, 37)
    mm = spacing(affine)
    world = places(shape, affine)
    for factors in ((0.6, 1.0, 1.7), (1.7, 0.6, 1.0), (1.0, 1.7, 0.6), (0.6,) * 3, (1.7,) * 3):
        new_shape = resampled_shape(shape, mm, np.multiply(mm, factors))
        new_affine = resampled_affine(affine, shape, new_shape)
        expected = places(new_shape, new_affine)
        # Where a spline is bent by edge values, and where lines end.
        seen = inside(shape, affine, expected, margin=9 if order == 3 else 0)
        assert seen.mean() > 0.05
        for coordinate, place in zip(world, expected, strict=True):
            error = np.abs(resample_image(coordinate, new_shape, order=order) - place)
            assert error[seen].max() < 0.02


@each_affine
@pytest.mark.parametrize(
    ("order", "interpolator"),
    [(3, sitk.sitkBSpline), (1, sitk.sitkLinear)],
    ids=["spline", "linear"],
)
def test_an_image_is_what_simpleitk_finds_at_the_places_of_the_new_grid(
    affine, order, interpolator
) -> None:
    image = np.random.default_rng(4).normal(size=(36, 38, 34)).astype(np.float32)
    for factors in ((0.6, 1.3, 1.0), (1.4, 0.8, 0.7)):
        new_shape = resampled_shape(image.shape, (1, 1, 1), factors)
        new_affine = resampled_affine(affine, image.shape, new_shape)
        grid = on_itk_grid(np.zeros(new_shape, np.float32), new_affine)
        expected = sitk.GetArrayFromImage(
            sitk.Resample(on_itk_grid(image, affine), grid, sitk.Transform(), interpolator)
        ).clip(image.min(), image.max())
        # Its splines go on as mirror images beyond the edges.
        margin = 9 if order == 3 else 0.01
        seen = inside(image.shape, affine, places(new_shape, new_affine), margin=margin)
        assert seen.mean() > 0.05
        error = np.abs(resample_image(image, new_shape, order=order) - expected)[seen].max()
        assert error <= TOLERANCE * np.ptp(image)


@each_affine
def test_a_grid_covers_the_same_box_before_and_after(affine) -> None:
    shape, wanted = (7, 80, 33), (1.3, None, 1.1)
    mm = spacing(affine)
    new_shape = resampled_shape(shape, mm, wanted)
    new_affine = resampled_affine(affine, shape, new_shape)
    true = np.array(mm) * shape / new_shape
    np.testing.assert_allclose(spacing(new_affine), true)
    for ends in product([0, 1], repeat=3):
        corner, new_corner = (np.multiply(ends, n) - 0.5 for n in (shape, new_shape))
        np.testing.assert_allclose(
            nib.affines.apply_affine(new_affine, new_corner),
            nib.affines.apply_affine(affine, corner),
        )
    back = resampled_affine(new_affine, new_shape, shape)
    np.testing.assert_allclose(back, affine, atol=1e-9)
    assert not np.signbit(new_affine[new_affine == 0]).any(), "-0.0 would be written out"


@pytest.mark.parametrize(
    ("shape", "mm", "wanted", "expected"),
    [
        ((100, 512, 512), (2.5, 0.8, 0.8), (1, 1, 1), (250, 410, 410)),
        ((100, 512, 512), (2.5, 0.8, 0.8), (None, 1, 1), (100, 410, 410)),
        ((3, 1, 2), (1, 1, 1), (100, 100, 4), (1, 1, 1)),
        ((5, 3, 3), (1, 1, 1), (2, 2, 2), (2, 2, 2)),  # 2.5 and 1.5: half to even, as numpy
    ],
)
def test_there_are_as_many_voxels_as_fit_the_old_box(shape, mm, wanted, expected) -> None:
    assert resampled_shape(shape, mm, wanted) == expected


@pytest.mark.parametrize(
    ("mm", "target", "axis"),
    [
        pytest.param((5, 0.8, 0.8), (1, 1, 1), 0, id="coarse now"),
        pytest.param((0.8, 0.8, 5), (1, 1, 1), 2, id="coarse along columns"),
        pytest.param((1, 1, 1), (5, 1, 1), 0, id="coarse then"),
        pytest.param((3, 1, 1), (1, 1, 1), None, id="three times is not over three"),
        pytest.param((5, 5, 1), (1, 1, 1), None, id="two coarse axes now"),
        pytest.param((5, 4.999999, 1), (1, 1, 1), None, id="two, but for rounding"),
        pytest.param((5, 5, 1), (5, 1, 1), None, id="the current spacing counts first"),
        pytest.param((0.24, 1.25, 1.25), (1, 1, 1), None, id="one fine axis"),
        pytest.param((1, 1, 1), (5, None, None), 0, id="axes that stay"),
        pytest.param((5, 1, 1), (None, 2, 2), 0, id="a coarse axis that stays"),
    ],
)
def test_one_coarse_axis_is_found_where_nnunet_finds_one(mm, target, axis) -> None:
    assert coarse_axis(mm, target) == axis


@pytest.mark.parametrize("n_slices", [5, 12])
def test_along_a_coarse_axis_the_nearest_slice_is_taken(n_slices) -> None:
    rng = np.random.default_rng(5)
    image = rng.normal(size=(7, 12, 13))
    label = rng.integers(0, 4, image.shape).astype(np.uint8)
    shape = (n_slices, 20, 9)
    nearest = [int((k + 0.5) * 7 / n_slices) for k in range(n_slices)]
    planes, _ = resample_label(label, (7, 20, 9))
    np.testing.assert_array_equal(resample_label(label, shape, nearest_axis=0)[0], planes[nearest])
    np.testing.assert_allclose(
        resample_image(image, shape, nearest_axis=0),
        resample_image(image, (7, 20, 9))[nearest],
        atol=1e-6,
    )


def argmax_of_masks(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.unique(label)
    shares = np.stack([zoomed(label == value, shape, 1) for value in values])
    # Sums of weights are rounded; `argmax` returns the first, the lowest, of equals.
    return values[np.argmax(shares > shares.max(axis=0) - 1e-9, axis=0)]


@given(shape=SIDES, new_shape=SIDES, n_values=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_label_has_the_value_of_the_largest_interpolated_mask(
    shape, new_shape, n_values, seed
) -> None:
    values = np.unique(np.random.default_rng(seed).integers(-2, 300, n_values))
    label = np.random.default_rng(seed).choice(values, shape).astype(np.int32)
    result, lost = resample_label(label, new_shape)
    assert result.dtype == label.dtype
    np.testing.assert_array_equal(result, argmax_of_masks(label, new_shape))
    assert set(np.unique(result)) <= set(np.unique(label))
    assert lost == {
        value: np.count_nonzero(label == value)
        for value in np.setdiff1d(label, result).tolist()
        if value
    }


def test_of_equal_shares_the_lower_value_counts() -> None:
    label = np.array([[[5, 2, 2, 9]], [[9, 2, 0, 0]]], np.uint8)
    along_columns, lost = resample_label(label, (2, 1, 2))
    assert along_columns.tolist() == [[[2, 2]], [[2, 0]]]
    assert lost == {5: 1, 9: 2}
    along_slices, _ = resample_label(label, (1, 1, 4))
    assert along_slices.tolist() == [[[5, 2, 0, 0]]]


@pytest.fixture(scope="module")
def organs() -> np.ndarray:
    """Return the label of a phantom of 1.5 × 1.5 × 3 mm."""
    rng = np.random.default_rng(6)
    return make_phantom((256, 213, 80), spacing=(1.5, 1.5, 3.0), rng=rng).label


@pytest.mark.parametrize(
    "wanted", [(1, 1, 1), (1.5, 1.5, 1.5), (1.2, 1.2, 4.0), (2, 2, 3), (2, 2, 2)], ids=str
)
def test_organs_are_there_after_the_way_there_and_back(organs, wanted) -> None:
    new_shape = resampled_shape(organs.shape, (1.5, 1.5, 3.0), wanted)
    there, lost = resample_label(organs, new_shape)
    back, lost_on_the_way_back = resample_label(there, organs.shape)
    assert lost == lost_on_the_way_back == {}
    voxel = np.prod(np.divide(organs.shape, new_shape))  # after, in voxels before
    for value in ORGANS:
        before, after = organs == value, back == value
        n_voxels = np.count_nonzero(before)
        both = np.count_nonzero(before & after)
        assert 2 * both / (n_voxels + np.count_nonzero(after)) >= 0.97
        volume = np.count_nonzero(there == value) * voxel
        assert volume == pytest.approx(n_voxels, rel=0.02)


@pytest.mark.slow
def test_real_scans_are_what_scipy_makes_of_them(real_scans) -> None:
    images = sorted(real_scans.glob("*/image.nii.gz"))
    assert images
    for path in images:
        scan = nib.load(path)
        middle = tuple(slice(max(n // 2 - 32, 0), n // 2 + 32) for n in scan.shape[:3])
        image = np.asarray(scan.dataobj[..., 0] if len(scan.shape) > 3 else scan.dataobj)[middle].T
        mm = spacing(scan.affine)[::-1]
        new_shape = resampled_shape(image.shape, mm, (1.5, 1.5, 1.5))
        error = np.abs(resample_image(image, new_shape) - zoomed(image, new_shape, 3)).max()
        assert error <= TOLERANCE * np.ptp(image.astype(float)), path


@pytest.mark.parametrize("new_shape", [(120, 200, 200), (20, 200, 200)])
def test_memory_is_bounded(new_shape) -> None:
    image = np.zeros((60, 400, 400), np.int16)
    image[20:40] = 7
    tracemalloc.start()
    try:
        result = resample_image(image, new_shape)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= result.nbytes + 200e6
