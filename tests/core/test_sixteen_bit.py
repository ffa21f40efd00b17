"""Pixels of 16 bit, exact or scaled, against integers of Python; a background that stays 0."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dask_slicer.core.intensity import normalization
from dask_slicer.core.slices import slice_volume
from dask_slicer.core.steps.steps import NO_STEPS, Steps
from dask_slicer.core.volume import Volume, Voxels
from dask_slicer.errors import UnsupportedImage

AFFINE = np.diag([3.0, 1.0, 1.5, 1.0])
INTEGERS = ["uint8", "int8", "uint16", "int16", ">i2", "uint32", "int32", ">i4", "int64", "uint64"]


def volume_of(image: np.ndarray, **scaling: float) -> Volume:
    return Volume(
        image=(Voxels(stored=image, source="scan.nii", **scaling),), label=None, affine=AFFINE
    )


def planes_of(volume: Volume, **settings: object) -> np.ndarray:
    stack = slice_volume(volume, normalize="none", **settings)
    planes = np.stack([image for _, (image,) in stack.planes(range(stack.shape[0]))])
    assert planes.dtype == np.float32
    assert (planes == np.rint(planes)).all()
    return planes


def stored_numbers(dtype: str, slope: int, intercept: int, offset: int) -> np.ndarray:
    """Return numbers of a type whose intensities and offset fit 16 bit: ends, and some between."""
    ends = sorted((pixel - offset - intercept) / slope for pixel in (0, 65535))
    limits = np.iinfo(dtype)
    low, high = max(int(np.ceil(ends[0])), limits.min), min(int(ends[1]), limits.max)
    if low > high:
        pytest.skip("no number of this type fits")
    between = np.random.default_rng(1).integers(low, high, 115, endpoint=True, dtype=np.int64)
    return np.array([low, high, *between, *[low] * 3], np.int64).astype(dtype).reshape(4, 5, 6)


@pytest.mark.parametrize("limits", [(None, None), (-160, 240), (0.5, 1000.4999999), (-3.5, None)])
@pytest.mark.parametrize("offset", [0, 32768, 1025])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (-1, 40), (2, -8192), (3, 7)])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_an_offset_gives_the_integers_of_the_file(dtype, slope, intercept, offset, limits) -> None:
    low, high = limits
    image = stored_numbers(dtype, slope, intercept, offset)
    if low is not None and round(low + offset) < 0:
        low = -offset
    planes = planes_of(
        volume_of(image, slope=float(slope), intercept=float(intercept)),
        **{"dtype": "uint16", "offset": offset, "clip_min": low, "clip_max": high},
    )

    def pixel(stored: int) -> int:
        value = Fraction(stored * slope + intercept)
        value = value if low is None else max(value, Fraction(low))
        value = value if high is None else min(value, Fraction(high))
        return round(value + offset)  # of a Fraction: half to even

    expected = [pixel(stored) for stored in image.ravel().tolist()]
    assert planes.ravel().astype(int).tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_intensities_between_integers_are_rounded_once_half_to_even(dtype) -> None:
    image = np.array([0, 0.5, 1.5, 2.5, 1.4999999, 32766.5, -32768.5], dtype).reshape(1, 1, 7)
    planes = planes_of(volume_of(image), dtype="uint16", offset=32768)
    expected = [round(Fraction(value) + 32768) for value in image.ravel().tolist()]
    assert planes.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("values", "offset", "limits"),
    [
        ([-1, 5], 0, {}),
        ([-32769, 5], 32768, {}),
        ([0, 32768], 32768, {}),
        ([0, 65536], 0, {}),
        ([0, 2**40], 0, {}),
        ([-5, 70000], 0, {"clip_min": 0.0}),
        ([-5, 70000], 0, {"clip_max": 100.0}),
    ],
)
def test_a_case_that_does_not_fit_is_refused_in_one_line(values, offset, limits) -> None:
    image = np.array(values * 4, np.int64).reshape(2, 2, 2)
    with pytest.raises(UnsupportedImage) as caught:
        planes_of(volume_of(image), dtype="uint16", offset=offset, **limits)
    message = str(caught.value)
    low, high = limits.get("clip_min", min(values)), limits.get("clip_max", max(values))
    assert f"scan.nii are {low:.10g} to {high:.10g}, and with the offset {offset} " in message
    assert message.endswith("--clip_min and --clip_max, or use --bits 8 or --format npz")
    assert "\n" not in message
    clipped = planes_of(
        volume_of(image), dtype="uint16", offset=offset, clip_min=0.0, clip_max=100.0
    )
    assert clipped.max() == min(max(values), 100) + offset


def test_overshoot_of_splines_is_limited_to_16_bit() -> None:
    rng = np.random.default_rng(2)
    image = rng.choice(np.array([0, 65535], np.uint16), size=(9, 12, 14))
    steps = Steps(spacing=(2.0, 1.3, 1.0))
    planes = planes_of(volume_of(image), dtype="uint16", offset=0, steps=steps)
    exact = planes_of(volume_of(image.astype(np.float64)), dtype="float32", steps=NO_STEPS)
    assert planes.shape != exact.shape
    assert (planes.min(), planes.max()) == (0, 65535)


def test_resampled_intensities_are_those_of_float32_rounded() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(-1024, 3000, size=(9, 12, 14)).astype(np.int16)
    steps = Steps(spacing=(2.0, 1.3, 1.0), size=(20, 20))
    planes = planes_of(volume_of(image), dtype="uint16", offset=32768, steps=steps)
    stack = slice_volume(volume_of(image), normalize="none", steps=steps)
    floats = np.stack([image for _, (image,) in stack.planes(range(stack.shape[0]))])
    assert np.abs(planes - 32768 - floats).max() < 0.51
    assert planes[0, 0, 0] == int(image.min()) + 32768  # padding


@pytest.mark.parametrize(
    "limits", [{}, {"clip_min": -160.0, "clip_max": 240.0}, {"clip_max": 100.0}], ids=str
)
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, 3.0), (-2.0, 100.0)])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "int32", "float64"])
def test_without_an_offset_limits_become_0_and_65535(dtype, slope, intercept, limits) -> None:
    rng = np.random.default_rng(4)
    image = rng.integers(0, 255, size=(5, 6, 7)).astype(dtype)
    volume = volume_of(image, slope=slope, intercept=intercept)
    planes = planes_of(volume, dtype="uint16", **limits)
    raw = [Fraction(n) * Fraction(slope) + Fraction(intercept) for n in image.ravel().tolist()]
    if limits:
        low, high = limits.get("clip_min", min(raw)), limits["clip_max"]
    else:
        intensities = np.array([float(value) for value in raw])
        foreground = intensities[intensities > intensities.min()]
        low, high = np.percentile(foreground, (0.5, 99.5)).tolist()
    low, high = Fraction(low), Fraction(high)
    exact = [(min(max(value, low), high) - low) / (high - low) * 65535 for value in raw]
    away = [abs(pixel - value) for pixel, value in zip(planes.ravel().tolist(), exact, strict=True)]
    assert max(away) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_halves_go_to_the_even_number() -> None:
    stored = np.arange(0, 4001, dtype=np.int16)
    how, _ = normalization(Voxels(stored=stored), "uint16", clip_min=0.0, clip_max=4000.0)
    expected = [round(Fraction(65535 * value, 4000)) for value in range(4001)]
    assert how.apply(stored).tolist() == expected
    assert any(Fraction(65535 * value, 4000) % 1 == Fraction(1, 2) for value in range(4001))


def test_windows_of_16_bit_have_their_own_limits() -> None:
    image = np.arange(-200, 280, dtype=np.int16).reshape(4, 10, 12)
    steps = Steps(ct_windows=((-160.0, 240.0),))
    planes = planes_of(volume_of(image), dtype="uint16", steps=steps)
    shares = [Fraction(min(max(value, -160), 240) + 160, 400) for value in image.ravel().tolist()]
    assert planes.ravel().tolist() == [round(65535 * share) for share in shares]


# -- a background of 0 -----------------------------------------------------------------------------


def head(dtype: str, *, seed: int = 5) -> np.ndarray:
    """Return a volume of zeros around values of both signs, where the type has them."""
    rng = np.random.default_rng(seed)
    image = np.zeros((6, 10, 12))
    low = 1 if np.dtype(dtype).kind == "u" else -50
    image[1:5, 2:8, 3:9] = rng.integers(low, 200, size=(4, 6, 6))
    return image.astype(dtype)


@pytest.mark.parametrize("method", ["zscore", "percentile"])
@pytest.mark.parametrize("foreground", ["nonzero", "positive"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (2.0, -40.0), (-1.0, 20.0)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_zero_background(dtype, slope, intercept, foreground, method) -> None:
    image = head(dtype)
    raw = image.astype(np.longdouble) * slope + intercept
    inside = raw > 0 if foreground == "positive" else raw != 0
    ends = np.percentile(raw[inside].astype(float), (0.5, 99.5))
    values = raw.clip(*ends) if method == "percentile" else raw
    mean, std = values[inside].mean(), values[inside].std()
    expected = np.where(inside, (values - mean) / std, 0)
    for is_on in (True, False):
        stack = slice_volume(
            volume_of(image, slope=slope, intercept=intercept),
            normalize=method,
            steps=Steps(foreground=foreground, zero_background=is_on),
        )
        planes = np.stack([plane for _, (plane,) in stack.planes(range(stack.shape[0]))])
        wanted = expected if is_on else (values - mean) / std
        np.testing.assert_allclose(planes, wanted.astype(float), rtol=1e-4, atol=1e-4)
        assert not is_on or not planes[~inside].any()


def test_zero_background_is_as_in_monai() -> None:
    monai = pytest.importorskip("monai.transforms")
    image = head("float32")
    expected = monai.NormalizeIntensity(nonzero=True, channel_wise=True)(image[None])[0]
    steps = Steps(foreground="nonzero", zero_background=True)
    stack = slice_volume(volume_of(image), steps=steps)
    planes = np.stack([plane for _, (plane,) in stack.planes(range(6))])
    np.testing.assert_allclose(planes, np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.0)])
@pytest.mark.parametrize("foreground", ["nonzero", "positive"])
def test_padding_is_background_too(foreground, spacing) -> None:
    image = head("int16")
    steps = Steps(foreground=foreground, zero_background=True, size=(30, 30), spacing=spacing)
    stack = slice_volume(volume_of(image), steps=steps)
    for _, (plane,) in stack.planes(range(stack.shape[0])):
        assert not plane[:5].any()
        assert not plane[-5:].any()


def test_nan_is_background() -> None:
    image = head("float32")
    image[2, 3, 4], image[2, 3, 5] = np.nan, np.inf
    steps = Steps(foreground="positive", zero_background=True)
    stack = slice_volume(volume_of(image), nonfinite="zero", steps=steps)
    planes = dict(stack.planes({2}))
    assert planes[2][0][3, 4:6].tolist() == [0, 0]


def test_a_slice_is_blank_only_if_all_its_pixels_are_equal() -> None:
    # The mean of the foreground is 10, so its lowest and highest pixels both become 0.
    image = np.zeros((3, 2, 2), np.int16)
    image[1] = [[0, 5], [10, 10]]
    image[2] = [[10, 15], [10, 10]]
    steps = Steps(foreground="nonzero", zero_background=True, drop_blank=True)
    assert slice_volume(volume_of(image), steps=steps).kept == (1, 2)


@pytest.mark.parametrize("method", ["minmax", "none"])
def test_zero_background_has_no_effect_elsewhere(method) -> None:
    voxels = Voxels(stored=head("int16"))
    plain, _ = normalization(voxels, method, foreground="nonzero")
    zeroed, _ = normalization(voxels, method, foreground="nonzero", zero_background=True)
    assert plain == zeroed
