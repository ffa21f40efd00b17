"""Clipping and normalisation of intensities, plane by plane."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dask_slicer.core.foreground import (
    MASKS,
    IntensityProperties,
    foreground_mask,
    foreground_statistics,
)
from dask_slicer.core.statistics import Statistics, statistics
from dask_slicer.core.volume import Voxels
from dask_slicer.errors import NonFinite, UnsupportedImage

NORMALIZATIONS = ("zscore", "minmax", "percentile", "none")
_METHODS = (*NORMALIZATIONS, "dataset", "window", "uint8", "uint16")
# Percentiles of the foreground that limit intensities, as in nnU-Net.
PERCENTILES = (0.5, 99.5)
# By method that maps limits to whole numbers, the largest of them.
LARGEST = {"uint8": 255, "uint16": 65535}
# Of whole numbers that float32 has enough digits for, before they are rounded.
_MOST_IN_FLOAT32 = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """The normalisation of every voxel: scale, clip, subtract, divide.

    ``(clip(stored * slope + intercept, low, high) - center) * levels / scale``; with
    `zero_nonfinite`, NaN and Inf count as 0 before clipping. Where the result is a whole number of
    over 8 bit, it is exact: rounded once, in float64.
    """

    slope: float
    intercept: float
    low: float
    high: float
    center: float
    scale: float
    levels: float = 1.0  # by itself: a quotient of both would move halves, which are rounded
    zero_nonfinite: bool = False
    to_unit_range: bool = False
    largest: int = 0  # of whole numbers, from 0 on, half to even; 0: they are not whole
    background: str = ""  # voxels outside this foreground, nonzero or positive, become 0

    def apply(
        self, stored: NDArray[np.generic], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return one plane (or any array) of stored numbers as float32.

        The result is `out`, of the same shape, or else a new C-ordered array.
        """
        values = self._applied(stored, np.empty(stored.shape, np.float32) if out is None else out)
        if self.largest:
            return np.rint(values, out=values).clip(0.0, self.largest, out=values)
        if self.background:
            values[~self._is_foreground(stored)] = 0
        # Rounding may leave the range by one unit in the last place.
        return values.clip(0.0, 1.0, out=values) if self.to_unit_range else values

    def halves(self) -> tuple[Normalization, Normalization]:
        """Return what is to be applied before values are interpolated, and after it."""
        ends = -np.inf, np.inf
        after = Normalization(
            slope=1.0,
            intercept=0.0,
            low=ends[0],
            high=ends[1],
            center=0.0,
            scale=1.0,
            to_unit_range=self.to_unit_range,
            largest=self.largest,
        )
        return replace(self, largest=0), after

    def clip_stored(self, stored: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return stored numbers with the same result of `apply`, none far outside the range.

        The same to the last bit: a clipped number becomes one next to the limit that `apply`
        clips, too. If its intensity is NaN or Inf, it becomes the number for 0. In native byte
        order.
        """
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        if self.zero_nonfinite:
            with np.errstate(over="ignore", invalid="ignore"):
                finite = np.isfinite(stored.astype(np.float64) * self.slope + self.intercept)
            stored = np.where(finite, stored, self._zero(stored.dtype))
        return stored.clip(*_clipped_ends(self, stored.dtype))

    def background_number(self, dtype: np.dtype[Any]) -> Any:
        """Return the stored number for an intensity of 0, None if that is none of this type."""
        with np.errstate(all="ignore"):
            zero = np.float64(-self.intercept / self.slope).astype(dtype)
        return None if self._is_foreground(zero) else zero

    def _is_foreground(self, stored: NDArray[np.generic]) -> NDArray[np.bool_]:
        voxels = Voxels(stored=stored, slope=self.slope, intercept=self.intercept)
        return MASKS[self.background](stored, voxels)

    def _zero(self, dtype: np.dtype[Any]) -> NDArray[np.generic]:
        """Return the stored number whose intensity is 0, or nearest to it."""
        with np.errstate(over="ignore"):  # Inf, which counts as 0
            return np.asarray(-self.intercept / self.slope, dtype=dtype)

    def _applied(
        self, stored: NDArray[np.generic], out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        narrow = stored.dtype.itemsize <= 2 or stored.dtype.newbyteorder("=") == np.float32
        # All differences, and the scale, fit float32 with all digits.
        small = abs(self.center) < 1e31 and 1e-30 < self.scale < 1e38 / self.levels
        unscaled = (self.slope, self.intercept) == (1.0, 0.0)
        if narrow and small and unscaled and self._is_exact_in_float32(stored.dtype):
            return self._apply_float32(stored, out)
        values = stored.astype(np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            values *= self.slope
            values += self.intercept
        if self.zero_nonfinite:
            values[~np.isfinite(values)] = 0
            if stored.dtype.kind == "f":  # what `clip_stored` makes of the others
                values[stored == self._zero(stored.dtype)] = 0
        np.clip(values, self.low, self.high, out=values)
        values -= self.center
        if self.levels != 1:
            values *= self.levels
        values /= self.scale
        if self.largest > _MOST_IN_FLOAT32:
            np.rint(values, out=values)
        with np.errstate(over="ignore"):  # `check_fits` reports it from the statistics
            out[...] = values
        return out

    def _is_exact_in_float32(self, dtype: np.dtype[Any]) -> bool:
        """Return whether float32 has enough digits before numbers are rounded."""
        if self.largest <= _MOST_IN_FLOAT32:
            return True
        ends = self.low - self.center, self.high - self.center
        is_whole = dtype.kind in "iu" and (self.levels, self.center % 1) == (1, 0)
        return is_whole and all(abs(end) > 2**20 or end.is_integer() for end in ends)

    def _apply_float32(
        self, stored: NDArray[np.generic], values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        # Stored numbers are exact in float32. The center is subtracted in two parts, and before
        # clipping: rounding of center and clip loses nothing where they are large against the std.
        center = np.float32(self.center)
        values[...] = stored
        if self.zero_nonfinite:
            values[~np.isfinite(values)] = 0
        values -= center
        values -= np.float32(self.center - float(center))
        if np.isfinite(self.low) or np.isfinite(self.high):
            largest = float(np.finfo(np.float32).max)
            low, high = (
                np.float32(min(max(end - self.center, -largest), largest))
                for end in (self.low, self.high)
            )
            np.clip(values, low, high, out=values)
        if self.levels != 1:
            values *= np.float32(self.levels)
        values /= np.float32(self.scale)
        return values


@lru_cache(maxsize=64)  # asked for with each plane of a case
def _clipped_ends(how: Normalization, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return the least and the greatest number that `clip_stored` leaves as they are."""
    low, high = sorted((end - how.intercept) / how.slope for end in (how.low, how.high))
    if dtype.kind == "f":
        least, greatest = -np.inf, np.inf
        with np.errstate(over="ignore"):  # then no number of this type is clipped
            ends = np.array([[low, high], [least, greatest]], dtype=dtype)
        first, last = np.nextafter(*ends).tolist()
    else:
        least, greatest = np.iinfo(dtype).min, np.iinfo(dtype).max
        # Python compares integers and floats exactly.
        first = least if low <= least else min(floor(low), greatest)
        last = greatest if high >= greatest else max(ceil(high), least)
    return _moved_out(how, dtype, first, least), _moved_out(how, dtype, last, greatest)


def _moved_out(how: Normalization, dtype: np.dtype[Any], end: Any, extreme: Any) -> Any:
    """Return a number next to `end`, towards `extreme`, for which `apply` gives the limit.

    In float32, a number at the limit may differ in the last digit from those that are clipped.
    """
    if end == extreme:  # nothing is clipped at this end
        return end
    is_float, sign = dtype.kind == "f", 1 if extreme > end else -1
    kind: Any = float if is_float else int
    limits: Any = np.finfo(dtype) if is_float else np.iinfo(dtype)
    least, greatest = kind(limits.min), kind(limits.max)

    def moved(distance: float) -> Any:
        return dtype.type(min(max(end + sign * kind(distance), least), greatest))

    with np.errstate(over="ignore"):
        step = kind(np.spacing(dtype.type(abs(end)))) if is_float else 1
        center = (how.center - how.intercept) / how.slope
        clipped = how.apply(np.array([moved(min(max(abs(end), abs(center), 1), greatest))]))
        distance = 0
        while how.apply(np.array([moved(distance)])) != clipped and moved(distance) != extreme:
            distance, step = distance + step, step * 2
        return moved(distance)


def normalization(
    voxels: Voxels,
    method: str,
    *,
    clip_min: float | None = None,
    clip_max: float | None = None,
    percentiles: tuple[float, float] | None = None,
    foreground: str = "min",
    label: NDArray[np.integer] | None = None,
    dataset: IntensityProperties | None = None,
    zero_nonfinite: bool = False,
    offset: int | None = None,
    zero_background: bool = False,
) -> tuple[Normalization, Statistics]:
    """Return the normalisation of voxels in any shape, and the statistics it is based on.

    Parameters
    ----------
    method : {"zscore", "minmax", "percentile", "dataset", "none", "window", "uint8", "uint16"}
        zscore over the foreground; minmax over all voxels to [0, 1]; percentile: clip to the 0.5
        and 99.5 percentiles of the foreground, then zscore; dataset: clip to the percentiles in
        `dataset`, then its mean and std (the scheme of nnU-Net for CT, Isensee et al., "nnU-Net: a
        self-configuring method for deep learning-based biomedical image segmentation", 2021);
        window: the limits to [0, 1]; uint8: the limits to 0, …, 255; uint16: to 0, …, 65535.
    percentiles : tuple of float, optional
        Clip also to these percentiles of the foreground.
    foreground : {"min", "all", "nonzero", "positive", "label", "otsu"}
        min is what lies above the lowest intensity; for the others see `foreground_mask`.
    label : ndarray of int, optional
        Of the shape of the voxels, for `foreground` label.
    offset : int, optional
        With uint16: limits are only clipped to, and this is added.
    zero_background : bool
        With zscore and percentile, and the foreground nonzero or positive: the others become 0.

    Raises
    ------
    NonFinite
        As `statistics`, which also takes the other arguments.
    UnsupportedImage
        If an intensity and the offset give a number below 0 or over 65535.
    MissingLabel
        If the foreground is the label, and there is none.
    ValueError
        If `method` is none of these.
    """
    if method not in _METHODS:
        known = ", ".join(("dataset", *NORMALIZATIONS))
        raise ValueError(f"normalize must be one of {known}, got {method}")
    if method == "percentile":
        percentiles = PERCENTILES
    if method == "dataset" and dataset is not None:
        clip_min, clip_max = dataset.percentile_00_5, dataset.percentile_99_5
    low = -np.inf if clip_min is None else float(clip_min)
    high = np.inf if clip_max is None else float(clip_max)
    clip: dict[str, Any] = {
        "clip_min": clip_min,
        "clip_max": clip_max,
        "percentiles": percentiles,
        "zero_nonfinite": zero_nonfinite,
    }
    if foreground in ("min", "all"):
        stats = statistics(voxels, **clip, all_voxels=foreground == "all")
    else:
        mask = foreground_mask(voxels, foreground, label=label, low=low, high=high)
        stats = foreground_statistics(voxels, mask, **clip)
    if method == "dataset" and dataset is not None:
        center, scale = dataset.mean, dataset.std or 1.0
    else:
        center, scale = _center_and_scale(stats, method)
    if percentiles is not None:
        low, high = stats.min, stats.max
    if offset is not None:
        center, scale = -float(offset), 1.0
        _check_offset(stats, offset, voxels.source)
    elif method in ("window", *LARGEST):
        first = stats.min if low == -np.inf else low
        last = stats.max if high == np.inf else high
        center, scale = first, (last - first) or 1.0
    zeroes = zero_background and method in ("zscore", "percentile")
    result = Normalization(
        slope=voxels.slope,
        intercept=voxels.intercept,
        low=low,
        high=high,
        center=center,
        scale=scale,
        levels=float(LARGEST.get(method, 1)) if offset is None else 1.0,
        zero_nonfinite=stats.n_nonfinite > 0,
        to_unit_range=method in ("minmax", "window"),
        largest=LARGEST.get(method, 0),
        background=foreground if zeroes and foreground in MASKS else "",
    )
    return result, stats


def intensities(
    normalised: NDArray[np.floating], stats: Statistics, method: str
) -> NDArray[np.float64]:
    """Return the clipped intensities of normalised numbers, in the file's units.

    `stats` are those that `normalization` returned, and `method` is the one it was given.

    Examples
    --------
    >>> zscore, stats = normalization(Voxels(stored=np.array([0, 2, 4], np.int16)), "zscore")
    >>> intensities(zscore.apply(np.array([0, 2, 4], np.int16)), stats, "zscore").tolist()
    [0.0, 2.0, 4.0]
    """
    center, scale = _center_and_scale(stats, method)
    return normalised.astype(np.float64) * scale + center


def _center_and_scale(stats: Statistics, method: str) -> tuple[float, float]:
    if method == "none":
        return 0.0, 1.0
    if method == "minmax":
        return stats.min, (stats.max - stats.min) or 1.0
    return stats.mean, stats.divisor


def _check_offset(stats: Statistics, offset: int, source: str) -> None:
    """Raise UnsupportedImage if an intensity and the offset are no number of 16 bit."""
    largest = LARGEST["uint16"]
    if np.rint(stats.min + offset) < 0 or np.rint(stats.max + offset) > largest:
        raise UnsupportedImage(
            f"the intensities of {source} are {stats.min:.10g} to {stats.max:.10g}, and with the "
            f"offset {offset} not all of them are 0 to {largest}; clip them with --clip_min and "
            "--clip_max, or use --bits 8 or --format npz"
        )


def check_fits(normalization: Normalization, stats: Statistics, dtype: DTypeLike) -> None:
    """Raise NonFinite if a normalised intensity would overflow a float `dtype`."""
    largest = float(np.finfo(np.dtype(dtype)).max)
    for value in (stats.min, stats.max):
        normalised = (value - normalization.center) / normalization.scale
        if not abs(normalised) <= largest:
            raise NonFinite(
                f"the intensity {value:g} becomes {normalised:g}, over the largest {dtype} "
                f"({largest:g}); clip it (--clip_max), normalise, or use a wider --dtype"
            )
