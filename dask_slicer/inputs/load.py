"""Volume of a case, loaded from its files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.geometry import Grid, align, reorient
from dask_slicer.core.labels import looks_like_labels
from dask_slicer.core.masks import merge_masks
from dask_slicer.core.volume import Volume, Voxels, extremes, iterate_planes, zeros_like
from dask_slicer.errors import LabelValues, UnsupportedImage
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.readers import read_volumes, read_voxels
from dask_slicer.inputs.readers.base import VolumeHeader


def grids_of(
    headers: Sequence[VolumeHeader], *, n_images: int, label_grid: str = "own"
) -> list[Grid]:
    """Return the grids of a case's files: images, then the label or its masks.

    With `label_grid` "image", a label that is stored in the shape of the image takes its affine.
    """
    images = {header.path for header in headers[:n_images]}
    grids = []
    for number, header in enumerate(headers):
        is_label = number >= n_images
        if is_label and header.path in images:
            raise LabelValues(f"label {header.path} is the same file as the image; give its own")
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


def load_volume(case: Case, plane: str, *, scratch_dir: str = "") -> Volume:
    """Return the voxels of a case as stored, with axes in the order of a plane.

    With `scratch_dir`, memory does not hold them, nor what is made of them: see `utils.mapped`.
    """
    n_images = len(case.image_files)
    paths = case.image_files if case.label is None else (*case.image_files, case.label)
    volumes = read_volumes(paths, orientation_from=case.orientation_from, scratch_dir=scratch_dir)
    headers = [header for header, _ in volumes]
    grids = grids_of(headers, n_images=n_images, label_grid=case.label_grid)
    orientations, grid = align(grids, plane)
    voxels = [
        _voxels(header, array, orientation)
        for (header, array), orientation in zip(volumes, orientations, strict=True)
    ]
    _check_unnamed(case, voxels)
    label, n_overlapping = None, 0
    if case.label is not None:
        label = voxels.pop()
        for image in voxels:
            _check_differs(label, image)
    elif case.masks:
        label, n_overlapping = _merged(case, voxels[0], headers[0], plane, scratch_dir)
    return Volume(
        image=_with_zeros(case, voxels),
        label=label,
        affine=grid.affine,
        n_overlapping=n_overlapping,
        orientation=orientations[0],
        stored_affine=grids[0].affine,
    )


def _voxels(
    header: VolumeHeader, array: NDArray[np.generic], orientation: NDArray[np.float64]
) -> Voxels:
    return Voxels(
        stored=reorient(array, orientation),
        slope=header.slope,
        intercept=header.intercept,
        source=header.path,
    )


def _check_unnamed(case: Case, voxels: Sequence[Voxels]) -> None:
    """Raise UnsupportedImage if an image whose name does not say so has the voxels of labels."""
    unnamed = {case.images[number] for number in case.unnamed}
    for image in voxels[: len(case.image_files)]:
        if image.source in unnamed and looks_like_labels(image.stored):
            raise UnsupportedImage(
                f"{image.source} looks like a label map by its voxels, not like an image; if it is "
                "an image, name it with --images or in a manifest"
            )


def _with_zeros(case: Case, voxels: Sequence[Voxels]) -> tuple[Voxels, ...]:
    """Return the images of a case, zeros in the place of those that it lacks."""
    if "" not in case.images:
        return tuple(voxels)
    present = iter(voxels)
    first = voxels[0].stored
    zeros = Voxels(stored=zeros_like(first, first.dtype), source="a missing image")
    return tuple(next(present) if path else zeros for path in case.images)


def _merged(
    case: Case, image: Voxels, image_header: VolumeHeader, plane: str, scratch_dir: str
) -> tuple[Voxels, int]:
    """Return the label that the masks of a case make, and how many voxels two of them share."""
    masks = sorted(case.masks, key=lambda mask: mask.value)

    def read(path: str) -> Voxels:
        header, array = read_voxels(
            path, orientation_from=case.orientation_from, scratch_dir=scratch_dir
        )
        grids = grids_of([image_header, header], n_images=1, label_grid=case.label_grid)
        (_, orientation), _ = align(grids, plane)
        return _voxels(header, array, orientation)

    label, overlaps = merge_masks(
        ((mask.value, read(mask.path)) for mask in masks),
        like=image.stored,
        largest=masks[-1].value,
    )
    if overlaps and case.overlap == "error":
        (kept, lost), count = overlaps.most_common(1)[0]
        names = {mask.value: mask.structure for mask in masks}
        raise LabelValues(
            f"the masks of {names[kept]} and {names[lost]} share {count} voxels; correct them, or "
            f"use --overlap first, which counts such voxels for {names[kept]}"
        )
    return Voxels(stored=label, source="the merged masks"), overlaps.total()


def _check_differs(label: Voxels, image: Voxels) -> None:
    """Raise LabelValues if a label is a copy of an image; constant ones may well be equal."""
    if (label.slope, label.intercept) != (image.slope, image.intercept):
        return
    # Planes that follow each other in the file.
    slowest = int(np.argmax(np.abs(image.stored.strides)))
    planes, same = (np.moveaxis(voxels.stored, slowest, 0) for voxels in (label, image))
    middle = len(planes) // 2
    if not np.array_equal(planes[middle], same[middle]):
        return  # as nearly always
    pairs = zip(iterate_planes(planes), iterate_planes(same), strict=True)
    if not all(np.array_equal(of_label, of_image) for of_label, of_image in pairs):
        return
    lowest, highest = extremes(label.stored)
    if lowest != highest:
        raise LabelValues(
            f"label {label.source} has the same voxels as image {image.source}; "
            "give the label of this case"
        )
