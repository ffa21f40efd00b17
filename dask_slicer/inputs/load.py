"""Volume of a case, loaded from its files."""

from __future__ import annotations

from collections.abc import Sequence

from dask_slicer.core.geometry import Grid, align, reorient
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.readers import read_voxels
from dask_slicer.inputs.readers.base import VolumeHeader


def grids_of(headers: Sequence[VolumeHeader], *, has_label: bool) -> list[Grid]:
    """Return the grids of a case's files, images first, the label last."""
    grids = []
    for number, header in enumerate(headers):
        is_label = has_label and number == len(headers) - 1
        name = f"{'label' if is_label else 'image'} {header.path}"
        grids.append(Grid(shape=header.shape, affine=header.affine, name=name))
    return grids


def load_volume(case: Case, plane: str) -> Volume:
    """Return the voxels of a case as stored, with axes in the order of a plane."""
    headers, arrays = zip(*map(read_voxels, case.files), strict=True)
    has_label = case.has_label
    orientations, grid = align(grids_of(headers, has_label=has_label), plane)
    voxels = [
        Voxels(
            stored=reorient(array, orientation),
            slope=header.slope,
            intercept=header.intercept,
            source=header.path,
        )
        for header, array, orientation in zip(headers, arrays, orientations, strict=True)
    ]
    label = voxels.pop() if has_label else None
    return Volume(image=tuple(voxels), label=label, affine=grid.affine)
