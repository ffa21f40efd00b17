"""Volumes in memory: voxels as stored, with axes in the order of a plane."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Planes copied at once when neighbouring planes are interleaved in memory.
_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Voxels:
    """Stored numbers and their linear scaling: ``intensity = stored * slope + intercept``."""

    # (n_slices, height, width), usually a strided view of the file's buffer, in the file's dtype
    # and byte order.
    stored: NDArray[np.generic]
    slope: float = 1.0
    intercept: float = 0.0
    source: str = "the array"  # the file, for messages

    @property
    def scaled(self) -> bool:
        """Return whether stored numbers and intensities differ."""
        return (self.slope, self.intercept) != (1.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """A loaded case: images and label on one grid, axes in the order (slice, row, column)."""

    image: tuple[Voxels, ...]  # one per modality, all of one shape
    label: Voxels | None  # of the same shape; None if the case has no label
    affine: NDArray[np.float64]  # (4, 4), maps (slice_index, row, column, 1) to RAS+ mm
    n_overlapping: int = 0  # voxels of the label that are in the masks of two structures
    # (3, 2), how the first image was reoriented; None if the axes are those of its file.
    orientation: NDArray[np.float64] | None = None
    # (4, 4), of the first image's file, from which other planes follow; None as above.
    stored_affine: NDArray[np.float64] | None = None


def nonzero_mask(stored: NDArray[np.generic], voxels: Voxels) -> NDArray[np.bool_]:
    """Return which of the stored numbers of `voxels` have an intensity other than 0, NaN and Inf.

    Examples
    --------
    >>> stored = np.array([0, 1, np.nan])
    >>> nonzero_mask(stored, Voxels(stored=stored, intercept=-1)).tolist()
    [True, False, False]
    """
    mask = np.asarray(stored != (-voxels.intercept / voxels.slope if voxels.intercept else 0))
    return mask & np.isfinite(stored) if stored.dtype.kind == "f" else mask


def positive_mask(stored: NDArray[np.generic], voxels: Voxels) -> NDArray[np.bool_]:
    """Return which of the stored numbers of `voxels` have an intensity above 0, and not Inf.

    Examples
    --------
    >>> stored = np.array([0, 1, np.inf])
    >>> positive_mask(stored, Voxels(stored=stored, slope=-1, intercept=1)).tolist()
    [True, False, False]
    """
    zero = -voxels.intercept / voxels.slope if voxels.intercept else 0
    compare = np.greater if voxels.slope > 0 else np.less
    mask: NDArray[np.bool_] = np.asarray(compare(stored, zero))
    return mask & np.isfinite(stored) if stored.dtype.kind == "f" else mask


def in_memory_order(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return all elements as a 1D array in the order of memory, without a copy if possible.

    Sums, extremes and histograms do not depend on the order of voxels, and reading memory forwards
    is several times faster than reading a flipped, transposed view.

    Examples
    --------
    >>> stored = np.arange(24).reshape(2, 3, 4)
    >>> in_memory_order(stored.transpose(2, 0, 1)[::-1])[:5]
    array([0, 1, 2, 3, 4])
    """
    forwards = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)]
    order = np.argsort([-stride for stride in forwards.strides], kind="stable")
    return forwards.transpose(order).reshape(-1)


def planes_lie_apart(stored: NDArray[np.generic]) -> bool:
    """Return whether a slice can be read without loading its neighbours into the cache.

    It cannot if slices are interleaved in memory: the fastest axis of the file is normal to them.
    """
    strides = [abs(stride) for stride in stored.strides]
    return strides[0] > min(strides)


def iterate_planes(stored: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Yield stored[0], stored[1], … in this order.

    If they are interleaved in memory, a block of planes is copied at once.
    """
    if planes_lie_apart(stored):
        yield from stored
        return
    for start in range(0, stored.shape[0], _BLOCK):
        yield from np.ascontiguousarray(stored[start : start + _BLOCK])
