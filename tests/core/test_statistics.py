"""Statistics of a volume, against exact arithmetic and where float64 runs out of digits."""

from __future__ import annotations

import math
import statistics as exact

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dask_slicer.core.statistics import pooled, statistics
from dask_slicer.core.volume import Voxels
from dask_slicer.errors import NonFinite


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize(
    ("values", "clips", "mean", "std", "low", "high", "n_foreground"),
    [
        pytest.param([0, 0, 2, 4], (None, None), 3, 1, 0, 4, 2, id="background_is_left_out"),
        pytest.param([9, 9, 9], (None, None), 9, 0, 9, 9, 3, id="no_foreground"),
        pytest.param([0, 1, 4, 6], (3, None), 5, 1, 3, 6, 2, id="clipped_to_background"),
        pytest.param([0, 1, 3, 9], (None, 3), 7 / 3, 8**0.5 / 3, 0, 3, 3, id="clipped_from_above"),
        pytest.param([0, 1, 4, 6], (7, None), 7, 0, 7, 7, 4, id="all_below_the_clip"),
        pytest.param([0, 1, 4, 6], (2, 5), 4.5, 0.5, 2, 5, 2, id="clipped_from_both_sides"),
        pytest.param([0, 5, 5, 5], (None, None), 5, 0, 0, 5, 3, id="foreground_without_spread"),
    ],
)
def test_foreground_is_what_lies_above_the_minimum_after_clipping(
    values: list, clips: tuple, mean: float, std: float, low, high, n_foreground, dtype: str
) -> None:
    stored = np.array(values, dtype=dtype)
    found = statistics(Voxels(stored=stored), clip_min=clips[0], clip_max=clips[1])
    assert (found.mean, found.std) == pytest.approx((mean, std), rel=1e-12)
    assert (found.min, found.max, found.n_foreground) == (low, high, n_foreground)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float64"])
def test_foreground_is_decided_before_clipping_to_percentiles(dtype: str) -> None:
    # Foreground is 1 to 201, its percentiles 2 and 200: background comes to lie at 2, too.
    stored = np.concatenate([np.zeros(500), np.arange(1, 202)]).astype(dtype)
    found = statistics(Voxels(stored=stored), percentiles=(0.5, 99.5))
    clipped = [2, *range(2, 201), 200]
    assert (found.min, found.max, found.n_foreground) == (2, 200, 201)
    expected = (exact.fmean(clipped), exact.pstdev(clipped))
    assert (found.mean, found.std) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [1e9 + 0.1, 1e-3, 12345678.9, 1e30], ids=str)
def test_a_constant_foreground_has_no_spread_however_large_it_is(value: float) -> None:
    stored = np.where(np.arange(300_000) < 1000, 0, value)
    found = statistics(Voxels(stored=stored))
    assert (found.mean, found.std) == pytest.approx((value, 0.0), rel=1e-12)
    assert found.divisor == 1


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, -1.0, 1e9, 1e30], ids=str)
@pytest.mark.parametrize("spread", [4e-9, 9e-8, 1.1e-7, 1e-6, 0.2], ids=str)
def test_a_std_of_1e_7_of_the_values_is_kept_but_not_divided_by(spread: float, size: float) -> None:
    stored = np.array([-5 * abs(size), size * (1 - spread), size * (1 + spread)])
    found = statistics(Voxels(stored=stored))
    assert found.std == pytest.approx(spread * abs(size), rel=1e-6)
    assert found.divisor == (1.0 if spread < 1e-7 else found.std)


@pytest.mark.parametrize("slope", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
@pytest.mark.parametrize("clip_max", [None, 1e99])
def test_scaled_integers_keep_their_std_however_small_the_scale_is(slope, dtype, clip_max) -> None:
    stored = np.array([0, 9, 10, 11], dtype=dtype)
    found = statistics(Voxels(stored=stored, slope=slope), clip_max=clip_max)
    assert found.std == pytest.approx((2 / 3) ** 0.5 * slope, rel=1e-9)


def brute_force_share(stored: np.ndarray, low: float | None, high: float | None) -> float:
    values = [float(value) for value in stored.flat]
    mean = exact.fmean(values)
    bright = [value for value in values if value > mean] or values
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    return sum(not low <= value <= high for value in bright) / len(bright)


@given(
    hnp.arrays(
        st.sampled_from([np.int16, np.uint8, np.int32, np.float64]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.integers(0, 127),
    ),
    st.none() | st.integers(-5, 60),
    st.none() | st.integers(61, 130),
)
def test_the_clipped_share_is_that_of_voxels_above_the_mean(stored, low, high) -> None:
    found = statistics(Voxels(stored=stored), clip_min=low, clip_max=high)
    assert found.clipped_share == pytest.approx(brute_force_share(stored, low, high), abs=1e-12)
    assert statistics(Voxels(stored=stored)).clipped_share == 0


def test_the_clipped_share_of_a_large_volume_comes_from_a_fair_sample() -> None:
    rng = np.random.default_rng(3)
    stored = np.zeros((64, 128, 128), np.float32)
    stored[:, :, 64:] = rng.normal(500, 100, (64, 128, 64))
    for low, high in ((None, 500.0), (420.0, 700.0), (-160.0, 240.0)):
        found = statistics(Voxels(stored=stored), clip_min=low, clip_max=high)
        assert found.clipped_share == pytest.approx(brute_force_share(stored, low, high), abs=0.01)


@pytest.mark.parametrize("scale", [1e160, 1e200, 1e308], ids=str)
def test_values_too_large_for_float64_sums_are_refused_by_name(scale: float) -> None:
    stored = np.array([0.0, 0.5, 1.0]) * scale
    with pytest.raises(NonFinite, match=r"too large .*clip them"):
        statistics(Voxels(stored=stored))


@pytest.mark.parametrize("dtype", [np.int16, np.float64], ids=lambda dtype: dtype.__name__)
def test_intensities_that_cannot_be_pooled_with_others_are_refused(dtype: type) -> None:
    ones = Voxels(stored=np.ones(3, dtype))
    for low, high in ((1.1e150, None), (None, -1.1e150)):  # also where all voxels are equal
        with pytest.raises(NonFinite, match=r"too large .*clip them"):
            statistics(ones, clip_min=low, clip_max=high)
    least, most = statistics(ones, clip_max=-1e150), statistics(ones, clip_min=1e150)
    assert math.isfinite(pooled(least, most).std)


def test_a_volume_of_nothing_but_nan_is_taken_as_constant_0() -> None:
    stored = np.full((2, 3, 4), np.nan, dtype=np.float32)
    found = statistics(Voxels(stored=stored), zero_nonfinite=True)
    assert (found.mean, found.std, found.min, found.max) == (0, 0, 0, 0)
    assert (found.n_foreground, found.n_nonfinite) == (24, 24)


@given(
    hnp.arrays(
        st.sampled_from([np.int32, np.int64, np.float64]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
        elements=st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 5),
    )
)
def test_statistics_are_those_of_exact_arithmetic(stored: np.ndarray) -> None:
    values = [int(value) for value in stored.flat]
    foreground = [value for value in values if value > min(values)] or values
    found = statistics(Voxels(stored=stored))
    assert found.mean == pytest.approx(exact.fmean(foreground), rel=1e-6, abs=1e-5)
    std = exact.pstdev(foreground)
    is_constant = std <= 1e-7 * max(map(abs, foreground))
    assert found.std == pytest.approx(std, rel=1e-6, abs=1e-9 * max(map(abs, foreground)))
    assert found.divisor == (1.0 if is_constant else found.std)
    assert (found.min, found.max) == (min(values), max(values))
    assert found.n_foreground == len(foreground)


@pytest.mark.parametrize("slope", [2.0, -0.5])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", ">i2"])
def test_sums_of_the_largest_integers_are_exact(dtype: str, slope: float) -> None:
    limits = np.iinfo(np.dtype(dtype).str)
    stored = np.full(1 << 20, limits.max, dtype)
    stored[:1000], stored[1000:3000] = limits.min, limits.min + 1
    found = statistics(Voxels(stored=stored, slope=slope, intercept=3.0))
    above = stored[stored > limits.min] if slope > 0 else stored[stored < limits.max]
    intensities = above.astype(np.float64) * slope + 3
    assert found.n_foreground == above.size
    assert found.mean == pytest.approx(intensities.mean(), rel=1e-13)
    assert found.std == pytest.approx(intensities.std(), rel=1e-10)


@given(st.lists(st.lists(st.integers(-90, 90), min_size=2, max_size=5), min_size=2, max_size=4))
def test_statistics_of_several_volumes_are_those_of_all_foreground_voxels(volumes) -> None:
    one_by_one = [statistics(Voxels(stored=np.array(values, np.int16))) for values in volumes]
    foreground = [v for values in volumes for v in [v for v in values if v > min(values)] or values]
    everything = [v for values in volumes for v in values]
    found = one_by_one[0]
    for following in one_by_one[1:]:
        found = pooled(found, following)
    assert (found.n_foreground, found.min) == (len(foreground), min(everything))
    assert found.max == max(everything)
    assert found.mean == pytest.approx(exact.fmean(foreground), abs=1e-9)
    assert found.std == pytest.approx(exact.pstdev(foreground), abs=1e-6)


@pytest.mark.parametrize(("clip_max", "fits"), [(None, True), (95, True), (94, False)])
def test_a_clip_that_changes_over_half_of_the_bright_voxels_does_not_fit(clip_max, fits) -> None:
    stored = np.array([0] * 8 + [90, 95, 96, 97], np.int16)  # four are bright
    assert statistics(Voxels(stored=stored), clip_max=clip_max).clip_fits is fits
