"""How a histogram is laid out as a chart, on a unit square: bars, ticks, and what each one says."""

from __future__ import annotations

from dataclasses import dataclass

from dask_slicer.histograms import Histogram, heights, log_heights, ticks

_X_TICKS, _Y_TICKS = 5, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar: where it starts and how wide and high it is, 0 to 1; its bin, and what is in it."""

    x: float
    width: float
    height: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A place on an axis, 0 to 1, and the number there."""

    at: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars and ticks; those of y are counts, or shares where it is logarithmic."""

    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def chart(found: Histogram) -> Chart:
    """Return a chart of counts.

    Examples
    --------
    >>> found = Histogram(
    ...     edges=(0, 2, 4), counts=(3, 1), n_below=0, n_above=0, smallest=0, median=1, largest=3
    ... )
    >>> [(bar.x, bar.width, round(bar.height, 2)) for bar in chart(found).bars]
    [(0.0, 0.5, 1.0), (0.5, 0.5, 0.33)]
    >>> [(tick.value, round(tick.at, 2)) for tick in chart(found).y_ticks]
    [(0.0, 0.0), (1.0, 0.33), (2.0, 0.67), (3.0, 1.0)]
    """
    highest = max((*found.counts, 1))
    y_ticks = tuple(
        Tick(at=value / highest, value=value)
        for value in ticks(0, highest, _Y_TICKS)
        if value.is_integer()
    )
    return _chart(found, heights(found.counts), y_ticks)


def log_chart(found: Histogram) -> Chart:
    """Return a chart of shares, on a logarithmic axis: of few numbers, something is seen too."""
    up, decades = log_heights(found.counts, found.n)
    return _chart(found, up, tuple(Tick(at=at, value=share) for share, at in decades))


def _chart(found: Histogram, up: list[float], y_ticks: tuple[Tick, ...]) -> Chart:
    first, last = found.edges[0], found.edges[-1]
    n = len(found.counts)
    return Chart(
        bars=tuple(
            Bar(
                x=number / n,
                width=1 / n,
                height=height,
                low=found.edges[number],
                high=found.edges[number + 1],
                n=found.counts[number],
            )
            for number, height in enumerate(up)
        ),
        x_ticks=tuple(
            Tick(at=(value - first) / (last - first), value=value)
            for value in ticks(first, last, _X_TICKS)
        ),
        y_ticks=y_ticks,
    )
