"""Grid of slices: the way from that of a scan, by crop, spacing and in-plane size, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.steps.cropping import Box, crop, cropped_affine, reoriented_box, uncrop
from dask_slicer.core.steps.resampling import (
    Shape,
    coarse_axis,
    resample_image,
    resample_label,
    resampled_affine,
    resampled_shape,
)
from dask_slicer.core.steps.sizing import (
    InPlane,
    Size,
    fit_in_plane,
    restore_image,
    restore_label,
    size_image,
    size_label,
    sized_affine,
)

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSteps:
    """What leads from the grid of a scan, its axes in the order of the plane, to that of slices.

    Attributes
    ----------
    full : tuple of 3 int
        Shape of the scan.
    box : Box, optional
        What is kept of it.
    resampled : tuple of 3 int, optional
        Shape of the box at the new spacing.
    nearest_axis : int, optional
        The axis along which images and labels take the nearest voxel.
    in_plane : InPlane, optional
    """

    full: Shape
    box: Box | None = None
    resampled: Shape | None = None
    nearest_axis: int | None = None
    in_plane: InPlane | None = None

    @property
    def cropped(self) -> Shape:
        """Return the shape after the crop."""
        if self.box is None:
            return self.full
        first, second, third = (stop - start for start, stop in self.box)
        return first, second, third

    @property
    def shape(self) -> Shape:
        """Return the shape of the slices, (n_slices, height, width)."""
        shape = self.resampled or self.cropped
        return shape if self.in_plane is None else (shape[0], *self.in_plane.size)

    @property
    def differs(self) -> bool:
        """Return whether there is any step."""
        return any(step is not None for step in (self.box, self.resampled, self.in_plane))

    @property
    def interpolates(self) -> bool:
        """Return whether voxels get other values, which integers of the file cannot hold."""
        sized = self.in_plane
        return self.resampled is not None or (sized is not None and sized.resized != sized.shape)

    def affine(self, affine: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the affine of the slices, from that of the scan."""
        if self.box is not None:
            affine = cropped_affine(affine, self.box)
        if self.resampled is not None:
            affine = resampled_affine(affine, self.cropped, self.resampled)
        return affine if self.in_plane is None else sized_affine(affine, self.in_plane)

    def spacing(self, current: Sequence[float]) -> tuple[float, float, float]:
        """Return the spacing of the slices, from that of the scan."""
        first, second, third = np.linalg.norm(
            self.affine(np.diag([*current, 1.0]))[:3, :3], axis=0
        ).tolist()
        return first, second, third

    def crop(self, array: NDArray[_Number]) -> NDArray[_Number]:
        """Return the part of an array that is kept, as a view."""
        return crop(array, self.box)

    def resampled_image(
        self, cropped: NDArray[np.generic], *, order: int = 3
    ) -> NDArray[np.generic]:
        """Return an image at the new spacing, of float32 if that differs."""
        if self.resampled is None:
            return cropped
        return resample_image(cropped, self.resampled, order=order, nearest_axis=self.nearest_axis)

    def sized_image(
        self, image: NDArray[np.generic], *, fill: float, order: int = 1
    ) -> NDArray[np.generic]:
        """Return an image at the new spacing with its in-plane size; a view if it can be.

        It is `fill` where it is padded. Of float32 where it is resized, else of the given dtype.
        """
        if self.in_plane is None:
            return image
        return size_image(image, self.in_plane, fill=fill, order=order)

    def resampled_label(
        self, cropped: NDArray[np.integer]
    ) -> tuple[NDArray[np.integer], dict[int, int]]:
        """Return a label at the new spacing, and the voxels of values that vanished."""
        if self.resampled is None:
            return cropped, {}
        return resample_label(cropped, self.resampled, nearest_axis=self.nearest_axis)

    def sized_label(self, label: NDArray[np.integer]) -> tuple[NDArray[np.integer], dict[int, int]]:
        """Return a label at the new spacing with its in-plane size, and the voxels lost by value.

        Lost are voxels cut off, and all of a value that is not there any more.
        """
        return (label, {}) if self.in_plane is None else size_label(label, self.in_plane)

    def turned(self, orientation: NDArray[np.float64]) -> GridSteps:
        """Return the steps before the in-plane size, for arrays that are reoriented."""
        order = np.argsort(orientation[:, 0])

        def turn(shape: Shape) -> Shape:
            first, second, third = (shape[axis] for axis in order)
            return first, second, third

        nearest = self.nearest_axis
        return GridSteps(
            full=turn(self.full),
            box=None if self.box is None else reoriented_box(self.box, self.full, orientation),
            resampled=None if self.resampled is None else turn(self.resampled),
            nearest_axis=None if nearest is None else int(orientation[nearest, 0]),
        )

    def restored_image(
        self, image: NDArray[np.generic], *, fill: float = 0, interpolate: bool = True
    ) -> NDArray[np.generic]:
        """Return an image of slices, or the probabilities of a class, on the grid of the scan.

        `interpolate` is linear; otherwise the nearest voxel is taken.
        """
        if self.in_plane is not None:
            image = restore_image(image, self.in_plane, fill=fill)
        if self.resampled is not None:
            image = resample_image(
                image,
                self.cropped,
                order=1 if interpolate else 0,
                nearest_axis=self.nearest_axis,
            )
        return image if self.box is None else uncrop(image, self.box, self.full, fill=fill)

    def restored_label(self, label: NDArray[np.integer], *, fill: int = 0) -> NDArray[np.integer]:
        """Return a label map of slices on the grid of the scan."""
        if self.in_plane is not None:
            label = restore_label(label, self.in_plane, fill=fill)
        if self.resampled is not None:
            label, _ = resample_label(label, self.cropped, nearest_axis=self.nearest_axis)
        if self.box is None:
            return label
        full: NDArray[Any] = uncrop(label, self.box, self.full, fill=fill)
        return full

    def as_json(self) -> dict[str, Any]:
        """Return the steps as JSON values."""
        content: dict[str, Any] = {"full": list(self.full)}
        if self.box is not None:
            content["box"] = [list(limits) for limits in self.box]
        if self.resampled is not None:
            content["resampled"] = list(self.resampled)
            content["nearest_axis"] = self.nearest_axis
        if (sized := self.in_plane) is not None:
            content["resized"], content["start"] = list(sized.resized), list(sized.start)
            content["size"] = list(sized.size)
        return content

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> GridSteps:
        """Return the steps in JSON values; raise ValueError if they are none."""
        try:
            first, second, third = _ints(content["full"], 1)
            box, resampled = (
                content.get(name) and _ints(content[name], depth)
                for name, depth in (("box", 2), ("resampled", 1))
            )
            steps = cls(
                full=(first, second, third),
                box=box,
                resampled=resampled,
                nearest_axis=content.get("nearest_axis"),
            )
            _, height, width = steps.shape
            if "size" not in content:
                return steps
            resized, start, size = (_ints(content[n], 1) for n in ("resized", "start", "size"))
            sized = InPlane(shape=(height, width), resized=resized, start=start, size=size)
            return replace(steps, in_plane=sized)
        except (KeyError, TypeError, ValueError):
            raise ValueError("the steps of the grid are damaged") from None


def _ints(value: Any, depth: int) -> Any:
    return int(value) if depth == 0 else tuple(_ints(item, depth - 1) for item in value)


def grid_steps(
    full: Shape,
    current: Sequence[float],
    *,
    box: Box | None = None,
    spacing: Sequence[float | None] | None = None,
    size: Size | None = None,
    fit: str = "crop_pad",
    center: Sequence[float] | None = None,
) -> GridSteps:
    """Return the steps that settings lead to.

    Parameters
    ----------
    full : tuple of 3 int
        Shape of the scan, axes in the order of the plane.
    current : sequence of 3 float
        Spacing of the scan, mm.
    box : Box, optional
        To be cut out.
    spacing : sequence of 3 float, optional
        Wanted mm along (slice, row, column), None to keep an axis.
    size, fit
        As for `fit_in_plane`.
    center : sequence of 2 float, optional
        Row and column of the box that are to be in the middle.

    Examples
    --------
    >>> grid_steps((10, 64, 64), (5, 2, 2), spacing=(None, 1, 1), size=(96, 96)).shape
    (10, 96, 96)
    """
    steps = GridSteps(full=full, box=box)
    cropped = steps.cropped
    resampled = nearest_axis = in_plane = None
    if spacing is not None:
        resampled = resampled_shape(cropped, current, spacing)
        nearest_axis = coarse_axis(current, spacing)
        if resampled == cropped:
            resampled = nearest_axis = None
    if size is not None:
        before = resampled or cropped
        if center is not None:
            ratios = [new / n for new, n in zip(before[1:], cropped[1:], strict=True)]
            center = [(c + 0.5) * r - 0.5 for c, r in zip(center, ratios, strict=True)]
        in_plane = fit_in_plane(before[1:], size, fit=fit, center=center)
        if in_plane.resized == before[1:] == size:
            in_plane = None
    return GridSteps(
        full=full, box=box, resampled=resampled, nearest_axis=nearest_axis, in_plane=in_plane
    )
