"""In-plane sizes: against NumPy and Pillow, on planes of world coordinates, and back."""

from __future__ import annotations

from fractions import Fraction

import nibabel as nib
import numpy as np
import pytest
from affines import oblique
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from dask_slicer.core.geometry import spacing
from dask_slicer.core.steps.sizing import (
    FITS,
    fit_in_plane,
    label_center,
    restore_image,
    restore_label,
    size_image,
    size_label,
    sized_affine,
)

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))
each_fit = pytest.mark.parametrize("fit", FITS)


def centered(plane: np.ndarray, size: tuple[int, int], fill: float) -> np.ndarray:
    """Return a plane padded, then cut: of an odd difference, the extra pixel at the end."""
    missing = [max(0, want - n) for n, want in zip(plane.shape, size, strict=True)]
    plane = np.pad(plane, [(n // 2, n - n // 2) for n in missing], constant_values=fill)
    first = [(n - want) // 2 for n, want in zip(plane.shape, size, strict=True)]
    return plane[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]


def resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR))


def nearest(plane: np.ndarray, size: tuple[int, int]) -> list[list[int]]:
    """Return the pixels that hold the new centres; Pillow sums up floats to find them."""
    rows, columns = (
        [int((k + Fraction(1, 2)) * Fraction(n, n_new)) for k in range(n_new)]
        for n, n_new in zip(plane.shape, size, strict=True)
    )
    return [[int(plane[row, column]) for column in columns] for row in rows]


@given(shape=SIZES, size=SIZES)
def test_planes_are_cut_and_padded_about_their_middle(shape, size) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(-1000, 1000, (2, *shape)).astype(np.int16)
    label = rng.integers(0, 4, (2, *shape)).astype(np.uint8)
    in_plane = fit_in_plane(shape, size)
    sized = size_image(image, in_plane, fill=-1024)
    sized_label, lost = size_label(label, in_plane)
    assert (sized.dtype, sized_label.dtype) == (image.dtype, label.dtype)
    for index in range(2):
        np.testing.assert_array_equal(sized[index], centered(image[index], size, -1024))
        np.testing.assert_array_equal(sized_label[index], centered(label[index], size, 0))
    assert lost == {
        value: n
        for value in (1, 2, 3)
        if (n := np.count_nonzero(label == value) - np.count_nonzero(sized_label == value))
    }


@given(shape=SIZES, size=SIZES, center=st.none() | st.tuples(*[st.floats(0, 19)] * 2))
def test_what_was_cut_and_padded_is_back_in_its_place(shape, size, center) -> None:
    rng = np.random.default_rng(2)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    label = rng.integers(1, 4, (2, *shape)).astype(np.uint8)
    in_plane = fit_in_plane(shape, size, center=center)
    image_back = restore_image(size_image(image, in_plane, fill=9), in_plane, fill=-5)
    label_back = restore_label(size_label(label, in_plane)[0], in_plane)
    kept = label_back > 0
    assert kept[0].sum() == min(shape[0], size[0]) * min(shape[1], size[1])
    np.testing.assert_array_equal(label_back, np.where(kept, label, 0))
    np.testing.assert_array_equal(image_back, np.where(kept, image, -5))


@pytest.mark.parametrize(
    ("center", "start"),
    [
        pytest.param(None, (3, 8), id="of the plane"),
        pytest.param((4.5, 9.5), (3, 8), id="the same, given"),
        pytest.param((5, 9.0), (3, 7), id="of an odd difference, the extra pixel at the end"),
        pytest.param((0, 19), (0, 16), id="near an edge, nothing is padded"),
        pytest.param((-50, 500), (0, 16), id="off the plane"),
    ],
)
def test_the_middle_of_what_is_kept_can_be_given(center, start) -> None:
    assert fit_in_plane((10, 20), (4, 4), center=center).start == start


def test_the_middle_of_a_label_is_that_of_its_box() -> None:
    label = np.zeros((3, 10, 20), np.uint8)
    assert label_center(label) == (4.5, 9.5)
    label[0, 2, 4], label[2, 5, 6] = 1, 3
    assert label_center(label) == (3.5, 5.0)


@given(shape=SIZES, size=SIZES)
def test_planes_are_resized_as_pillow_does_it(shape, size) -> None:
    rng = np.random.default_rng(3)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    label = rng.integers(0, 9, (2, *shape)).astype(np.uint8)
    in_plane = fit_in_plane(shape, size, fit="resize")
    sized = size_image(image, in_plane, fill=0)
    sized_label, lost = size_label(label, in_plane)
    assert sized.dtype == np.float32
    for index in range(2):
        np.testing.assert_allclose(sized[index], resized(image[index], size), atol=1e-5)
        assert sized_label[index].tolist() == nearest(label[index], size)
    assert lost == {
        value: np.count_nonzero(label == value)
        for value in np.setdiff1d(label, sized_label).tolist()
        if value
    }


@given(shape=SIZES, size=SIZES)
def test_splines_enlarge_as_those_of_scipy_and_shrinking_stays(shape, size) -> None:
    image = np.random.default_rng(4).normal(size=(1, *shape)).astype(np.float32)
    in_plane = fit_in_plane(shape, size, fit="resize")
    cubic = size_image(image, in_plane, fill=0, order=3)
    # Along one axis after the other, rows first.
    expected = size_image(image, fit_in_plane(shape, (size[0], shape[1]), fit="resize"), fill=0)
    if size[0] > shape[0]:
        expected = zoomed(image, (1, size[0] / shape[0], 1))
    if size[1] > shape[1]:
        expected = zoomed(expected, (1, 1, size[1] / shape[1]))
    else:
        expected = size_image(
            expected, fit_in_plane(expected.shape[1:], size, fit="resize"), fill=0
        )
    expected = expected.clip(image.min(), image.max())
    np.testing.assert_allclose(cubic, expected, atol=2e-5)


def zoomed(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    image = np.asarray(image, np.float64)
    return ndimage.zoom(image, factors, order=3, mode="nearest", grid_mode=True)


def test_fine_patterns_become_grey_not_stripes() -> None:
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (1, 64, 64))
    sized = size_image(stripes, fit_in_plane((64, 128), (16, 30), fit="resize"), fill=0)
    assert np.abs(sized - 0.5).max() < 0.07


@pytest.mark.parametrize(
    ("shape", "size", "inside", "start"),
    [
        ((100, 50), (64, 64), (64, 32), (0, -16)),
        ((50, 100), (64, 65), (32, 65), (-16, 0)),
        ((10, 10), (25, 20), (20, 20), (-2, 0)),
        ((3, 1000), (64, 64), (1, 64), (-31, 0)),
        ((1, 1), (7, 9), (7, 7), (0, -1)),
    ],
)
def test_a_letterbox_holds_the_whole_plane(shape, size, inside, start) -> None:
    in_plane = fit_in_plane(shape, size, fit="letterbox")
    assert (in_plane.resized, in_plane.start) == (inside, start)
    sized = size_image(np.full((1, *shape), 5.0, np.float32), in_plane, fill=-1)
    np.testing.assert_array_equal(sized[0], centered(np.full(inside, 5.0), size, -1))
    label, lost = size_label(np.full((1, *shape), 5, np.uint8), in_plane)
    np.testing.assert_array_equal(label[0], centered(np.full(inside, 5), size, 0))
    assert lost == {}


@each_fit
@given(shape=st.tuples(*[st.integers(4, 20)] * 2), size=st.tuples(*[st.integers(4, 20)] * 2))
def test_pixels_keep_their_places(fit, shape, size) -> None:
    affine = oblique()
    in_plane = fit_in_plane(shape, size, fit=fit)
    new_affine = sized_affine(affine, in_plane)
    places = nib.affines.apply_affine(affine, np.moveaxis(np.indices((3, *shape)), 0, -1))
    index = np.moveaxis(np.indices((3, *size)), 0, -1)
    expected = nib.affines.apply_affine(new_affine, index)
    # In pixels before; where the filter does not reach over an edge.
    before = nib.affines.apply_affine(np.linalg.inv(affine) @ new_affine, index)[..., 1:]
    width = np.maximum(np.divide(shape, in_plane.resized), 1)
    seen = ((before >= width - 1 - 1e-6) & (before <= shape - width + 1e-6)).all(axis=-1)
    for axis in range(3):
        coordinate = places[..., axis].astype(np.float32)
        error = size_image(coordinate, in_plane, fill=0) - expected[..., axis]
        # The samples of a triangle are not quite even: their mean is up to 0.09 pixels off.
        mm = 1e-4 if fit == "crop_pad" else 0.09 * (1.5 + 3.0)
        assert np.abs(error[seen]).max(initial=0) < mm
    steps = np.array(spacing(affine)[1:]) * np.divide(shape, in_plane.resized)
    np.testing.assert_allclose(spacing(new_affine), [spacing(affine)[0], *steps])


@each_fit
def test_a_predicted_label_is_put_back_on_the_grid_of_the_case(fit) -> None:
    rows, columns = np.ogrid[:160, :200]
    label = (((rows - 70) / 50) ** 2 + ((columns - 110) / 40) ** 2 < 1).astype(np.uint8)[None]
    for size in ((128, 128), (224, 256)):
        in_plane = fit_in_plane((160, 200), size, fit=fit)
        there, _ = size_label(label, in_plane)
        back = restore_label(there, in_plane)
        probability = restore_image(there.astype(np.float32), in_plane)
        assert back.shape == probability.shape == label.shape
        for mask in (back > 0, probability > 0.5):
            both = np.count_nonzero(mask & (label > 0))
            assert 2 * both / (np.count_nonzero(mask) + label.sum()) >= 0.97


def test_the_same_size_costs_nothing() -> None:
    image = np.zeros((2, 5, 6), np.int16)
    for fit in FITS:
        assert np.shares_memory(
            size_image(image, fit_in_plane((5, 6), (5, 6), fit=fit), fill=0), image
        )


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_pad, resize, letterbox, got stretch"):
        fit_in_plane((4, 4), (2, 2), fit="stretch")
