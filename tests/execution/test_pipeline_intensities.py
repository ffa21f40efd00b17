"""Intensities of whole outputs in both formats, against plain definitions in long double."""

from __future__ import annotations

import numpy as np
import pytest

from dask_slicer import open_output

SHAPE = (8, 9, 10)
each_format = pytest.mark.parametrize(
    "form",
    [{"format": "npz"}, {"format": "zarr"}, {"format": "zarr", "dtype": "source"}],
    ids=["npz", "zarr", "zarr source"],
)


def normalised(
    stored: np.ndarray, normalize: str, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """Return a volume as the documentation defines it; a longdouble has 64 bits of digits."""
    volume = stored.astype(np.longdouble)
    volume = volume.clip(-np.inf if low is None else low, np.inf if high is None else high)
    foreground = volume[volume > volume.min()] if volume.max() > volume.min() else volume
    if normalize == "percentile":
        ends = np.percentile(foreground.astype(np.float64), (0.5, 99.5))
        volume, foreground = volume.clip(*ends), foreground.clip(*ends)
    if normalize == "minmax":
        return (volume - volume.min()) / ((volume.max() - volume.min()) or 1)
    if normalize == "none":
        return volume
    std = foreground.std()
    is_constant = std <= np.longdouble("1e-7") * np.abs(foreground).max()
    return (volume - foreground.mean()) / (1 if is_constant else std)


def written(output, case_id: str) -> np.ndarray:
    """Return the normalised volume of an output, ([modality,] i, j, k), from plane k."""
    volume, _ = open_output(output).volume(case_id)
    return np.moveaxis(volume, -3, -1)


@each_format
@pytest.mark.parametrize("normalize", ["zscore", "percentile", "minmax"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-36, 1e-9, 1.0, 1e9, 1e30], ids=str)
def test_values_of_any_size_are_normalised(
    dataset, slice_dataset, size, dtype, normalize, form
) -> None:
    rng = np.random.default_rng(5)
    organ = rng.normal(3, 0.5, SHAPE)
    stored = (np.where(rng.random(SHAPE) < 0.6, -1.0, organ) * size).astype(dtype)
    dataset.add("case", stored, label=None)
    output = slice_dataset(plane="k", window_size=0, normalize=normalize, **form)
    expected = normalised(stored, normalize).astype(np.float64)
    np.testing.assert_allclose(written(output, "case"), expected, rtol=2e-6, atol=2e-6)
    assert np.ptp(expected) >= 1  # neither flat nor huge


@each_format
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9], ids=str)
def test_a_constant_foreground_of_any_size_is_divided_by_1(
    dataset, slice_dataset, size, dtype, form
) -> None:
    rng = np.random.default_rng(5)
    # Rounding to float32 leaves a spread of 3e-8 of the value.
    noise = 1 + rng.uniform(-3e-8, 3e-8, SHAPE)
    stored = (np.where(rng.random(SHAPE) < 0.5, 0.0, noise) * size).astype(dtype)
    dataset.add("case", stored, label=None)
    output = slice_dataset(plane="k", window_size=0, **form)
    expected = normalised(stored, "zscore").astype(np.float64)
    assert np.abs(expected[stored > 0]).max() <= 1e-6 * size
    np.testing.assert_allclose(written(output, "case"), expected, rtol=2e-6, atol=2e-6 * size)
