"""Crop to a box: given, of what is not 0, or of the label; and back into the full grid.

A box is half-open, in voxels of the array that is cut: ((start, stop), …) for each of its axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.volume import Voxels, iterate_planes, nonzero_mask
from dask_slicer.errors import GeometryMismatch
from dask_slicer.utils.formatting import format_shape

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
_Number = TypeVar("_Number", bound=np.generic)


def box_within(limits: Sequence[tuple[int | None, int | None]], shape: Sequence[int]) -> Box:
    """Return a given box within a grid, as Python slices are: None is the end, -1 the last voxel.

    Raises
    ------
    GeometryMismatch
        If no voxel is in it.

    Examples
    --------
    >>> box_within([(2, None), (None, -1), (0, 900)], (5, 6, 512))
    ((2, 5), (0, 5), (0, 512))
    """
    ranges = [range(n)[start:stop] for (start, stop), n in zip(limits, shape, strict=True)]
    if not all(ranges):
        text = ",".join(
            ":".join("" if end is None else str(end) for end in ends) for ends in limits
        )
        raise GeometryMismatch(f"the box {text} holds no voxel of {format_shape(shape)}")
    first, second, third = ((inside.start, inside.stop) for inside in ranges)
    return first, second, third


def nonzero_box(images: Sequence[Voxels]) -> Box:
    """Return the smallest box of all voxels whose intensity is not 0 in some image of a case.

    nnU-Net fills the holes of these voxels first; a hole is inside their box, so the box is the
    same. NaN and Inf count as 0. Without such a voxel, it is the whole grid.

    Parameters
    ----------
    images : sequence of Voxels
        Modalities, all of one shape.

    Examples
    --------
    >>> nonzero_box([Voxels(stored=np.array([[[0, 3, 0, 4, 0]]]))])
    ((0, 1), (0, 1), (1, 4))
    """
    return _bounding_box(
        (
            (index, nonzero_mask(plane, voxels))
            for voxels in images
            for index, plane in enumerate(iterate_planes(voxels.stored))
        ),
        images[0].stored.shape,
    )


def label_box(label: NDArray[np.integer]) -> Box:
    """Return the smallest box of all labelled voxels; without one, the whole grid."""
    return _bounding_box(enumerate(iterate_planes(label)), label.shape)


def _bounding_box(planes: Iterable[tuple[int, NDArray[np.generic]]], shape: Sequence[int]) -> Box:
    slices, rows, columns = (np.zeros(n, dtype=bool) for n in shape)
    for index, plane in planes:
        mask = plane != 0
        of_plane = mask.any(axis=1)
        slices[index] |= of_plane.any()
        rows |= of_plane
        columns |= mask.any(axis=0)
    if not slices.any():
        slices[:] = rows[:] = columns[:] = True
    inside = [np.flatnonzero(axis) for axis in (slices, rows, columns)]
    first, second, third = ((int(voxels[0]), int(voxels[-1]) + 1) for voxels in inside)
    return first, second, third


def grown_box(box: Box, shape: Sequence[int], *, spacing: Sequence[float], margin: float) -> Box:
    """Return a box with at least `margin` mm more on each side, as far as the grid goes.

    Examples
    --------
    >>> grown_box(((5, 6), (5, 6), (5, 6)), (10, 10, 7), spacing=(1, 4, 0.8), margin=4)
    ((1, 10), (4, 7), (0, 7))
    """
    first, second, third = (
        # Less than a millionth of a voxel is rounding.
        (max(start - (more := ceil(margin / mm - 1e-6)), 0), min(stop + more, n))
        for (start, stop), n, mm in zip(box, shape, spacing, strict=True)
    )
    return first, second, third


def reoriented_box(box: Box, shape: Sequence[int], orientation: NDArray[np.float64]) -> Box:
    """Return the box in an array after `geometry.reorient`, of one in the array of `shape` before.

    Examples
    --------
    >>> swapped = np.array([[1, -1], [0, 1], [2, 1]])
    >>> reoriented_box(((0, 2), (3, 4), (5, 6)), (10, 20, 30), swapped)
    ((3, 4), (8, 10), (5, 6))
    """
    flipped = [
        (start, stop) if flip > 0 else (n - stop, n - start)
        for (start, stop), n, flip in zip(box, shape, orientation[:, 1], strict=True)
    ]
    first, second, third = (flipped[axis] for axis in np.argsort(orientation[:, 0]))
    return first, second, third


def crop(array: NDArray[_Number], box: Box | None) -> NDArray[_Number]:
    """Return a view of the voxels in a box, of all without one."""
    return array if box is None else array[tuple(slice(*limits) for limits in box)]


def cropped_affine(affine: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """Return the affine after `crop`.

    Examples
    --------
    >>> cropped_affine(np.diag([2.0, 1, 1, 1]), ((3, 5), (0, 9), (0, 9)))[0].tolist()
    [2.0, 0.0, 0.0, 6.0]
    """
    change = np.eye(4)
    change[:3, 3] = [start for start, _ in box]
    return affine @ change + 0.0  # turns -0.0 into 0.0


def uncrop(
    array: NDArray[np.generic], box: Box, shape: Sequence[int], *, fill: float = 0
) -> NDArray[np.generic]:
    """Return a new array of the grid before `crop`, with `fill` around the box.

    Examples
    --------
    >>> uncrop(np.array([[[7, 8]]]), ((0, 1), (0, 1), (1, 3)), (1, 1, 4)).tolist()
    [[[0, 7, 8, 0]]]
    """
    full = np.full(tuple(shape), fill, dtype=array.dtype)
    crop(full, box)[...] = array
    return full
