"""Slices of a case: selection, normalised planes, label and window views."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.intensity import PERCENTILES, Normalization, check_fits, normalization
from dask_slicer.core.labels import count_labels
from dask_slicer.core.statistics import Statistics
from dask_slicer.core.steps.grid import GridSteps
from dask_slicer.core.steps.steps import (
    NO_STEPS,
    LabelChanges,
    Steps,
    changed_label,
    grid_of,
    kept_slices,
)
from dask_slicer.core.volume import Volume, Voxels, in_memory_order, iterate_planes
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
    n_overlapping: int = 0  # voxels of the label that are in the masks of two structures
    grid: GridSteps | None = None  # how it differs from that of the scan
    label_changes: LabelChanges = field(default_factory=LabelChanges)

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

    def changes(self) -> dict[str, Any]:
        """Return what the steps made of grid and label, as JSON values; nothing without steps."""
        content: dict[str, Any] = {}
        if self.grid is not None and self.grid.differs:
            content["grid"] = self.grid.as_json()
        label = self.label_changes
        for name, voxels in (("mapped_voxels", label.values), ("lost_voxels", label.lost)):
            if voxels:
                content[name] = {str(value): n for value, n in voxels.items()}
        if label.n_removed:
            content["removed_voxels"] = label.n_removed
        return content

    def is_blank(self, slice_index: int) -> bool:
        """Return whether all pixels of each modality have one intensity."""
        for voxels, how in zip(self.image, self.normalization, strict=True):
            plane = voxels.stored[slice_index]
            if not how.zero_nonfinite:
                plane = np.array([plane.min(), plane.max()])
            values = how.apply(plane)
            if values.min() != values.max():
                return False
        return True

    def windows(
        self, *, window_size: int, padding_mode: str, step: float = 1
    ) -> dict[int, list[int]]:
        """Return the indices of each kept slice's window, `ZERO_SLICE` for a slice of zeros."""
        return {
            slice_index: window_indices(
                slice_index,
                n_slices=self.shape[0],
                window_size=window_size,
                padding_mode=padding_mode,
                step=step,
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
    steps: Steps = NO_STEPS,
) -> SliceStack:
    """Return the slices of a volume: steps applied, normalised, label checked, slices selected.

    Parameters
    ----------
    normalize, clip_min, clip_max
        As for `intensity.normalization`, for all modalities or, in a tuple, for each.
    nonfinite : {"error", "zero"}
        Whether NaN and Inf in images fail the case or count as 0.
    dtype : {"float32", "float16", "uint8"}
        Which normalised intensities must fit.
    label_dtype : {"uint8", "uint16", "int32"}
        Which label values must fit.
    min_foreground : float
        Least share of labelled pixels in a slice that is kept; no effect without a label.
    steps : Steps
        The other steps.

    Raises
    ------
    NonFinite, LabelValues, MissingLabel, GeometryMismatch
    """
    changes = LabelChanges()
    label = None
    if volume.label is not None:
        label = changed_label(volume.label, label_dtype, steps, changes)
    grid = grid_of(volume, label, steps)
    cropped = None if label is None else grid.crop(label)
    channels = []
    for method, low, high, voxels, properties in _wanted_channels(
        volume, normalize, clip_min, clip_max, dtype, steps
    ):
        part = replace(voxels, stored=grid.crop(voxels.stored))
        how, stats = normalization(
            part,
            method,
            clip_min=low,
            clip_max=high,
            percentiles=_percentiles(method, low, high, steps),
            foreground=steps.foreground,
            label=cropped,
            dataset=properties,
            zero_nonfinite=nonfinite == "zero",
        )
        if dtype != "uint8":
            check_fits(how, stats, dtype)
        channels.append((*_on_grid(part, how, stats, grid, steps.resample_order), stats))
    if cropped is not None:
        label, changes.lost = grid.label(cropped)
    label_counts = () if label is None else tuple(count_labels(plane) for plane in label)
    n_slices, height, width = grid.shape
    stack = SliceStack(
        image=tuple(voxels for voxels, _, _ in channels),
        normalization=tuple(how for _, how, _ in channels),
        statistics=tuple(stats for _, _, stats in channels),
        label=label,
        label_counts=label_counts,
        kept=(),
        affine=grid.affine(volume.affine),
        n_overlapping=volume.n_overlapping,
        grid=grid,
        label_changes=changes,
    )
    kept = kept_slices(
        n_slices,
        steps,
        share_of=(lambda index: foreground_share(label_counts[index], height * width))
        if label_counts
        else None,
        min_foreground=min_foreground,
        is_blank=stack.is_blank,
    )
    return replace(stack, kept=kept)


def _wanted_channels(
    volume: Volume,
    normalize: str | tuple[str, ...],
    clip_min: float | tuple[float | None, ...] | None,
    clip_max: float | tuple[float | None, ...] | None,
    dtype: str,
    steps: Steps,
) -> Iterator[tuple[str, float | None, float | None, Voxels, IntensityProperties | None]]:
    """Yield method, limits, voxels and properties of each channel: by window, then modality."""
    n = len(volume.image)
    properties = steps.dataset or (None,) * n
    for low, high in steps.ct_windows:
        method = "uint8" if dtype == "uint8" else "window"
        for voxels in volume.image:
            yield method, low, high, voxels, None
    if not steps.ct_windows:
        methods = ("uint8",) * n if dtype == "uint8" else for_each_modality(normalize, n)
        limits = (for_each_modality(value, n) for value in (clip_min, clip_max))
        yield from zip(methods, *limits, volume.image, properties, strict=True)


def _percentiles(
    method: str, low: float | None, high: float | None, steps: Steps
) -> tuple[float, float] | None:
    if method == "uint8" and low is None and high is None and steps.percentiles is None:
        return PERCENTILES
    return steps.percentiles


def _on_grid(
    voxels: Voxels, how: Normalization, stats: Statistics, grid: GridSteps, order: int
) -> tuple[Voxels, Normalization]:
    """Return the voxels of a channel on the grid of slices, and their normalisation.

    Interpolated are normalised intensities; padding keeps the stored numbers.
    """
    if not grid.interpolates:
        if grid.in_plane is None:
            return voxels, how
        return replace(voxels, stored=grid.image(voxels.stored, fill=_lowest(voxels, stats))), how
    first, then = how.halves()
    values = np.empty(voxels.stored.shape, dtype=np.float32)
    for plane, stored in zip(values, iterate_planes(voxels.stored), strict=True):
        plane[...] = first.apply(stored)
    fill = float(values.min())
    return Voxels(stored=grid.image(values, fill=fill, order=order), source=voxels.source), then


def _lowest(voxels: Voxels, stats: Statistics) -> Any:
    """Return the stored number with the lowest intensity."""
    if voxels.stored.dtype.kind == "f" and stats.n_nonfinite:
        return (stats.min - voxels.intercept) / voxels.slope
    ends = in_memory_order(voxels.stored)
    return ends.min() if voxels.slope > 0 else ends.max()


def foreground_share(counts: dict[int, int], n_pixels: int) -> float:
    """Return the share of pixels whose label is not 0, from the pixels of each label value."""
    return sum(counts.values()) / n_pixels
