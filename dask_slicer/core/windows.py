"""Window indices, also at the ends of a volume."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Index of a slice of zeros.
ZERO_SLICE = -1

PADDING_MODES = ("zero", "replicate", "mirror")


def context_step(*, spacing: float, step: int = 1, mm: float | None = None) -> float:
    """Return how many slices lie between neighbours of a window; the nearest slice is taken.

    Parameters
    ----------
    spacing : float
        Distance of slices, mm.
    step : int
        Every step-th neighbour.
    mm : float, optional
        Neighbours nearest to multiples of this distance, whatever the spacing.

    Examples
    --------
    >>> context_step(spacing=2.0, step=3), context_step(spacing=2.0, mm=5.0)
    (3.0, 2.5)
    """
    return float(step) if mm is None else mm / spacing


def window_indices(
    slice_index: int,
    *,
    n_slices: int,
    window_size: int,
    padding_mode: str = "replicate",
    step: float = 1,
) -> NDArray[np.intp]:
    """Return the indices of the slices in the window around one slice.

    ::

        slices      0  1  2  3  4        n_slices = 5, window_size = 2, slice_index = 0
        zero        .  .[0] 1  2         . is ZERO_SLICE
        replicate   0  0[0] 1  2         clamp, don't wrap: below the first slice is none
        mirror      2  1[0] 1  2         the edge slice is not repeated

    Parameters
    ----------
    slice_index : int
        The slice in the middle, 0 to n_slices - 1.
    window_size : int
        Neighbours on each side.
    padding_mode : {"zero", "replicate", "mirror"}
        What replaces slices outside the volume.
    step : float
        Slices between neighbours, from `context_step`; halves are rounded away from the middle.

    Returns
    -------
    (2 * window_size + 1,) ndarray of int

    Raises
    ------
    ValueError
        If `padding_mode` is none of the three.

    Examples
    --------
    >>> window_indices(4, n_slices=5, window_size=2, padding_mode="mirror").tolist()
    [2, 3, 4, 3, 2]
    >>> window_indices(4, n_slices=9, window_size=1, step=2.5).tolist()
    [1, 4, 7]
    """
    wanted = slice_index + _offsets(window_size, step)
    last = n_slices - 1
    match padding_mode:
        case "zero":
            wanted[(wanted < 0) | (wanted > last)] = ZERO_SLICE
            return wanted
        case "replicate":
            return wanted.clip(0, last)
        case "mirror":
            if last == 0:
                return np.zeros_like(wanted)  # numpy's `reflect` of one element repeats it
            folded = wanted % (2 * last)
            return np.minimum(folded, 2 * last - folded)
    raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode}")


@lru_cache
def _offsets(window_size: int, step: float) -> NDArray[np.intp]:
    """Return the distances of the slices of a window from the one in the middle."""
    after = np.floor(np.arange(1, window_size + 1) * step + 0.5).astype(np.intp)
    offsets: NDArray[np.intp] = np.concatenate([-after[::-1], [0], after])
    return offsets
