"""Formats of slices on disk, npz and Zarr: writing and reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.geometry import spacing, voxel_volume
from dask_slicer.core.slices import SliceStack
from dask_slicer.output.formats.npz import write_slices
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import WrittenFile, WrittenPlane, WrittenSlice


def _write_plane(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    *,
    names: Names = NO_NAMES,
    fsync: bool,
) -> tuple[tuple[WrittenSlice, ...], tuple[WrittenFile, ...]]:
    """Write a plane of a case into an empty folder; return slices, and files that they share."""
    if settings.format == "npz":
        return write_slices(stack, case, settings, folder, names=names, fsync=fsync), ()
    from dask_slicer.output.formats.zarr_writer import write_group

    return write_group(stack, case, settings, folder / case.case_id, names=names, fsync=fsync)


def write_case(
    stacks: Sequence[SliceStack],
    case: CasePlan,
    settings: SliceSettings,
    folders: Sequence[Path],
    *,
    names: Names = NO_NAMES,
    fsync: bool,
) -> list[WrittenPlane]:
    """Write each plane of a case into an empty folder of its own; return what was written."""
    written = []
    for plane, stack, folder in zip(settings.planes, stacks, folders, strict=True):
        own = settings.model_copy(update={"plane": plane})
        slices, files = _write_plane(stack, case, own, folder, names=names, fsync=fsync)
        written.append(
            WrittenPlane(
                plane=plane,
                shape=(len(stack.image), *stack.shape),
                spacing=spacing(stack.affine),
                slices=slices,
                files=files,
                steps=stack.changes(),
                voxel_volume=voxel_volume(stack.affine),
            )
        )
    return written
