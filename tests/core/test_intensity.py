"""Statistics and normalisation, against the plain definition in float64 with a boolean mask."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dask_slicer.core.intensity import NORMALIZATIONS, Normalization, check_fits, normalization
from dask_slicer.core.statistics import Statistics, statistics
from dask_slicer.core.volume import Voxels
from dask_slicer.errors import NonFinite

DTYPES = [
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64"),
    *("float16", "float32", "float64", ">i2", ">u2", ">i4", ">f4", ">f8"),
]
SCALINGS = {"as_stored": (1.0, 0.0), "scaled": (0.25, -1024.0), "mirrored": (-1.5, 40.0)}
# Of the range of intensities.
CLIPS = {"unclipped": (None, None), "low": (0.3, None), "high": (None, 0.8), "both": (0.3, 0.8)}
each_method = pytest.mark.parametrize("method", NORMALIZATIONS)


def plain(
    voxels: Voxels, method: str, *, clip_min=None, clip_max=None, zero_nonfinite=False
) -> tuple[Statistics, np.ndarray]:
    """Return statistics and normalised volume as the documentation defines them."""
    volume = voxels.stored.astype(np.float64) * voxels.slope + voxels.intercept
    nonfinite = ~np.isfinite(volume)
    volume[nonfinite] = 0
    volume = volume.clip(clip_min, clip_max)
    foreground = volume > volume.min()
    if not foreground.any():
        foreground[:] = True
    if method == "percentile":
        volume = volume.clip(*np.percentile(volume[foreground], (0.5, 99.5)))
    inside = volume[foreground]
    low, high, mean, std = volume.min(), volume.max(), inside.mean(), inside.std()
    divisor = std if std > 1e-7 * abs(mean) else 1.0
    normalised = {
        "none": volume,
        "minmax": (volume - low) / ((high - low) or 1),
        "zscore": (volume - mean) / divisor,
        "percentile": (volume - mean) / divisor,
    }
    n = {"n_foreground": inside.size, "n_nonfinite": int(nonfinite.sum())}
    found = Statistics(mean=mean, std=std, min=low, max=high, **n)
    return found, normalised[method]


def check(voxels: Voxels, method: str, **options: object) -> None:
    """Hold `normalization`, and what it makes of the voxels, against the plain definition."""
    expected, expected_volume = plain(voxels, method, **options)
    how, found = normalization(voxels, method, **options)
    assert (found.min, found.max) == pytest.approx((expected.min, expected.max), rel=1e-12)
    # Where values cancel in the mean, it is as good as they are.
    assert found.mean == pytest.approx(expected.mean, rel=1e-6, abs=1e-9 * expected.std)
    # What is below the last digits of the mean is rounding.
    assert found.std == pytest.approx(expected.std, rel=1e-6, abs=1e-12 * abs(expected.mean))
    n_expected = (expected.n_foreground, expected.n_nonfinite)
    assert (found.n_foreground, found.n_nonfinite) == n_expected
    volume = how.apply(voxels.stored)
    assert (volume.dtype, volume.shape) == (np.float32, voxels.stored.shape)
    assert volume.flags.c_contiguous
    assert not np.shares_memory(volume, voxels.stored)
    np.testing.assert_allclose(volume, expected_volume, rtol=1e-6, atol=1e-6)
    check_kept(voxels, how, volume)


def check_kept(voxels: Voxels, how: Normalization, volume: np.ndarray) -> None:
    """Hold what is stored for `--dtype source` against the range, and what is made of it."""
    kept = how.clip_stored(voxels.stored)
    assert kept.dtype == voxels.stored.dtype.newbyteorder("=")
    np.testing.assert_array_equal(how.apply(kept), volume)
    if how.zero_nonfinite and kept.dtype == np.float16:
        return  # which has no number near enough to what stands for 0, and no NIfTI file has it
    intensities = kept.astype(np.float64) * how.slope + how.intercept
    # To a number next to the range: one of the next integers, or floats with the digits of float32.
    is_integer = kept.dtype.kind in "iu"
    step = 1 if is_integer else 2 * np.finfo(kept.dtype).eps * (1 + np.abs(kept.astype(np.float64)))
    slack = step * abs(how.slope) + (0 if is_integer else 3e-7 * abs(how.center))
    assert np.isfinite(intensities).all()
    assert (intensities >= how.low - slack).all()
    assert (intensities <= how.high + slack).all()


def scan(dtype: str, shape: tuple[int, int, int] = (6, 7, 8)) -> np.ndarray:
    """Return a third of background at the lowest value, and an organ of values above it."""
    rng = np.random.default_rng(7)
    low, high = (0, 240) if dtype == "uint8" else (0, 1500)
    if np.dtype(dtype).kind != "u":
        low, high = (-100, 100) if dtype == "int8" else (-1000, 1500)
    organ = rng.normal((low + high) / 2, (high - low) / 8, shape).clip(low, high)
    return np.where(rng.random(shape) < 0.33, low, organ).astype(dtype)


@each_method
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_normalised_as_the_definition_says(
    dtype: str, scaling: tuple[float, float], clip: tuple, method: str
) -> None:
    voxels = Voxels(stored=scan(dtype), slope=scaling[0], intercept=scaling[1])
    intensities, _ = plain(voxels, "none")
    low, width = intensities.min, intensities.max - intensities.min
    clip_min, clip_max = (None if share is None else round(low + share * width) for share in clip)
    check(voxels, method, clip_min=clip_min, clip_max=clip_max)


SMALL = {
    "one_voxel": [7],
    "constant": [5, 5, 5, 5],
    "constant_zero": [0, 0, 0],
    "constant_negative": [-3, -3],
    "two_values": [0, 1, 0, 1, 1],
    "one_voxel_above": [0, 0, 0, 9],
    "one_voxel_below": [9, 9, 0, 9],
    "three_values": [-1, 0, 1],
    "constant_foreground": [-1000, 40, 40, -1000, 40],
    "two_foreground_values": [0, 10, 20],
}


@each_method
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("values", SMALL.values(), ids=SMALL)
def test_volumes_of_few_values_are_normalised(values: list, dtype: str, method: str) -> None:
    check(Voxels(stored=np.array([[values]], dtype=dtype)), method)


@each_method
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
@pytest.mark.parametrize(
    ("clip_min", "clip_max"),
    [
        pytest.param(2000, None, id="above_all"),
        pytest.param(None, -2000, id="below_all"),
        pytest.param(-160, 240, id="ct_window"),
        pytest.param(0.1, 100.7, id="fractions"),
        pytest.param(5, 5, id="one_value"),
        pytest.param(-1e99, 1e99, id="as_good_as_none"),
    ],
)
def test_a_clip_may_lie_anywhere(
    clip_min: float | None, clip_max: float | None, dtype: str, method: str
) -> None:
    check(Voxels(stored=scan(dtype)), method, clip_min=clip_min, clip_max=clip_max)


ORGAN = np.random.default_rng(3).normal(100, 20, 5000)
SIGNS = np.array([-1.0, 1.0, 1.0, -1.0] * 250)
FAR = {
    "1e6±1_over_0": ([0.0] * 500, 1e6 + SIGNS, "int32"),
    "1e6±1_over_0_float": ([0.0] * 500, 1e6 + SIGNS, "float32"),
    "30000±0.5_over_0": ([0.0] * 500, 30000 + SIGNS / 2, "float32"),
    "30000±1_over_-32768": ([-32768.0] * 500, 30000 + SIGNS, "int16"),
    "60000±1_over_0": ([0.0] * 500, 60000 + SIGNS, "uint16"),
    "1e9±1_over_0": ([0.0] * 500, 1e9 + SIGNS, "int64"),
    "1e9±1e-3_over_0": ([0.0] * 500, 1e9 + SIGNS * 2**-10, "float64"),
    "1±1e-6_over_0": ([0.0] * 500, 1 + SIGNS * 2**-20, "float32"),
    "organ_over_-1e6": ([-1e6] * 500, ORGAN, "float32"),
    "organ_over_-1e12": ([-1e12] * 500, ORGAN, "float64"),
    "organ_over_lowest_float32": ([float(np.finfo(np.float32).min)] * 500, ORGAN, "float32"),
}


@pytest.mark.parametrize("method", ["zscore", "percentile"])
@pytest.mark.parametrize(("background", "foreground", "dtype"), FAR.values(), ids=FAR)
def test_a_foreground_far_from_the_background_keeps_its_digits(
    background: list, foreground: np.ndarray, dtype: str, method: str
) -> None:
    stored = np.array([*foreground, *background]).astype(dtype)
    voxels = Voxels(stored=np.random.default_rng(1).permutation(stored).reshape(-1, 5, 10))
    check(voxels, method)


@pytest.mark.parametrize("clip_max", [30000.3, 29999.7], ids=["above", "below"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_clip_between_large_values_keeps_its_digits(dtype: str, clip_max: float) -> None:
    stored = (30000 + np.arange(-2, 3).repeat(9)).astype(dtype)
    check(Voxels(stored=stored), "zscore", clip_max=clip_max)


@each_method
@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled", "lowest_last"])
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_the_lowest_and_highest_values_may_come_at_any_time(
    dtype: str, order: str, method: str
) -> None:
    values = np.random.default_rng(5).normal(300, 80, 200_000).round().clip(0, None)
    values[:1000] = 0
    values = {
        "ascending": np.sort(values),
        "descending": np.sort(values)[::-1],
        "shuffled": np.random.default_rng(6).permutation(values),
        "lowest_last": np.append(values[1:], -1000),
    }[order]
    check(Voxels(stored=values.astype(dtype).reshape(20, 100, 100)), method)


@each_method
@pytest.mark.parametrize("axes", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("dtype", ["int16", "float32", ">f8"])
def test_flipped_and_transposed_views_are_normalised_as_they_are_seen(
    dtype: str, axes: tuple[int, int, int], method: str
) -> None:
    stored = np.asfortranarray(scan(dtype))
    for flips in product((1, -1), repeat=3):
        view = stored.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
        check(Voxels(stored=view), method)


@each_method
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_the_array_that_was_given_stays_as_it_was(dtype: str, method: str) -> None:
    stored = scan(dtype)
    before = stored.copy()
    stored.flags.writeable = False
    how, _ = normalization(Voxels(stored=stored), method, clip_min=-5, clip_max=90)
    how.apply(stored)
    assert np.array_equal(stored, before)


BAD = {"nan": [np.nan], "inf": [np.inf], "minus_inf": [-np.inf], "both_inf": [np.inf, -np.inf]}
BAD["all_three"] = [np.nan, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_nan_and_inf_are_counted_or_taken_as_0(bad: list, dtype: str, scaling: tuple) -> None:
    stored = scan("float32", (4, 5, 6)).astype(dtype)
    stored.reshape(-1)[5 : 5 + len(bad)] = bad
    voxels = Voxels(stored=stored, slope=scaling[0], intercept=scaling[1], source="ct_7.nii.gz")
    message = rf"{len(bad)} of 120 voxels are NaN or Inf in .*ct_7\.nii\.gz"
    for method in NORMALIZATIONS:
        with pytest.raises(NonFinite, match=message):
            normalization(voxels, method)
        check(voxels, method, zero_nonfinite=True)
        check(voxels, method, zero_nonfinite=True, clip_min=50)


@each_method
def test_the_whole_range_of_float32_is_normalised(method: str) -> None:
    check(Voxels(stored=np.array([-3e38, 0, 1, 2e38, 3e38], np.float32)), method)


def test_a_finite_value_that_scaling_makes_infinite_counts_as_such() -> None:
    voxels = Voxels(stored=np.array([1e308, 1.0, 2.0, 0.0]), slope=100.0)
    with pytest.raises(NonFinite, match="1 of 4 voxels"):
        statistics(voxels)
    with np.errstate(over="ignore"):
        check(voxels, "minmax", zero_nonfinite=True)


@pytest.mark.parametrize(
    ("values", "method", "dtype", "fits"),
    [
        pytest.param([0, 65504], "none", "float16", True, id="largest_float16"),
        pytest.param([0, 65536], "none", "float16", False, id="over_float16"),
        pytest.param([-70000, 0], "none", "float16", False, id="below_float16"),
        pytest.param([0, 70000], "none", "float32", True, id="fits_float32"),
        pytest.param([0, 70000, 70001], "minmax", "float16", True, id="minmax_fits"),
        pytest.param([0, 70000, 70002], "zscore", "float16", False, id="background_far_below"),
        pytest.param([0, 70000, 90000], "zscore", "float16", True, id="zscore_fits"),
        pytest.param([0, 1e39], "none", "float32", False, id="over_float32"),
    ],
)
def test_a_value_that_would_overflow_is_refused(
    values: list, method: str, dtype: str, fits: bool
) -> None:
    voxels = Voxels(stored=np.array(values, dtype=np.float64))
    how, found = normalization(voxels, method)
    if fits:
        check_fits(how, found, dtype)
        assert np.isfinite(how.apply(voxels.stored).astype(dtype)).all()
    else:
        with pytest.raises(NonFinite, match=rf"over the largest {dtype} .*--dtype"):
            check_fits(how, found, dtype)


def test_minmax_reaches_nothing_beyond_1() -> None:
    stored = np.array([-100, 0, 200], np.int16)
    how, _ = normalization(Voxels(stored=stored), "minmax", clip_min=-59.817)
    unclipped = (np.float32(200) - np.float32(-59.817)) / np.float32(200 + 59.817)
    assert unclipped > 1  # by rounding
    assert how.apply(stored)[[0, 2]].tolist() == [0, 1]


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="zscore, minmax, percentile, none, got rank"):
        normalization(Voxels(stored=np.zeros(3)), "rank")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(8))
def test_clipped_numbers_of_a_scan_give_the_same_bits_as_the_scan(dtype: str, seed: int) -> None:
    """Random scalings, limits between and at voxels, NaN: what is stored for `--dtype source`."""
    rng = np.random.default_rng(seed)
    stored = scan(dtype, (3, 8, 9))
    is_float = stored.dtype.kind == "f"
    if is_float and dtype != "float16":
        stored *= stored.dtype.type(10.0 ** rng.integers(-6, 6))
    scaled = seed % 2
    slope, intercept = (float(np.float32(x)) for x in rng.normal(0, (2, 500)))
    voxels = Voxels(stored=stored, **({"slope": slope, "intercept": intercept} if scaled else {}))
    intensities = stored.astype(np.float64) * voxels.slope + voxels.intercept
    # At voxels, where two numbers are nearest; and half way between two.
    at = np.sort(rng.choice(intensities.ravel(), (20, 2)))
    at[10:] = at[10:].mean(axis=1, keepdims=True) + at[:10] / 1e3
    if is_float and seed % 3 == 0:
        stored[0, 0, :3] = np.nan, np.inf, -np.inf
    for (low, high), method in product(np.sort(at), NORMALIZATIONS):
        how, _ = normalization(voxels, method, clip_min=low, clip_max=high, zero_nonfinite=is_float)
        check_kept(voxels, how, how.apply(stored))


values_of_int32 = st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 5)
volumes = hnp.arrays(
    st.sampled_from([np.int32, np.int64, np.float64]),
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
    elements=values_of_int32,
)


@given(volumes, st.sampled_from(NORMALIZATIONS), st.randoms(use_true_random=False))
def test_the_order_of_voxels_does_not_matter(stored, method, random) -> None:
    order = list(range(stored.size))
    random.shuffle(order)
    shuffled = stored.reshape(-1)[order]
    how, _ = normalization(Voxels(stored=stored), method)
    how_shuffled, _ = normalization(Voxels(stored=shuffled), method)
    np.testing.assert_allclose(
        how_shuffled.apply(shuffled), how.apply(stored).reshape(-1)[order], rtol=1e-5, atol=1e-6
    )


@given(volumes, st.permutations(range(3)), st.sampled_from(NORMALIZATIONS))
def test_a_view_is_normalised_as_its_contiguous_copy(stored, axes, method) -> None:
    view = stored.transpose(axes)[::-1, :, ::-1]
    copy = np.ascontiguousarray(view)
    how, how_copy = (normalization(Voxels(stored=array), method)[0] for array in (view, copy))
    np.testing.assert_allclose(how.apply(view), how_copy.apply(copy), rtol=1e-5, atol=1e-6)
    assert np.array_equal(how.apply(view), how.apply(copy))
