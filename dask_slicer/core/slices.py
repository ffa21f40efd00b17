"""Slices of a case: selection, normalised planes, label and window views."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.intensity import Normalization, check_fits, normalization
from dask_slicer.core.labels import convert_label, count_labels
from dask_slicer.core.statistics import Statistics
from dask_slicer.core.volume import Volume, Voxels, iterate_planes
from dask_slicer.core.windows import window_indices
from dask_slicer.utils.modalities import for_each_modality


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceStack:
    """A volume ready to be written, with planes computed on request."""

    image: tuple[Voxels, ...]  # one per modality, of shape (n_slices, height, width)
    normalization: tuple[Normalization, ...]  # one per modality
    statistics: tuple[Statistics, ...]  # one per modality
    label: NDArray[np.integer] | None  # (n_slices, height, width)
    # Pixels by label value other than 0, one dict per slice; empty without a label.
    label_counts: tuple[dict[int, int], ...]
    kept: tuple[int, ...]  # indices of the slices to write, ascending
    affine: NDArray[np.float64]  # (4, 4), maps (slice_index, row, column, 1) to RAS+ mm

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (n_slices, height, width)."""
        n_slices, height, width = self.image[0].stored.shape
        return n_slices, height, width

    def planes(self, wanted: Collection[int]) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
        """Yield the index and the normalised planes, one per modality, of the wanted slices."""
        for slice_index, planes in enumerate(self.stored_planes()):
            if slice_index in wanted:
                modalities = zip(self.normalization, planes, strict=True)
                yield slice_index, [modality.apply(plane) for modality, plane in modalities]

    def stored_planes(self) -> Iterator[tuple[NDArray[np.generic], ...]]:
        """Yield every slice as stored, one plane per modality."""
        return zip(*(iterate_planes(voxels.stored) for voxels in self.image), strict=True)

    def windows(self, *, window_size: int, padding_mode: str) -> dict[int, list[int]]:
        """Return the indices of each kept slice's window, `ZERO_SLICE` for a slice of zeros."""
        return {
            slice_index: window_indices(
                slice_index,
                n_slices=self.shape[0],
                window_size=window_size,
                padding_mode=padding_mode,
            ).tolist()
            for slice_index in self.kept
        }


def slice_volume(
    volume: Volume,
    *,
    normalize: str | tuple[str, ...] = "zscore",
    clip_min: float | tuple[float | None, ...] | None = None,
    clip_max: float | tuple[float | None, ...] | None = None,
    nonfinite: str = "error",
    dtype: str = "float32",
    label_dtype: str = "uint8",
    min_foreground: float = 0.0,
) -> SliceStack:
    """Return the slices of a volume: normalised, label checked, empty slices dropped.

    Parameters
    ----------
    normalize, clip_min, clip_max
        As for `intensity.normalization`, for all modalities or, in a tuple, for each.
    nonfinite : {"error", "zero"}
        Whether NaN and Inf in images fail the case or count as 0.
    dtype : {"float32", "float16"}
        Which normalised intensities must fit.
    label_dtype : {"uint8", "uint16", "int32"}
        Which label values must fit.
    min_foreground : float
        Least share of labelled pixels in a slice that is kept; no effect without a label.

    Raises
    ------
    NonFinite, LabelValues
    """
    settings = (
        for_each_modality(value, len(volume.image)) for value in (normalize, clip_min, clip_max)
    )
    normalized = [
        normalization(
            voxels, method, clip_min=low, clip_max=high, zero_nonfinite=nonfinite == "zero"
        )
        for voxels, method, low, high in zip(volume.image, *settings, strict=True)
    ]
    for modality, stats in normalized:
        check_fits(modality, stats, dtype)
    label = None if volume.label is None else convert_label(volume.label, label_dtype)
    label_counts = () if label is None else tuple(count_labels(plane) for plane in label)
    n_slices, height, width = volume.image[0].stored.shape
    kept = tuple(
        slice_index
        for slice_index in range(n_slices)
        if not label_counts
        or foreground_share(label_counts[slice_index], height * width) >= min_foreground
    )
    return SliceStack(
        image=volume.image,
        normalization=tuple(modality for modality, _ in normalized),
        statistics=tuple(stats for _, stats in normalized),
        label=label,
        label_counts=label_counts,
        kept=kept,
        affine=volume.affine,
    )


def foreground_share(counts: dict[int, int], n_pixels: int) -> float:
    """Return the share of pixels whose label is not 0, from the pixels of each label value."""
    return sum(counts.values()) / n_pixels
