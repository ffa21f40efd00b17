"""Metrics of predicted labels in 3D: overlap, distance of surfaces, volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import UsageError

PERCENTILE = 95.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMetrics:
    """Metrics of one label of one case.

    Attributes
    ----------
    label : int
    dice : float
        1 if neither the scan nor the prediction has the label.
    hd95_mm : float, optional
        95 % Hausdorff distance in mm; None if only one of them has the label.
    reference_ml, predicted_ml : float
        Volumes.
    """

    label: int
    dice: float
    hd95_mm: float | None
    reference_ml: float
    predicted_ml: float


def label_metrics(
    predicted: NDArray[np.integer],
    reference: NDArray[np.integer],
    *,
    spacing: Sequence[float],
    voxel_volume: float,
    labels: Sequence[int],
) -> tuple[LabelMetrics, ...]:
    """Return the metrics of each label.

    Parameters
    ----------
    predicted, reference : (i, j, k) ndarray of int
    spacing : sequence of 3 float
        mm along each axis, as if the axes were orthogonal.
    voxel_volume : float
        mm³.
    labels : sequence of int
    """
    require_scipy()
    results = []
    for label in labels:
        masks = predicted == label, reference == label
        counts = [int(np.count_nonzero(mask)) for mask in masks]
        both = int(np.count_nonzero(masks[0] & masks[1]))
        results.append(
            LabelMetrics(
                label=label,
                dice=2 * both / sum(counts) if any(counts) else 1.0,
                hd95_mm=hausdorff_distance(*masks, spacing=spacing),
                predicted_ml=counts[0] * voxel_volume / 1000,
                reference_ml=counts[1] * voxel_volume / 1000,
            )
        )
    return tuple(results)


def hausdorff_distance(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    *,
    spacing: Sequence[float],
    percentile: float = PERCENTILE,
) -> float | None:
    """Return a percentile of the distances between the surfaces of two masks, in mm.

    That of each surface to the other is taken, and the larger of the two, as MONAI does it. It is 0
    if both masks are empty, and None if one is. A voxel is of the surface if one of its six
    neighbours is not of the mask, or lies outside the array.

    References
    ----------
    Huttenlocher, D. P., Klanderman, G. A., Rucklidge, W. J., "Comparing images using the Hausdorff
    distance", IEEE Transactions on Pattern Analysis and Machine Intelligence 15(9), 1993.
    """
    from scipy.spatial import KDTree

    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else None
    # Distance transforms of the volume would take 20 bytes a voxel.
    surfaces = [_surface(mask) * np.asarray(spacing) for mask in (first, second)]
    directed = [
        np.percentile(KDTree(other).query(own)[0], percentile)
        for own, other in (surfaces, surfaces[::-1])
    ]
    return float(max(directed))


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the voxels of a mask, (n, 3), that have a neighbour outside it."""
    from scipy import ndimage

    (box,) = ndimage.find_objects(mask.view(np.uint8))
    inside = mask[box]
    surface = np.argwhere(inside & ~ndimage.binary_erosion(inside))
    return np.asarray(surface + [part.start for part in box])


def require_scipy() -> None:
    """Raise UsageError if SciPy, which finds surfaces and distances, is missing."""
    try:
        import scipy.spatial  # noqa: F401
    except ImportError:
        raise UsageError('metrics need SciPy; install "dask_slicer[metrics]"') from None
