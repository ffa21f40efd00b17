"""Steps of a plan: from settings to values, and what they make of a case's grid."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dask_slicer.config.effects import DatasetFacts, without_effect
from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.config.step_settings import StepSettings, crop_box, ct_window_limits
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.geometry import orientation_of_codes
from dask_slicer.core.steps.grid import grid_steps
from dask_slicer.core.steps.label_map import LabelMap
from dask_slicer.core.steps.selection import SliceRange, candidates
from dask_slicer.core.steps.steps import Steps, stored_box
from dask_slicer.errors import DatasetError
from dask_slicer.utils.formatting import did_you_mean

Shape = tuple[int, int, int]
# In a case's digest, these are what they lead to for that case.
_RESOLVED = {"slice_list", "keep_empty_in"}


def label_values(settings: StepSettings, names: Mapping[int, str]) -> dict[int, int] | None:
    """Return the new value of each label value that the label map lists; None without one.

    Raises
    ------
    DatasetError
        If it names a label that the dataset does not have.
    """
    if settings.label_map is None:
        return None
    try:
        return LabelMap.parse(settings.label_map).values(names)
    except ValueError as error:
        raise DatasetError(str(error)) from None


def names_labels(settings: StepSettings) -> bool:
    """Return whether the label map gives old values by name."""
    pairs = () if settings.label_map is None else LabelMap.parse(settings.label_map).pairs
    return not all(old.lstrip("-").isdecimal() for old, _ in pairs)


def in_effect(settings: RunConfig, name: str) -> Any:
    """Return a setting, or its default if it has no effect with the others."""
    unused = dict(without_effect(settings, DatasetFacts()))
    return RunConfig.model_fields[name].default if name in unused else getattr(settings, name)


def common_steps(
    settings: RunConfig,
    new_values: Mapping[int, int] | None,
    properties: tuple[IntensityProperties, ...] = (),
) -> Steps:
    """Return the steps that all cases of a run share."""
    others = "fail" if new_values is None else LabelMap.parse(settings.label_map or "").others
    box = settings.crop in (None, "nonzero", "label")
    return Steps(
        label_values=new_values,
        other_labels=others,
        min_component_voxels=settings.min_component_voxels,
        min_component_pixels=settings.min_component_pixels,
        crop=settings.crop if box else crop_box(settings.crop or ""),
        crop_margin=settings.crop_margin,
        percentiles=settings.percentiles,
        ct_windows=tuple(map(ct_window_limits, settings.ct_windows)),
        foreground=in_effect(settings, "foreground"),
        zero_background=settings.zero_background,
        dataset=properties,
        spacing=settings.spacing,
        resample_order=settings.resample_order,
        size=settings.size,
        fit=settings.fit,
        size_order=settings.size_order,
        center=in_effect(settings, "center"),
        slices=None if settings.slices is None else _slice_range(settings.slices),
        stride=settings.stride,
        keep_empty=settings.keep_empty,
        drop_blank=settings.drop_blank,
        seed=settings.seed,
    )


@lru_cache(maxsize=4)
def _slice_range(text: str) -> SliceRange:
    return SliceRange.parse(text)


def mapped_names(settings: SliceSettings, names: Mapping[int, str]) -> dict[int, str]:
    """Return the names of label values after the label map."""
    if settings.label_map is None:
        return dict(names)
    return LabelMap.parse(settings.label_map).names(names)


def thins_split(settings: StepSettings, split: str) -> bool:
    """Return whether slices without a label are dropped in a split."""
    return settings.keep_empty < 1 and (settings.keep_empty_in == "all" or split == "train")


def in_digest(settings: RunConfig, *, split: str, listed: Any) -> dict[str, Any]:
    """Return what the steps add to the digest of a case; nothing if there are none."""
    content = {
        name: value for name, value in settings.changed_steps.items() if name not in _RESOLVED
    }
    if thins_split(settings, split):
        content["seed"] = settings.seed
    else:
        content.pop("keep_empty", None)
    if listed is not None:
        content["listed"] = sorted(listed)
    return {"steps": content} if content else {}


def sliced_grid(
    settings: StepSettings, *, shape: Shape, spacing: tuple[float, float, float], stored_as: str
) -> tuple[Shape, tuple[float, float, float]]:
    """Return shape and spacing of the slices of a case, as far as headers tell.

    A crop to what is not 0, or to the label, is not known; without it, slices are as large as the
    scan at the wanted spacing.

    Parameters
    ----------
    shape, spacing
        Of the case, its axes in the order of the plane.
    stored_as : str
        Directions of the axes of the first image's file, and the plane: "LPS axial".

    Raises
    ------
    GeometryMismatch
        If the box holds no voxel of the case.
    """
    box = None
    if settings.crop not in (None, "nonzero", "label"):
        codes, _, plane = stored_as.partition(" ")
        limits = crop_box(settings.crop)
        box = stored_box(limits, shape, orientation_of_codes(codes, plane))
    grid = grid_steps(
        shape,
        spacing,
        box=box,
        spacing=settings.spacing,
        size=settings.size,
        fit=settings.fit,
    )
    return grid.shape, grid.spacing(spacing)


def n_selected(settings: StepSettings, n_slices: int, listed: frozenset[int] | None) -> int:
    """Return the most slices of a case that its range, stride and list leave."""
    within = None if settings.slices is None else _slice_range(settings.slices)
    least = n_slices
    if within is not None and settings.crop in ("nonzero", "label"):
        # After the crop there may be fewer slices, and of these, a range may leave more.
        least = min(max(listed or {0}) + 1, n_slices)
    return max(
        len(candidates(n, within=within, stride=settings.stride, listed=listed))
        for n in range(least, n_slices + 1)
    )


def steps_of(
    steps: Steps,
    settings: StepSettings,
    *,
    case_id: str,
    split: str,
    listed: frozenset[int] | None,
) -> Steps:
    """Return the steps of one case."""
    keep_empty = steps.keep_empty if thins_split(settings, split) else 1.0
    return replace(steps, case_id=case_id, listed=listed, keep_empty=keep_empty)


def _read_slice_list(path: Path, plane: str) -> dict[str, frozenset[int]]:
    """Return the listed slices of each case, from the columns case_id and slice_index of a table.

    Of a table with a column plane, as slices.csv of several planes, rows of other planes are left
    out.

    Raises
    ------
    DatasetError
        If the file cannot be read, or is no such table.
    """
    listed: defaultdict[str, set[int]] = defaultdict(set)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            for row in rows:
                index = int(row["slice_index"])
                if index < 0:
                    raise ValueError(f"slice_index {index}")
                if row.get("plane", plane) == plane:
                    listed[row["case_id"]].add(index)
            if not listed:
                raise ValueError(f"it names no {plane} slice")
    except OSError as error:
        raise DatasetError(f"cannot read the slice_list {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DatasetError(
            f"{path} must be a CSV table with the columns case_id and slice_index (from 0), "
            f"such as slices.csv of an output ({error})"
        ) from None
    return {case_id: frozenset(indices) for case_id, indices in listed.items()}


def listed_slices(
    config: RunConfig, known: Collection[str]
) -> Callable[[str], frozenset[int] | None]:
    """Return a function of a case id that returns its listed slices, None if there is no list."""
    if config.slice_list is None:
        return lambda _: None
    slices = _read_slice_list(config.slice_list, config.planes[0])
    for name in slices:
        if name not in known:
            raise DatasetError(
                f"{config.slice_list} names {name}, but there is no such case"
                f"{did_you_mean(name, known)}"
            )
    return lambda case_id: slices.get(case_id, frozenset())
