"""Normalisation of batches of stored integers, where they are: on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

# Fields of `Scaling` in a batch.
SCALING = ("scale", "offset", "clip_range", "plane_mask")


def normalize_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch, or a sample, of ``output="source"`` with its image normalised.

    The image is that of a dataset without ``output="source"``, to 1e-6 of its range. It is computed
    in float32 (from 32-bit integers, in float64), on the device of the image.

    Parameters
    ----------
    batch : mapping
        `image` (..., channel, row, column) of integers; `scale` and `offset` (..., channel),
        `clip_range` (..., channel, 2), `plane_mask` (..., channel). All numpy arrays or all torch
        tensors.

    Returns
    -------
    dict
        `image` as a new float32 array or tensor, and what else the batch has, without the scaling.

    Examples
    --------
    >>> sample = {
    ...     "image": np.array([[[-5, 10]], [[7, 7]]], np.int16),
    ...     "scale": np.array([0.5, 0.5]),
    ...     "offset": np.array([1.0, 1.0]),
    ...     "clip_range": np.array([[0, np.inf]] * 2),
    ...     "plane_mask": np.array([True, False]),
    ... }
    >>> normalize_batch(sample)["image"].tolist()
    [[[1.0, 6.0]], [[0.0, 0.0]]]
    """
    image = batch["image"]
    scale, offset, clip_range, is_plane = (batch[name] for name in SCALING)
    rest = {name: value for name, value in batch.items() if name not in SCALING}
    xp: Any = np
    cast: Any = partial(np.ndarray.astype, copy=False)
    if not isinstance(image, np.ndarray):
        import torch

        xp, cast = torch, torch.Tensor.to
    dtype = xp.float64 if image.itemsize > 2 else xp.float32

    def of_planes(numbers: Any) -> Any:
        with np.errstate(over="ignore"):  # a range that no number of the image leaves
            return cast(numbers, dtype)[..., None, None]

    # Numbers less their center are exact or small; scale and offset alone would lose digits, and so
    # would a center in one part.
    center = -offset / scale
    values = cast(image, dtype)
    values -= of_planes(center)
    values -= of_planes(center - cast(center, dtype))
    low, high = (of_planes(clip_range[..., end] - center) for end in (0, 1))
    values = xp.clip(values, low, high, out=values)
    values *= of_planes(scale * is_plane)
    return rest | {"image": cast(values, xp.float32)}
