"""Stored integers that are normalised batch by batch: the values of a dataset of floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from affines import oblique

from dask_slicer import SliceDataset, normalize_batch

Slice = Callable[..., Path]
ZARR = {"format": "zarr", "dtype": "source", "train_ratio": 1.0}


def assert_equals_floats(path: Path, **options: Any) -> None:
    """Check that batches of integers, normalised, are those of floats, and say the same of them."""
    stored = SliceDataset(path, None, output="source", **options)
    floats = SliceDataset(path, None, **options)
    assert len(stored)
    for start in range(0, len(stored), 4):
        numbers = range(start, min(start + 4, len(stored)))
        samples = [floats[number] for number in numbers]
        batch = arrays_of(stored.collate(stored.__getitems__(numbers)))
        before = batch["image"].copy()
        result = normalize_batch(batch)
        np.testing.assert_array_equal(batch["image"], before)
        assert list(result) == list(samples[0])
        assert result["image"].dtype == np.float32
        expected = np.stack([sample["image"] for sample in samples])
        np.testing.assert_allclose(result["image"], expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(result["label"], [sample["label"] for sample in samples])
        of_sample = normalize_batch(stored[start])["image"]
        np.testing.assert_array_equal(of_sample, result["image"][0])


def arrays_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch of arrays, also where tests before have imported torch."""
    return {
        name: value if isinstance(value, list) else np.asarray(value)
        for name, value in batch.items()
    }


@pytest.fixture
def add(dataset) -> Callable[..., None]:
    """Return a function that adds a case of stored numbers, with a slope and an intercept."""

    def call(case_id: str, stored: np.ndarray, slope: float = 1, intercept: float = 0) -> None:
        dataset.add(case_id, stored)
        if (slope, intercept) != (1, 0):
            image = nib.Nifti1Image(stored, oblique())
            image.header.set_slope_inter(slope, intercept)
            nib.save(image, dataset.image_path(case_id))

    return call


def voxels(dtype: str, low: int, high: int) -> np.ndarray:
    """Return random numbers, among them the least and the greatest."""
    image = np.random.default_rng(0).integers(low, high, (8, 9, 10), endpoint=True)
    image[0, 0, :2] = low, high
    return image.astype(dtype)


NUMBERS = {
    "int8": ("i1", -128, 127),
    "uint8": ("u1", 0, 255),
    "CT": ("i2", -1024, 3071),
    "all of int16": ("i2", -32768, 32767),
    "int16 far from 0": ("i2", 30_000, 30_007),
    "uint16": ("u2", 0, 65535),
    "int32": ("i4", -(2**31), 2**31 - 1),
    "int32 far from 0": ("i4", 10**9, 10**9 + 500),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "zscore": {},
    "minmax": {"normalize": "minmax"},
    "percentile": {"normalize": "percentile"},
    "clipped": {"clip_min": -160.25, "clip_max": 239.75},
    "minmax, clipped": {"normalize": "minmax", "clip_min": -59.817, "clip_max": 200},
    "percentiles": {"percentiles": "5,95"},
    "zero padding": {"padding_mode": "zero", "window_size": 3},
}


@pytest.mark.parametrize(
    ("numbers", "settings"),
    [(numbers, settings) for numbers in ("CT", "int32") for settings in SETTINGS]
    + [(numbers, "percentile") for numbers in NUMBERS if numbers not in ("CT", "int32")],
)
def test_integers_become_what_a_dataset_of_floats_has(add, slice_dataset, numbers, settings):
    add("a", voxels(*NUMBERS[numbers]))
    assert_equals_floats(slice_dataset(**ZARR, **SETTINGS[settings]))


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -12.25), (-2.0, 7.0), (1e-4, 0), (3e5, 1)])
@pytest.mark.parametrize("settings", ["zscore", "minmax", "clipped", "zero padding"])
def test_slope_and_intercept_of_the_file_are_in_the_scaling(
    add, slice_dataset, slope, intercept, settings
):
    limits = {}
    if settings == "clipped":  # in intensities
        limits = dict(
            zip(("clip_min", "clip_max"), sorted((-500 * slope, 700 * slope)), strict=True)
        )
    add("a", voxels("i2", -1024, 3071), slope, intercept)
    assert_equals_floats(slice_dataset(**ZARR, **SETTINGS[settings] | limits))


def test_cases_of_unequal_scaling_and_dtype_make_one_batch(add, slice_dataset):
    add("a", voxels("i2", -1024, 3071))
    add("b", voxels("u1", 0, 255), -0.5, 3)
    add("c", voxels("i4", 0, 10**6))
    path = slice_dataset(**ZARR)
    stored, floats = SliceDataset(path, output="source"), SliceDataset(path)
    numbers = [0, 25, 12, 3]
    result = normalize_batch(arrays_of(stored.read_batch(numbers)))
    for image, number in zip(result["image"], numbers, strict=True):
        np.testing.assert_allclose(image, floats[number]["image"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window_size", [0, 1, 4])
def test_each_modality_has_its_own_scaling(dataset, slice_dataset, window_size):
    for channel, (dtype, low, high) in enumerate([("i2", -900, 900), ("u1", 0, 200)]):
        dataset.add("a", voxels(dtype, low, high), True if channel == 0 else None, channel=channel)
    path = slice_dataset(**ZARR, normalize=["zscore", "minmax"], padding_mode="zero")
    assert_equals_floats(path, window_size=window_size)


@pytest.mark.parametrize("normalize", ["zscore", "minmax", "percentile", "none"])
def test_a_case_of_one_intensity_is_what_it_is_as_floats(add, slice_dataset, normalize):
    add("a", np.full((8, 9, 10), 77, np.int16))
    assert_equals_floats(slice_dataset(**ZARR, normalize=normalize))


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "png", "window_size": 1},
        {"format": "png", "bits": 16},
        {"format": "png", "bits": 16, "offset": 1024},
        {"format": "png", "ct_windows": ["40/400", "50/100", "400/1800"]},
        {"format": "zarr", "dtype": "uint8", "ct_windows": "40/400", "window_size": 1},
        {"format": "npz", "dtype": "uint8", "padding_mode": "zero"},
    ],
    ids=str,
)
def test_pictures_have_the_scaling_of_their_pixels(add, slice_dataset, settings):
    add("a", voxels("i2", -1024, 3071))
    assert_equals_floats(slice_dataset(**settings))


def test_padding_is_zero_whatever_the_offset(add, slice_dataset):
    add("a", voxels("i2", 500, 900))
    path = slice_dataset(**ZARR, padding_mode="zero", window_size=2)
    sample = SliceDataset(path, None, output="source")[0]
    assert sample["plane_mask"].tolist() == [False, False, True, True, True]
    image = normalize_batch(sample)["image"]
    assert not image[:2].any()
    assert image[2:].any(axis=(1, 2)).all()


def batch_of_numbers(dtype: str) -> dict[str, Any]:
    """Return a batch of random numbers of a dtype, with a random scaling."""
    rng = np.random.default_rng(1)
    info = np.iinfo(dtype)
    low, high = np.sort(rng.uniform(info.min, info.max, (2, 3, 2)), axis=0)
    low[0], high[1] = -np.inf, np.inf
    return {
        "image": rng.integers(info.min, info.max, (3, 2, 4, 5), endpoint=True).astype(dtype),
        "scale": rng.uniform(-1, 1, (3, 2)) * 4 / info.max,
        "offset": rng.uniform(-3, 3, (3, 2)),
        "clip_range": np.stack([low, high], axis=-1),
        "plane_mask": np.array([[True, True], [True, False], [True, True]]),
        "case_id": ["a", "b", "c"],
    }


each_dtype = pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4"])


@each_dtype
def test_the_arithmetic_is_clip_then_scale_then_offset(dtype):
    batch = batch_of_numbers(dtype)
    expected = np.zeros(batch["image"].shape)
    for index, number in np.ndenumerate(batch["image"]):
        low, high = batch["clip_range"][index[:2]]
        if batch["plane_mask"][index[:2]]:
            scale, offset = batch["scale"][index[:2]], batch["offset"][index[:2]]
            expected[index] = min(max(float(number), low), high) * scale + offset
    result = normalize_batch(batch)
    assert result.keys() == {"image", "case_id"}
    np.testing.assert_allclose(result["image"], expected, rtol=1e-6, atol=1e-6)


@each_dtype
def test_tensors_become_the_numbers_that_arrays_become(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    batch = batch_of_numbers(dtype)
    tensors = {
        name: value if name == "case_id" else torch.from_numpy(value.copy())
        for name, value in batch.items()
    }
    image = normalize_batch(tensors)["image"]
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), normalize_batch(batch)["image"])
    np.testing.assert_array_equal(tensors["image"].numpy(), batch["image"])


def test_limits_beyond_float32_are_no_limits():
    batch = {
        "image": np.array([[[1, 2]]], np.int16),
        "scale": np.ones(1),
        "offset": np.zeros(1),
        "clip_range": np.array([[-1e300, 1e300]]),
        "plane_mask": np.ones(1, bool),
    }
    assert normalize_batch(batch)["image"].tolist() == [[[1, 2]]]
