"""Formats of slices on disk, npz and Zarr: writing and reading."""

from __future__ import annotations

from pathlib import Path

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import SliceStack
from dask_slicer.output.formats.npz import write_slices
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import WrittenFile, WrittenSlice


def write_case(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    *,
    names: Names = NO_NAMES,
    fsync: bool,
) -> tuple[tuple[WrittenSlice, ...], tuple[WrittenFile, ...]]:
    """Write a case into an empty folder; return its slices, and files that slices share."""
    if settings.format == "npz":
        return write_slices(stack, case, settings, folder, names=names, fsync=fsync), ()
    from dask_slicer.output.formats.zarr_writer import write_group

    return write_group(stack, case, settings, folder / case.case_id, names=names, fsync=fsync)
