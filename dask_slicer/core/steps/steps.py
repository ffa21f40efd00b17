"""Steps of a case: their settings, and the label, the crop and the slices that they lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.foreground import IntensityProperties, sample_intensities
from dask_slicer.core.geometry import reorient
from dask_slicer.core.geometry import spacing as spacing_of
from dask_slicer.core.labels import convert_label
from dask_slicer.core.planes import change_of_axes, in_memory
from dask_slicer.core.steps.cropping import (
    Box,
    box_within,
    grown_box,
    label_box,
    nonzero_box,
    reoriented_box,
)
from dask_slicer.core.steps.grid import GridSteps, grid_steps
from dask_slicer.core.steps.selection import SliceRange, candidates, thin_empty
from dask_slicer.core.steps.sizing import Size, label_center
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.errors import MissingLabel
from dask_slicer.utils.mapped import scratch_dir_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Settings of the steps of a case; by default, none changes anything.

    Attributes
    ----------
    label_values : mapping of int to int, optional
        New label values by old ones.
    other_labels : {"fail", "zero", "keep"}
    min_component_voxels, min_component_pixels : int
    crop : {"nonzero", "label"} or Box, optional
        A box counts voxels of the axes of the first image's file.
    crop_margin : float
        In mm.
    percentiles : tuple of float, optional
    ct_windows : tuple of (low, high)
    foreground : {"min", "all", "nonzero", "positive", "label", "otsu"}
    zero_background : bool
    dataset : tuple of IntensityProperties
        One for each modality, for the normalisation `dataset`.
    spacing : sequence of 3 float or None, optional
    resample_order : {3, 1, 0}
    size : tuple of 2 int, optional
    fit : {"crop_pad", "resize", "letterbox"}
    size_order : {1, 3}
    center : {"volume", "label"}
    slices : SliceRange, optional
    stride : int
    listed : frozenset of int, optional
        The only slices to keep.
    keep_empty : float
        Share of the slices without a label to keep.
    drop_blank : bool
    seed : int
    case_id : str
        With the seed, decides which slices without a label are kept.
    """

    label_values: Mapping[int, int] | None = None
    other_labels: str = "fail"
    min_component_voxels: int = 0
    min_component_pixels: int = 0
    crop: str | Box | None = None
    crop_margin: float = 0.0
    percentiles: tuple[float, float] | None = None
    ct_windows: tuple[tuple[float, float], ...] = ()
    foreground: str = "min"
    zero_background: bool = False
    dataset: tuple[IntensityProperties, ...] = ()
    spacing: Sequence[float | None] | None = None
    resample_order: int = 3
    size: Size | None = None
    fit: str = "crop_pad"
    size_order: int = 1
    center: str = "volume"
    slices: SliceRange | None = None
    stride: int = 1
    listed: frozenset[int] | None = None
    keep_empty: float = 1.0
    drop_blank: bool = False
    seed: int = 0
    case_id: str = ""


NO_STEPS = Steps()


@dataclass(slots=True)
class LabelChanges:
    """What became of the voxels of a label, for messages and records."""

    values: dict[int, int] = field(default_factory=dict)  # voxels by value before a label map
    n_removed: int = 0  # voxels of small components
    lost: dict[int, int] = field(default_factory=dict)  # voxels by value, by spacing and size


def changed_label(
    voxels: Voxels, dtype: str, steps: Steps, changes: LabelChanges
) -> NDArray[np.integer]:
    """Return a label as integers, its values replaced and small components removed.

    Raises
    ------
    LabelValues
        If a value is not an integer, is not in the label map, or does not fit `dtype`.
    """
    if steps.label_values is None:
        label = convert_label(voxels, dtype)
    else:
        from dask_slicer.core.steps.label_map import map_labels

        mapped, changes.values = map_labels(
            convert_label(voxels, "int32"),
            steps.label_values,
            others=steps.other_labels,
            source=voxels.source,
        )
        label = convert_label(Voxels(stored=mapped, source=voxels.source), dtype)
    if max(steps.min_component_voxels, steps.min_component_pixels) > 1:
        from dask_slicer.core.steps.label_map import remove_small_components

        label, changes.n_removed = remove_small_components(
            label, voxels=steps.min_component_voxels, pixels=steps.min_component_pixels
        )
    return label


def label_in_frame(
    view: Volume, frame: Volume, dtype: str, steps: Steps, changes: LabelChanges
) -> NDArray[np.integer] | None:
    """Return the changed label of a case with the axes of `frame`; None without a label.

    Components of a slice are those of `view`.
    """
    if view.label is None or frame.label is None:
        return None
    # In the order of the file, it is read once, and not for each block of slices.
    if scratch_dir_of(view.label.stored) and steps.min_component_pixels <= 1:
        return changed_label(frame.label, dtype, steps, changes)
    label = changed_label(view.label, dtype, steps, changes)
    return reorient(label, change_of_axes(view, frame))


def kept_box(frame: Volume, label: NDArray[np.integer] | None, steps: Steps) -> Box | None:
    """Return the box of a case to be cut out, in the axes of `frame`; None for all of it.

    Raises
    ------
    GeometryMismatch
        If no voxel of the case is in the box.
    MissingLabel
        If the crop or the middle is that of the label, and there is none.
    """
    by_label = [
        f"--{name} label"
        for name, value in (("crop", steps.crop), ("center", steps.center))
        if value == "label"
    ]
    if by_label and label is None:
        raise MissingLabel(f"{' and '.join(by_label)} needs a label, and this case has none")
    full = _shape(frame)
    if not isinstance(steps.crop, str):
        return None if steps.crop is None else stored_box(steps.crop, full, frame.orientation)
    if steps.crop == "label" and label is not None:
        box = label_box(label)
    else:
        box = nonzero_box(frame.image)
    return grown_box(box, full, spacing=spacing_of(frame.affine), margin=steps.crop_margin)


def grid_of(
    view: Volume, cropped: NDArray[np.integer] | None, box: Box | None, steps: Steps
) -> GridSteps:
    """Return the steps that change the grid of a case in a plane, with the axes of that plane.

    `cropped` is the label in the box, which both have these axes.
    """
    center = None
    if cropped is not None and steps.center == "label" and steps.size is not None:
        center = label_center(cropped)
    return grid_steps(
        _shape(view),
        spacing_of(view.affine),
        box=box,
        spacing=steps.spacing,
        size=steps.size,
        fit=steps.fit,
        center=center,
    )


def _shape(volume: Volume) -> tuple[int, int, int]:
    n_slices, height, width = volume.image[0].stored.shape
    return n_slices, height, width


def stored_box(
    limits: Box, full: tuple[int, int, int], orientation: NDArray[np.float64] | None
) -> Box:
    """Return a box of voxels of the file's axes as one of the axes in the order of the plane."""
    if orientation is None:
        return box_within(limits, full)
    stored = [full[int(axis)] for axis in orientation[:, 0]]
    return reoriented_box(box_within(limits, stored), stored, orientation)


def labelled_sample(
    volume: Volume, label_dtype: str, steps: Steps, *, n_voxels: int, nonfinite: str = "error"
) -> NDArray[np.float32]:
    """Return intensities of labelled voxels, (n_modalities, n), after label map and crop."""
    if volume.label is None:
        raise MissingLabel("statistics of labelled voxels need a label, and this case has none")
    frame = in_memory(volume)
    label = label_in_frame(volume, frame, label_dtype, steps, LabelChanges())
    assert label is not None  # noqa: S101
    grid = GridSteps(full=_shape(frame), box=kept_box(frame, label, steps))
    image = [replace(voxels, stored=grid.crop(voxels.stored)) for voxels in frame.image]
    return sample_intensities(
        image,
        grid.crop(label),
        n=n_voxels,
        case_id=steps.case_id,
        zero_nonfinite=nonfinite == "zero",
    )


def kept_slices(
    n_slices: int,
    steps: Steps,
    *,
    share_of: Callable[[int], float] | None,
    min_foreground: float,
    is_blank: Callable[[int], bool],
) -> tuple[int, ...]:
    """Return the indices of the slices to write, ascending.

    `share_of` returns the share of labelled pixels of a slice; it is None without a label.
    """
    indices = list(
        candidates(n_slices, within=steps.slices, stride=steps.stride, listed=steps.listed)
    )
    if share_of is not None:
        indices = [index for index in indices if share_of(index) >= min_foreground]
    if steps.drop_blank:
        indices = [index for index in indices if not is_blank(index)]
    if share_of is not None and steps.keep_empty < 1:
        is_empty = [share_of(index) == 0 for index in indices]
        indices = thin_empty(
            indices, is_empty, share=steps.keep_empty, seed=steps.seed, case_id=steps.case_id
        )
    return tuple(indices)
