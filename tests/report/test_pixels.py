"""Greys and colours of a picture, on other pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.report.pixels import (
    colours,
    display_range,
    edges,
    fit,
    fit_label,
    overlay,
    sides,
    to_grey,
)


@pytest.mark.parametrize(
    ("image", "low", "high"),
    [
        pytest.param(np.zeros((3, 3)), 0, 1, id="all zero"),
        pytest.param(np.full((3, 3), -4.5), -4.5, -3.5, id="constant"),
        pytest.param(np.full((3, 3), 3e38), 3e38, 3e38, id="constant and large"),
        pytest.param(np.array([[2.0, 2.0, 9.0]]), 2, 9, id="two values"),
        pytest.param(np.append(np.zeros(10), np.linspace(1, 2, 201)), 1.005, 1.995, id="robust"),
        pytest.param(np.append(np.zeros(900), np.arange(1, 101.0)), 1.495, 99.505, id="no air"),
    ],
)
def test_the_display_range_is_robust_and_never_empty(
    image: np.ndarray, low: float, high: float
) -> None:
    assert display_range(image) == pytest.approx((low, high))
    grey = to_grey(image, *display_range(image))
    assert 0 <= grey.min() <= grey.max() <= 1


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    to_height=st.integers(1, 30),
    to_width=st.integers(1, 30),
)
def test_a_constant_image_stays_constant_on_other_pixels(
    height: int, width: int, to_height: int, to_width: int
) -> None:
    fitted = fit(np.full((height, width), 0.25), to_height, to_width)
    assert fitted.shape == (to_height, to_width)
    assert np.allclose(fitted, 0.25)


def test_an_image_that_shrinks_keeps_its_mean_and_one_that_keeps_its_size_stays_as_it_was() -> None:
    image = np.random.default_rng(0).random((64, 64))
    assert np.array_equal(fit(image, 64, 64), image)
    assert fit(image, 16, 16).mean() == pytest.approx(image.mean(), abs=0.01)


@given(
    n_rows=st.integers(1, 20),
    n_columns=st.integers(1, 20),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_a_fitted_label_map_has_no_new_value_and_loses_none_that_touches_no_other(
    n_rows: int, n_columns: int, height: int, width: int, seed: int
) -> None:
    label = np.zeros((n_rows, n_columns), dtype=np.int32)
    rng = np.random.default_rng(seed)
    label[rng.integers(n_rows), rng.integers(n_columns)] = 70_000
    assert set(np.unique(fit_label(label, height, width))) >= {70_000}
    assert set(np.unique(fit_label(label, height, width))) <= {0, 70_000}


def test_pixels_are_averaged_where_an_image_shrinks() -> None:
    assert fit(np.array([[0.0, 1.0], [0.0, 1.0]]), 1, 2).tolist() == [[0.0, 1.0]]
    assert fit(np.array([[0.0, 1.0], [0.0, 1.0]]), 1, 1).tolist() == [[0.5]]


def test_a_label_map_that_grows_covers_just_the_pixels_that_its_own_pixels_become() -> None:
    label = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(fit_label(label, 8, 12), np.kron(label, np.ones((4, 4), np.uint8)))


def test_an_outline_is_as_wide_as_asked_for_and_lies_within() -> None:
    label = np.zeros((9, 9), dtype=int)
    label[1:8, 1:8] = 3
    assert edges(label, line=1).sum() == 7 * 7 - 5 * 5
    assert edges(label, line=2).sum() == 7 * 7 - 3 * 3
    assert not edges(label, line=2)[label == 0].any()
    assert not edges(np.full((4, 4), 5), line=1).any()


@pytest.mark.parametrize("n_values", [1, 7, 60, 5000])
def test_every_label_value_has_a_colour_and_the_first_hundred_have_each_their_own(
    n_values: int,
) -> None:
    palette = colours(range(n_values + 1))
    assert sorted(palette) == list(range(1, n_values + 1))
    first = [palette[value] for value in sorted(palette)[:100]]
    assert len(set(first)) == len(first)
    # None is so dark, or so grey, that it would not be seen on an image.
    assert all(max(colour) > 110 and max(colour) - min(colour) > 40 for colour in palette.values())


def test_a_value_has_its_colour_by_its_place_among_the_values() -> None:
    assert colours([0, 1, 7]) == {1: (230, 159, 0), 7: (86, 180, 233)}


def test_an_overlay_colours_only_labelled_pixels_and_is_translucent() -> None:
    grey = np.linspace(0, 1, 49).reshape(7, 7)
    label = np.zeros((7, 7), dtype=np.int32)
    label[1:6, 1:6] = 4000
    shown = overlay(grey, label, {4000: (230, 159, 0)})
    plain = overlay(grey, None, {})
    assert np.array_equal(shown[label == 0], plain[label == 0])
    assert shown[1, 1].tolist() == [230, 159, 0]  # the outline
    inside = shown[2:5, 2:5, 1].ravel()
    assert (np.diff(inside.astype(int)) > 0).all()  # the image, through the fill
    assert (shown[2:5, 2:5, 0] > shown[2:5, 2:5, 2]).all()
    assert np.array_equal(overlay(grey, label, {7: (1, 2, 3)}), plain)


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        pytest.param((0, -1, 0), (-1, 0, 0), ("R", "L", "A", "P"), id="axial"),
        pytest.param((0, 0, -1), (-1, 0, 0), ("R", "L", "S", "I"), id="coronal"),
        pytest.param((0, 0, -1), (0, -1, 0), ("A", "P", "S", "I"), id="sagittal"),
        pytest.param((0, 1, 0), (0, 0, 2), ("I", "S", "P", "A"), id="as stored"),
        pytest.param((0, -1, -0.2), (-1, 0, 0), ("R", "L", "A", "P"), id="tilted a little"),
        pytest.param((0, -1, -0.8), (-1, 0, 0), ("R", "L", "AS", "PI"), id="oblique"),
    ],
)
def test_sides_are_where_the_affine_says(
    rows: tuple[float, ...], columns: tuple[float, ...], said: tuple[str, ...]
) -> None:
    affine = np.eye(4)
    affine[:3, 1], affine[:3, 2] = rows, columns
    assert sides(affine) == said
