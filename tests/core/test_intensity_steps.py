"""Windows, 8 bit, percentiles, other foregrounds, and statistics of a dataset, as published."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.config.step_settings import CT_WINDOWS, ct_window_limits
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.intensity import normalization
from dask_slicer.core.volume import Voxels

DTYPES = ["int16", "uint8", "float32", "int32", "float64"]


def volume(dtype: str, seed: int = 3) -> np.ndarray:
    """Return a volume with background, tissue and a bright part."""
    rng = np.random.default_rng(seed)
    values = rng.normal(100, 20, size=(5, 6, 7)) * (rng.random((5, 6, 7)) < 0.7)
    values[2:4, 2:4, 2:4] += 90
    return values.clip(0, 250).astype(dtype)


def label_of(values: np.ndarray) -> np.ndarray:
    label = np.zeros(values.shape, np.uint8)
    label[1:4, 1:5, 2:6] = 2
    return label


@pytest.mark.parametrize("slope", [1.0, -2.0, 0.5])
@pytest.mark.parametrize("foreground", ["all", "nonzero", "label", "min"])
@pytest.mark.parametrize("percentiles", [None, (2, 90)])
@pytest.mark.parametrize("clip", [(None, None), (20, 120)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_foregrounds(dtype, clip, percentiles, foreground, slope) -> None:
    stored = volume(dtype)
    label = label_of(stored)
    if slope < 0 and clip[0] is not None:
        clip = (-240, -40)
    raw = stored.astype(np.float64) * slope + 3
    values = raw.clip(*clip) if clip[0] is not None else raw
    inside = {
        "all": np.ones(values.shape, bool),
        "nonzero": raw != 0,
        "label": label > 0,
        "min": values > values.min(),
    }[foreground]
    if percentiles:
        values = values.clip(*np.percentile(values[inside], percentiles))
    how, stats = normalization(
        Voxels(stored=stored, slope=slope, intercept=3.0),
        "zscore",
        clip_min=clip[0],
        clip_max=clip[1],
        percentiles=percentiles,
        foreground=foreground,
        label=label,
    )
    expected = values[inside]
    assert (stats.mean, stats.std) == pytest.approx((expected.mean(), expected.std()), rel=1e-6)
    assert (stats.min, stats.max) == pytest.approx((values.min(), values.max()))
    assert stats.n_foreground == inside.sum()
    scaled = (values - expected.mean()) / expected.std()
    np.testing.assert_allclose(how.apply(stored), scaled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_percentile_is_zscore_with_two_percentiles(dtype) -> None:
    voxels = Voxels(stored=volume(dtype))
    percentiles = normalization(voxels, "zscore", percentiles=(0.5, 99.5))
    assert normalization(voxels, "percentile") == percentiles


def test_a_foreground_of_no_voxel_is_the_whole_volume() -> None:
    stored = volume("int16")
    _, stats = normalization(
        Voxels(stored=stored), "zscore", foreground="label", label=np.zeros_like(stored)
    )
    assert (stats.mean, stats.n_foreground) == (pytest.approx(stored.mean()), stored.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_is_from_0_to_1(dtype) -> None:
    stored = volume(dtype)
    how, stats = normalization(Voxels(stored=stored), "window", clip_min=50.0, clip_max=150.0)
    expected = (stored.astype(np.float64).clip(50, 150) - 50) / 100
    result = how.apply(stored)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert (result.min(), result.max()) == (0, 1)
    assert (stats.min, stats.max) == (50, 150)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_min": 20.0, "clip_max": 120.0},
        {"clip_max": 120.0},
        {"clip_min": 20.0},
        {"percentiles": (1.0, 99.0)},
        {"percentiles": (1.0, 99.0), "foreground": "all", "clip_max": 150.0},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_8_bit(dtype, options) -> None:
    stored = volume(dtype)
    values = stored.astype(np.float64)
    values = values.clip(options.get("clip_min", -np.inf), options.get("clip_max", np.inf))
    if "percentiles" in options:
        inside = values if "foreground" in options else values[values > values.min()]
        values = values.clip(*np.percentile(inside, options["percentiles"]))
    low = options.get("clip_min", values.min())
    high = values.max() if "percentiles" in options else options.get("clip_max", values.max())
    how, _ = normalization(Voxels(stored=stored), "uint8", **options)
    result = how.apply(stored)
    exact = (values - low) / (high - low) * 255
    assert np.abs(result - exact).max() <= 0.5001
    assert (result == np.rint(result)).all()
    near_half = np.abs(exact - np.floor(exact) - 0.5) < 1e-3
    np.testing.assert_array_equal(result[~near_half], np.rint(exact)[~near_half])


def test_8_bit_rounds_half_to_even() -> None:
    stored = np.array([0, 1, 2, 3, 4, 5, 510], dtype=np.int16)
    how, _ = normalization(Voxels(stored=stored), "uint8", clip_min=0.0, clip_max=510.0)
    assert how.apply(stored).tolist() == [0, 0, 1, 2, 2, 2, 255]


@pytest.mark.parametrize("dtype", ["int16", ">i2", "int32", "float32", "float64"])
@pytest.mark.parametrize("window", CT_WINDOWS.values(), ids=CT_WINDOWS)
def test_8_bit_of_every_window_is_exact(window, dtype) -> None:
    low, high = ct_window_limits(window)
    stored = np.arange(int(low) - 3, int(high) + 4).astype(dtype)
    how, _ = normalization(Voxels(stored=stored), "uint8", clip_min=low, clip_max=high)
    shares = (
        (Fraction(min(max(value, low), high)) - Fraction(low)) / Fraction(high - low)
        for value in stored.tolist()
    )
    assert how.apply(stored).tolist() == [round(255 * share) for share in shares]


@pytest.mark.parametrize("method", ["uint8", "window"])
def test_a_constant_volume_is_0(method) -> None:
    how, _ = normalization(Voxels(stored=np.full((2, 3, 4), 7, np.int16)), method)
    assert not how.apply(np.full((2, 3), 7, np.int16)).any()


def test_statistics_of_a_dataset() -> None:
    stored = volume("int16")
    properties = IntensityProperties(
        **{"mean": 100, "median": 99, "std": 25, "min": 0, "max": 240},
        **{"percentile_00_5": 60, "percentile_99_5": 180},
    )
    how, stats = normalization(Voxels(stored=stored), "dataset", dataset=properties)
    expected = (stored.astype(np.float64).clip(60, 180) - 100) / 25
    np.testing.assert_allclose(how.apply(stored), expected, atol=1e-6)
    assert (stats.min, stats.max) == (60, 180)  # those of this case


@given(seed=st.integers(0, 100), method=st.sampled_from(["zscore", "minmax", "uint8", "window"]))
def test_halves_are_the_whole(seed, method) -> None:
    stored = volume("int16", seed)
    how, _ = normalization(Voxels(stored=stored), method, clip_min=20.0, clip_max=120.0)
    first, then = how.halves()
    np.testing.assert_array_equal(then.apply(first.apply(stored)), how.apply(stored))
