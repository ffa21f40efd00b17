"""Mean, standard deviation and range of a volume, in one pass without a mask.

The foreground is every voxel above the volume's minimum: the background adds nothing to sums of
``v - minimum``, so no mask is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.moments import RunningSums, moments, moments_within
from dask_slicer.core.ranks import values_at
from dask_slicer.core.volume import Voxels, slabs
from dask_slicer.errors import NonFinite
from dask_slicer.utils.mapped import scratch_dir_of

# Sums are numpy's own, never a BLAS product, whose last digits depend on the number of threads: the
# same input must give the same bytes in this process and in a worker.
# A slab of this many float64 stays in the L2 cache of a core.
_SLAB = 1 << 16
# A foreground whose std is this share of its mean, or less, is constant: float32 has no more
# digits.
_SMALLEST_SPREAD = 1e-7
# Of an intensity: squares of differences of larger ones overflow, also where cases are pooled.
MOST_INTENSITY = 1e150
_MOST_CLIPPED = 0.5
# At most about so many voxels decide `clipped_share` where there is no histogram.
_SAMPLED_VOXELS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The intensities of a volume after clipping, in the file's units.

    Attributes
    ----------
    mean, std : float
        Over the foreground: voxels greater than the minimum, or all if none is. Population std.
    min, max : float
        Over all voxels.
    n_foreground : int
        Number of voxels in `mean` and `std`.
    n_nonfinite : int
        Number of voxels that were NaN or Inf, and counted as 0.
    clipped_share : float
        Share of the bright voxels that `clip_min` or `clip_max` changed; 0 without them. Bright
        are voxels above the mean before clipping: the body in CT (air is most of the voxels above
        the minimum), and tissue in MR (where noise is).
    """

    mean: float
    std: float
    min: float
    max: float
    n_foreground: int
    n_nonfinite: int = 0
    clipped_share: float = 0.0

    @property
    def divisor(self) -> float:
        """Return the std to divide by: 1 for a constant foreground, of 1e-7 of the mean or less."""
        # Where the spread is so small, the mean is the largest magnitude.
        return self.std if self.std > _SMALLEST_SPREAD * abs(self.mean) else 1.0

    @property
    def clip_fits(self) -> bool:
        """Return whether clipping left at least half of the bright voxels as they are."""
        return self.clipped_share <= _MOST_CLIPPED


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
    all_voxels: bool = False,
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
    all_voxels : bool
        Take the background, the lowest voxels, as foreground, too.

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
    stored = voxels.stored
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        stats = _statistics_by_slabs(
            stored, voxels, low, high, percentiles, zero_nonfinite, all_voxels
        )
    elif percentiles is None and (low, high) == (-np.inf, np.inf):
        stats = _statistics_by_integer_sums(stored, voxels, all_voxels)
    else:
        stats = _statistics_by_histogram(stored, voxels, low, high, percentiles, all_voxels)
    if (largest := max(stats.max, -stats.min)) > MOST_INTENSITY or not np.isfinite(stats.std):
        raise NonFinite(
            f"the intensities of {voxels.source} reach {largest:g}, "
            "too large for their mean and std; clip them with --clip_min and --clip_max"
        )
    return stats


# -- 8 and 16 bit integers: exact, from sums or from the histogram -------------------------------


def _statistics_by_integer_sums(
    stored: NDArray[np.generic], voxels: Voxels, all_voxels: bool
) -> Statistics:
    # The histogram gives the same numbers, but takes half as long again.
    native = stored.dtype.newbyteorder("=")
    # Background is the stored value with the lowest intensity.
    darkest = np.min if voxels.slope > 0 else np.max
    background, n_background = stored[(0,) * stored.ndim], 0
    ends = [background, background]
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
    if n and not all_voxels:
        first -= n_background * int(background)
        second -= n_background * int(background) ** 2
    else:
        n = stored.size
    intensities = sorted(int(end) * voxels.slope + voxels.intercept for end in ends)
    mean = first / n * voxels.slope + voxels.intercept
    return Statistics(
        mean=mean,
        std=float(np.sqrt((n * second - first**2) / n**2 * voxels.slope**2)),
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
    all_voxels: bool,
) -> Statistics:
    values, counts = _histogram(stored)
    intensities = values * voxels.slope + voxels.intercept
    clipped_share = _clipped_share(intensities, counts, low, high)
    intensities = intensities.clip(low, high)
    if voxels.slope < 0:
        intensities, counts = intensities[::-1], counts[::-1]
    minimum, maximum = intensities[0], intensities[-1]
    foreground = intensities > minimum  # of at most 65,536 values, not of voxels
    if foreground.any() and not all_voxels:
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
        std=float(np.sqrt(variance)),
        min=float(minimum),
        max=float(maximum),
        n_foreground=total,
        clipped_share=clipped_share,
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
    all_voxels: bool,
) -> Statistics:
    n_nonfinite = 0

    def unclipped(slab: NDArray[np.generic]) -> NDArray[np.float64]:
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
        return values

    def intensities(slab: NDArray[np.generic]) -> NDArray[np.float64]:
        values = unclipped(slab)
        return values.clip(low, high, out=values)

    sample = []
    step = stored.size // _SAMPLED_VOXELS | 1  # odd: not always the same column

    def sampled(slab: NDArray[np.generic]) -> NDArray[np.float64]:
        values = unclipped(slab)
        sample.append(values[::step].copy())
        return values.clip(low, high, out=values)

    sums = RunningSums.of(map(sampled, _slabs(stored)))
    n_replaced = n_nonfinite  # which later passes increase
    if n_replaced and not zero_nonfinite:
        raise NonFinite(
            f"{n_replaced} of {stored.size} voxels are NaN or Inf in {voxels.source}; "
            "repair it, or use --nonfinite zero to take them as 0"
        )
    clipped_share = _clipped_share(np.concatenate(sample), None, low, high)
    minimum, maximum = sums.low, sums.high
    n_foreground = sums.n if all_voxels else sums.n - sums.n_low
    clipped = intensities
    if percentiles is not None and n_foreground:
        n_low = sums.n - n_foreground
        ranks = sorted({n_low + rank for q in percentiles for rank in _ranks(q, n_foreground)})
        if scratch_dir_of(stored):
            ordered = values_at(lambda: map(intensities, _slabs(stored)), ranks)
        else:
            ordered = _sorted_at(map(intensities, _slabs(stored)), stored.size, ranks)
        minimum, maximum = (
            _percentile(q, n_foreground, lambda rank: ordered[n_low + rank]) for q in percentiles
        )

        def clipped(slab: NDArray[np.generic]) -> NDArray[np.float64]:
            return intensities(slab).clip(minimum, maximum)

        # The background is clipped to the new minimum, and still adds nothing to the sums.
        sums = RunningSums.of(map(clipped, _slabs(stored)))
    n = n_foreground or sums.n
    mean, variance = moments(sums, n)
    distance = mean - sums.low
    if variance < 1e-8 * distance * distance:
        # So far from the minimum that sums of distances from it lost their last digits.
        n_clipped = sums.n_low - (stored.size - n_foreground) if n_foreground else 0
        mean, variance = moments_within(map(clipped, _slabs(stored)), sums.low, n_clipped)
    return Statistics(
        mean=mean,
        std=float(np.sqrt(variance)),
        min=minimum,
        max=maximum,
        n_foreground=n,
        n_nonfinite=n_replaced,
        clipped_share=clipped_share,
    )


def _sorted_at(
    slabs_of_values: Iterator[NDArray[np.float64]], n: int, ranks: Sequence[int]
) -> dict[int, np.float64]:
    """Return what `values_at` returns, faster, but with all n values in memory."""
    values = np.empty(n)
    for part, slab in zip(_slabs(values), slabs_of_values, strict=True):
        part[:] = slab
    values.partition(ranks)
    return {rank: values[rank] + 0.0 for rank in ranks}  # no negative zero


# -- shared --------------------------------------------------------------------------------------


def _slabs(stored: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    return slabs(stored, _SLAB)


def _ranks(q: float, n: int) -> tuple[int, int]:
    below = int(q / 100 * (n - 1))
    return below, min(below + 1, n - 1)


def _percentile(q: float, n: int, value_at: Callable[[int], np.floating]) -> float:
    """Return the q-th percentile of n sorted values, interpolated linearly as numpy does."""
    below, above = (float(value_at(rank)) for rank in _ranks(q, n))
    return below + (above - below) * (q / 100 * (n - 1) % 1)


def _clipped_share(
    intensities: NDArray[np.float64], counts: NDArray[np.int64] | None, low: float, high: float
) -> float:
    """Return the share of the intensities above their mean that lie outside low to high."""
    if (low, high) == (-np.inf, np.inf):
        return 0.0
    with np.errstate(over="ignore"):
        bright = intensities > np.average(intensities, weights=counts)
    if not bright.any():
        bright[:] = True
    outside = bright & ((intensities < low) | (intensities > high))
    weights = np.ones(intensities.size) if counts is None else counts
    return float(weights[outside].sum() / weights[bright].sum())
