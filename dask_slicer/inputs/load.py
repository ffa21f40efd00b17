"""Volume of a case, loaded from its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dask_slicer.core.geometry import Grid, align, reorient
from dask_slicer.core.masks import merge_masks
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.errors import LabelValues
from dask_slicer.inputs.case import Case, Mask
from dask_slicer.inputs.readers import read_voxels
from dask_slicer.inputs.readers.base import VolumeHeader


def grids_of(headers: Sequence[VolumeHeader], *, n_images: int) -> list[Grid]:
    """Return the grids of a case's files: images, then the label or its masks."""
    return [
        Grid(
            shape=header.shape,
            affine=header.affine,
            name=f"{'image' if number < n_images else 'label'} {header.path}",
        )
        for number, header in enumerate(headers)
    ]


def load_volume(case: Case, plane: str) -> Volume:
    """Return the voxels of a case as stored, with axes in the order of a plane."""
    paths = case.image_files if case.label is None else (*case.image_files, case.label)
    headers, arrays = zip(*map(read_voxels, paths), strict=True)
    grids = grids_of(headers, n_images=len(case.image_files))
    orientations, grid = align(grids, plane)
    voxels = [
        Voxels(
            stored=reorient(array, orientation),
            slope=header.slope,
            intercept=header.intercept,
            source=header.path,
        )
        for header, array, orientation in zip(headers, arrays, orientations, strict=True)
    ]
    label, n_overlapping = None, 0
    if case.label is not None:
        label = voxels.pop()
    elif case.masks:
        label, n_overlapping = _merged(case, voxels[0], grids[0], plane)
    return Volume(
        image=_with_zeros(case, voxels),
        label=label,
        affine=grid.affine,
        n_overlapping=n_overlapping,
    )


def _with_zeros(case: Case, voxels: list[Voxels]) -> tuple[Voxels, ...]:
    """Return the images of a case, zeros in the place of those that it lacks."""
    present = iter(voxels)
    zeros = Voxels(stored=voxels[0].stored)
    if "" in case.images:
        zeros = Voxels(stored=np.zeros_like(voxels[0].stored), source="the missing image")
    return tuple(next(present) if path else zeros for path in case.images)


def _merged(case: Case, image: Voxels, image_grid: Grid, plane: str) -> tuple[Voxels, int]:
    """Return the label that the masks of a case make, and how many voxels two of them share."""
    masks = sorted(case.masks, key=lambda mask: mask.value)
    label, overlaps = merge_masks(
        _read_masks(masks, image_grid, plane), like=image.stored, largest=masks[-1].value
    )
    if overlaps and case.overlap == "error":
        (kept, lost), count = overlaps.most_common(1)[0]
        names = {mask.value: mask.structure for mask in masks}
        raise LabelValues(
            f"the masks of {names[kept]} and {names[lost]} share {count} voxels; correct them, or "
            f"use --overlap first, which counts such voxels for {names[kept]}"
        )
    return Voxels(stored=label, source="the merged masks"), overlaps.total()


def _read_masks(
    masks: Sequence[Mask], image_grid: Grid, plane: str
) -> Iterator[tuple[int, Voxels]]:
    """Yield the value and the voxels of each mask, on the grid of the image."""
    for mask in masks:
        header, array = read_voxels(mask.path)
        (mask_grid,) = grids_of([header], n_images=0)
        (_, orientation), _ = align([image_grid, mask_grid], plane)
        yield (
            mask.value,
            Voxels(
                stored=reorient(array, orientation),
                slope=header.slope,
                intercept=header.intercept,
                source=header.path,
            ),
        )
