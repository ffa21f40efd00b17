"""Mean, standard deviation and range of a volume, in one pass without a mask.

The foreground is every voxel above the volume's minimum: the background adds nothing to sums of
``v - minimum``, so no mask is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.volume import Voxels, in_memory_order
from dask_slicer.errors import NonFinite

# Sums are numpy's own, never a BLAS product, whose last digits depend on the number of threads: the
# same input must give the same bytes in this process and in a worker.
# A slab of this many float64 stays in the L2 cache of a core.
_SLAB = 1 << 16
_SMALLEST_STD = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The intensities of a volume after clipping, in the file's units.

    Attributes
    ----------
    mean, std : float
        Over the foreground: voxels greater than the minimum, or all if none is. Population std,
        given as 1 if it is below 1e-8.
    min, max : float
        Over all voxels.
    n_foreground : int
        Number of voxels in `mean` and `std`.
    n_nonfinite : int
        Number of voxels that were NaN or Inf, and counted as 0.
    """

    mean: float
    std: float
    min: float
    max: float
    n_foreground: int
    n_nonfinite: int = 0


def pooled(first: Statistics, second: Statistics) -> Statistics:
    """Return the statistics of two sets of voxels taken together.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.

    Examples
    --------
    >>> first = Statistics(mean=0.0, std=0.0, min=0.0, max=0.0, n_foreground=1)
    >>> second = Statistics(mean=2.0, std=0.0, min=2.0, max=2.0, n_foreground=1)
    >>> pooled(first, second).mean, pooled(first, second).std
    (1.0, 1.0)
    """
    n = first.n_foreground + second.n_foreground
    weight = second.n_foreground / n
    step = second.mean - first.mean
    variance = first.std**2 * (1 - weight) + second.std**2 * weight
    variance += step**2 * weight * (1 - weight)
    return Statistics(
        mean=first.mean + step * weight,
        std=float(np.sqrt(variance)),
        min=min(first.min, second.min),
        max=max(first.max, second.max),
        n_foreground=n,
        n_nonfinite=first.n_nonfinite + second.n_nonfinite,
    )


def statistics(
    voxels: Voxels,
    *,
    clip_min: float | None = None,
    clip_max: float | None = None,
    percentiles: tuple[float, float] | None = None,
    zero_nonfinite: bool = False,
) -> Statistics:
    """Return the statistics of the intensities, after clipping, of voxels in any shape.

    Parameters
    ----------
    clip_min, clip_max : float, optional
        In the file's units (HU for CT); one may be given without the other.
    percentiles : tuple of float, optional
        Clip also to these percentiles (numpy's linear) of the foreground, which is determined
        before.
    zero_nonfinite : bool
        Count NaN and Inf as 0 instead of raising.

    Raises
    ------
    NonFinite
        If a voxel is NaN or Inf (gives their number), or too large for float64 sums.

    Examples
    --------
    >>> stats = statistics(Voxels(stored=np.array([0, 0, 2, 4], dtype=np.int16)))
    >>> stats.mean, stats.std, stats.n_foreground
    (3.0, 1.0, 2)
    """
    low = -np.inf if clip_min is None else float(clip_min)
    high = np.inf if clip_max is None else float(clip_max)
    stored = in_memory_order(voxels.stored)
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        if percentiles is None and (low, high) == (-np.inf, np.inf):
            return _statistics_by_integer_sums(stored, voxels)
        return _statistics_by_histogram(stored, voxels, low, high, percentiles)
    return _statistics_by_slabs(stored, voxels, low, high, percentiles, zero_nonfinite)


# -- 8 and 16 bit integers: exact, from sums or from the histogram -------------------------------


def _statistics_by_integer_sums(stored: NDArray[np.generic], voxels: Voxels) -> Statistics:
    # The histogram gives the same numbers, but takes half as long again.
    native = stored.dtype.newbyteorder("=")
    # Background is the stored value with the lowest intensity.
    darkest = np.min if voxels.slope > 0 else np.max
    background, n_background = stored[0], 0
    ends = [stored[0], stored[0]]
    first = second = 0
    for slab in _slabs(stored):
        values = slab.astype(native, copy=False)
        ends = [values.min(initial=ends[0]), values.max(initial=ends[1])]
        if (darkest_yet := darkest(ends)) != background:
            background, n_background = darkest_yet, 0
        n_background += int(np.count_nonzero(values == background))
        wide = values.astype(np.float64)  # a slab's sums stay below 2**53, and so are exact
        first += int(wide.sum())
        second += int(np.square(wide, out=wide).sum())
    n = stored.size - n_background
    if n:
        first -= n_background * int(background)
        second -= n_background * int(background) ** 2
    else:
        n = stored.size
    intensities = sorted(int(end) * voxels.slope + voxels.intercept for end in ends)
    return Statistics(
        mean=first / n * voxels.slope + voxels.intercept,
        std=_usable_std((n * second - first**2) / n**2 * voxels.slope**2),
        min=intensities[0],
        max=intensities[1],
        n_foreground=n,
    )


def _statistics_by_histogram(
    stored: NDArray[np.generic],
    voxels: Voxels,
    low: float,
    high: float,
    percentiles: tuple[float, float] | None,
) -> Statistics:
    values, counts = _histogram(stored)
    intensities = (values * voxels.slope + voxels.intercept).clip(low, high)
    if voxels.slope < 0:
        intensities, counts = intensities[::-1], counts[::-1]
    minimum, maximum = intensities[0], intensities[-1]
    foreground = intensities > minimum  # of at most 65,536 values, not of voxels
    if foreground.any():
        intensities, counts = intensities[foreground], counts[foreground]
    if percentiles is not None:
        ends = counts.cumsum()
        minimum, maximum = (
            _percentile(
                q, int(ends[-1]), lambda rank: intensities[ends.searchsorted(rank, "right")]
            )
            for q in percentiles
        )
        intensities = intensities.clip(minimum, maximum)
    total = int(counts.sum())
    shift = intensities[0]
    mean = shift + float((counts * (intensities - shift)).sum()) / total
    variance = float((counts * (intensities - mean) ** 2).sum()) / total
    return Statistics(
        mean=float(mean),
        std=_usable_std(variance),
        min=float(minimum),
        max=float(maximum),
        n_foreground=total,
    )


def _histogram(stored: NDArray[np.generic]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the values in an array of 8 or 16 bit integers, ascending, and their counts."""
    native = stored.dtype.newbyteorder("=")
    low, counts = 0, np.zeros(0, dtype=np.int64)
    for slab in _slabs(stored):
        values = slab.astype(native, copy=False)
        low, counts = _spanning(int(values.min()), int(values.max()), low, counts)
        # A table of the range that occurs, not of all 65,536 values, stays in the L1 cache.
        counts += np.bincount(np.subtract(values, low, dtype=np.intp), minlength=counts.size)
    occurring = np.flatnonzero(counts)
    return (occurring + low).astype(np.float64), counts[occurring]


def _spanning(
    first: int, last: int, low: int, counts: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64]]:
    """Return a table of counts that also covers first to last, after the value of its start."""
    if counts.size == 0:
        return first, np.zeros(last - first + 1, dtype=np.int64)
    above = max(last - (low + counts.size - 1), 0)
    below = max(low - first, 0)
    return low - below, np.pad(counts, (below, above)) if below or above else counts


# -- everything else: slab by slab, in float64 ---------------------------------------------------


def _statistics_by_slabs(
    stored: NDArray[np.generic],
    voxels: Voxels,
    low: float,
    high: float,
    percentiles: tuple[float, float] | None,
    zero_nonfinite: bool,
) -> Statistics:
    n_nonfinite = 0

    def intensities(slab: NDArray[np.generic]) -> NDArray[np.float64]:
        nonlocal n_nonfinite
        values = slab.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # checked next
            if voxels.scaled:
                values *= voxels.slope
                values += voxels.intercept
            all_finite = np.isfinite(values.sum())
        if not all_finite:
            bad = ~np.isfinite(values)
            n_nonfinite += int(bad.sum())
            values[bad] = 0.0
        return values.clip(low, high, out=values)

    sums = _Sums.of(map(intensities, _slabs(stored)))
    n_replaced = n_nonfinite  # which later passes increase
    if n_replaced and not zero_nonfinite:
        raise NonFinite(
            f"{n_replaced} of {stored.size} voxels are NaN or Inf in {voxels.source}; "
            "repair it, or use --nonfinite zero to take them as 0"
        )
    minimum, maximum = sums.low, sums.high
    n_foreground = sums.n - sums.n_low
    clipped = intensities
    if percentiles is not None and n_foreground:
        values = np.empty(stored.size)
        for part, slab in zip(_slabs(values), _slabs(stored), strict=True):
            part[:] = intensities(slab)
        minimum, maximum = _percentiles_above(values, sums.n_low, percentiles)
        del values

        def clipped(slab: NDArray[np.generic]) -> NDArray[np.float64]:
            return intensities(slab).clip(minimum, maximum)

        # The background is clipped to the new minimum, and still adds nothing to the sums.
        sums = _Sums.of(map(clipped, _slabs(stored)))
    n = n_foreground or sums.n
    mean, variance = _moments(sums, n)
    distance = mean - sums.low
    if variance < 1e-8 * distance * distance:
        # So far from the minimum that sums of distances from it lost their last digits.
        n_clipped = sums.n_low - (stored.size - n_foreground) if n_foreground else 0
        mean, variance = _moments_within(map(clipped, _slabs(stored)), sums.low, n_clipped)
    if not np.isfinite([mean, variance]).all():
        raise NonFinite(
            f"the intensities of {voxels.source} reach {max(maximum, -minimum):g}, "
            "too large for their mean and std; clip them with --clip_min and --clip_max"
        )
    return Statistics(
        mean=mean,
        std=_usable_std(variance),
        min=minimum,
        max=maximum,
        n_foreground=n,
        n_nonfinite=n_replaced,
    )


@dataclass(slots=True)
class _Sums:
    """Running sums of ``v - low`` and its square over n values, n_low of them equal to low."""

    n: int = 0
    n_low: int = 0
    low: float = np.inf
    high: float = -np.inf
    first: float = 0.0
    second: float = 0.0

    @classmethod
    def of(cls, slabs: Iterator[NDArray[np.float64]]) -> _Sums:
        sums = cls()
        with np.errstate(over="ignore", invalid="ignore"):
            for slab in slabs:
                sums._add(slab)
        return sums

    def _add(self, slab: NDArray[np.float64]) -> None:
        low, high = float(slab.min()), float(slab.max())
        if low < self.low:
            self._lower(low)
        above = slab - self.low
        self.n += above.size
        self.n_low += above.size - int(np.count_nonzero(above))
        self.high = max(self.high, high)
        self.first += float(above.sum())
        self.second += float(np.square(above).sum())

    def _lower(self, low: float) -> None:
        """Update the sums for a new, lower minimum."""
        if self.n:
            step = self.low - low
            self.second += 2 * step * self.first + self.n * step * step
            self.first += self.n * step
        self.low, self.n_low = low, 0


def _moments(sums: _Sums, n: int) -> tuple[float, float]:
    distance = sums.first / n
    return sums.low + distance, max(sums.second / n - distance * distance, 0.0)


def _moments_within(
    slabs: Iterator[NDArray[np.float64]], low: float, n_clipped: int
) -> tuple[float, float]:
    """Return mean and variance of the values above low, and of n_clipped values equal to it.

    Sums are shifted by one of the values, any of which limits the loss to n times the last digit.
    """
    n, first, second, shift = 0, 0.0, 0.0, np.nan
    for slab in slabs:
        above = slab[slab > low]
        if n == 0 and above.size:
            shift = float(above[0])
        above -= shift
        n += above.size
        first += float(above.sum())
        second += float(np.square(above).sum())
    n += n_clipped
    first += n_clipped * (low - shift)
    second += n_clipped * (low - shift) ** 2
    return shift + first / n, max(second / n - (first / n) ** 2, 0.0)


def _percentiles_above(
    values: NDArray[np.float64], n_low: int, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Return percentiles of all values but the n_low lowest; reorders `values`."""
    n = values.size - n_low
    ranks = {rank for q in percentiles for rank in _ranks(q, n)}
    values.partition(sorted(n_low + rank for rank in ranks))
    low, high = (_percentile(q, n, lambda rank: values[n_low + rank]) for q in percentiles)
    return low, high


# -- shared --------------------------------------------------------------------------------------


def _slabs(stored: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    bounds = [*range(0, stored.size, _SLAB), stored.size]
    return (stored[start:stop] for start, stop in pairwise(bounds))


def _ranks(q: float, n: int) -> tuple[int, int]:
    below = int(q / 100 * (n - 1))
    return below, min(below + 1, n - 1)


def _percentile(q: float, n: int, value_at: Callable[[int], np.floating]) -> float:
    """Return the q-th percentile of n sorted values, interpolated linearly as numpy does."""
    below, above = (float(value_at(rank)) for rank in _ranks(q, n))
    return below + (above - below) * (q / 100 * (n - 1) % 1)


def _usable_std(variance: float) -> float:
    std = float(np.sqrt(variance))
    return std if std >= _SMALLEST_STD else 1.0
