"""Volumes in memory: voxels as stored, with axes in the order of a plane."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dask_slicer.utils.mapped import empty_beside, release, scratch_dir_of

_Number = TypeVar("_Number", bound=np.generic)
# Planes copied at once when neighbouring planes are interleaved in memory.
_BLOCK = 32
# Bytes of an array in memory at once, of one that memory does not hold.
_AT_ONCE = 1 << 25


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


# -- passes over voxels ----------------------------------------------------------------------------
#
# Of arrays that memory does not hold, see `utils.mapped`, a pass gives back the pages behind it.


def in_memory_order(array: NDArray[_Number]) -> NDArray[_Number]:
    """Return a view with axes ordered and flipped as they are in memory.

    Sums, extremes and histograms do not depend on the order of voxels, and reading memory forwards
    is several times faster than reading a flipped, transposed view.

    Examples
    --------
    >>> stored = np.arange(24).reshape(2, 3, 4)
    >>> in_memory_order(stored.transpose(2, 0, 1)[::-1])[0, 0]
    array([0, 1, 2, 3])
    """
    forwards = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)]
    order = np.argsort([-stride for stride in forwards.strides], kind="stable")
    return forwards.transpose(order)


def slabs(array: NDArray[np.generic], size: int) -> Iterator[NDArray[np.generic]]:
    """Yield all elements, in 1D arrays of a size, in the order of memory; the last may be shorter.

    Examples
    --------
    >>> [slab.tolist() for slab in slabs(np.arange(10).reshape(2, 5).T, 4)]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """
    ordered = in_memory_order(array)
    if scratch_dir_of(array) and not ordered.flags.c_contiguous:
        yield from _gathered(ordered, size)
        return
    flat = ordered.reshape(-1)
    at_once = max(_AT_ONCE // (size * flat.itemsize), 1) * size
    for first in range(0, flat.size, at_once):
        block = flat[first : first + at_once]
        yield from (block[start : start + size] for start in range(0, block.size, size))
        release(block)


def _gathered(ordered: NDArray[np.generic], size: int) -> Iterator[NDArray[np.generic]]:
    """Yield slabs of an array with gaps in memory, which would have to be copied at once."""
    rest = np.empty(0, ordered.dtype)
    n_rows = _planes_at_once(ordered)
    for first in range(0, len(ordered), n_rows):
        block = ordered[first : first + n_rows]
        flat = np.concatenate([rest, block.reshape(-1)])
        release(block)
        end = flat.size - flat.size % size
        yield from (flat[start : start + size] for start in range(0, end, size))
        rest = flat[end:]
    if rest.size:
        yield rest


def extremes(array: NDArray[_Number]) -> tuple[_Number, _Number]:
    """Return the lowest and the highest element; NaN if there is one."""
    lowest, highest = zip(*((part.min(), part.max()) for part in _parts(array)), strict=True)
    low: _Number = np.min(lowest)
    high: _Number = np.max(highest)
    return low, high


def _parts(array: NDArray[_Number]) -> Iterator[NDArray[_Number]]:
    """Yield an array as it is, or if memory does not hold it, in parts."""
    ordered = in_memory_order(array)
    if not scratch_dir_of(array):
        yield ordered
        return
    n_rows = _planes_at_once(ordered)
    for first in range(0, len(ordered), n_rows):
        yield ordered[first : first + n_rows]
        release(ordered[first : first + n_rows])


def planes_lie_apart(stored: NDArray[np.generic]) -> bool:
    """Return whether a slice can be read without loading its neighbours into the cache.

    It cannot if slices are interleaved in memory: the fastest axis of the file is normal to them.
    """
    strides = [abs(stride) for stride in stored.strides]
    return strides[0] > min(strides)


def iterate_planes(stored: NDArray[_Number]) -> Iterator[NDArray[_Number]]:
    """Yield stored[0], stored[1], … in this order, for reading.

    If they are interleaved in memory, a block of planes is copied at once.
    """
    if not scratch_dir_of(stored):
        if planes_lie_apart(stored):
            yield from stored
            return
        for start in range(0, stored.shape[0], _BLOCK):
            yield from np.ascontiguousarray(stored[start : start + _BLOCK])
        return
    if _planes_follow_each_other(stored):
        yield from planes_to_write(stored)
        return
    n_planes = max(_AT_ONCE // max(stored[0].size * stored.itemsize, 1), 1)
    for start in range(0, stored.shape[0], n_planes):
        block = stored[start : start + n_planes]
        copied = np.empty(block.shape, block.dtype)
        _copy(block, copied)
        yield from copied


def planes_to_write(array: NDArray[_Number]) -> Iterator[NDArray[_Number]]:
    """Yield array[0], array[1], … in this order, as views to which can be written."""
    n_planes = _planes_at_once(array)
    for start in range(0, len(array), n_planes):
        yield from array[start : start + n_planes]
        release(array[start : start + n_planes])


def laid_out(array: NDArray[_Number]) -> NDArray[_Number]:
    """Return an array whose slices are not interleaved in memory; a copy if it has to be one.

    If memory does not hold it, the slices follow each other.
    """
    if not scratch_dir_of(array):
        if planes_lie_apart(array):
            return array
        copied = np.empty(array.shape, array.dtype)
        for plane, stored in zip(copied, iterate_planes(array), strict=True):
            plane[...] = stored
        return copied
    if _planes_follow_each_other(array):
        return array
    copied = empty_beside(array, array.shape, array.dtype)
    _copy(array, copied)
    return copied


def zeros_like(array: NDArray[np.generic], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros of the same shape and order in memory, where `empty_beside` would be."""
    if not scratch_dir_of(array):
        return np.zeros_like(array, dtype=dtype, subok=False)
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    shape = [array.shape[axis] for axis in order]
    # A new file is all zero.
    return empty_beside(array, shape, dtype).transpose(np.argsort(order))


def _planes_follow_each_other(array: NDArray[np.generic]) -> bool:
    return abs(array.strides[0]) == max(map(abs, array.strides))


def _planes_at_once(array: NDArray[np.generic]) -> int:
    """Return how many steps along the first axis span `_AT_ONCE` bytes, at least one."""
    return max(_AT_ONCE // max(abs(array.strides[0]), 1), 1)


def _copy(source: NDArray[_Number], target: NDArray[_Number]) -> None:
    """Copy an array that memory does not hold, in tiles that stay in the cache."""
    slowest = int(np.argmax(np.abs(source.strides)))
    source, target = np.moveaxis(source, slowest, 0), np.moveaxis(target, slowest, 0)
    n_rows = _planes_at_once(source)
    for first in range(0, len(source), n_rows):
        part, copied = source[first : first + n_rows], target[first : first + n_rows]
        for row in range(0, part.shape[1], _BLOCK):
            for plane, copy in zip(part, copied, strict=True):
                copy[row : row + _BLOCK] = plane[row : row + _BLOCK]
        release(part)
        release(target)
