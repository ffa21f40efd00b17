"""Orientation, reordering of axes, and comparison of grids.

Orientations are nibabel's: a ``(3, 2)`` array whose row *a* holds the output axis that input axis
*a* becomes, and -1 if it is flipped, else 1. Nothing is ever resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from math import copysign, hypot, inf
from operator import mul
from typing import NamedTuple, TypeVar

import nibabel.orientations as nio
import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import GeometryMismatch
from dask_slicer.utils.formatting import format_shape

_Number = TypeVar("_Number", bound=np.generic)
# Directions in which (slice_index, row, column) grow: radiological display order.
#
#   axial     slice I→S, rows A→P, columns R→L    (SimpleITK's array [z] of an LPS image)
#   coronal   slice A→P, rows S→I, columns R→L
#   sagittal  slice R→L, rows S→I, columns A→P
_ANATOMICAL = {
    "axial": ("S", "P", "L"),
    "coronal": ("P", "I", "L"),
    "sagittal": ("L", "I", "P"),
}
# The file's own axis first, then the two others in order; no flips.
_STORED = {
    "i": ((0, 1), (1, 1), (2, 1)),
    "j": ((1, 1), (0, 1), (2, 1)),
    "k": ((1, 1), (2, 1), (0, 1)),
}
# In mm: longer than any voxel.
_LONGEST = 1e9
SINGULAR = "the affine is singular; repair the header's sform or qform"
# In voxels: tools round the same affine differently when they write it.
_SAME_GRID = 0.1
# Cosines of the smallest angle between two axes that counts as right, and of the largest between an
# axis of the array and an anatomical one that counts as near.
_ORTHOGONAL, _NEAR_AXIS = 1e-3, 0.8


def check_affine(affine: NDArray[np.float64]) -> None:
    """Raise GeometryMismatch unless a (4, 4) `affine` is finite and not singular."""
    if not np.isfinite(affine).all():
        raise GeometryMismatch("the affine holds NaN or Inf; repair the header's sform or qform")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.max() > _LONGEST:
        raise GeometryMismatch(
            f"the affine gives voxels of {lengths.max():.3g} mm; repair the header's sform or qform"
        )
    # The volume of a voxel, relative to a box with edges of the same lengths.
    if (
        not lengths.all()
        or not np.isfinite(lengths).all()
        or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6
    ):
        raise GeometryMismatch(SINGULAR)


def plane_orientation(affine: NDArray[np.float64], plane: str) -> NDArray[np.float64]:
    """Return the orientation that turns a stored array into (slice, row, column).

    `affine` maps stored voxels to RAS+ mm, and is not singular; `plane` is axial, coronal,
    sagittal, i, j or k.

    Examples
    --------
    The axes of an RAS volume grow to the right, front and top; an axial stack has the last one
    first, and the others reversed:

    >>> plane_orientation(np.eye(4), "axial").tolist()
    [[2.0, -1.0], [1.0, -1.0], [0.0, 1.0]]
    """
    if plane in _STORED:
        return np.array(_STORED[plane], dtype=np.float64)
    stored = _io_orientation(affine)
    if not np.isfinite(stored).all():
        raise GeometryMismatch(SINGULAR)
    return _plane_orientation_of(stored.tobytes(), plane)


@lru_cache(maxsize=1024)
def _plane_orientation_of(stored: bytes, plane: str) -> NDArray[np.float64]:
    target = nio.axcodes2ornt(_ANATOMICAL[plane])
    orientation = nio.ornt_transform(np.frombuffer(stored).reshape(3, 2), target)
    result = np.asarray(orientation, dtype=np.float64)
    result.flags.writeable = False
    return result


def _matching_orientation(
    affine: NDArray[np.float64], *, reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the orientation that aligns a stored array with the axes of a reference grid."""
    orientation = _io_orientation(np.linalg.inv(reference) @ affine)
    if not np.isfinite(orientation).all():
        raise GeometryMismatch(
            "the axes of its files differ too much to be aligned; check their affines"
        )
    return orientation


def _io_orientation(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the closest orientation of an affine, whose translation has no effect."""
    return _io_orientation_of(affine[:3, :3].tobytes())


@lru_cache(maxsize=1024)
def _io_orientation_of(rotation: bytes) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(rotation).reshape(3, 3)
    orientation = _clear_orientation(affine[:3, :3].T.tolist())
    if orientation is None:
        orientation = np.asarray(nio.io_orientation(affine), dtype=np.float64)
    orientation.flags.writeable = False
    return orientation


def _clear_orientation(steps: list[list[float]]) -> NDArray[np.float64] | None:
    """Return the orientation of array axes, given as steps in mm, if it is plain to see.

    It is if they are orthogonal and each lies near another anatomical axis; else `io_orientation`,
    which takes ten times as long, has to find the closest.
    """
    lengths = [hypot(*step) for step in steps]
    if not all(0 < length < inf for length in lengths):
        return None
    units = [[x / length for x in step] for step, length in zip(steps, lengths, strict=True)]
    if any(abs(sum(map(mul, one, other))) > _ORTHOGONAL for one, other in combinations(units, 2)):
        return None
    nearest = [max(range(3), key=lambda axis: abs(unit[axis])) for unit in units]
    along = [unit[axis] for unit, axis in zip(units, nearest, strict=True)]
    if len(set(nearest)) < 3 or min(map(abs, along)) < _NEAR_AXIS:
        return None
    return np.array([(axis, copysign(1, x)) for axis, x in zip(nearest, along, strict=True)])


def reorient(array: NDArray[_Number], orientation: NDArray[np.float64]) -> NDArray[_Number]:
    """Return a view of a 3D array with axes ordered and flipped according to `orientation`."""
    flips = tuple(slice(None, None, int(flip)) for flip in orientation[:, 1])
    return array[flips].transpose(np.argsort(orientation[:, 0]))


def spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mm per voxel along each array axis, also if the axes are not orthogonal."""
    first, second, third = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return first, second, third


class ItkGrid(NamedTuple):
    """The grid of a volume in the sense of ITK: axes x, y, z (column, row, slice); LPS, mm."""

    spacing: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], ...]  # a column for each axis
    origin: tuple[float, float, float]


def itk_grid(affine: NDArray[np.float64]) -> ItkGrid:
    """Return the grid that SimpleITK gives for an affine, (slice, row, column, 1) → RAS+ mm.

    >>> itk_grid(np.array([[0.0, 0, 2, 5], [0, 3, 0, 6], [4, 0, 0, 7], [0, 0, 0, 1]]))
    ... # doctest: +NORMALIZE_WHITESPACE
    ItkGrid(spacing=(2.0, 3.0, 4.0),
            direction=((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)),
            origin=(-5.0, -6.0, 7.0))
    """
    to_lps = np.array([[-1.0], [-1.0], [1.0]])
    axes = affine[:3, 2::-1] * to_lps
    lengths = np.linalg.norm(axes, axis=0)
    x, y, z = lengths.tolist()
    direction = (axes / lengths + 0.0).tolist()  # no negative zeros
    a, b, c = (affine[:3, 3] * to_lps[:, 0] + 0.0).tolist()
    return ItkGrid((x, y, z), tuple(map(tuple, direction)), (a, b, c))


def voxel_volume(affine: NDArray[np.float64]) -> float:
    """Return the volume of a voxel in mm³, less than the product of the spacing if it is sheared.

    Examples
    --------
    >>> tilted = np.diag([1.0, 1.0, 5.0, 1.0])
    >>> tilted[1, 2] = 2.0  # each slice lies 2 mm further along the second axis
    >>> round(voxel_volume(tilted), 6)
    5.0
    """
    return abs(float(np.linalg.det(affine[:3, :3])))


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Return the directions of the array axes, such as 'RAS'."""
    return _axis_codes_of(_io_orientation(affine).tobytes())


def orientation_of_codes(codes: str, plane: str) -> NDArray[np.float64]:
    """Return the orientation for a plane of an array whose axes have these directions.

    >>> orientation_of_codes("RAS", "axial").tolist()
    [[2.0, -1.0], [1.0, -1.0], [0.0, 1.0]]
    """
    if plane in _STORED:
        return np.array(_STORED[plane], dtype=np.float64)
    stored = np.asarray(nio.axcodes2ornt(codes), dtype=np.float64)
    return _plane_orientation_of(stored.tobytes(), plane)


@lru_cache(maxsize=1024)
def _axis_codes_of(orientation: bytes) -> str:
    return "".join(nio.ornt2axcodes(np.frombuffer(orientation).reshape(3, 2)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The grid of a stored array: shape, affine, and its name in messages."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    name: str
    is_label: bool = False
    oriented: bool = True  # False: the affine is a guess
    other_affine: NDArray[np.float64] | None = None  # that the header gives too, and contradicts

    def reoriented(self, orientation: NDArray[np.float64]) -> Grid:
        """Return the grid of the array after `reorient`."""
        first, second, third = (self.shape[axis] for axis in np.argsort(orientation[:, 0]))
        affine = self.affine @ nio.inv_ornt_aff(orientation, self.shape)
        affine += 0.0  # turns -0.0 into 0.0
        return Grid(
            shape=(first, second, third), affine=affine, name=self.name, is_label=self.is_label
        )


def grid_distance(
    affine: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[float, float]:
    """Return the distance between two grids of one shape at the worst corner, in voxels and mm.

    In voxels, it is the largest component of ``|inv(affine) @ other @ c - c|`` over the corners c.

    Examples
    --------
    >>> shifted = np.diag([2.0, 2.0, 2.0, 1.0])
    >>> shifted[0, 3] = 3.0
    >>> grid_distance(np.diag([2.0, 2.0, 2.0, 1.0]), shifted, (4, 5, 6))
    (1.5, 3.0)
    """
    corners = np.array([(*c, 1.0) for c in product(*((0.0, n - 1.0) for n in shape))]).T
    difference = (other - affine) @ corners
    voxels = np.abs((np.linalg.inv(affine) @ difference)[:3]).max()
    mm = np.sqrt((difference[:3] ** 2).sum(axis=0)).max()
    return float(voxels), float(mm)


def _check_same_grid(image: Grid, other: Grid) -> None:
    """Raise GeometryMismatch unless two arrays in the same axis order lie on one grid."""
    first = "the image" if other.is_label else "the first image"
    if image.shape != other.shape:
        raise GeometryMismatch(
            f"{other.name} has shape {format_shape(other.shape)}, "
            f"{first} {format_shape(image.shape)} (slices, rows, columns); "
            f"resample it onto the grid of {first}"
        )
    voxels, mm = grid_distance(image.affine, other.affine, image.shape)
    if voxels > _SAME_GRID:
        raise GeometryMismatch(
            f"{other.name} lies up to {mm:.3g} mm ({voxels:.3g} voxels) off {first}; "
            f"resample it onto the grid of {first} or repair its affine"
        )


def _reasons(image: Grid, other: Grid) -> str:
    """Return what may be the cause of a mismatch, and the options that remove it."""
    reasons = [
        f"{grid.name} has no orientation, so its place is a guess"
        for grid, partner in ((image, other), (other, image))
        if partner.oriented and not grid.oriented
    ]
    if image.shape == other.shape and _others_fit(image, other):
        reasons.append(
            "the headers hold a second orientation, sform or qform, in which they fit; "
            "--orientation_from qform (or sform) takes it"
        )
    if other.is_label and image.shape == other.shape:
        reasons.append(
            "if they were made voxel by voxel, --label_grid image takes the image's affine"
        )
    return "".join(f"; {reason}" for reason in reasons)


def _others_fit(image: Grid, other: Grid) -> bool:
    """Return whether two grids of one shape fit where each takes its second orientation."""
    if image.other_affine is None and other.other_affine is None:
        return False
    first, second = (
        grid.affine if grid.other_affine is None else grid.other_affine for grid in (image, other)
    )
    return grid_distance(first, second, image.shape)[0] <= _SAME_GRID


def align(grids: Sequence[Grid], plane: str) -> tuple[tuple[NDArray[np.float64], ...], Grid]:
    """Return the orientations that put stored arrays onto one grid in the order of a plane.

    Parameters
    ----------
    grids : sequence of Grid
        The first, an image, defines the result; the others must match it, in any axis order.
    plane : str
        As for `plane_orientation`.

    Returns
    -------
    orientations : tuple of (3, 2) ndarray
        For `reorient`, one per grid.
    grid : Grid
        Of all the arrays after `reorient`.

    Raises
    ------
    GeometryMismatch
        Naming the array that does not match, and the distance in mm.
    """
    image = grids[0]
    orientations = [plane_orientation(image.affine, plane)]
    target = image.reoriented(orientations[0])
    for grid in grids[1:]:
        if grid.shape == image.shape and np.array_equal(grid.affine, image.affine):
            orientations.append(orientations[0])
            continue
        try:
            orientation = _matching_orientation(grid.affine, reference=target.affine)
            _check_same_grid(target, grid.reoriented(orientation))
        except GeometryMismatch as error:
            raise GeometryMismatch(f"{error}{_reasons(image, grid)}") from None
        orientations.append(orientation)
    return tuple(orientations), target
