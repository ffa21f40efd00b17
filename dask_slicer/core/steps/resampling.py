"""Resampling to another spacing, edges of voxels aligned, and back.

A grid covers the same box before and after. Resampling back to the first shape is the inverse: for
labels and, with order 1, for probabilities of each class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.labels import count_labels
from dask_slicer.core.steps.operators import apply_operators, interpolation, linear, nearest
from dask_slicer.core.volume import iterate_planes, planes_to_write
from dask_slicer.utils.mapped import empty_beside, release

Shape = tuple[int, int, int]
_Number = TypeVar("_Number", bound=np.generic)
# The largest over the smallest spacing of volumes whose coarse axis is resampled by itself.
_ANISOTROPIC = 3.0
# Spacings that differ by less are the same: headers round them.
_SAME = 1e-3
# Shares of two labels that differ by less are a tie: sums of weights are rounded.
_TIE = 1e-9
_CORNERS = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float | None]
) -> Shape:
    """Return the shape at the wanted spacing: ``max(1, round(spacing / target * n))`` voxels.

    Parameters
    ----------
    shape : sequence of 3 int
    spacing, target : sequence of 3 float
        In mm along each axis; a `target` of None leaves the axis as it is.

    Examples
    --------
    >>> resampled_shape((100, 512, 512), (2.5, 0.8, 0.8), (1, None, 1))
    (250, 512, 410)
    """
    first, second, third = (
        n if new is None else max(1, round(old / new * n))
        for n, old, new in zip(shape, spacing, target, strict=True)
    )
    return first, second, third


def resampled_affine(
    affine: NDArray[np.float64], shape: Sequence[int], new_shape: Sequence[int]
) -> NDArray[np.float64]:
    """Return the affine after resampling; its columns are the true spacing, ``old * n / n_new``.

    Examples
    --------
    >>> resampled_affine(np.diag([4.0, 1, 1, 1]), (3, 5, 5), (6, 5, 5))[0].tolist()
    [2.0, 0.0, 0.0, -1.0]
    """
    step = np.asarray(shape) / np.asarray(new_shape)
    change = np.diag([*step, 1.0])
    change[:3, 3] = (step - 1) / 2
    return affine @ change + 0.0  # turns -0.0 into 0.0


def coarse_axis(spacing: Sequence[float], target: Sequence[float | None]) -> int | None:
    """Return the axis along which nnU-Net takes the nearest slice instead of interpolating.

    It does if the largest current spacing is over 3 times the smallest, else if that holds for the
    target, and if the largest is that of one axis alone.

    Parameters
    ----------
    spacing, target : sequence of 3 float
        As for `resampled_shape`.

    Examples
    --------
    >>> coarse_axis((5, 0.8, 0.8), (1, 1, 1)), coarse_axis((1, 1, 1), (1, 1, 1))
    (0, None)
    """
    wanted = [old if new is None else new for old, new in zip(spacing, target, strict=True)]
    for mm in (spacing, wanted):
        if max(mm) > _ANISOTROPIC * min(mm):
            coarse = [axis for axis in range(3) if mm[axis] > max(mm) * (1 - _SAME)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def resample_image(
    image: NDArray[np.generic],
    shape: Sequence[int],
    *,
    order: int = 3,
    nearest_axis: int | None = None,
) -> NDArray[np.float32]:
    """Return an image on a grid of another shape, clipped to its range.

    Beyond the centres of the outermost voxels, edge values are repeated, as by `scipy.ndimage.zoom`
    with ``mode="nearest", grid_mode=True``.

    Parameters
    ----------
    image : (n_slices, height, width) ndarray
        Finite.
    shape : sequence of 3 int
        Of the result.
    order : {3, 1, 0}
        Interpolating cubic B-spline, linear, or nearest.
    nearest_axis : int, optional
        Of order 0 whatever `order` is: what `coarse_axis` returned.

    Examples
    --------
    >>> resample_image(np.array([[[0, 4]]]), (1, 1, 4), order=1).tolist()
    [[[0.0, 1.0, 3.0, 4.0]]]
    """
    operators = [
        interpolation(n_in, n_out, order=0 if axis == nearest_axis else order)
        for axis, (n_in, n_out) in enumerate(zip(image.shape, shape, strict=True))
    ]
    return apply_operators(image, operators)


def resample_label(
    label: NDArray[np.integer], shape: Sequence[int], *, nearest_axis: int | None = None
) -> tuple[NDArray[np.integer], dict[int, int]]:
    """Return a label map on a grid of another shape, and what was lost.

    Each voxel gets the value with the largest share: the argmax of the linearly interpolated mask
    of each value. Of equal shares, the lower value counts. No value is new.

    Parameters
    ----------
    label : (n_slices, height, width) ndarray of int
    shape, nearest_axis
        As for `resample_image`.

    Returns
    -------
    label : ndarray
        Of the given dtype.
    lost : dict
        Voxels by value, of values other than 0 that no voxel has any more.

    Examples
    --------
    >>> resample_label(np.array([[[0, 0, 7, 0, 0, 5, 5, 5]]]), (1, 1, 4))
    (array([[[0, 0, 0, 5]]]), {7: 1})
    """
    (slices, slice_shares), (rows, row_shares), (columns, column_shares) = (
        _neighbours(n_in, n_out, only_nearest=axis == nearest_axis)
        for axis, (n_in, n_out) in enumerate(zip(label.shape, shape, strict=True))
    )
    result: NDArray[np.integer] = empty_beside(label, shape, label.dtype)
    for index, out in enumerate(planes_to_write(result)):
        pair = label[slices[:, index]]
        release(label[slices[0, index] : slices[1, index] + 1])
        # Where all neighbours have one value, that is the result.
        low, high = np.minimum(*pair), np.maximum(*pair)
        low, high = np.minimum(*low[rows]), np.maximum(*high[rows])
        np.minimum(low[:, columns[0]], low[:, columns[1]], out=out)
        row, column = np.nonzero(np.maximum(high[:, columns[0]], high[:, columns[1]]) != out)
        values = np.stack([pair[i, rows[j, row], columns[k, column]] for i, j, k in _CORNERS])
        shares = np.stack(
            [
                slice_shares[i, index] * row_shares[j, row] * column_shares[k, column]
                for i, j, k in _CORNERS
            ]
        )
        out[row, column] = _largest_share(values, shares)
    return result, vanished(count_voxels(label), count_voxels(result))


def count_voxels(label: NDArray[np.integer]) -> dict[int, int]:
    """Return the number of voxels of a volume by label value, without 0, the background."""
    counts: Counter[int] = Counter()
    plane: Any
    for plane in iterate_planes(label):
        counts.update(count_labels(plane))
    return dict(sorted(counts.items()))


def vanished(before: dict[int, int], after: dict[int, int]) -> dict[int, int]:
    """Return those numbers of voxels whose value is not there afterwards."""
    return {value: n for value, n in before.items() if value not in after}


def _neighbours(
    n_in: int, n_out: int, *, only_nearest: bool
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the two input samples, (2, n_out), of each output sample, and their shares."""
    if only_nearest:
        return np.stack([nearest(n_in, n_out)] * 2), np.outer([1.0, 0.0], np.ones(n_out))
    samples, shares = linear(n_in, n_out)
    samples[1, shares[1] == 0] = samples[0, shares[1] == 0]
    return samples, shares


def _largest_share(values: NDArray[_Number], shares: NDArray[np.float64]) -> NDArray[_Number]:
    """Return the value with the largest sum of shares in each column, the lower one of a tie."""
    best: NDArray[_Number] = values[0].copy()
    largest = np.zeros(values.shape[1])
    for value in values:
        share = (shares * (values == value)).sum(axis=0)
        better = share > largest + _TIE
        better |= (share > largest - _TIE) & (value < best)
        best[better], largest[better] = value[better], share[better]
    return best
