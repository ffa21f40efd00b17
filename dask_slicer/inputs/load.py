"""Volume of a case, loaded from its files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dask_slicer.core.geometry import Grid, align, reorient
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.errors import LabelValues
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.readers import read_volumes
from dask_slicer.inputs.readers.base import VolumeHeader


def grids_of(
    headers: Sequence[VolumeHeader], *, has_label: bool, label_grid: str = "own"
) -> list[Grid]:
    """Return the grids of a case's files, images first, the label last.

    With `label_grid` "image", a label that is stored in the shape of the image takes its affine.
    """
    grids = []
    for number, header in enumerate(headers):
        is_label = has_label and number == len(headers) - 1
        if is_label and header.path in [other.path for other in headers[:-1]]:
            raise LabelValues(f"label {header.path} is the same file as the image")
        takes_image = is_label and label_grid == "image" and header.shape == headers[0].shape
        placed = headers[0] if takes_image else header
        grids.append(
            Grid(
                shape=header.shape,
                affine=placed.affine,
                name=f"{'label' if is_label else 'image'} {header.path}",
                is_label=is_label,
                oriented=placed.oriented,
                other_affine=placed.other_affine,
            )
        )
    return grids


def load_volume(case: Case, plane: str) -> Volume:
    """Return the voxels of a case as stored, with axes in the order of a plane."""
    volumes = read_volumes(case.files, orientation_from=case.orientation_from)
    headers = [header for header, _ in volumes]
    has_label = case.label is not None
    grids = grids_of(headers, has_label=has_label, label_grid=case.label_grid)
    orientations, grid = align(grids, plane)
    voxels = [
        Voxels(
            stored=reorient(array, orientation),
            slope=header.slope,
            intercept=header.intercept,
            source=header.path,
        )
        for (header, array), orientation in zip(volumes, orientations, strict=True)
    ]
    label = voxels.pop() if has_label else None
    if label is not None:
        for image in voxels:
            _check_differs(label, image)
    return Volume(image=tuple(voxels), label=label, affine=grid.affine)


def _check_differs(label: Voxels, image: Voxels) -> None:
    """Raise LabelValues if a label is a copy of an image; constant ones may well be equal."""
    if (label.slope, label.intercept) != (image.slope, image.intercept):
        return
    middle = label.stored.shape[0] // 2
    if not np.array_equal(label.stored[middle], image.stored[middle]):
        return  # as nearly always
    if np.array_equal(label.stored, image.stored) and np.ptp(label.stored):
        raise LabelValues(f"label {label.source} has the same voxels as image {image.source}")
