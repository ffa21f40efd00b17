"""Label maps recognised by their voxels: phantoms and real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dask_slicer.core.labels import looks_like_labels
from dask_slicer.inputs.phantom import make_phantom
from dask_slicer.inputs.readers import read_voxels

SHAPE = (20, 24, 16)


def noise(low: int, high: int, dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(5).integers(low, high, SHAPE).astype(dtype)


def organs(n: int, dtype: str = "uint8") -> np.ndarray:
    """Return boxes of the values 1 to n side by side."""
    label = np.zeros(SHAPE, dtype)
    label[2:18, 3:20, 2:14] = (np.arange(17) * n // 17 + 1)[:, None]
    return label


def smooth(dtype: str) -> np.ndarray:
    """Return a ramp with noise, as the bias field of an MR scan."""
    ramp = np.linspace(0, 200, SHAPE[0])[:, None, None]
    return np.clip(ramp + np.random.default_rng(5).normal(30, 6, SHAPE), 0, 255).astype(dtype)


def in_fortran_order(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


TABLE = {
    "noise": (noise(-900, 900), False),
    "a ramp with noise": (smooth("uint8"), False),
    "the same as floats": (smooth("float32"), False),
    "floats that are no integers": (organs(3) * np.float32(0.5), False),
    "nothing": (np.zeros(SHAPE, np.uint8), False),
    "a constant": (np.full(SHAPE, 3, np.int16), False),
    "floats with NaN": (np.where(organs(3), np.nan, 0.0), False),
    "a CT of air and water": (organs(1).astype(np.int16) * 1000 - 1000, False),
    "two intensities": (organs(1).astype(np.float32) * np.float32(1e9), False),
    "a binary mask": (organs(1), True),
    "a mask of 255": (organs(1) * np.uint8(255), True),
    "scattered lesions": ((noise(0, 100) == 7).astype(np.uint8), True),
    "organs": (organs(17), True),
    "organs as floats": (organs(17, "float64"), True),
    "organs with large numbers": (organs(17, "int32") * 1000, True),
    "organs in two planes": (organs(9) * (np.arange(16) < 4).astype(np.uint8), True),
    "in Fortran order": (in_fortran_order(organs(9)), True),
    "one value a plane": (np.arange(20)[:, None, None] // 10 + np.zeros(SHAPE, int), True),
}


@pytest.mark.parametrize(("voxels", "expected"), TABLE.values(), ids=TABLE)
def test_voxels_tell_label_maps_from_images(voxels, expected) -> None:
    assert looks_like_labels(voxels) is expected
    assert looks_like_labels(voxels.transpose(2, 0, 1)[::-1]) is expected


def test_phantoms_are_told_apart() -> None:
    for seed in range(3):
        phantom = make_phantom((40, 40, 20), rng=np.random.default_rng(seed))
        assert not looks_like_labels(phantom.image)
        assert looks_like_labels(phantom.label)


def test_real_scans_are_told_apart(real_scans: Path) -> None:
    for path in sorted(real_scans.glob("*/*.nii.gz")):
        is_series = "dce4d" in path.parent.name and path.name == "image.nii.gz"
        _, voxels = read_voxels(f"{path}[1]" if is_series else path)
        assert looks_like_labels(voxels) == path.name.startswith("label"), path
