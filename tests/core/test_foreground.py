"""Foreground of an image and samples of it, against SimpleITK and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.foreground import (
    IntensityProperties,
    foreground_mask,
    otsu_threshold,
    pool_samples,
    sample_intensities,
)
from dask_slicer.core.volume import Voxels
from dask_slicer.errors import MissingLabel, NonFinite

sitk = pytest.importorskip("SimpleITK")


def _voxels(array: object, **scaling: float) -> Voxels:
    return Voxels(stored=np.asarray(array), **scaling)


@pytest.mark.parametrize(
    ("intercept", "expected"), [(0.0, [True, False, True]), (-1.0, [False, True, True])]
)
def test_nonzero_is_in_the_units_of_the_file(intercept, expected) -> None:
    voxels = _voxels(np.array([1, 0, 3], np.int16), intercept=intercept)
    assert foreground_mask(voxels, "nonzero").tolist() == expected


@pytest.mark.parametrize("which", ["nonzero", "otsu"])
def test_nan_and_inf_count_as_0(which) -> None:
    values = np.array([0, 1, 2, 90, np.nan, np.inf, -np.inf], np.float32)
    expected = [False, which == "nonzero", which == "nonzero", True, False, False, False]
    assert foreground_mask(_voxels(values), which).tolist() == expected


def test_labelled_voxels() -> None:
    voxels = _voxels([5, 6, 7])
    assert foreground_mask(voxels, "label", label=np.array([0, 2, 1])).tolist() == [0, 1, 1]
    with pytest.raises(MissingLabel, match="the foreground is the label"):
        foreground_mask(voxels, "label")


@given(seed=st.integers(0, 500), gap=st.floats(2, 50), slope=st.floats(0.1, 5))
def test_otsu_divides_as_simpleitk(seed, gap, slope) -> None:
    rng = np.random.default_rng(seed)
    dark = rng.normal(0, 1, size=(4, 6, 7))
    values = (dark + gap * (rng.random(dark.shape) < 0.3)).astype(np.float32)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.SetInsideValue(0)
    otsu.SetOutsideValue(1)
    expected = sitk.GetArrayFromImage(otsu.Execute(sitk.GetImageFromArray(values))) > 0
    mask = foreground_mask(_voxels(values, slope=slope), "otsu")
    assert np.mean(mask != expected) < 0.02  # a bin's width
    assert otsu_threshold(values) == pytest.approx(
        otsu.GetThreshold(), abs=float(np.ptp(values)) / 100
    )


def test_otsu_of_a_constant_image_has_no_foreground() -> None:
    assert not foreground_mask(_voxels(np.full((2, 3, 4), 7)), "otsu").any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_otsu_far_from_zero(dtype) -> None:
    values = np.array([1e6, 1e6 + 0.25, 1e6 + 1.5, 1e6 + 2], dtype)
    assert foreground_mask(_voxels(values), "otsu").tolist() == [0, 0, 1, 1]


def test_otsu_after_clipping() -> None:
    values = np.array([0, 1, 2, 10, 11, 12, 3000], dtype=np.int16)
    assert foreground_mask(_voxels(values), "otsu").tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert foreground_mask(_voxels(values), "otsu", high=12).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_sample_is_of_labelled_voxels_and_depends_on_the_case_alone() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 1000, size=(4, 5, 6)).astype(np.int16)
    label = (rng.random(stored.shape) < 0.3).astype(np.uint8)
    image = [_voxels(stored), _voxels(-stored, slope=2, intercept=5)]
    sample = sample_intensities(image, label, n=3000, case_id="a")
    assert sample.shape == (2, 3000)
    assert set(sample[0].astype(int)) == set(stored[label > 0])
    np.testing.assert_allclose(sample[1], -2 * sample[0] + 5)
    again = sample_intensities(image, label, n=3000, case_id="a")
    np.testing.assert_array_equal(sample, again)
    assert not np.array_equal(sample, sample_intensities(image, label, n=3000, case_id="b"))
    flipped = [_voxels(voxels.stored[:, ::-1], slope=voxels.slope) for voxels in image]
    assert sample_intensities(flipped, 0 * label, n=3, case_id="a").shape == (2, 0)


def test_a_sample_with_nan_fails() -> None:
    image = [_voxels(np.full((1, 2, 2), np.nan))]
    with pytest.raises(NonFinite):
        sample_intensities(image, np.ones((1, 2, 2), np.uint8), n=5, case_id="a")


def test_pooled_samples_do_not_depend_on_the_order_of_cases() -> None:
    rng = np.random.default_rng(2)
    samples = [rng.normal(100, 20, size=(2, 500)).astype(np.float32) for _ in range(7)]
    empty = np.empty((2, 0), dtype=np.float32)
    properties = pool_samples(samples)
    assert properties == pool_samples([*samples[::-1], empty])
    channel = np.concatenate(samples, axis=1)[1].astype(np.float64)
    assert properties[1].mean == pytest.approx(channel.mean(), rel=1e-12)
    assert properties[1].std == pytest.approx(channel.std(), rel=1e-12)
    assert properties[1].percentile_99_5 == pytest.approx(np.percentile(channel, 99.5))
    assert properties[1].median == pytest.approx(np.median(channel))
    assert IntensityProperties.parse(properties[0].as_json()) == properties[0]
    with pytest.raises(ValueError, match="no case has a labelled voxel"):
        pool_samples([empty])


def test_each_case_has_the_same_weight_whatever_its_label() -> None:
    rng = np.random.default_rng(3)
    samples, cases = [], []
    for case_id, n, mean in (("small", 30, -50.0), ("large", 3000, 70.0)):
        stored = rng.normal(mean, 5, size=(4, 40, 40))
        label = (np.arange(stored.size).reshape(stored.shape) < n).astype(np.uint8)
        cases.append(stored[label > 0])
        samples.append(sample_intensities([_voxels(stored)], label, n=4000, case_id=case_id))
    (properties,) = pool_samples(samples)
    weighted = np.concatenate([np.repeat(cases[0], 100), cases[1]])
    assert properties.mean == pytest.approx(weighted.mean(), abs=1)
    assert properties.std == pytest.approx(weighted.std(), rel=0.01)
    assert (properties.percentile_00_5, properties.percentile_99_5) == pytest.approx(
        np.percentile(weighted, [0.5, 99.5]), abs=1.5
    )


@pytest.mark.parametrize("change", [{"std": -1}, {"mean": "x"}, {"max": float("nan")}, None])
def test_properties_that_are_none(change) -> None:
    right = dict.fromkeys(IntensityProperties.__dataclass_fields__, 1.0)
    IntensityProperties.parse(right)
    with pytest.raises(ValueError, match="must hold"):
        IntensityProperties.parse(None if change is None else right | change)
