"""Normalisation of batches of stored integers, where they are: on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_SCALING = ("scale", "offset", "clip_range", "plane_mask")


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
    scale, offset, clip_range, is_plane = (batch[name] for name in _SCALING)
    rest = {name: value for name, value in batch.items() if name not in _SCALING}
    # Numbers less their center are exact or small; scale and offset alone would lose digits.
    center = -offset / scale
    ends = clip_range - center[..., None]
    scale = scale * is_plane
    if isinstance(image, np.ndarray):
        return rest | {"image": _normalized(image, center, ends, scale)}
    return rest | {"image": _normalized_tensor(image, center, ends, scale)}


def _normalized(image: Any, center: Any, ends: Any, scale: Any) -> Any:
    dtype = np.float64 if image.dtype.itemsize > 2 else np.float32
    first = center.astype(dtype)
    ends = np.clip(ends, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    values = image.astype(dtype)
    values -= first[..., None, None]
    values -= (center - first).astype(dtype)[..., None, None]
    np.clip(values, ends[..., 0, None, None], ends[..., 1, None, None], out=values)
    values *= scale.astype(dtype)[..., None, None]
    return values.astype(np.float32, copy=False)


def _normalized_tensor(image: Any, center: Any, ends: Any, scale: Any) -> Any:
    import torch

    dtype = torch.float64 if image.element_size() > 2 else torch.float32
    first = center.to(dtype)
    rest = (center - first).to(dtype)
    values = image.to(dtype)
    values -= first[..., None, None]
    values -= rest[..., None, None]
    low, high = ends.to(dtype).unbind(-1)
    values.clamp_(low[..., None, None], high[..., None, None])
    values *= scale.to(dtype)[..., None, None]
    return values.to(torch.float32)
