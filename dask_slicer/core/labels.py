"""Integer label maps: recognition, checks, lossless conversion, pixel counts per slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dask_slicer.core.volume import (
    Voxels,
    iterate_planes,
    laid_out,
    planes_lie_apart,
    planes_to_write,
)
from dask_slicer.errors import LabelValues
from dask_slicer.utils.mapped import empty_beside, scratch_dir_of

LABEL_DTYPES = ("uint8", "uint16", "int32")

# Integer labels that were saved as floats, or scaled, differ from an integer by less than this.
_NEAR_AN_INTEGER = 1e-3

_WORD = np.dtype(np.uint64)

# Planes that are looked at: spread over those that hold more than one value.
_MOST_PLANES = 16
# So few values has no image; a label map with more is constant in pieces.
_FEW_VALUES = 4
_MOST_VALUES = 1000
# Values of labels: -1 marks what is to be ignored; CT and scaled floats leave this range.
_LEAST_LABEL, _LARGEST_LABEL = -1, 65_535
# Share of foreground voxels whose neighbour has the same value. In real scans it is below 0.2, in
# label maps above 0.7 along the best axis.
_PIECEWISE_CONSTANT = 0.55


def convert_label(voxels: Voxels, dtype: DTypeLike) -> NDArray[np.integer]:
    """Return a label map as integers; no value is wrapped or truncated.

    The result is the stored array if that needs no conversion.

    Parameters
    ----------
    voxels : Voxels
        (n_slices, height, width); values within 1e-3 of an integer are rounded.
    dtype : {"uint8", "uint16", "int32"}

    Raises
    ------
    LabelValues
        If a value is not an integer, or does not fit `dtype`.

    Examples
    --------
    >>> soft = Voxels(stored=np.array([[[0.0, 0.9999, 2.0]]]))
    >>> convert_label(soft, "uint8").tolist()
    [[[0, 1, 2]]]
    """
    target = np.dtype(dtype)
    if voxels.stored.dtype == target and not voxels.scaled and planes_lie_apart(voxels.stored):
        return cast("NDArray[np.integer]", voxels.stored)
    label: NDArray[np.integer] = empty_beside(voxels.stored, voxels.stored.shape, target)
    is_integer = voxels.stored.dtype.kind in "iu" and not voxels.scaled
    source = voxels.stored
    if scratch_dir_of(source):  # to read it once, not for each block of slices
        source = laid_out(source)
    for new, stored in zip(planes_to_write(label), iterate_planes(source), strict=True):
        plane = stored if is_integer else _rounded(stored, voxels)
        _check_range(plane, target, voxels)
        new[...] = plane
    return label


def count_labels(plane: NDArray[np.integer]) -> dict[int, int]:
    """Return the number of pixels of a slice by label value, without 0, the background.

    Examples
    --------
    >>> count_labels(np.array([[0, 2], [2, 7]], dtype=np.uint8))
    {2: 2, 7: 1}
    """
    labelled = _near_labels(plane)
    if plane.dtype.itemsize <= 2:
        counts = np.bincount(labelled)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(labelled, return_counts=True)
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    return {value: count for value, count in pairs if value != 0}


def _near_labels(plane: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the pixels of a slice other than 0, and some of the others; in no order.

    Pixels are left out by 8 bytes: in a label map, most neighbours of background are background.
    """
    flat = plane.ravel(order="K")  # contiguous
    n_whole = flat.nbytes // _WORD.itemsize * _WORD.itemsize // flat.itemsize
    words = flat[:n_whole].view(_WORD)
    near: NDArray[np.integer] = words[words != 0].view(flat.dtype)
    return np.concatenate([near, flat[n_whole:]])


def _rounded(stored: NDArray[np.generic], voxels: Voxels) -> NDArray[np.float64]:
    values = stored.astype(np.float64) * voxels.slope + voxels.intercept
    nearest = np.rint(values)
    # NaN compares False, and so counts as off.
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(values - nearest) <= _NEAR_AN_INTEGER)
    if np.isnan(values).any():
        raise LabelValues(
            f"the label holds NaN in {voxels.source}; write a label value there, such as 0"
        )
    if off.any():
        raise LabelValues(
            f"the label value {values[off][0]:g} is not an integer in {voxels.source}; "
            "threshold soft masks before slicing"
        )
    return nearest


def _check_range(plane: NDArray[np.generic], target: np.dtype[Any], voxels: Voxels) -> None:
    low, high = int(plane.min()), int(plane.max())
    limits = np.iinfo(target)
    if limits.min <= low and high <= limits.max:
        return
    wider = next(
        (name for name in LABEL_DTYPES if np.iinfo(name).min <= low and high <= np.iinfo(name).max),
        None,
    )
    advice = f"use --label_dtype {wider}" if wider else "no --label_dtype holds it"
    value = low if low < limits.min else high
    raise LabelValues(
        f"the label value {value if abs(value) < 1e20 else f'{value:g}'} does not fit "
        f"--label_dtype {target.name} ({limits.min} to {limits.max}) in {voxels.source}; {advice}"
    )


def looks_like_labels(stored: NDArray[np.generic]) -> bool:
    """Return whether voxels are those of a label map: few integers, or constant in pieces.

    A constant volume is no label map; it may be an image of nothing.

    Parameters
    ----------
    stored : 3D ndarray
        As stored; floats count if they are integers.

    Examples
    --------
    >>> label = np.zeros((4, 5, 6), np.uint8)
    >>> label[1:3, 1:4, 2:5] = 7
    >>> looks_like_labels(label), looks_like_labels(np.arange(120).reshape(4, 5, 6))
    (True, False)
    """
    slowest = int(np.argmax(np.abs(stored.strides)))
    planes = np.moveaxis(stored, slowest, 0)
    middle = planes[len(planes) // 2]
    if not _integers(middle) or len(np.unique(middle)) > _MOST_VALUES:
        return False  # as of nearly all images, at once
    varied = [
        number for number, plane in enumerate(planes_to_write(planes)) if plane.min() != plane.max()
    ]
    if not varied:
        values = np.unique(planes[:, 0, 0])
        return _in_range(values) and len(values) in range(2, _FEW_VALUES + 1)
    step = max(len(varied) / _MOST_PLANES, 1.0)
    chosen = [varied[int(number * step)] for number in range(min(len(varied), _MOST_PLANES))]
    n_voxels: Counter[Any] = Counter()
    for number in chosen:
        if not _integers(planes[number]):
            return False
        n_voxels.update(dict(zip(*np.unique(planes[number], return_counts=True), strict=True)))
    if not _in_range(np.array(list(n_voxels))):
        return False
    if not _FEW_VALUES < len(n_voxels) <= _MOST_VALUES:
        return len(n_voxels) <= _FEW_VALUES
    background = min(n_voxels, key=lambda value: (-n_voxels[value], value))
    return any(share >= _PIECEWISE_CONSTANT for share in _shares(planes, chosen, background))


def _shares(
    planes: NDArray[np.generic], chosen: Sequence[int], background: np.generic
) -> Iterator[float]:
    """Yield along each axis the share of foreground voxels of planes that equal their neighbours.

    Those of the last plane are before it.
    """
    before = len(planes) - 2
    beside = {number: number + 1 if number <= before else before for number in chosen}
    for pairs in (
        ((planes[number][:-1], planes[number][1:]) for number in chosen),
        ((planes[number][:, :-1], planes[number][:, 1:]) for number in chosen),
        ((planes[number], planes[other]) for number, other in beside.items() if other >= 0),
    ):
        n_equal = n_foreground = 0
        for here, there in pairs:
            foreground = here != background
            n_foreground += int(np.count_nonzero(foreground))
            n_equal += int(np.count_nonzero(foreground & (here == there)))
        yield n_equal / n_foreground if n_foreground else 0.0


def _in_range(values: NDArray[np.generic]) -> bool:
    return bool(values.min() >= _LEAST_LABEL and values.max() <= _LARGEST_LABEL)


def _integers(voxels: NDArray[np.generic]) -> bool:
    return voxels.dtype.kind in "iu" or bool((voxels == np.rint(voxels)).all())
