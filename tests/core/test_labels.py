"""Label maps: converted without loss or refused with the way out, and counted."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dask_slicer.core.labels import LABEL_DTYPES, convert_label, count_labels
from dask_slicer.core.volume import Voxels
from dask_slicer.errors import LabelValues


def label_map(values: list[float], dtype: str, **scaling: float) -> Voxels:
    """Return a label map of one slice and one row."""
    return Voxels(stored=np.array([[values]], dtype=dtype), **scaling)


@pytest.mark.parametrize(
    ("voxels", "label_dtype", "expected"),
    [
        pytest.param(label_map([0, 1, 255], "uint8"), "uint8", [0, 1, 255], id="uint8"),
        pytest.param(label_map([0, 1, 127], "int8"), "uint8", [0, 1, 127], id="int8"),
        pytest.param(label_map([0, 255], "int16"), "uint8", [0, 255], id="int16_that_fits"),
        pytest.param(label_map([0, 300], "int16"), "uint16", [0, 300], id="300_in_uint16"),
        pytest.param(label_map([0, 65535], "uint16"), "uint16", [0, 65535], id="largest_uint16"),
        pytest.param(label_map([-1, 70000], "int32"), "int32", [-1, 70000], id="negative_in_int32"),
        pytest.param(label_map([0, 7], "int64"), "uint8", [0, 7], id="int64"),
        pytest.param(label_map([0, 7], "uint64"), "uint8", [0, 7], id="uint64"),
        pytest.param(label_map([2**31 - 1], "int64"), "int32", [2**31 - 1], id="largest_int32"),
        pytest.param(label_map([0, 1, 1], "bool"), "uint8", [0, 1, 1], id="bool"),
        pytest.param(label_map([0, 300], ">u2"), "uint16", [0, 300], id="big_endian_uint16"),
        pytest.param(label_map([0, 300], ">i4"), "int32", [0, 300], id="big_endian_int32"),
        pytest.param(label_map([0, 1, 2], ">f4"), "uint8", [0, 1, 2], id="big_endian_float32"),
        pytest.param(label_map([0, 1, 2], "float16"), "uint8", [0, 1, 2], id="float16"),
        pytest.param(label_map([0, 1, 2], "float64"), "uint8", [0, 1, 2], id="float64"),
        pytest.param(label_map([-0.0, 0.0], "float32"), "uint8", [0, 0], id="minus_zero"),
        pytest.param(label_map([1.0009, 1.9991], "float64"), "uint8", [1, 2], id="near_is_rounded"),
        pytest.param(label_map([-0.0009], "float64"), "uint8", [0], id="just_below_0_is_0"),
        pytest.param(label_map([255.0009], "float64"), "uint8", [255], id="just_over_255_is_255"),
        pytest.param(
            label_map([0, 10, 20], "uint8", slope=0.1), "uint8", [0, 1, 2], id="scaled_down"
        ),
        pytest.param(
            label_map([0, 85, 255], "uint8", slope=float(np.float32(1 / 85))),
            "uint8",
            [0, 1, 3],
            id="scaled_by_a_rounded_slope",
        ),
        pytest.param(
            label_map([-128, 127], "int8", intercept=128.0), "uint8", [0, 255], id="shifted"
        ),
        pytest.param(
            label_map([0, 1], "int16", slope=-1.0, intercept=2.0), "uint8", [2, 1], id="mirrored"
        ),
        pytest.param(
            label_map([0, 2], "uint8", slope=150.0), "uint16", [0, 300], id="scaled_beyond_storage"
        ),
    ],
)
def test_a_label_map_is_converted_without_loss(
    voxels: Voxels, label_dtype: str, expected: list[int]
) -> None:
    before = voxels.stored.copy()
    found = convert_label(voxels, label_dtype)
    assert found.dtype == np.dtype(label_dtype)
    assert found.shape == voxels.stored.shape
    assert found.ravel().tolist() == expected
    assert np.array_equal(voxels.stored, before)


def test_a_label_is_copied_only_where_it_has_to_be() -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert convert_label(Voxels(stored=stored), "uint8") is stored
    for voxels, dtype in (
        (Voxels(stored=stored), "uint16"),
        (Voxels(stored=stored, slope=2.0), "uint8"),
        (Voxels(stored=stored.transpose(2, 1, 0)), "uint8"),  # slices interleaved
    ):
        found = convert_label(voxels, dtype)
        assert not np.shares_memory(found, stored)
        assert np.array_equal(found, voxels.stored * voxels.slope)


@pytest.mark.parametrize(
    ("voxels", "label_dtype", "message"),
    [
        pytest.param(label_map([0, 0.4], "float32"), "uint8", r"0\.4 is not an integer", id="0.4"),
        pytest.param(
            label_map([0, 1.0011], "float64"), "uint8", r"1\.0011 is not an integer", id="1.0011"
        ),
        pytest.param(label_map([0, np.nan], "float32"), "uint8", "the label holds NaN", id="nan"),
        pytest.param(label_map([0, np.inf], "float32"), "uint8", "inf is not an integer", id="inf"),
        pytest.param(
            label_map([-np.inf, 0], "float64"), "uint8", "-inf is not an integer", id="minus_inf"
        ),
        pytest.param(
            label_map([0, 5], "uint8", slope=0.1), "uint8", r"0\.5 is not an integer", id="scaled"
        ),
        pytest.param(
            label_map([0, 300], "int16"),
            "uint8",
            "300 does not fit --label_dtype uint8 .*use --label_dtype uint16",
            id="300_in_uint8",
        ),
        pytest.param(
            label_map([0, 256], "float32"),
            "uint8",
            "256 does not fit --label_dtype uint8 .*use --label_dtype uint16",
            id="256_as_float",
        ),
        pytest.param(
            label_map([0, 2], "uint8", slope=150.0),
            "uint8",
            "300 does not fit .*use --label_dtype uint16",
            id="300_when_scaled",
        ),
        pytest.param(
            label_map([0, 300], ">i2"), "uint8", "300 .*use --label_dtype uint16", id="big_endian"
        ),
        pytest.param(
            label_map([0, 65536], "int32"),
            "uint16",
            "65536 does not fit --label_dtype uint16 .*use --label_dtype int32",
            id="65536_in_uint16",
        ),
        pytest.param(
            label_map([-1, 1], "int8"),
            "uint8",
            "-1 does not fit --label_dtype uint8 .*use --label_dtype int32",
            id="negative",
        ),
        pytest.param(
            label_map([-1, 1], "float32"), "uint16", "-1 does not fit .*int32", id="negative_float"
        ),
        pytest.param(
            label_map([0, 2**31], "int64"),
            "int32",
            "2147483648 does not fit --label_dtype int32 .*no --label_dtype holds it",
            id="beyond_int32",
        ),
        pytest.param(
            label_map([0, 2**64 - 1], "uint64"),
            "uint8",
            "18446744073709551615 does not fit .*no --label_dtype holds it",
            id="largest_uint64",
        ),
        pytest.param(
            label_map([0, 1e30], "float64"), "uint8", "does not fit .*no --label_dtype", id="1e30"
        ),
        pytest.param(
            # Two labels that need two wider dtypes: the advice must do for both.
            label_map([-1, 300], "int16"),
            "uint8",
            "use --label_dtype int32",
            id="negative_and_300",
        ),
        pytest.param(
            label_map([300, 70000], "int32"), "uint8", "use --label_dtype int32", id="300_and_70000"
        ),
    ],
)
def test_a_label_map_that_would_lose_something_is_refused(
    voxels: Voxels, label_dtype: str, message: str
) -> None:
    with pytest.raises(LabelValues, match=message):
        convert_label(voxels, label_dtype)


@pytest.mark.parametrize("value", [0.4, 300.0], ids=["not_an_integer", "too_large"])
def test_a_refusal_names_the_file(value: float) -> None:
    stored = np.array([[[value]]])
    with pytest.raises(LabelValues, match="labelsTr/liver_7"):
        convert_label(Voxels(stored=stored, source="labelsTr/liver_7.nii.gz"), "uint8")


def test_a_bad_value_is_found_in_any_slice() -> None:
    for slice_index in range(5):
        stored = np.zeros((5, 2, 3), dtype=np.float32)
        stored[slice_index, 1, 2] = 0.5
        with pytest.raises(LabelValues):
            convert_label(Voxels(stored=stored), "uint8")


@pytest.mark.parametrize("axes", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_label_map_keeps_its_places_however_it_lies_in_memory(
    axes: tuple[int, int, int], order: str
) -> None:
    values = np.random.default_rng(1).integers(0, 200, (40, 5, 6)).astype(np.int16)
    seen = np.asarray(values, order=order).transpose(axes)[::-1, :, ::-1]
    assert np.array_equal(convert_label(Voxels(stored=seen), "uint8"), seen)


@given(
    stored=hnp.arrays(
        np.int32, st.just((2, 3, 4)), elements=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 9)
    ),
    label_dtype=st.sampled_from(LABEL_DTYPES),
)
def test_a_label_map_is_converted_equal_or_refused(stored: np.ndarray, label_dtype: str) -> None:
    limits = np.iinfo(label_dtype)
    if limits.min <= stored.min() and stored.max() <= limits.max:
        assert np.array_equal(convert_label(Voxels(stored=stored), label_dtype), stored)
    else:
        with pytest.raises(LabelValues):
            convert_label(Voxels(stored=stored), label_dtype)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        pytest.param([0, 0, 0], "uint8", {}, id="empty"),
        pytest.param([1, 1, 1], "uint8", {1: 3}, id="full"),
        pytest.param([255, 0, 3, 255], "uint8", {3: 1, 255: 2}, id="uint8"),
        pytest.param([65535, 2], "uint16", {2: 1, 65535: 1}, id="uint16"),
        pytest.param([-5, 70000, -5, 0], "int32", {-5: 2, 70000: 1}, id="int32"),
    ],
)
def test_pixels_are_counted_by_value_without_the_background(
    values: list[int], dtype: str, expected: dict[int, int]
) -> None:
    found = count_labels(np.array([values], dtype=dtype))
    assert found == expected
    assert list(found) == sorted(expected)


@given(
    plane=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.integers(0, 4),
    )
)
def test_counts_are_those_of_a_naive_loop(plane: np.ndarray) -> None:
    expected = Counter(int(value) for value in plane.flat if value != 0)
    found = count_labels(plane.T[::-1])
    assert found == expected
    assert all(type(number) is int for item in found.items() for number in item)
