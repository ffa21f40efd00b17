"""Grids of the slices of a case, and the way back to that of its scan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.geometry import plane_orientation, reorient
from dask_slicer.core.steps.cropping import crop
from dask_slicer.core.steps.grid import GridSteps
from dask_slicer.errors import CorruptFile
from dask_slicer.records import CommittedCase, SourceGrid

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceGrid:
    """Where the slices of a case in one plane lie in its scan.

    Attributes
    ----------
    plane : str
    shape : tuple of 3 int
        (n_slices, height, width), with the slices that were left out.
    kept : tuple of int
        Indices of the slices in the output, ascending.
    stored : tuple of 3 int
        Shape of the scan, in the order of axes of its file.
    orientation : (3, 2) ndarray
        From the axes of the file to (slice, row, column).
    steps : GridSteps
        From the scan in the order of the plane to the slices.
    transposed : bool
        Whether files, and so predictions, have the rows of the slices as columns.
    """

    plane: str
    shape: tuple[int, int, int]
    kept: tuple[int, ...]
    stored: tuple[int, int, int]
    orientation: NDArray[np.float64]
    steps: GridSteps
    transposed: bool = False

    def empty(self, fill: float, dtype: np.dtype[_Number]) -> NDArray[_Number]:
        """Return an array of the scan, in the order in which NIfTI files lie in memory."""
        if not fill:  # memory of the system is zero
            return np.zeros(self.stored, dtype, order="F")
        return np.full(self.stored, fill, dtype, order="F")

    def view(self, stored: NDArray[_Number]) -> NDArray[_Number]:
        """Return a view of an array of the scan, axes in the order (slice, row, column)."""
        return reorient(stored, self.orientation)

    def place(self, stored: NDArray[_Number], first: int, pixels: NDArray[np.generic]) -> None:
        """Write slices, from index `first` on, into an array of the scan without interpolation."""
        view, steps = self.view(stored), self.steps
        if steps.box is not None:
            view = crop(view, steps.box)
        target = view[first : first + len(pixels)]
        if steps.in_plane is None:
            target[...] = pixels
            return
        # What padding added is cut off; what was cut off stays as it is.
        (row, column), (height, width) = steps.in_plane.start, steps.in_plane.size
        rows = slice(max(row, 0), min(row + height, target.shape[1]))
        columns = slice(max(column, 0), min(column + width, target.shape[2]))
        target[:, rows, columns] = pixels[
            :, rows.start - row : rows.stop - row, columns.start - column : columns.stop - column
        ]

    def counted(self, counts: Mapping[int, int]) -> NDArray[np.float32]:
        """Return how many predictions each voxel of the scan, in (slice, row, column), has.

        `counts` is by slice. Between slices that have some and none, it is a share.
        """
        slices = np.zeros((self.shape[0], 1, 1), np.float32)
        slices[list(counts), 0, 0] = list(counts.values())
        volume = np.broadcast_to(slices, self.shape)
        return self.steps.restored_image(volume, fill=0).astype(np.float32, copy=False)


def slice_grids(
    record: CommittedCase,
    grid: SourceGrid,
    planes: Iterable[str],
    *,
    transposed: Collection[str] = (),
) -> tuple[SliceGrid, ...]:
    """Return the grid of each plane of a case; raise CorruptFile if they do not fit its scan.

    Files of the splits `transposed` have the rows of the slices as columns.
    """
    grids = [
        _slice_grid(part, grid, plane) for part, plane in zip(record.parts, planes, strict=True)
    ]
    return tuple(replace(each, transposed=record.split in transposed) for each in grids)


def _slice_grid(part: CommittedCase, grid: SourceGrid, plane: str) -> SliceGrid:
    orientation = plane_orientation(np.array(grid.affine), plane)
    first, second, third = (grid.shape[axis] for axis in np.argsort(orientation[:, 0]))
    try:
        steps = GridSteps.parse(part.steps.get("grid", {"full": (first, second, third)}))
        fits = steps.full == (first, second, third) and steps.shape == part.shape[1:]
    except ValueError:
        fits = False
    if not fits:
        raise CorruptFile(
            f"the slices of {part.case_id} do not fit the grid of its scan; the journal of the "
            "output is damaged, or the scan is another one"
        )
    _, n_slices, height, width = part.shape
    return SliceGrid(
        plane=plane,
        shape=(n_slices, height, width),
        kept=tuple(written.slice_index for written in part.slices),
        stored=grid.shape,
        orientation=orientation,
        steps=steps,
    )
