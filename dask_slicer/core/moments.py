"""Mean and variance of the values above the lowest one, from running sums without a mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class RunningSums:
    """Running sums of ``v - low`` and its square over n values, n_low of them equal to low."""

    n: int = 0
    n_low: int = 0
    low: float = np.inf
    high: float = -np.inf
    first: float = 0.0
    second: float = 0.0

    @classmethod
    def of(cls, slabs: Iterator[NDArray[np.float64]]) -> RunningSums:
        """Return the sums over all slabs."""
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


def moments(sums: RunningSums, n: int) -> tuple[float, float]:
    """Return mean and variance of the n values above the lowest, or of all n values."""
    distance = sums.first / n
    return sums.low + distance, max(sums.second / n - distance * distance, 0.0)


def moments_within(
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
