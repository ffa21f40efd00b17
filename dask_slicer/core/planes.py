"""Planes of a volume in memory: the same voxels with axes in another order, as views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.geometry import Grid, plane_orientation, reorient
from dask_slicer.core.volume import Volume, Voxels

# Orientation of what no plane decides: the file's axes, the last one first, as NIfTI files lie in
# memory. Sums and interpolated values are then the same to the last bit in every plane.
_IN_MEMORY = np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
_SAME = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def in_plane(volume: Volume, plane: str) -> Volume:
    """Return a loaded volume with axes in the order of a plane, as `load_volume` returns it."""
    return _turned(volume, plane_orientation(_stored_affine(volume), plane))


def in_memory(volume: Volume) -> Volume:
    """Return a volume with the axes of its file, the last one first; without a file, as it is."""
    return volume if volume.stored_affine is None else _turned(volume, _IN_MEMORY)


def change_of_axes(volume: Volume, other: Volume) -> NDArray[np.float64]:
    """Return the orientation that turns arrays of a volume into those of another view of it."""
    if volume.orientation is None or other.orientation is None:
        return _SAME
    return _change(volume.orientation, other.orientation)


def _change(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the orientation that leads from an array after `first` to the one after `second`.

    >>> _change(np.array([[1, 1], [2, -1], [0, 1]]), np.array([[0, 1], [2, 1], [1, -1]])).tolist()
    [[1.0, -1.0], [0.0, 1.0], [2.0, -1.0]]
    """
    change = np.empty((3, 2))
    change[first[:, 0].astype(int)] = np.stack([second[:, 0], first[:, 1] * second[:, 1]], axis=1)
    return change


def _stored_affine(volume: Volume) -> NDArray[np.float64]:
    assert volume.stored_affine is not None  # noqa: S101  # of a file
    return volume.stored_affine


def _turned(volume: Volume, orientation: NDArray[np.float64]) -> Volume:
    assert volume.orientation is not None  # noqa: S101  # of a file
    change = _change(volume.orientation, orientation)
    shape = volume.image[0].stored.shape
    first, second, third = (shape[int(axis)] for axis in volume.orientation[:, 0])
    stored = Grid(shape=(first, second, third), affine=_stored_affine(volume), name="")

    def turn(voxels: Voxels) -> Voxels:
        return replace(voxels, stored=reorient(voxels.stored, change))

    return replace(
        volume,
        image=tuple(map(turn, volume.image)),
        label=None if volume.label is None else turn(volume.label),
        affine=stored.reoriented(orientation).affine,
        orientation=orientation,
    )
