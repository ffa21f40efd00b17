"""Window indices, also at the ends of a volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Index of a slice of zeros.
ZERO_SLICE = -1

PADDING_MODES = ("zero", "replicate", "mirror")


def window_indices(
    slice_index: int, *, n_slices: int, window_size: int, padding_mode: str = "replicate"
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
    """
    wanted = np.arange(slice_index - window_size, slice_index + window_size + 1)
    last = n_slices - 1
    match padding_mode:
        case "zero":
            return np.where((wanted < 0) | (wanted > last), ZERO_SLICE, wanted)
        case "replicate":
            return wanted.clip(0, last)
        case "mirror":
            if last == 0:
                return np.zeros_like(wanted)  # numpy's `reflect` of one element repeats it
            folded = wanted % (2 * last)
            return np.minimum(folded, 2 * last - folded)
    raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode}")
