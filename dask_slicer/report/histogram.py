"""Histograms with round bin edges, and the bars and ticks of their charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Undoing a normalisation leaves float32 rounding errors: a number less than this share of a bin
# below an edge counts as on the edge.
_SLACK = 1e-3
# Numbers that differ by less than this share of their size are equal.
_SAME = 1e-9
# Decades of a logarithmic axis.
_MOST_DECADES = 5
_MOST_PLACES = 1 << 40
_X_TICKS, _Y_TICKS = 5, 4

Ticks = list[tuple[float, float]]  # position on the axis, 0 to 1, and number


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Numbers counted in bins; a number on an edge is in the bin above it."""

    edges: tuple[float, ...]  # one more than counts
    counts: tuple[int, ...]
    n_beyond: int  # numbers below the first edge or above the last
    smallest: float  # of all numbers, as the next two
    median: float
    largest: float

    @property
    def n(self) -> int:
        """Return the number of counted numbers."""
        return sum(self.counts) + self.n_beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars of equal width as (height of 0 to 1, low edge, high edge, count), and ticks."""

    bars: list[tuple[float, float, float, int]]
    x_ticks: Ticks
    y_ticks: Ticks  # counts, or shares on a logarithmic axis


def histogram(values: NDArray[np.generic], *, most_bins: int, tail: float = 0.0) -> Histogram:
    """Return numbers counted in at most `most_bins` + 1 bins of equal, round width.

    Infinite numbers are left out; at least one is finite. The bins may leave out the share `tail`
    of the numbers at either end.
    """
    numbers = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    numbers = numbers[np.isfinite(numbers)]
    smallest, largest = float(numbers[0]), float(numbers[-1])
    if largest - smallest <= _SAME * max(abs(smallest), abs(largest)):
        largest = smallest
        numbers = np.full_like(numbers, smallest)
    low, high = (float(np.quantile(numbers, share)) for share in (tail, 1 - tail))
    # Not so small that numbers of bins are no longer exact.
    step = max(
        round_step(high - low, most_bins), round_step(max(abs(low), abs(high)), _MOST_PLACES)
    )
    if step < 1 and np.abs(numbers - np.rint(numbers)).max() < _SLACK:
        step = 1.0  # narrower bins would stay empty between integers
    places = np.arange(math.floor(low / step + _SLACK), math.floor(high / step + _SLACK) + 2)
    counts, _ = np.histogram(numbers, bins=(places - _SLACK) * step)
    return Histogram(
        edges=tuple(_round_to_step(place * step, step) for place in places.tolist()),
        counts=tuple(counts.tolist()),
        n_beyond=len(numbers) - int(counts.sum()),
        smallest=smallest,
        median=float(np.median(numbers)),
        largest=largest,
    )


def round_step(span: float, most: int) -> float:
    """Return the smallest of 1, 2, 5, 10, … (or 0.1, 0.2, …) that goes into a span `most` times.

    >>> round_step(4095, 64), round_step(0.9, 5), round_step(0, 5)
    (100.0, 0.2, 1.0)
    """
    if span <= 0:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(span / most))
    return next(
        (step * decade for step in (1, 2, 5) if span / (step * decade) <= most), 10 * decade
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` + 1 round numbers from `low` to `high`, for an axis.

    >>> ticks(-1000, 1900, 4), ticks(0.5, 3.2, 6)
    ([-1000.0, 0.0, 1000.0], [0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    """
    step = round_step(high - low, most)
    first, last = math.ceil(low / step - _SLACK), math.floor(high / step + _SLACK)
    return [_round_to_step(place * step, step) for place in range(first, last + 1)]


def _round_to_step(value: float, step: float) -> float:
    """Remove the digits that binary fractions add to a multiple of a round step."""
    return round(value, max(0, 1 - math.floor(math.log10(step)))) + 0.0


def log_heights(counts: Sequence[int], n: int) -> tuple[list[float], Ticks]:
    """Return bar heights of 0 to 1, and ticks, on a logarithmic axis of count / n.

    >>> log_heights([1, 10, 0, 1000], 10_000)
    ([0.25, 0.5, 0.0, 1.0], [(0.25, 0.0001), (0.5, 0.001), (0.75, 0.01), (1.0, 0.1)])
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
        [((decade - bottom) / (top - bottom), 10.0**decade) for decade in decades],
    )


def chart(counted: Histogram, *, log: bool = False) -> Chart:
    """Return bars of counts; with `log`, of shares on an axis where small counts are visible."""
    first, last = counted.edges[0], counted.edges[-1]
    if log:
        heights, y_ticks = log_heights(counted.counts, counted.n)
    else:
        highest = max(*counted.counts, 1)
        heights = [count / highest for count in counted.counts]
        numbers = [value for value in ticks(0, highest, _Y_TICKS) if value.is_integer()]
        y_ticks = [(value / highest, value) for value in numbers]
    return Chart(
        bars=list(zip(heights, counted.edges, counted.edges[1:], counted.counts, strict=False)),
        x_ticks=[
            ((value - first) / (last - first), value) for value in ticks(first, last, _X_TICKS)
        ],
        y_ticks=y_ticks,
    )
