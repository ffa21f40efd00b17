"""Histograms with round bin edges, and their layout as charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.report.montage import GOLDEN

# Undoing a normalisation leaves float32 rounding errors: a number less than this share of a bin
# below an edge counts as on the edge.
_SLACK = 1e-3
# Numbers that differ by less than this share of their size are equal.
_SAME = 1e-9
# Decades of a logarithmic axis.
_MOST_DECADES = 5
# Parts of a row: with integers, two places never coincide.
_PARTS = 1024
_X_TICKS, _Y_TICKS = 5, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Numbers counted in bins; a number on an edge is in the bin above it."""

    edges: tuple[float, ...]  # one more than counts
    counts: tuple[int, ...]
    n_below: int  # numbers below the first edge
    n_above: int  # numbers above the last edge
    smallest: float  # of all numbers, as the next two
    median: float
    largest: float

    @property
    def n(self) -> int:
        """Return the number of counted numbers."""
        return sum(self.counts) + self.n_below + self.n_above

    @property
    def is_one_number(self) -> bool:
        """Return whether all numbers are the same."""
        return self.smallest == self.largest


def histogram(values: NDArray[np.generic], *, most_bins: int, tail: float = 0.0) -> Histogram:
    """Return numbers counted in at most `most_bins` + 1 bins of equal, round width.

    Parameters
    ----------
    values : ndarray of any shape
        At least one number is finite; others are left out.
    most_bins : int
    tail : float
        Share of the numbers at either end that the bins may leave out.

    Examples
    --------
    >>> counted = histogram(np.array([0.0, 1.0, 1.5, 9.9]), most_bins=5)
    >>> counted.edges, counted.counts
    ((0.0, 2.0, 4.0, 6.0, 8.0, 10.0), (3, 0, 0, 0, 1))
    """
    numbers = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    numbers = numbers[np.isfinite(numbers)]
    smallest, largest = float(numbers[0]), float(numbers[-1])
    if largest - smallest <= _SAME * max(abs(smallest), abs(largest)):
        largest = smallest
        numbers = np.full_like(numbers, smallest)
    low, high = (float(np.quantile(numbers, share)) for share in (tail, 1 - tail))
    step = round_step(high - low, most_bins)
    if step < 1 and np.abs(numbers - np.rint(numbers)).max() < _SLACK:
        step = 1.0  # narrower bins would stay empty between integers
    first = math.floor(low / step + _SLACK)
    n_bins = math.floor(high / step + _SLACK) + 1 - first
    places = np.floor(numbers / step + _SLACK) - first
    inside = (places >= 0) & (places < n_bins)
    counts = np.bincount(places[inside].astype(np.int64), minlength=n_bins)
    return Histogram(
        edges=tuple(_round_to_step((first + place) * step, step) for place in range(n_bins + 1)),
        counts=tuple(counts.tolist()),
        n_below=int((places < 0).sum()),
        n_above=int((places >= n_bins).sum()),
        smallest=smallest,
        median=float(np.median(numbers)),
        largest=largest,
    )


def round_step(span: float, most: int) -> float:
    """Return the smallest of 1, 2, 5, 10, … (or 0.1, 0.2, …) that goes into a span `most` times.

    Examples
    --------
    >>> round_step(4095, 64), round_step(0.9, 5), round_step(0, 5)
    (100.0, 0.2, 1.0)
    """
    if span <= 0:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(span / most))
    return next(
        (step * decade for step in (1, 2, 5) if span / (step * decade) <= most), 10 * decade
    )


def ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Return at most `most` + 1 round numbers from `low` to `high`, for an axis.

    Examples
    --------
    >>> ticks(-1000, 1900, 4), ticks(0.5, 3.2, 6)
    ((-1000.0, 0.0, 1000.0), (0.5, 1.0, 1.5, 2.0, 2.5, 3.0))
    """
    step = round_step(high - low, most)
    first, last = math.ceil(low / step - _SLACK), math.floor(high / step + _SLACK)
    return tuple(_round_to_step(place * step, step) for place in range(first, last + 1))


def _round_to_step(value: float, step: float) -> float:
    """Remove the digits that binary fractions add to a multiple of a round step."""
    return round(value, max(0, 1 - math.floor(math.log10(step)))) + 0.0


def log_heights(counts: Sequence[int], n: int) -> tuple[list[float], list[tuple[float, float]]]:
    """Return bar heights of 0 to 1 on a logarithmic axis of count / n; ticks as (share, height).

    Examples
    --------
    >>> log_heights([1, 10, 0, 1000], 10_000)
    ([0.25, 0.5, 0.0, 1.0], [(0.0001, 0.25), (0.001, 0.5), (0.01, 0.75), (0.1, 1.0)])
    """
    shares = [count / n for count in counts if count]
    top = math.ceil(math.log10(max(shares, default=1.0)) - _SLACK)
    # Start a decade below the lowest share, so that its bar is visible.
    lowest = math.floor(math.log10(min(shares, default=1.0)) + _SLACK) - 1
    bottom = max(lowest, top - _MOST_DECADES)
    heights = [
        max((math.log10(count / n) - bottom) / (top - bottom), 0.0) if count else 0.0
        for count in counts
    ]
    decades = range(bottom + 1, top + 1)
    return (
        [round(height, 6) for height in heights],
        [(10.0**decade, (decade - bottom) / (top - bottom)) for decade in decades],
    )


def spread_rows(ends: Sequence[int], most: int) -> list[int]:
    """Return at most `most` rows of a table, spread over its groups and within each.

    Group g has the rows from `ends[g]` to before `ends[g + 1]`, at least one. With more groups than
    `most`, some are left out, evenly.

    Examples
    --------
    >>> spread_rows([0, 4, 5], 3), spread_rows([0, 10, 20], 4), spread_rows([0, 9, 18, 27], 1)
    ([0, 2, 4], [0, 5, 13, 18], [14])
    """
    lengths = np.diff(ends)
    n_groups = len(lengths)
    chosen = [(2 * n + 1) * n_groups // (2 * most) for n in range(min(n_groups, most))]
    if n_groups <= most:
        chosen = list(range(n_groups))
    left = min(most, int(lengths[chosen].sum()))
    rows: list[int] = []
    # The shortest first, so that longer groups fill up for them.
    for turn, group in enumerate(sorted(chosen, key=lambda group: lengths[group])):
        length = int(lengths[group])
        n = min(length, left // (len(chosen) - turn))
        left -= n
        # Shift the places in every group, or all would show the same part of the body.
        shift = int(group * GOLDEN % 1 * _PARTS)
        rows += [
            ends[group] + (place * _PARTS + shift) * length // (n * _PARTS) for place in range(n)
        ]
    return sorted(rows)


_X_TICKS, _Y_TICKS = 5, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar: x, width and height from 0 to 1; the edges of its bin and the numbers in it."""

    x: float
    width: float
    height: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A position on an axis, 0 to 1, and its number."""

    at: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars and ticks; y ticks are counts, or shares on a logarithmic axis."""

    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def chart(counted: Histogram) -> Chart:
    """Return a chart of counts.

    Examples
    --------
    >>> counted = Histogram(
    ...     edges=(0, 2, 4), counts=(3, 1), n_below=0, n_above=0, smallest=0, median=1, largest=3
    ... )
    >>> [(bar.x, bar.width, round(bar.height, 2)) for bar in chart(counted).bars]
    [(0.0, 0.5, 1.0), (0.5, 0.5, 0.33)]
    >>> [(tick.value, round(tick.at, 2)) for tick in chart(counted).y_ticks]
    [(0.0, 0.0), (1.0, 0.33), (2.0, 0.67), (3.0, 1.0)]
    """
    highest = max((*counted.counts, 1))
    y_ticks = tuple(
        Tick(at=value / highest, value=value)
        for value in ticks(0, highest, _Y_TICKS)
        if value.is_integer()
    )
    return _chart(counted, [count / highest for count in counted.counts], y_ticks)


def log_chart(counted: Histogram) -> Chart:
    """Return a chart of shares on a logarithmic axis, where small counts are visible too."""
    heights, decades = log_heights(counted.counts, counted.n)
    return _chart(counted, heights, tuple(Tick(at=at, value=share) for share, at in decades))


def _chart(counted: Histogram, heights: list[float], y_ticks: tuple[Tick, ...]) -> Chart:
    first, last = counted.edges[0], counted.edges[-1]
    n = len(counted.counts)
    return Chart(
        bars=tuple(
            Bar(
                x=number / n,
                width=1 / n,
                height=height,
                low=counted.edges[number],
                high=counted.edges[number + 1],
                n=counted.counts[number],
            )
            for number, height in enumerate(heights)
        ),
        x_ticks=tuple(
            Tick(at=(value - first) / (last - first), value=value)
            for value in ticks(first, last, _X_TICKS)
        ),
        y_ticks=y_ticks,
    )
