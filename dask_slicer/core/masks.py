"""Binary masks of structures, merged into one label map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.labels import count_labels
from dask_slicer.core.volume import Voxels, iterate_planes, planes_to_write, zeros_like
from dask_slicer.errors import LabelValues

# Values of a mask that is not binary, in the message.
_MOST_SHOWN = 5


def merge_masks(
    masks: Iterable[tuple[int, Voxels]], *, like: NDArray[np.generic], largest: int
) -> tuple[NDArray[np.unsignedinteger], Counter[tuple[int, int]]]:
    """Return one label map of binary masks, and how many voxels two masks share.

    Parameters
    ----------
    masks : iterable of (value, Voxels)
        In ascending order of values; a voxel of two masks gets the value of the first. Each is
        dropped before the next is taken: a generator that reads them holds one in memory.
    like : (n_slices, height, width) ndarray
        An array of the shape of all masks, whose order in memory the label map gets.
    largest : int
        The largest value; the label map has the smallest dtype that holds it.

    Returns
    -------
    label : (n_slices, height, width) ndarray
    overlaps : Counter
        Voxels by the value that they have and the value that they would have had.

    Raises
    ------
    LabelValues
        If a mask has more values than 0 and one other.

    Examples
    --------
    >>> liver, tumor = np.array([[[0, 1, 1]]]), np.array([[[255, 255, 0]]])
    >>> masks = [(1, Voxels(stored=liver)), (2, Voxels(stored=tumor))]
    >>> label, overlaps = merge_masks(masks, like=liver, largest=2)
    >>> label.tolist(), dict(overlaps)
    ([[[2, 1, 1]]], {(1, 2): 1})
    """
    label = zeros_like(like, np.min_scalar_type(largest))
    overlaps: Counter[tuple[int, int]] = Counter()
    for value, mask in masks:
        _add(mask, value, label, overlaps)
        del mask  # before the next is read
    return label, overlaps


def _add(
    mask: Voxels,
    value: int,
    label: NDArray[np.unsignedinteger],
    overlaps: Counter[tuple[int, int]],
) -> None:
    """Give `value` to the voxels of a mask that have none yet."""
    # Plane by plane in the order of memory: most structures are in few planes.
    slowest = int(np.argmax(np.abs(mask.stored.strides)))
    foreground: np.generic | None = None
    for all_stored, all_label in zip(
        planes_to_write(np.moveaxis(mask.stored, slowest, 0)),
        planes_to_write(np.moveaxis(label, slowest, 0)),
        strict=True,
    ):
        inside = _is_foreground(all_stored, mask)
        box = _box(inside)
        if box is None:
            continue
        stored, plane, inside = all_stored[box], all_label[box], inside[box]
        values = stored[inside]
        foreground = values[0] if foreground is None else foreground
        if not (values == foreground).all():  # NaN equals nothing
            raise LabelValues(_not_binary(mask))
        known = plane[inside]
        if known.any():
            for other, count in count_labels(known).items():
                overlaps[other, value] += count
            inside &= plane == 0
        plane[inside] = value


def _box(inside: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Return the smallest box that holds the foreground of a plane; None if there is none."""
    numbers = inside.view(np.uint8)  # whose maximum is found faster than any()
    if not numbers.max():
        return None
    rows, columns = (np.flatnonzero(numbers.max(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _is_foreground(stored: NDArray[np.generic], mask: Voxels) -> NDArray[np.bool_]:
    if mask.intercept == 0:
        return np.asarray(stored != 0)
    return np.asarray(stored.astype(np.float64) * mask.slope + mask.intercept != 0)


def _not_binary(mask: Voxels) -> str:
    parts = [np.unique(plane) for plane in iterate_planes(mask.stored)]
    values = np.unique(np.concatenate(parts)).astype(np.float64) * mask.slope + mask.intercept
    shown = ", ".join(f"{value:g}" for value in values[:_MOST_SHOWN])
    more = ", …" if len(values) > _MOST_SHOWN else ""
    return (
        f"expected a binary mask, 0 and one other value, found {shown}{more} in {mask.source}; if "
        "it is a label map, take it with --label_name, or as the label in a manifest"
    )
