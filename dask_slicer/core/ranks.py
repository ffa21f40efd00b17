"""Values of ranks in a sorted sequence that memory does not hold, exactly, by counting.

Floats are in the order of their bits, but for the sign. The upper bits of all values are counted;
then, of values that have the upper bits of a rank, the bits below; until so few are left that they
can be sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# Bits below those that were counted, after each pass.
_SHIFTS = (45, 27, 12, 0)
# Values that are sorted at once, at most.
_FEW = 1 << 19
_SIGN = np.uint64(1 << 63)


def values_at(
    passes: Callable[[], Iterable[NDArray[np.float64]]], ranks: Sequence[int]
) -> dict[int, np.float64]:
    """Return the values at ranks of all values in ascending order, from 0 on.

    Parameters
    ----------
    passes : callable
        Returns the values, in 1D arrays; NaN is none of them. It is called several times.
    ranks : sequence of int

    Examples
    --------
    >>> values_at(lambda: [np.array([3.0, -1.0]), np.array([2.0])], [0, 2])
    {0: np.float64(-1.0), 2: np.float64(3.0)}
    """
    # By rank: the upper bits of its value, and its rank among values with these bits.
    known = {rank: (np.uint64(0), rank) for rank in ranks}
    n_with = {np.uint64(0): _FEW + 1}
    shift = np.uint64(64)
    for bits in _SHIFTS:
        if all(n_with[prefix] <= _FEW for prefix, _ in known.values()):
            break
        before, shift = shift, np.uint64(bits)
        prefixes = {prefix for prefix, _ in known.values()}
        counts = _counted(passes(), prefixes, before, shift)
        ends = {prefix: own.cumsum() for prefix, own in counts.items()}
        for rank, (prefix, within) in known.items():
            place = int(ends[prefix].searchsorted(within, "right"))
            n_below = int(ends[prefix][place] - counts[prefix][place])
            longer = prefix << (before - shift) | np.uint64(place)
            known[rank] = longer, within - n_below
            n_with[longer] = int(counts[prefix][place])
    if shift == 0:
        return {rank: _value(prefix) for rank, (prefix, _) in known.items()}
    kept = _collected(passes(), {prefix for prefix, _ in known.values()}, shift)
    return {rank: _value(kept[prefix][within]) for rank, (prefix, within) in known.items()}


def _counted(
    arrays: Iterable[NDArray[np.float64]],
    prefixes: Iterable[np.uint64],
    before: np.uint64,
    shift: np.uint64,
) -> dict[np.uint64, NDArray[np.int64]]:
    """Return for each prefix of bits how many values have it, by the bits after it."""
    mask = (np.uint64(1) << (before - shift)) - np.uint64(1)
    counts = {prefix: np.zeros(int(mask) + 1, dtype=np.int64) for prefix in prefixes}
    for array in arrays:
        keys = _keys(array)
        for prefix, own in counts.items():
            chosen = keys if before == 64 else keys[keys >> before == prefix]
            if chosen.size:
                _count((chosen >> shift & mask).view(np.int64), own)
    return counts


def _count(places: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    first, last = int(places.min()), int(places.max())
    if last - first < places.size:
        counts[first : last + 1] += np.bincount(places - first)
    else:
        different, n = np.unique(places, return_counts=True)
        counts[different] += n


def _collected(
    arrays: Iterable[NDArray[np.float64]], prefixes: Iterable[np.uint64], shift: np.uint64
) -> dict[np.uint64, NDArray[np.uint64]]:
    """Return the sorted bits of all values with each prefix."""
    parts: dict[np.uint64, list[NDArray[np.uint64]]] = {prefix: [] for prefix in prefixes}
    for array in arrays:
        keys = _keys(array)
        uppers = keys >> shift
        for prefix, own in parts.items():
            own.append(keys[uppers == prefix])
    return {prefix: np.sort(np.concatenate(own)) for prefix, own in parts.items()}


def _keys(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return integers in the order of floats; those of both zeros are equal."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _value(key: np.uint64) -> np.float64:
    bits = key & ~_SIGN if key & _SIGN else ~key
    return bits.view(np.float64)
