"""Foreground of an image, over which its statistics are taken, and samples of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.statistics import Statistics, statistics
from dask_slicer.core.volume import (
    Voxels,
    iterate_planes,
    nonzero_mask,
    positive_mask,
)
from dask_slicer.errors import MissingLabel, NonFinite
from dask_slicer.utils.mapped import empty_beside, release, scratch_dir_of

FOREGROUNDS = ("min", "all", "nonzero", "positive", "label", "otsu")
# By foreground that intensities of 0 are no part of, the voxels that are.
MASKS = {"nonzero": nonzero_mask, "positive": positive_mask}
_OTSU_BINS = 256


def foreground_mask(
    voxels: Voxels,
    which: str,
    *,
    label: NDArray[np.integer] | None = None,
    low: float = -np.inf,
    high: float = np.inf,
) -> NDArray[np.bool_]:
    """Return which voxels are foreground.

    Parameters
    ----------
    which : {"nonzero", "positive", "label", "otsu"}
        Other than 0 in the file's units; above 0; labelled; above Otsu's threshold of the
        intensities, which are clipped to low and high before. NaN and Inf count as 0.
    label : ndarray of int, optional
        Of the same shape.

    Raises
    ------
    MissingLabel
        If `which` is label, and there is none.
    """
    masks: Iterable[NDArray[np.bool_]]
    match which:
        case "nonzero" | "positive":
            masks = (MASKS[which](plane, voxels) for plane in iterate_planes(voxels.stored))
        case "label" if label is None:
            raise MissingLabel(
                f"the foreground is the label, and {voxels.source} has none; give one, or use "
                "another --foreground"
            )
        case "label" if label is not None:
            masks = (np.asarray(plane != 0) for plane in iterate_planes(label))
        case "otsu":
            planes = _Planes(voxels, low, high)
            threshold = otsu_threshold(planes)
            masks = (plane > threshold for plane in planes)
        case _:
            raise ValueError(f"foreground must be one of {', '.join(FOREGROUNDS)}, got {which}")
    mask = empty_beside(voxels.stored, voxels.stored.shape, bool)
    for index, of_plane in enumerate(masks):
        mask[index] = of_plane
        release(mask[index])
    return mask


@dataclass(frozen=True, slots=True)
class _Planes:
    """Planes of clipped intensities, made each time: all at once take several times the memory."""

    voxels: Voxels
    low: float
    high: float

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for stored in iterate_planes(self.voxels.stored):
            values = stored.astype(np.float32) * self.voxels.slope + self.voxels.intercept
            yield np.nan_to_num(values, posinf=0, neginf=0).clip(self.low, self.high)


def foreground_statistics(
    voxels: Voxels,
    mask: NDArray[np.bool_],
    *,
    percentiles: tuple[float, float] | None = None,
    **clip: Any,
) -> Statistics:
    """Return the statistics of voxels, mean and std over a mask; over all if that is empty.

    Parameters are those of `statistics`.
    """
    whole = statistics(voxels, **clip)
    stored = _inside(voxels.stored, mask)
    inside = statistics(
        replace(voxels, stored=stored), **clip, percentiles=percentiles, all_voxels=True
    )
    low, high = (-np.inf, np.inf) if percentiles is None else (inside.min, inside.max)
    return replace(
        whole,
        mean=inside.mean,
        std=inside.std,
        min=min(max(whole.min, low), high),
        max=min(max(whole.max, low), high),
        n_foreground=inside.n_foreground,
    )


def _inside(stored: NDArray[np.generic], mask: NDArray[np.bool_]) -> NDArray[np.generic]:
    """Return the numbers in a mask; all, if it is empty."""
    if not scratch_dir_of(stored):
        return stored[mask] if mask.any() else stored
    n = sum(int(np.count_nonzero(plane)) for plane in iterate_planes(mask))
    if n == 0:
        return stored
    inside = empty_beside(stored, (n,), stored.dtype)
    first = 0
    for plane, of_plane in zip(iterate_planes(stored), iterate_planes(mask), strict=True):
        numbers = plane[of_plane]
        inside[first : first + numbers.size] = numbers
        release(inside[first : first + numbers.size])
        first += numbers.size
    return inside


def otsu_threshold(planes: Iterable[NDArray[np.floating]]) -> float:
    """Return the threshold that divides values into two classes of the least variance.

    It is the upper edge of a bin of a histogram of 256 bins; the minimum if all are equal. The
    planes are iterated over twice.

    Source: Otsu, "A threshold selection method from gray-level histograms", 1979.

    Examples
    --------
    >>> planes = [np.array([0.0, 1.0, 2.0]), np.array([98.0, 99.0, 100.0])]
    >>> 2 < otsu_threshold(planes) < 98
    True
    """
    limits = [(plane.min(), plane.max()) for plane in planes]
    # In float64: edges of bins in float32 fall together where the range is small.
    ends = np.float64(min(low for low, _ in limits)), np.float64(max(high for _, high in limits))
    if ends[0] == ends[1]:
        return float(ends[0])
    edges = np.histogram_bin_edges([], bins=_OTSU_BINS, range=ends)
    counts = np.zeros(_OTSU_BINS, dtype=np.int64)
    for plane in planes:
        counts += np.histogram(plane, bins=_OTSU_BINS, range=ends)[0]
    middles = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * middles).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = sums / below - (sums[-1] - sums) / above
        between = below.astype(np.float64) * above * difference**2
    return float(edges[1 + int(np.nanargmax(between[:-1]))])


# -- samples for statistics of a dataset -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityProperties:
    """Intensities of the foreground of a dataset in one channel, under the names of nnU-Net."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float

    def as_json(self) -> dict[str, float]:
        """Return the properties by name."""
        return asdict(self)

    @classmethod
    def parse(cls, content: Any) -> IntensityProperties:
        """Return the properties in a JSON object; raise ValueError if it does not hold them."""
        try:
            values = {name: float(content[name]) for name in cls.__dataclass_fields__}
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"must hold the numbers {', '.join(cls.__dataclass_fields__)}"
            ) from None
        properties = cls(**values)
        if not np.isfinite(list(values.values())).all() or not (
            properties.std >= 0 and properties.percentile_00_5 <= properties.percentile_99_5
        ):
            raise ValueError("must hold finite numbers: std 0 or more, percentiles in order")
        return properties


def sample_intensities(
    image: Sequence[Voxels],
    label: NDArray[np.integer],
    *,
    n: int,
    case_id: str,
    zero_nonfinite: bool = False,
) -> NDArray[np.float32]:
    """Return intensities of labelled voxels, drawn at random with replacement.

    The case id is the seed, so the sample is the same on every machine.

    Returns
    -------
    (n_modalities, n) ndarray, (n_modalities, 0) if no voxel is labelled

    Raises
    ------
    NonFinite
        If a drawn intensity is NaN or Inf, unless `zero_nonfinite`: it is 0 then.
    """
    counts = np.array([np.count_nonzero(plane) for plane in iterate_planes(label)])
    n_labelled = int(counts.sum())
    if not n_labelled:
        return np.empty((len(image), 0), dtype=np.float32)
    digest = hashlib.sha256(case_id.encode("utf-8", "surrogateescape")).digest()
    # PCG64 and this use of it are the same in all versions of numpy.
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    drawn = (rng.random(n) * n_labelled).astype(np.intp)  # of the labelled voxels, in order
    numbers = _drawn_numbers(image, label, counts, drawn)
    samples = np.empty((len(image), n), dtype=np.float32)
    for voxels, own, sample in zip(image, numbers, samples, strict=True):
        values = own * voxels.slope + voxels.intercept
        if zero_nonfinite:
            values[~np.isfinite(values)] = 0
        if not np.isfinite(values).all():
            raise NonFinite(f"labelled voxels of {voxels.source} are NaN or Inf")
        sample[:] = values
    return samples


def _drawn_numbers(
    image: Sequence[Voxels],
    label: NDArray[np.integer],
    counts: NDArray[np.intp],
    drawn: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return stored numbers, (n_modalities, n), of labelled voxels that are given by their ranks.

    `counts` are the labelled voxels of each slice.
    """
    numbers = np.empty((len(image), drawn.size))
    ends = counts.cumsum()
    order = drawn.argsort(kind="stable")
    bounds = drawn[order].searchsorted(ends).tolist()
    # Slice by slice: random places all over a file would have all of it read.
    for index, (first, last) in enumerate(pairwise([0, *bounds])):
        chosen = order[first:last]
        if chosen.size:
            labelled = np.flatnonzero(label[index])
            places = labelled[drawn[chosen] - (ends[index] - counts[index])]
            in_plane = np.unravel_index(places, label.shape[1:])
            for voxels, own in zip(image, numbers, strict=True):
                own[chosen] = voxels.stored[index][in_plane]
                release(voxels.stored[index])
            release(label[index])
    return numbers


def pool_samples(samples: Iterable[NDArray[np.float32]]) -> tuple[IntensityProperties, ...]:
    """Return the properties of each channel, over the samples of all cases.

    Each case has the same weight, since its sample has the same size.

    Raises
    ------
    ValueError
        If no sample has a voxel.
    """
    drawn = [sample for sample in samples if sample.shape[1]]
    if not drawn:
        raise ValueError("no case has a labelled voxel")
    properties = []
    for channel in np.concatenate(drawn, axis=1).astype(np.float64):
        channel.sort()  # sums do not depend on the order of the cases
        low, median, high = np.percentile(channel, [0.5, 50, 99.5])
        properties.append(
            IntensityProperties(
                mean=float(channel.mean()),
                median=float(median),
                std=float(channel.std()),
                min=float(channel[0]),
                max=float(channel[-1]),
                percentile_00_5=float(low),
                percentile_99_5=float(high),
            )
        )
    return tuple(properties)
