"""Formats of slices on disk: npz, Zarr, PNG and other files; writing and reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.geometry import spacing, voxel_volume
from dask_slicer.core.slices import SliceStack
from dask_slicer.output.formats.npz import write_slices
from dask_slicer.output.layout import section
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import WrittenPlane


def _write_plane(
    stack: SliceStack,
    case: CasePlan,
    settings: SliceSettings,
    folder: Path,
    *,
    names: Names = NO_NAMES,
    fsync: bool,
    plane_folder: str,
) -> dict[str, Any]:
    """Write a plane of a case into an empty folder; return slices and files, as `WrittenPlane`."""
    if settings.format == "npz":
        slices = write_slices(stack, case, settings, folder, names=names, fsync=fsync)
        return {"slices": slices}
    if settings.format == "zarr":
        from dask_slicer.output.formats.zarr_writer import write_group

        group = folder / case.case_id
        slices, files = write_group(stack, case, settings, group, names=names, fsync=fsync)
        return {"slices": slices, "files": files}
    from dask_slicer.output.formats.files import write_files

    place = section(case.split, plane_folder)
    slices, output_files = write_files(
        stack, case, settings, folder, names=names, fsync=fsync, section=place
    )
    return {"slices": slices, "output_files": output_files}


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
        plane_folder = plane if settings.plane_folders else ""
        content = _write_plane(
            stack, case, own, folder, names=names, fsync=fsync, plane_folder=plane_folder
        )
        written.append(written_plane(plane, stack, content))
    return written


def written_plane(plane: str, stack: SliceStack, content: dict[str, Any]) -> WrittenPlane:
    """Return the record of a plane, from its slices and files."""
    return WrittenPlane(
        plane=plane,
        shape=(len(stack.image), *stack.shape),
        spacing=spacing(stack.affine),
        **content,
        steps=stack.changes(),
        voxel_volume=voxel_volume(stack.affine),
    )
