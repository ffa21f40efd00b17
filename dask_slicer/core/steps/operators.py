"""Separable operators: weighted sums of few neighbours along each axis of a volume, in blocks.

Each number is multiplied and added by itself, so results have the same bits on every machine and
with any number of threads; those of a BLAS do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.volume import extremes, planes_to_write
from dask_slicer.utils.mapped import empty_beside, release

# Of the recursive filter that turns samples into coefficients of a cubic B-spline (Unser 1999).
_POLE = sqrt(3.0) - 2.0
_GAIN = -6 * _POLE
# Samples after which its response is nothing in float32: 0.27 ** 16 < 1e-9.
_REACH = 16
# Numbers in a row of a block: many against the cost of a call, few against the cache.
_ROW = 8192
# Planes that are worked on at once, in numbers; up to four buffers are as large.
_BLOCK = 1 << 22
# Columns that are transposed at once.
_TILE = 16
_NONE = np.float32(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AxisOperator:
    """Weighted sums along one axis: ``out[k] = sum(weights[k, t] * samples[first[k] + t])``.

    Beyond the ends, samples repeat the first and the last one.
    """

    n_in: int
    first: NDArray[np.intp]  # (n_out,), ascending
    weights: NDArray[np.float32]  # (n_out, n_taps)
    spline: bool = False  # samples are the coefficients of the cubic B-spline through the input

    @property
    def n_out(self) -> int:
        """Return the number of samples that come out."""
        return len(self.first)


def interpolation(n_in: int, n_out: int, *, order: int) -> AxisOperator | None:
    """Return the operator that resamples an axis, edges of voxels aligned; None if it is the same.

    Parameters
    ----------
    n_in, n_out : int
        Samples before and after.
    order : {0, 1, 3}
        Nearest, linear, or interpolating cubic B-spline.

    Examples
    --------
    >>> interpolation(2, 4, order=1).weights.tolist()
    [[0.25, 0.75], [0.75, 0.25], [0.25, 0.75], [0.75, 0.25]]
    """
    if n_in == n_out:
        return None
    if order == 0 or n_in == 1:
        first = nearest(n_in, n_out)
        return AxisOperator(n_in=n_in, first=first, weights=np.ones((n_out, 1), np.float32))
    first, t = _positions(n_in, n_out)
    if order == 1:
        return AxisOperator(n_in=n_in, first=first, weights=_as_weights([1 - t, t]))
    s = 1 - t
    cubic = [s**3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - s**2 + s**3 / 2, t**3 / 6]
    weights = _as_weights([_GAIN * weight for weight in cubic])
    return AxisOperator(n_in=n_in, first=first - 1, weights=weights, spline=True)


def nearest(n_in: int, n_out: int) -> NDArray[np.intp]:
    """Return the index of the input sample whose voxel holds each output sample's centre.

    Examples
    --------
    >>> nearest(4, 2).tolist(), nearest(2, 4).tolist()
    ([1, 3], [0, 0, 1, 1])
    """
    return (2 * np.arange(n_out, dtype=np.intp) + 1) * n_in // (2 * n_out)


def linear(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the two input samples, (2, n_out), next to each output sample, and their weights."""
    first, t = _positions(n_in, n_out)
    return np.stack([first, first + 1]).clip(0, n_in - 1), np.stack([1 - t, t])


def antialiased(n_in: int, n_out: int) -> AxisOperator | None:
    """Return the operator that resizes an axis with a triangle filter; None if it is the same.

    The triangle is as wide as two voxels of the coarser grid, and is cut at the ends: what Pillow
    (BILINEAR) and PyTorch (``interpolate(antialias=True)``) do. What it samples lies up to 0.09
    voxels off the centre, for lack of more samples. An axis that grows is interpolated.

    Examples
    --------
    >>> antialiased(4, 2).weights.tolist()[0]  # of samples -1, 0, 1, 2, 3
    [0.0, 0.4285714328289032, 0.4285714328289032, 0.1428571492433548, 0.0]
    """
    if n_in == n_out:
        return None
    ratio = n_in / n_out
    width = max(ratio, 1.0)
    centers = (np.arange(n_out) + 0.5) * ratio - 0.5
    first = np.ceil(centers - width).astype(np.intp)
    taps = first[:, None] + np.arange(2 * ceil(width) + 1)
    weights = (1 - np.abs(taps - centers[:, None]) / width).clip(0, None)
    weights[(taps < 0) | (taps >= n_in)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return AxisOperator(n_in=n_in, first=first, weights=weights.astype(np.float32))


def _positions(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the input sample at or before each output sample, and the distance from it."""
    twice = (2 * np.arange(n_out, dtype=np.intp) + 1) * n_in - n_out
    first, rest = np.divmod(twice, 2 * n_out)
    return first, rest / (2 * n_out)


def _as_weights(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    return np.stack(columns, axis=1).astype(np.float32)


def apply_operators(
    volume: NDArray[np.generic], operators: Sequence[AxisOperator | None]
) -> NDArray[np.float32]:
    """Return a volume with one operator applied along each axis, clipped to the input's range.

    Parameters
    ----------
    volume : (n_slices, height, width) ndarray
        Finite; in any order in memory.
    operators : sequence of 3 AxisOperator or None
        For slices, rows and columns; None leaves an axis as it is.
    """
    low, high = map(np.float32, extremes(volume))
    along, *in_plane = operators
    n_slices, height, width = (
        n if operator is None else operator.n_out
        for n, operator in zip(volume.shape, operators, strict=True)
    )
    out = empty_beside(volume, (n_slices, height, width), np.float32)
    buffers = _Buffers()
    # Sums keep their digits if the lowest value is subtracted meanwhile; a copy keeps them anyway.
    sums = any(operator is not None and operator.weights.shape[1] > 1 for operator in operators)
    offset = low if sums else _NONE
    if along is None or along.n_out >= along.n_in:
        _apply_in_plane(volume, in_plane, out[: len(volume)], buffers, offset=offset)
        if along is not None:
            columns = out.reshape(n_slices, -1)
            for start in range(0, columns.shape[1], _ROW):
                tile = columns[:, start : start + _ROW]
                _apply(tile[: len(volume)], along, tile, buffers)
                release(tile)
    else:
        _, rows, row_size = volume.shape
        n_planes = max(_BLOCK * 3 // (rows * row_size), 1)
        n_rows = max(_ROW // row_size, 1)
        for first in range(0, n_slices, n_planes):
            n = min(n_planes, n_slices - first)
            slab = buffers.get("slab", (n, rows, row_size))
            for row in range(0, rows, n_rows):
                part, target = volume[:, row : row + n_rows], slab[:, row : row + n_rows]
                _apply(part, along, target, buffers, start=first, offset=offset)
            release(volume)
            _apply_in_plane(slab, in_plane, out[first : first + n], buffers)
    for plane in planes_to_write(out):
        plane += offset
        np.clip(plane, low, high, out=plane)
    return out


class _Buffers:
    """Memory that is used again: to get new pages takes longer than to fill them."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.float32]] = {}

    def get(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array of a shape, with any content."""
        size = prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, np.float32)
        return self._arrays[name][:size].reshape(shape)


def _apply_in_plane(
    planes: NDArray[np.generic],
    operators: Sequence[AxisOperator | None],
    out: NDArray[np.float32],
    buffers: _Buffers,
    *,
    offset: np.float32 = _NONE,
) -> None:
    """Write planes, less an offset, with the operators of rows and columns applied."""
    along_rows, along_columns = operators
    largest = max(planes[0].size, out[0].size, planes.shape[2] * out.shape[1])
    n_planes = max(min(_BLOCK // largest, -(-_ROW // min(planes.shape[2], out.shape[1]))), 1)
    for start in range(0, len(planes), n_planes):
        block: NDArray[np.generic] = planes[start : start + n_planes]
        n, shift = len(block), offset
        block = block.transpose(1, 0, 2)  # (row, plane, column)
        if along_rows is not None:
            target = buffers.get("rows", (along_rows.n_out, n, block.shape[2]))
            block = _apply(block, along_rows, target, buffers, offset=shift)
            shift = _NONE
        if along_columns is not None:
            target = buffers.get("columns", (along_columns.n_out, n, block.shape[0]))
            block = _apply(block.transpose(2, 1, 0), along_columns, target, buffers, offset=shift)
            block, shift = block.transpose(2, 1, 0), _NONE
        target = out[start : start + n]
        _subtract(block.transpose(2, 1, 0), shift, target.transpose(2, 0, 1))
        release(planes[start : start + n_planes])
        release(target)


def _apply(
    samples: NDArray[np.generic],
    operator: AxisOperator,
    out: NDArray[np.float32],
    buffers: _Buffers,
    *,
    start: int = 0,
    offset: np.float32 = _NONE,
) -> NDArray[np.float32]:
    """Write outputs `start`, … along the first axis of `samples`, less an offset; return them.

    All samples are copied before the first output is written, so both may share memory.
    """
    firsts = operator.first[start : start + len(out)]
    weights = operator.weights[start : start + len(out)]
    reach = _REACH if operator.spline else 0
    begin, end = firsts[0] - reach, firsts[-1] + weights.shape[1] + reach
    rows = buffers.get("samples", (int(end - begin), *samples.shape[1:]))
    term = buffers.get("term", samples.shape[1:])
    inside = slice(max(-begin, 0), len(rows) - max(end - operator.n_in, 0))
    _subtract(samples[max(begin, 0) : end], offset, rows[inside])
    rows[: inside.start], rows[inside.stop :] = rows[inside.start], rows[inside.stop - 1]
    if operator.spline:
        _to_coefficients(rows, term)
    for target, first, (weight, *others) in zip(out, firsts - begin, weights, strict=True):
        np.multiply(rows[first], weight, out=target)
        for row, other in zip(rows[first + 1 :], others, strict=False):
            if other:
                np.multiply(row, other, out=term)
                target += term
    return out


def _subtract(source: NDArray[np.generic], offset: np.float32, out: NDArray[np.float32]) -> None:
    """Write numbers less an offset; transposed ones in strips that stay in the cache."""
    if source.strides[-1] == source.itemsize and out.strides[-1] == out.itemsize:
        np.subtract(source, offset, out=out, dtype=np.float32)
        return
    for part, target in zip(source.swapaxes(0, 1), out.swapaxes(0, 1), strict=True):
        for first in range(0, out.shape[-1], _TILE):
            strip = np.s_[..., first : first + _TILE]
            np.subtract(part[strip], offset, out=target[strip], dtype=np.float32)


def _to_coefficients(rows: NDArray[np.float32], term: NDArray[np.float32]) -> None:
    """Turn samples into coefficients of the cubic B-spline through them, in place, but for a gain.

    The first and the last row count as repeated without end.
    """
    pole = np.float32(_POLE)
    for ordered in (rows, rows[::-1]):
        ordered[0] *= np.float32(1 / (1 - _POLE))
        for before, row in pairwise(ordered):
            np.multiply(before, pole, out=term)
            row += term
