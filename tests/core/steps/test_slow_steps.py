"""All steps together, in several planes of a file, against SciPy, Pillow and loops over pixels."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat
from PIL import Image
from scipy import ndimage

from dask_slicer.core.geometry import Grid, align, reorient
from dask_slicer.core.planes import in_plane
from dask_slicer.core.slices import slice_views
from dask_slicer.core.steps.steps import Steps
from dask_slicer.core.volume import Volume, Voxels

PLANES = ("axial", "coronal", "sagittal", "i", "j", "k")


class SlowCase:
    """A case in a plane, changed by one step after the other."""

    def __init__(self, image: np.ndarray, label: np.ndarray, orientation: np.ndarray, grid: Grid):
        self.image, self.label = image, label
        self.affine = grid.affine
        # Whether an axis runs against that of the file, whose later voxel is the nearest of two.
        self.against = orientation[np.argsort(orientation[:, 0]), 1] < 0

    @property
    def spacing(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def moved(self, scale: Any, first: Any) -> None:
        """Change the affine: where the first voxel lies, and how large voxels are, in old ones."""
        self.affine = self.affine @ nib.affines.from_matvec(np.diag(scale), first)

    def cropped(self, mask: np.ndarray, margin: float) -> None:
        if mask.any():
            voxels = np.argwhere(mask)
            more = np.ceil(margin / self.spacing - 1e-6).astype(int)
            start = np.maximum(voxels.min(axis=0) - more, 0)
            stop = np.minimum(voxels.max(axis=0) + 1 + more, mask.shape)
            box = tuple(map(slice, start.tolist(), stop.tolist()))
            self.image, self.label = self.image[box], self.label[box]
            self.moved((1, 1, 1), start)

    def normalised(self, foreground: str, percentiles: Any, method: str) -> None:
        image = self.image
        inside = {
            "min": image > image.min(),
            "all": np.ones(image.shape, bool),
            "nonzero": image != 0,
            "label": self.label != 0,
        }[foreground]
        inside = inside if inside.any() else ~inside
        if method == "uint8" and percentiles is None:
            percentiles = (0.5, 99.5)
        if percentiles:
            image = image.clip(*np.percentile(image[inside], percentiles))
        if method == "zscore":
            self.image = (image - image[inside].mean()) / (image[inside].std() or 1)
        else:
            levels = 255 if method == "uint8" else 1
            self.image = (image - image.min()) / (np.ptp(image) or 1) * levels

    def resampled(self, wanted: Any, order: int) -> None:
        spacing, shape = self.spacing, self.image.shape
        target = [old if new is None else new for old, new in zip(spacing, wanted, strict=True)]
        new_shape = [
            max(1, round(old / new * n)) for old, new, n in zip(spacing, target, shape, strict=True)
        ]
        coarse = None
        for mm in (spacing, np.array(target)):
            if mm.max() > 3 * mm.min():
                axes = np.flatnonzero(mm > mm.max() * 0.999)
                coarse = axes[0] if len(axes) == 1 else None
                break

        def zoomed(volume: np.ndarray, order: int) -> np.ndarray:
            low, high = volume.min(), volume.max()
            for axis, (n, n_new) in enumerate(zip(shape, new_shape, strict=True)):
                factors = np.ones(3)
                factors[axis] = n_new / n
                if order == 0 or axis == coarse:
                    index = (2 * np.arange(n_new) + 1) * n // (2 * n_new)
                    index = n - 1 - index[::-1] if self.against[axis] else index
                    volume = volume.take(index, axis)
                else:
                    volume = ndimage.zoom(
                        volume, factors, order=order, mode="nearest", grid_mode=True
                    )
            return volume.clip(low, high)

        self.image = zoomed(self.image, order)
        values = np.unique(self.label)
        shares = np.stack([zoomed((self.label == value).astype(float), 1) for value in values])
        self.label = values[np.argmax(shares > shares.max(axis=0) - 1e-9, axis=0)]
        step = np.divide(shape, new_shape)
        self.moved(step, (step - 1) / 2)

    def sized(self, size: Any, fit: str, fill: float, center: Any) -> None:
        shape = inside = self.image.shape[1:]
        if fit == "resize":
            inside = size
        elif fit == "letterbox":
            factor = min(np.divide(size, shape))
            inside = tuple(
                min(max(round(n * factor), 1), most) for n, most in zip(shape, size, strict=True)
            )
        if inside != shape:
            low, high = self.image.min(), self.image.max()
            self.image = np.stack(
                [
                    Image.fromarray(plane).resize(inside[::-1], Image.Resampling.BILINEAR)
                    for plane in self.image.astype(np.float32)
                ]
            ).clip(low, high)
            rows, columns = (
                (2 * np.arange(n_new) + 1) * n // (2 * n_new)
                for n, n_new in zip(shape, inside, strict=True)
            )
            self.label = self.label[:, rows][:, :, columns]
            step = np.divide(shape, inside)
            self.moved((1, *step), (0, *(step - 1) / 2))
        if center is None or fit != "crop_pad":
            center = np.subtract(inside, 1) / 2
        first = [
            min(max(int(np.floor(middle - (most - 1) / 2)), 0), n - most)
            if n >= most
            else -((most - n) // 2)
            for n, most, middle in zip(inside, size, center, strict=True)
        ]
        image = np.full((len(self.image), *size), fill)
        label = np.zeros((len(self.label), *size), self.label.dtype)
        for row, column in np.ndindex(*size):
            old = row + first[0], column + first[1]
            if 0 <= old[0] < inside[0] and 0 <= old[1] < inside[1]:
                image[:, row, column] = self.image[:, *old]
                label[:, row, column] = self.label[:, *old]
        self.image, self.label = image, label
        self.moved((1, 1, 1), (0, *first))


def sliced(case: SlowCase, box: np.ndarray, steps: Steps, method: str) -> None:
    """Apply all steps; `box` is the mask of a crop to a given box."""
    new_values = steps.label_values or {}
    case.label = np.vectorize(lambda value: new_values.get(value, value))(case.label)
    masks = {"nonzero": case.image != 0, "label": case.label != 0, None: np.zeros(1)}
    is_given = not isinstance(steps.crop, str | None)
    mask = box if is_given else masks[steps.crop]
    case.cropped(mask, 0 if is_given else steps.crop_margin)
    case.normalised(steps.foreground, steps.percentiles, method)
    fill, center, shape = case.image.min(), None, case.image.shape
    if steps.center == "label":
        voxels = np.argwhere(case.label) if case.label.any() else np.argwhere(case.label == 0)
        center = ((voxels.min(axis=0) + voxels.max(axis=0)) / 2)[1:]
    if steps.spacing is not None:
        case.resampled(steps.spacing, steps.resample_order)
    if center is not None:
        center = (center + 0.5) * np.divide(case.image.shape, shape)[1:] - 0.5
    if steps.size is not None:
        case.sized(steps.size, steps.fit, fill, center)


def scan(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, label and affine of a file: turned, sheared, its axes in any order."""
    shape = rng.integers(6, 14, 3)
    image = rng.integers(-50, 900, shape).astype(np.int16)
    image[0] = image[-1] = image[:, 0] = image[:, :, -2:] = 0
    label = np.zeros(shape, np.uint8)
    for value in (1, 2, 3):
        start = rng.integers(1, shape - 3)
        label[tuple(map(slice, start, start + rng.integers(2, 5, 3)))] = value
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([1, -1], 3) * rng.choice([0.7, 1, 2, 4.5], 3)
    shear = np.eye(3) + np.triu(rng.uniform(-0.2, 0.2, (3, 3)), 1)
    turn = euler2mat(*np.deg2rad(rng.uniform(-25, 25, 3)))
    affine = nib.affines.from_matvec(turn @ shear @ axes, rng.uniform(-100, 100, 3))
    return np.asfortranarray(image), np.asfortranarray(label), affine


def any_steps(rng: np.random.Generator, n_planes: int) -> Steps:
    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    same = (one_of(0.8, 1.1, 2.3),) * 3
    own = tuple(one_of(None, 0.6, 1.0, 1.7, 5.0) for _ in range(3))
    return Steps(
        label_values=one_of(None, {1: 2, 2: 5}),
        other_labels="keep",
        crop=one_of(None, "nonzero", "label", ((1, 5), (0, 4), (2, 6))),
        crop_margin=one_of(0.0, 1.9),
        percentiles=one_of(None, (2.0, 95.0)),
        foreground=one_of("min", "all", "nonzero", "label"),
        spacing=one_of(None, same, same if n_planes > 1 else own),
        resample_order=one_of(3, 1, 0),
        size=one_of(None, *[tuple(rng.integers(3, 18, 2).tolist())] * 2),
        fit=one_of("crop_pad", "resize", "letterbox"),
        center=one_of("volume", "label"),
    )


@pytest.mark.parametrize("seed", range(60))
def test_steps_are_what_slow_ones_give(seed) -> None:
    rng = np.random.default_rng(seed)
    stored, stored_label, affine = scan(rng)
    planes = rng.permutation(PLANES)[: rng.integers(1, 4)].tolist()
    steps = any_steps(rng, len(planes))
    method, slope = rng.choice(["zscore", "minmax", "uint8"]), rng.choice([1.0, 2.0, -0.5])
    in_box = np.zeros(stored.shape, bool)
    in_box[1:5, :4, 2:6] = True
    file = Grid(shape=stored.shape, affine=affine, name="image")
    (orientation,), grid = align([file], planes[0])
    volume = Volume(
        image=(Voxels(stored=reorient(stored, orientation), slope=slope),),
        label=Voxels(stored=reorient(stored_label, orientation)),
        affine=grid.affine,
        orientation=orientation,
        stored_affine=affine,
    )
    stacks = slice_views(
        [volume, *(in_plane(volume, plane) for plane in planes[1:])],
        normalize=method,
        dtype="uint8" if method == "uint8" else "float32",
        steps=steps,
    )
    for plane, stack in zip(planes, stacks, strict=True):
        (orientation,), grid = align([file], plane)
        image, label, box = (reorient(x, orientation) for x in (stored, stored_label, in_box))
        case = SlowCase(image * slope, label, orientation, grid)
        sliced(case, box, steps, method)
        found = np.stack([image for _, (image,) in stack.planes(range(stack.shape[0]))])
        error = 2e-4 * max(np.ptp(case.image), 1e-3) + 0.5 * (method == "uint8")
        np.testing.assert_allclose(found, case.image, rtol=0, atol=error)
        np.testing.assert_array_equal(stack.label, case.label)
        np.testing.assert_allclose(stack.affine, case.affine, atol=1e-9)
