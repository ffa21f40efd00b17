"""Slices of a case: selection, normalised planes, label and window views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.geometry import reorient
from dask_slicer.core.intensity import (
    LARGEST,
    PERCENTILES,
    Normalization,
    check_fits,
    normalization,
)
from dask_slicer.core.labels import count_labels
from dask_slicer.core.planes import change_of_axes, in_memory
from dask_slicer.core.statistics import Statistics
from dask_slicer.core.steps.cropping import Box, crop, reoriented_box
from dask_slicer.core.steps.grid import GridSteps
from dask_slicer.core.steps.operators import linear
from dask_slicer.core.steps.steps import (
    NO_STEPS,
    LabelChanges,
    Steps,
    grid_of,
    kept_box,
    kept_slices,
    label_in_frame,
)
from dask_slicer.core.volume import (
    Volume,
    Voxels,
    extremes,
    iterate_planes,
    laid_out,
    planes_to_write,
)
from dask_slicer.core.windows import window_indices
from dask_slicer.utils.mapped import empty_beside, release, scratch_dir_of
from dask_slicer.utils.modalities import for_each_modality

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceStack:
    """A volume ready to be written, with planes computed on request."""

    # One per modality; with CT windows, one per modality for each window.
    image: tuple[Voxels, ...]  # of shape (n_slices, height, width)
    normalization: tuple[Normalization, ...]
    statistics: tuple[Statistics, ...]
    label: NDArray[np.integer] | None  # (n_slices, height, width)
    # Pixels by label value other than 0, one dict per slice; empty without a label.
    label_counts: tuple[dict[int, int], ...]
    kept: tuple[int, ...]  # indices of the slices to write, ascending
    # Slices between slices of one intensity, before these were resampled and padded.
    blank: frozenset[int]
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
        """Yield the index and the normalised planes, one per `image`, of the wanted slices."""
        first, stop = max(min(wanted, default=0), 0), max(wanted, default=-1) + 1  # no ZERO_SLICE
        for slice_index, planes in enumerate(self.stored_planes(first, stop), first):
            if slice_index in wanted:
                modalities = zip(self.normalization, planes, strict=True)
                yield slice_index, [modality.apply(plane) for modality, plane in modalities]

    def stored_planes(self, first: int, stop: int) -> Iterator[tuple[NDArray[np.generic], ...]]:
        """Yield the slices from `first` to before `stop` as stored, one plane per `image`."""
        return zip(*(iterate_planes(each.stored[first:stop]) for each in self.image), strict=True)

    def label_plane(self, slice_index: int) -> NDArray[np.integer]:
        """Return the label of a slice, which there is."""
        assert self.label is not None  # noqa: S101
        plane: NDArray[np.integer] = self.label[slice_index]
        if scratch_dir_of(plane):
            plane = plane.copy()
            release(self.label[slice_index])
        return plane

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
        """Return whether all pixels of each image have one intensity, or had before the steps."""
        if slice_index in self.blank:
            return True
        for voxels, how in zip(self.image, self.normalization, strict=True):
            lowest, highest = _ends(voxels.stored[slice_index], how)
            release(voxels.stored[slice_index])
            if lowest != highest:
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


def slice_volume(volume: Volume, **settings: Any) -> SliceStack:
    """Return the slices of a volume along its first axis; settings are those of `slice_views`."""
    (stack,) = slice_views([volume], **settings)
    return stack


def slice_views(
    views: Sequence[Volume],
    *,
    normalize: str | tuple[str, ...] = "zscore",
    clip_min: float | tuple[float | None, ...] | None = None,
    clip_max: float | tuple[float | None, ...] | None = None,
    nonfinite: str = "error",
    dtype: str = "float32",
    offset: int | None = None,
    label_dtype: str = "uint8",
    min_foreground: float = 0.0,
    steps: Steps = NO_STEPS,
) -> tuple[SliceStack, ...]:
    """Return the slices of a case along the first axis of each view: steps, normalised, selected.

    What a voxel becomes does not depend on the view.

    Parameters
    ----------
    views : sequence of Volume
        The same case, with axes in the order of each plane.
    normalize, clip_min, clip_max
        As for `intensity.normalization`, for all modalities or, in a tuple, for each.
    nonfinite : {"error", "zero"}
        Whether NaN and Inf in images fail the case or count as 0.
    dtype : {"float32", "float16", "uint8", "uint16"}
        Which normalised intensities must fit.
    offset : int, optional
        With uint16 and without windows: intensities are only clipped, and this is added.
    label_dtype : {"uint8", "uint16", "int32"}
        Which label values must fit.
    min_foreground : float
        Least share of labelled pixels in a slice that is kept; no effect without a label.
    steps : Steps
        The other steps. Components of a slice are those of the first view; a `spacing` of several
        views must be the same along all axes.

    Raises
    ------
    NonFinite, LabelValues, MissingLabel, GeometryMismatch, UnsupportedImage
    """
    frame = in_memory(views[0])
    changes = LabelChanges()
    label = label_in_frame(views[0], frame, label_dtype, steps, changes)
    # The grids of the views before their in-plane size are one: that of the frame.
    box = kept_box(frame, label, steps)
    cropped = None if label is None else crop(label, box)
    turns = [change_of_axes(frame, view) for view in views]
    grids = [
        _grid_of(frame, view, cropped, box, steps, turn)
        for view, turn in zip(views, turns, strict=True)
    ]
    grid = grids[0].turned(change_of_axes(views[0], frame))
    images: list[list[tuple[Voxels, Normalization]]] = [[] for _ in views]
    blank = [np.ones(own.shape[0], dtype=bool) for own in grids]
    statistics = []
    for method, low, high, voxels, properties in _wanted_channels(
        frame, normalize, clip_min, clip_max, dtype, steps
    ):
        part = replace(voxels, stored=grid.crop(voxels.stored))
        how, stats = normalization(
            part,
            method,
            clip_min=low,
            clip_max=high,
            percentiles=_percentiles(method, low, high, steps, offset),
            foreground=steps.foreground,
            label=cropped,
            dataset=properties,
            zero_nonfinite=nonfinite == "zero",
            offset=offset,
            zero_background=steps.zero_background,
        )
        if steps.ct_windows:  # which leave out what other windows show
            stats = replace(stats, clipped_share=0.0)
        if method != dtype:
            check_fits(how, stats, dtype)
        statistics.append(stats)
        if steps.drop_blank:
            for flags, turn in zip(blank, turns, strict=True):
                flags &= _between_blank(_turned(part.stored, turn), how, len(flags))
        interpolates = any(own.interpolates for own in grids)
        resampled = _resampled(part, how, grid, steps.resample_order) if interpolates else None
        for channels, own, turn in zip(images, grids, turns, strict=True):
            if own.interpolates and resampled is not None:
                channels.append(_sized(*resampled, own, turn, steps.size_order))
            else:  # padding keeps the stored numbers
                fill = 0 if own.in_plane is None else _lowest(part, how, stats)
                channels.append(_sized(part, how, fill, own, turn, steps.size_order))
    if cropped is not None:
        cropped, changes.lost = grid.resampled_label(cropped)
    stacks = []
    for view, channels, own, turn, flags in zip(views, images, grids, turns, blank, strict=True):
        own_label, own_changes = _sized_label(cropped, changes, own, turn)
        stack = SliceStack(
            image=tuple(voxels for voxels, _ in channels),
            normalization=tuple(how for _, how in channels),
            statistics=tuple(statistics),
            label=own_label,
            label_counts=() if own_label is None else _label_counts(own_label),
            kept=(),
            blank=frozenset(np.flatnonzero(flags).tolist() if steps.drop_blank else ()),
            affine=own.affine(view.affine),
            n_overlapping=view.n_overlapping,
            grid=own,
            label_changes=own_changes,
        )
        stacks.append(_selected(stack, steps, min_foreground))
    return tuple(stacks)


def _ends(plane: NDArray[np.generic], how: Normalization) -> tuple[float, float]:
    """Return the lowest and the highest normalised intensity of a plane."""
    if not how.zero_nonfinite and not how.background:
        plane = np.array([plane.min(), plane.max()])
    values = how.apply(plane)
    return float(values.min()), float(values.max())


def _between_blank(
    stored: NDArray[np.generic], how: Normalization, n_slices: int
) -> NDArray[np.bool_]:
    """Return which of the slices after resampling lie between planes of one and same intensity.

    They are blank, though a spline swings there beside planes that are not.
    """
    ends = np.array([_ends(plane, how) for plane in iterate_planes(stored)])
    samples, shares = linear(len(ends), n_slices)
    samples[1, shares[1] == 0] = samples[0, shares[1] == 0]
    values = ends[samples]  # (2, n_slices, 2)
    return np.asarray((values == values[0, :, :1]).all(axis=(0, 2)))


def _grid_of(
    frame: Volume,
    view: Volume,
    cropped: NDArray[np.integer] | None,
    box: Box | None,
    steps: Steps,
    turn: NDArray[np.float64],
) -> GridSteps:
    """Return the steps of the grid in a view, from label and box in the frame."""
    own = None if cropped is None else reorient(cropped, turn)
    shape = frame.image[0].stored.shape
    return grid_of(view, own, None if box is None else reoriented_box(box, shape, turn), steps)


def _resampled(
    part: Voxels, how: Normalization, grid: GridSteps, order: int
) -> tuple[Voxels, Normalization, float]:
    """Return normalised intensities at the new spacing, what follows, and what to pad with."""
    first, then = how.halves()
    values = empty_beside(part.stored, part.stored.shape, np.float32)
    for plane, stored in zip(planes_to_write(values), iterate_planes(part.stored), strict=True):
        first.apply(stored, out=plane)
    lowest = 0.0 if how.background else float(extremes(values)[0])
    stored = grid.resampled_image(values, order=order)
    return Voxels(stored=stored, source=part.source), then, lowest


def _sized(
    voxels: Voxels,
    how: Normalization,
    fill: Any,
    grid: GridSteps,
    turn: NDArray[np.float64],
    order: int,
) -> tuple[Voxels, Normalization]:
    """Return voxels in the frame with the axes and the in-plane size of a view."""
    stored = grid.sized_image(_turned(voxels.stored, turn), fill=fill, order=order)
    return replace(voxels, stored=stored), how


def _turned(stored: NDArray[_Number], turn: NDArray[np.float64]) -> NDArray[_Number]:
    """Return an array with other axes, slice by slice if it would be read for each block."""
    turned = reorient(stored, turn)
    return laid_out(turned) if scratch_dir_of(turned) else turned


def _sized_label(
    label: NDArray[np.integer] | None,
    changes: LabelChanges,
    grid: GridSteps,
    turn: NDArray[np.float64],
) -> tuple[NDArray[np.integer] | None, LabelChanges]:
    """Return a label in the frame with the axes and the in-plane size of a view; what changed."""
    if label is None:
        return None, changes
    sized, cut = grid.sized_label(_turned(label, turn))
    lost = Counter(changes.lost) + Counter(cut)
    # Each slice is read several times.
    return laid_out(sized), replace(changes, lost=dict(sorted(lost.items())))


def _label_counts(label: NDArray[np.integer]) -> tuple[dict[int, int], ...]:
    return tuple(map(count_labels, iterate_planes(label)))


def _selected(stack: SliceStack, steps: Steps, min_foreground: float) -> SliceStack:
    """Return a stack with the slices to write."""
    n_slices, height, width = stack.shape
    counts = stack.label_counts
    kept = kept_slices(
        n_slices,
        steps,
        share_of=(lambda index: foreground_share(counts[index], height * width))
        if counts
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
        method = dtype if dtype in LARGEST else "window"
        for voxels in volume.image:
            yield method, low, high, voxels, None
    if not steps.ct_windows:
        methods = (dtype,) * n if dtype in LARGEST else for_each_modality(normalize, n)
        limits = (for_each_modality(value, n) for value in (clip_min, clip_max))
        yield from zip(methods, *limits, volume.image, properties, strict=True)


def _percentiles(
    method: str, low: float | None, high: float | None, steps: Steps, offset: int | None
) -> tuple[float, float] | None:
    limits = low, high, steps.percentiles, offset
    if method in LARGEST and all(limit is None for limit in limits):
        return PERCENTILES
    return steps.percentiles


def _lowest(voxels: Voxels, how: Normalization, stats: Statistics) -> Any:
    """Return the stored number with the lowest intensity; that of the background, if it is 0."""
    if how.background and (zero := how.background_number(voxels.stored.dtype)) is not None:
        return zero
    if voxels.stored.dtype.kind == "f" and stats.n_nonfinite:
        return (stats.min - voxels.intercept) / voxels.slope
    lowest, highest = extremes(voxels.stored)
    return lowest if voxels.slope > 0 else highest


def foreground_share(counts: dict[int, int], n_pixels: int) -> float:
    """Return the share of pixels whose label is not 0, from the pixels of each label value."""
    return sum(counts.values()) / n_pixels
