"""Pixels of a picture: greys, sizes, label colours, overlays, sides of the patient."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dask_slicer.report.selection import GOLDEN

# The colours of Okabe and Ito, distinct to people with any colour vision; no black, no grey.
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
Colours = dict[int, tuple[int, int, int]]
Level = NDArray[np.float64] | float

# Percentiles shown as black and white, robust to bright vessels or a tube beside the patient.
_DARKEST, _BRIGHTEST = 0.5, 99.5
# Opacity of a label inside its outline.
_FILL = 0.22
# An axis that leans further than this (cosine) towards a second side gets both letters.
_LEANS = 0.4
_SIDES = ("LR", "PA", "IS")


def display_range(image: NDArray[np.floating]) -> tuple[float, float]:
    """Return the intensities to show as black and as white."""
    lowest = float(image.min())  # in most images, air
    foreground = image[image > lowest]
    if not foreground.size:  # a constant image is black
        return lowest, max(lowest + 1.0, float(np.nextafter(lowest, np.inf)))
    low, high = np.percentile(foreground, (_DARKEST, _BRIGHTEST)).tolist()
    # An image of two values: the lower one is black.
    return (low, high) if high > low else (lowest, high)


def to_grey(image: NDArray[np.floating], black: Level, white: Level) -> NDArray[np.float64]:
    """Return intensities as greys, 0 to 1."""
    return np.asarray((image.astype(np.float64) - black) / (white - black)).clip(0, 1)


def fit(image: NDArray[np.floating], height: int, width: int) -> NDArray[np.float64]:
    """Return a resized 2D image: averaged where it shrinks, linear where it grows."""
    rows, columns = (_weights(*sizes) for sizes in zip(image.shape, (height, width), strict=True))
    return np.asarray(rows @ image @ columns.T, dtype=np.float64)


def _weights(n_from: int, n_to: int) -> NDArray[np.float64]:
    """Return the weight of every old pixel in every new one, (n_to, n_from); rows sum to 1."""
    per_pixel = n_from / n_to
    centres = (np.arange(n_to) + 0.5) * per_pixel - 0.5
    # Clamp, don't fade: repeat the edge pixel at the edge.
    centres = centres.clip(0, n_from - 1)
    distances = np.abs(centres[:, None] - np.arange(n_from))
    weights = (1 - distances / max(per_pixel, 1.0)).clip(0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def fit_label(label: NDArray[np.integer], height: int, width: int) -> NDArray[np.integer]:
    """Return a 2D label map on other pixels, without new values and without losing small regions.

    >>> fit_label(np.array([[0, 0, 0, 7]]), 1, 2).tolist()
    [[0, 7]]
    """
    n_rows, n_columns = label.shape
    # A larger new pixel looks at all old pixels that it covers, the central ones first.
    passes = [
        (row, column) for row in _offsets(n_rows / height) for column in _offsets(n_columns / width)
    ]
    fitted = np.zeros((height, width), dtype=label.dtype)
    for row, column in sorted(passes, key=lambda offset: math.hypot(*offset)):
        rows = ((np.arange(height) + 0.5 + row) * n_rows / height).astype(int)
        columns = ((np.arange(width) + 0.5 + column) * n_columns / width).astype(int)
        nearest = label[np.ix_(rows.clip(0, n_rows - 1), columns.clip(0, n_columns - 1))]
        fitted = np.where(fitted == 0, nearest, fitted)
    return fitted


def _offsets(per_pixel: float) -> list[float]:
    n = math.ceil(per_pixel)
    return [(place + 0.5) / n - 0.5 for place in range(n)]


def colours(values: Sequence[int]) -> Colours:
    """Return a colour, red, green, blue of 0 to 255, for every label value but 0."""
    wanted = sorted(set(values) - {0})
    return {value: _colour(number) for number, value in enumerate(wanted)}


def _colour(number: int) -> tuple[int, int, int]:
    if number < len(_COLOURS):
        return _COLOURS[number]
    lightness = (0.45, 0.6, 0.75)[number % 3]
    rgb = colorsys.hls_to_rgb(number * GOLDEN % 1, lightness, 0.75)
    red, green, blue = (round(255 * part) for part in rgb)
    return red, green, blue


def overlay(
    grey: NDArray[np.floating],
    label: NDArray[np.integer] | None,
    palette: Colours,
    *,
    line: int = 1,
) -> NDArray[np.uint8]:
    """Return a slice in colours, (height, width, 3), with labels outlined and filled lightly.

    `line` is the width of outlines; label values that `palette` lacks are not drawn.
    """
    rgb = np.repeat(grey[..., None] * 255.0, 3, axis=2)
    if label is not None:
        values, place = np.unique(label, return_inverse=True)
        known = np.array([value in palette for value in values.tolist()])
        table = np.array([palette.get(value, (0, 0, 0)) for value in values.tolist()], dtype=float)
        place = place.reshape(label.shape)
        share = np.where(edges(label, line=line), 1.0, _FILL) * known[place]
        rgb += share[..., None] * (table[place] - rgb)
    return np.rint(rgb).clip(0, 255).astype(np.uint8)


def edges(label: NDArray[np.integer], *, line: int = 1) -> NDArray[np.bool_]:
    """Mark the labelled pixels that touch another value; the border of the slice is no edge.

    >>> edges(np.array([[1, 1, 1, 0, 2, 2]])).astype(int).tolist()
    [[0, 0, 1, 0, 1, 0]]
    """
    height, width = label.shape
    padded = np.pad(label, line, mode="edge")
    border = np.zeros(label.shape, dtype=bool)
    for shift in range(2 * line + 1):
        border |= padded[shift : shift + height, line : line + width] != label
        border |= padded[line : line + height, shift : shift + width] != label
    return np.asarray(border & (label != 0))


def sides(affine: NDArray[np.float64]) -> tuple[str, str, str, str]:
    """Return the patient's sides at the left, right, top and bottom of a slice: R, L, A, P, S, I.

    Two letters where the slice is oblique. `affine` maps (slice_index, row, column, 1) to RAS+ mm.
    """
    (top, bottom), (left, right) = (_ends(affine[:3, axis]) for axis in (1, 2))
    return left, right, top, bottom


def _ends(step: NDArray[np.float64]) -> tuple[str, str]:
    """Return the patient's sides at the start and the end of an axis."""
    cosines = step / np.linalg.norm(step)
    order = np.argsort(-np.abs(cosines), kind="stable")
    near = [axis for place, axis in enumerate(order) if place == 0 or abs(cosines[axis]) > _LEANS]
    start = "".join(_SIDES[axis][int(cosines[axis] < 0)] for axis in near)
    end = "".join(_SIDES[axis][int(cosines[axis] > 0)] for axis in near)
    return start, end
