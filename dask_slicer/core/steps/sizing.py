"""In-plane size: rows and columns cropped, padded or resized to given numbers, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.steps.cropping import label_box
from dask_slicer.core.steps.operators import (
    antialiased,
    apply_operators,
    interpolation,
    nearest,
)
from dask_slicer.core.steps.resampling import (
    count_voxels,
    resample_image,
    resample_label,
    vanished,
)
from dask_slicer.core.volume import iterate_planes, planes_to_write
from dask_slicer.utils.mapped import empty_beside

FITS = ("crop_pad", "resize", "letterbox")
Size = tuple[int, int]  # rows, columns
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlane:
    """The way from one in-plane grid to another: resized, then cut or padded."""

    shape: Size  # before
    resized: Size
    start: Size  # pixel of the resized grid that becomes the first one; negative where padded
    size: Size  # after


def fit_in_plane(
    shape: Size, size: Size, *, fit: str = "crop_pad", center: Sequence[float] | None = None
) -> InPlane:
    """Return how planes of a shape become planes of a size.

    Parameters
    ----------
    shape, size : tuple of 2 int
        Rows and columns before and after.
    fit : {"crop_pad", "resize", "letterbox"}
        crop_pad keeps pixels as they are; resize fills the size; letterbox resizes rows and columns
        by one factor, so that all of the plane is inside, and pads.
    center : sequence of 2 float, optional
        Row and column in the middle of what crop_pad keeps, by default of the plane. Nothing is
        padded along an axis that is long enough.

    Examples
    --------
    Of an odd difference, the extra pixel is at the end:

    >>> fit_in_plane((5, 9), (8, 4)).start
    (-1, 2)
    >>> fit_in_plane((100, 50), (64, 64), fit="letterbox")
    InPlane(shape=(100, 50), resized=(64, 32), start=(0, -16), size=(64, 64))
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit}")
    resized = shape
    if fit == "resize":
        resized = size
    elif fit == "letterbox":
        factor = min(size[0] / shape[0], size[1] / shape[1])
        rows, columns = (
            min(max(round(n * factor), 1), most) for n, most in zip(shape, size, strict=True)
        )
        resized = rows, columns
    if center is None or fit != "crop_pad":
        center = [(n - 1) / 2 for n in resized]
    first_row, first_column = (
        min(max(floor(middle - (most - 1) / 2), 0), n - most) if n >= most else (n - most + 1) // 2
        for n, most, middle in zip(resized, size, center, strict=True)
    )
    return InPlane(shape=shape, resized=resized, start=(first_row, first_column), size=size)


def label_center(label: NDArray[np.integer]) -> tuple[float, float]:
    """Return the row and column in the middle of the box of all labelled voxels.

    Examples
    --------
    >>> label_center(np.array([[[0, 0, 0], [0, 1, 1]]]))
    (1.0, 1.5)
    """
    _, (row, row_end), (column, column_end) = label_box(label)
    return (row + row_end - 1) / 2, (column + column_end - 1) / 2


def size_image(
    image: NDArray[np.generic], in_plane: InPlane, *, fill: float, order: int = 1
) -> NDArray[np.generic]:
    """Return an image with another in-plane size, padded with `fill`.

    Parameters
    ----------
    image : (n_slices, *in_plane.shape) ndarray
    in_plane : InPlane
    fill : float
    order : {1, 3}
        Of the splines that enlarge an axis.

    Returns
    -------
    (n_slices, *in_plane.size) ndarray
        Of the given dtype, a view if nothing is padded; float32 where resized, see `antialiased`
        and `interpolation`.
    """
    if in_plane.resized != in_plane.shape:
        operators = [
            interpolation(n_in, n_out, order=3)
            if order == 3 and n_out > n_in
            else antialiased(n_in, n_out)
            for n_in, n_out in zip(in_plane.shape, in_plane.resized, strict=True)
        ]
        image = apply_operators(image, [None, *operators])
    return _placed(image, in_plane.start, in_plane.size, fill)


def size_label(
    label: NDArray[np.integer], in_plane: InPlane
) -> tuple[NDArray[np.integer], dict[int, int]]:
    """Return a label map with another in-plane size, and what was lost.

    Each pixel of a resized label has the value of the pixel that holds its centre.

    Returns
    -------
    label : (n_slices, *in_plane.size) ndarray
        Of the given dtype, padded with 0; a view if nothing is padded or resized.
    lost : dict
        Pixels by value other than 0: those cut off, or all of a value that resizing removed.
    """
    sized = label
    if in_plane.resized != in_plane.shape:
        rows, columns = map(nearest, in_plane.shape, in_plane.resized)
        sized = empty_beside(label, (len(label), *in_plane.resized), label.dtype)
        for new, plane in zip(planes_to_write(sized), iterate_planes(label), strict=True):
            new[...] = plane[rows[:, None], columns]
    sized = _placed(sized, in_plane.start, in_plane.size, 0)
    before, after = count_voxels(label), count_voxels(sized)
    if in_plane.resized != in_plane.shape:
        return sized, vanished(before, after)
    return sized, {
        value: n - after.get(value, 0) for value, n in before.items() if n != after.get(value)
    }


def sized_affine(affine: NDArray[np.float64], in_plane: InPlane) -> NDArray[np.float64]:
    """Return the affine after `size_image`, of (slice, row, column).

    Examples
    --------
    >>> sized_affine(np.eye(4), fit_in_plane((4, 5), (2, 9), fit="resize"))[1].tolist()
    [0.0, 2.0, 0.0, 0.5]
    """
    change = np.eye(4)
    for axis in (1, 2):
        step = in_plane.shape[axis - 1] / in_plane.resized[axis - 1]
        change[axis, axis] = step
        change[axis, 3] = (in_plane.start[axis - 1] + 0.5) * step - 0.5
    return affine @ change + 0.0  # turns -0.0 into 0.0


def restore_image(
    image: NDArray[np.generic], in_plane: InPlane, *, fill: float = 0
) -> NDArray[np.generic]:
    """Return an image, or probabilities of a class, on the grid before `size_image`.

    Pixels that were cut off are `fill`; those that were kept are the same, or where they were
    resized, interpolated linearly.
    """
    placed = _unplaced(image, in_plane, fill)
    if in_plane.resized == in_plane.shape:
        return placed
    return resample_image(placed, (len(image), *in_plane.shape), order=1)


def restore_label(
    label: NDArray[np.integer], in_plane: InPlane, *, fill: int = 0
) -> NDArray[np.integer]:
    """Return a label map on the grid before `size_label`, as `restore_image`.

    Where it was resized, by `resample_label`.
    """
    placed = _unplaced(label, in_plane, fill)
    if in_plane.resized == in_plane.shape:
        return placed
    return resample_label(placed, (len(label), *in_plane.shape))[0]


def _unplaced(array: NDArray[_Number], in_plane: InPlane, fill: float) -> NDArray[_Number]:
    row, column = in_plane.start
    return _placed(array, (-row, -column), in_plane.resized, fill)


def _placed(array: NDArray[_Number], start: Size, size: Size, fill: float) -> NDArray[_Number]:
    """Return pixels from `start` on, `fill` where the array has none; a view if it has all."""
    shape = array.shape[1:]
    source = tuple(
        slice(max(first, 0), min(first + most, n))
        for first, most, n in zip(start, size, shape, strict=True)
    )
    inside = array[:, *source]
    if inside.shape[1:] == size:
        return inside
    placed: NDArray[_Number] = empty_beside(array, (len(array), *size), array.dtype)
    target = tuple(
        slice(part.start - first, part.stop - first)
        for part, first in zip(source, start, strict=True)
    )
    for new, plane in zip(planes_to_write(placed), iterate_planes(inside), strict=True):
        new[...] = fill
        new[target] = plane
    return placed
