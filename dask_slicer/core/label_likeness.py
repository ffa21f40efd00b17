"""Recognition of label maps by their voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Planes that are looked at: spread over those that hold more than one value.
_MOST_PLANES = 16
# So few values has no image; a label map with more is constant in pieces.
_FEW_VALUES = 4
_MOST_VALUES = 1000
# Share of foreground voxels whose neighbour has the same value. In real scans it is below 0.2, in
# label maps above 0.7 along the best axis.
_PIECEWISE_CONSTANT = 0.55


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
    if not _integers(planes[len(planes) // 2]):
        return False
    varied = [number for number, plane in enumerate(planes) if plane.min() != plane.max()]
    if not varied:
        return len(np.unique(planes[:, 0, 0])) in range(2, _FEW_VALUES + 1)
    step = max(len(varied) / _MOST_PLANES, 1.0)
    chosen = [varied[int(number * step)] for number in range(min(len(varied), _MOST_PLANES))]
    sample = planes[chosen]
    if not _integers(sample):
        return False
    values, counts = np.unique(sample, return_counts=True)
    if not _FEW_VALUES < len(values) <= _MOST_VALUES:
        return len(values) <= _FEW_VALUES
    background = values[counts.argmax()]
    neighbours = [(sample[:, :-1], sample[:, 1:]), (sample[:, :, :-1], sample[:, :, 1:])]
    if len(planes) > 1:
        beside = [number + 1 if number + 1 < len(planes) else number - 1 for number in chosen]
        neighbours.append((sample, planes[beside]))
    return any(
        _share_of_equal(here, there, background) >= _PIECEWISE_CONSTANT
        for here, there in neighbours
    )


def _integers(voxels: NDArray[np.generic]) -> bool:
    return voxels.dtype.kind in "iu" or bool((voxels == np.rint(voxels)).all())


def _share_of_equal(
    here: NDArray[np.generic], there: NDArray[np.generic], background: np.generic
) -> float:
    """Return the share of foreground voxels that equal their neighbours."""
    foreground = here != background
    n_voxels = int(np.count_nonzero(foreground))
    return np.count_nonzero(foreground & (here == there)) / n_voxels if n_voxels else 0.0
