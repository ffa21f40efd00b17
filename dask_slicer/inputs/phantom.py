"""Synthetic CT volumes of a body with organs, for demonstrations, tests and benchmarks."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

# Name, label, HU, centre and half axes in units of the body's half axes (x to the right, y to the
# front, z up).
_ORGANS = (
    ("liver", 1, 60, (0.40, 0.10, 0.15), (0.42, 0.48, 0.40)),
    ("left kidney", 2, 35, (-0.38, -0.38, -0.20), (0.14, 0.18, 0.30)),
    ("right kidney", 3, 35, (0.38, -0.40, -0.30), (0.14, 0.18, 0.30)),
    ("spine", 4, 400, (0.00, -0.62, 0.00), (0.16, 0.18, 2.00)),
    ("aorta", 5, 150, (-0.06, -0.34, 0.00), (0.08, 0.09, 2.00)),
)
ORGANS = {label: name for name, label, *_ in _ORGANS}
_AIR_HU, _FAT_HU, _TISSUE_HU = -1000, -90, 30
_FAT_FROM = 0.86
_LPS = np.diag([-1.0, -1.0, 1.0])
# Rotation about the left-right axis, as of a tilted head.
_COSINE, _SINE = np.cos(np.deg2rad(12.0)), np.sin(np.deg2rad(12.0))
_TILT = np.array([[1, 0, 0], [0, _COSINE, -_SINE], [0, _SINE, _COSINE]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phantom:
    """A synthetic CT: image and label as (nx, ny, nz) ndarrays on one grid."""

    image: NDArray[np.int16]  # HU
    label: NDArray[np.uint8]  # values of `ORGANS`; 0 is background
    affine: NDArray[np.float64]  # voxel → RAS+ mm


def make_phantom(
    shape: tuple[int, int, int] = (72, 64, 40),
    *,
    spacing: Sequence[float] = (4.0, 4.0, 6.0),
    directions: NDArray[np.float64] = _LPS,
    noise: float = 12.0,
    rng: np.random.Generator,
) -> Phantom:
    """Return an elliptic body with organs, at the same place in the world for any array axes.

    Columns of the (3, 3) `directions` are unit vectors of the array axes in RAS+; `spacing` is in
    mm, `noise` the standard deviation in HU. `rng` also moves and scales the organs a little.
    """
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing)
    middle = (np.array(shape) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle
    # The body fills most of the field of view, and extends beyond it at head and feet.
    extent = np.abs(affine[:3, :3]) @ middle
    half_axes = extent * np.array([0.88, 0.80, 2.5])
    organs = [
        (label, hu, rng.normal(centre, 0.02), np.array(axes) * rng.uniform(0.9, 1.1))
        for _, label, hu, centre, axes in _ORGANS
    ]
    image = np.empty(shape, dtype=np.int16, order="F")
    label = np.zeros(shape, dtype=np.uint8, order="F")
    in_plane = np.indices(shape[:2]).reshape(2, -1)
    for k in range(shape[2]):
        index = np.vstack([in_plane, np.full(in_plane.shape[1], k), np.ones(in_plane.shape[1])])
        world = (affine @ index)[:3]
        body = ((world / half_axes[:, None]) ** 2).sum(axis=0)
        hu = np.select([body < _FAT_FROM, body < 1], [_TISSUE_HU, _FAT_HU], _AIR_HU).astype(float)
        plane = np.zeros(in_plane.shape[1], dtype=np.uint8)
        # Organs are scaled to the field of view, not to the longer body.
        position = world / (extent * np.array([0.88, 0.80, 1.0]))[:, None]
        for value, organ_hu, centre, axes in organs:
            inside = (((position - centre[:, None]) / axes[:, None]) ** 2).sum(axis=0) < 1
            inside &= body < _FAT_FROM
            hu[inside], plane[inside] = organ_hu, value
        hu += rng.normal(0, np.where(body < 1, noise, noise / 3))
        image[:, :, k] = np.rint(hu).clip(-1024, 3071).reshape(shape[:2])
        label[:, :, k] = plane.reshape(shape[:2])
    return Phantom(image=image, label=label, affine=affine)


def write_nifti(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a volume as .nii or .nii.gz; the same volume always gives the same bytes."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    data = image.to_bytes()
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.suffix == ".gz" else data)


def write_dataset(
    folder: Path,
    *,
    n_cases: int = 6,
    shape: tuple[int, int, int] = (72, 64, 40),
    spacing: Sequence[float] = (4.0, 4.0, 6.0),
    noise: float = 12.0,
    varied: bool = True,
    seed: int = 0,
) -> None:
    """Write phantoms in nnU-Net's raw layout; the same seed gives the same bytes.

    If `varied`, cases have up to 6 slices less than `shape`, every third has RAS axes, and the last
    one is oblique.
    """
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(n_cases):
        directions, n_slices = _LPS, shape[2]
        if varied:
            directions = np.eye(3) if number % 3 == 2 else _LPS
            n_slices = max(shape[2] - number % 7, 1)
            if number == n_cases - 1:
                directions = _TILT @ directions
        phantom = make_phantom(
            (shape[0], shape[1], n_slices),
            spacing=spacing,
            directions=directions,
            noise=noise,
            rng=np.random.default_rng([seed, number]),
        )
        case_id = f"phantom_{number:03d}"
        write_nifti(folder / "imagesTr" / f"{case_id}_0000.nii.gz", phantom.image, phantom.affine)
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", phantom.label, phantom.affine)


def ensure_dataset(folder: Path, **settings: Any) -> None:
    """Write a whole dataset with `write_dataset`, unless the folder exists."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_dataset(unfinished, **settings)
        unfinished.rename(folder)
