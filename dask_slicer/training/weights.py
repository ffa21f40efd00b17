"""Weights with which a sampler draws slices."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import UsageError
from dask_slicer.output.index import SliceIndex


def sampling_weights(
    index: SliceIndex,
    *,
    foreground: float | None,
    labels: Collection[int] | None,
    balanced: bool,
) -> NDArray[np.float64]:
    """Return a weight for each slice of an index, see `SliceDataset.weights`."""
    if foreground is not None and balanced:
        raise UsageError("set foreground or balanced, not both")
    if labels is not None and foreground is None:
        raise UsageError(
            "labels needs foreground, the share of draws with these labels, such as 0.5"
        )
    if balanced:
        return index.balanced_weights()
    if foreground is None:
        return np.full(len(index), 1.0 / max(len(index), 1))
    if not 0 <= foreground <= 1:
        raise UsageError(f"foreground must be between 0 and 1, got {foreground:g}")
    has_foreground = np.diff(index.label_ends) > 0 if labels is None else index.rows_with(labels)
    weights = np.zeros(len(index))
    for kind, share, rows in (
        ("with", foreground, has_foreground),
        ("without", 1 - foreground, ~has_foreground),
    ):
        if share and not rows.any():
            raise UsageError(
                f"{share:.0%} of the draws should be slices {kind} foreground, but there are none"
            )
        weights[rows] = share / max(int(rows.sum()), 1)
    return weights
