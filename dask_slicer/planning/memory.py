"""Memory that a case takes, and the room for its arrays in files where memory does not hold them.

An estimate from headers and settings. Pages of mapped files that are given back do not count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from dask_slicer.config.schema import RunConfig, SliceSettings
from dask_slicer.core.steps.resampling import resampled_shape
from dask_slicer.inputs.case import Case
from dask_slicer.utils import system
from dask_slicer.utils.formatting import first_few, format_bytes, plural
from dask_slicer.utils.modalities import for_each_modality

# Memory of a worker before its first case: Python, numpy, distributed.
WORKER_BASE_BYTES = 200_000_000
# Of an array in a file, what is in memory at once; `core.volume` gives back the rest.
_BLOCK_BYTES = 1 << 25
# Planes of float64 or of indices that a step makes of one plane.
_PLANES_OF_A_STEP = 8
# Buffers of `core.steps.operators`, each of this many float32 or of one plane, and the row of a
# slice that is resampled at once.
_RESAMPLING_BUFFERS, _BUFFER, _ROW = 7, 1 << 22, 1 << 13
# Tables and values of `core.ranks`.
_RANKS_BYTES = 50_000_000

_Shape = tuple[int, int, int]


class _CaseSizes(Protocol):
    """What decides the memory of a case; see `CasePlan`."""

    @property
    def case(self) -> Case: ...
    @property
    def split(self) -> str: ...
    @property
    def shape(self) -> _Shape: ...
    @property
    def spacing(self) -> tuple[float, float, float]: ...
    @property
    def slice_shape(self) -> _Shape: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def voxel_bytes(self) -> int: ...
    @property
    def has_label(self) -> bool: ...
    @property
    def parts(self) -> Sequence[Self]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrays:
    """Bytes of what is made of the voxels of a case."""

    label: int
    changed: int  # images and labels by steps
    components: int  # of a label
    sorted: int  # intensities, for percentiles
    foreground: int  # a mask, and the voxels in it
    written: int  # planes, and files that are written at once
    turned: int  # images and label with the axes of one plane


def _arrays(case: _CaseSizes, settings: SliceSettings) -> _Arrays:
    parts, templates = case.parts, settings.templates_of(case.split)
    n_images = len(case.case.images)
    voxels, sliced = prod(case.shape), sum(prod(part.slice_shape) for part in parts)
    in_plane = max(prod(part.slice_shape[1:]) for part in parts)
    wanted = settings.spacing
    resampled = prod(resampled_shape(case.shape, case.spacing, wanted)) if wanted else 0
    planes = (2 * settings.window_size + 1) * max((t.copies for t in templates), default=0) or 1
    copies = len(parts) > 1 or settings.resamples  # of the label: before and after
    label = max(voxels, resampled) + sliced if copies else max(voxels, sliced)
    label_bytes = np.dtype(settings.label_dtype).itemsize * case.has_label
    label *= label_bytes
    # Planes of a window, raw and deflated.
    written = 3 * planes * n_images * in_plane * 4
    sorts = settings.percentiles or "percentile" in for_each_modality(settings.normalize, 1)
    masked = settings.foreground not in ("min", "all")
    n_channels = n_images * settings.n_windows
    held = {t.suffix for t in templates if not t.is_per_slice} & {".npz", ".h5"}  # .h5 twice
    written += 4 * sliced * (n_channels * planes + case.has_label) * (len(held) + (".h5" in held))
    sized, changed = 0 if settings.size is None else sliced, 0
    if settings.resamples:  # one channel normalised, all of them on their new grid
        on_grid = max(resampled, sized) if len(parts) == 1 else resampled + sized
        changed = 4 * (voxels + n_channels * on_grid)
    elif sized:
        changed = sized * settings.n_windows * case.voxel_bytes // max(voxels, 1)
    if settings.label_map is not None or settings.removes_components:
        changed += 8 * voxels  # of int32 before and after, or numbers of components
    return _Arrays(
        label=label,
        changed=changed,
        components=8 * voxels if finds_components(settings) else 0,
        sorted=voxels * 8 if sorts else 0,  # a float64 copy of one modality
        foreground=voxels + case.voxel_bytes // n_images if masked else 0,
        written=written,
        turned=max(case.voxel_bytes, resampled * (4 + label_bytes)),
    )


def peak_bytes(case: _CaseSizes, settings: SliceSettings) -> int:
    """Return the memory that a case needs to be loaded, sliced and saved, in bytes.

    All planes of a case are views of one volume, until they get their in-plane size.
    """
    arrays = _arrays(case, settings)
    statistics = arrays.sorted + arrays.foreground
    return case.voxel_bytes + arrays.label + arrays.changed + max(arrays.written, statistics)


def floor_bytes(case: _CaseSizes, settings: SliceSettings) -> int:
    """Return the memory that a case needs if its arrays are in files, in bytes."""
    arrays = _arrays(case, settings)
    n_images = len(case.case.images) * settings.n_windows
    in_plane = max(prod(part.shape[1:]) for part in case.parts)
    in_plane = max(in_plane, *(prod(part.slice_shape[1:]) for part in case.parts))
    needed = (n_images + case.has_label + 1) * _BLOCK_BYTES
    needed += _PLANES_OF_A_STEP * 8 * in_plane
    if settings.resamples:
        largest = max(n for part in case.parts for n in (*part.shape, *part.slice_shape))
        needed += 4 * (_RESAMPLING_BUFFERS * max(_BUFFER, in_plane) + 2 * largest * _ROW)
    statistics = _RANKS_BYTES if arrays.sorted else 0
    needed += max(arrays.written, arrays.components, statistics)
    return min(needed, peak_bytes(case, settings))


def scratch_bytes(case: _CaseSizes, settings: SliceSettings) -> int:
    """Return the room for the arrays of a case in files, in bytes, at most."""
    arrays = _arrays(case, settings)
    inflated = case.voxel_bytes if case.file_bytes < case.voxel_bytes else 0
    turned = arrays.turned * len(case.parts)
    return inflated + turned + arrays.label + arrays.changed + arrays.foreground


def finds_components(settings: SliceSettings) -> bool:
    """Return whether components of a label in 3D are found, which is done in memory."""
    return settings.min_component_voxels > 1


def needs_scratch(case: _CaseSizes, settings: SliceSettings, limit: int | None) -> bool:
    """Return whether the arrays of a case are in files, in a worker of `limit` bytes."""
    return limit is not None and WORKER_BASE_BYTES + peak_bytes(case, settings) > limit


def least_limit(case: _CaseSizes, settings: SliceSettings) -> int:
    """Return the least memory of a worker that can run a case, if need be with files, in bytes."""
    return min(WORKER_BASE_BYTES + floor_bytes(case, settings), peak_bytes(case, settings))


def planned_limit(config: RunConfig, *, n_cases: int, peak: int) -> int | None:
    """Return the memory that a worker will have, in bytes; None if it is not known yet.

    Parameters
    ----------
    config : RunConfig
    n_cases : int
        There are no more workers than these.
    peak : int
        Memory of a worker for the largest case: with `num_workers` -1, no more start than fit.
    """
    if config.scheduler is not None or config.scheduler_file is not None:
        return None
    if config.cluster is not None:
        return config.memory // config.cores
    memory, n_workers = system.memory_bytes(), config.num_workers
    if "num_workers" not in config.model_fields_set:
        n_workers = min(n_workers, system.cpu_count())
    elif n_workers == -1:
        n_workers = min(system.cpu_count(), max(memory // max(peak, 1), 1))
    return memory // max(min(n_workers, n_cases), 1)


def scratch_lines(cases: Sequence[_CaseSizes], config: RunConfig, *, peak: int) -> list[str]:
    """Return which cases have their voxels in files, or cannot run for lack of memory, as text.

    `peak` is that of `planned_limit`.
    """
    limit = planned_limit(config, n_cases=len(cases), peak=peak)
    if limit is None:
        return []
    lines = []
    refused = {case.case.case_id: least_limit(case, config) for case in cases}
    refused = {case_id: least for case_id, least in refused.items() if least > limit}
    if refused:
        why = (
            ", since components of a label are found in memory" if finds_components(config) else ""
        )
        lines.append(
            f"Note: {plural(len(refused), 'case')} cannot run with {format_bytes(limit)} of memory "
            f"for a worker, but with {format_bytes(max(refused.values()))}{why}: "
            f"{first_few(list(refused))}"
        )
    large = [
        case
        for case in cases
        if case.case.case_id not in refused and needs_scratch(case, config, limit)
    ]
    # Not those that would fit if a worker took nothing for itself: there may be thousands.
    if not any(peak_bytes(case, config) > limit for case in large):
        return lines
    needed = max(scratch_bytes(case, config) for case in large)
    folder = _scratch_folder(config)
    names = first_few([case.case.case_id for case in large])
    lines.append(
        f"Scratch: {plural(len(large), 'case')} ({names}) "
        f"{'is' if len(large) == 1 else 'are'} larger than the memory of a worker, "
        f"{format_bytes(limit)}: voxels are in files of {folder}, at most {format_bytes(needed)} "
        "for each worker"
    )
    if (free := system.free_bytes(folder)) < needed:
        lines.append(f"Note: only {format_bytes(free)} is free in {folder}; see --scratch_dir")
    return lines


def _scratch_folder(config: RunConfig) -> Path:
    """Return the directory whose disk has the files."""
    if config.scratch_dir is not None:
        return config.scratch_dir
    return config.output_dir if config.has_output else Path(tempfile.gettempdir())
