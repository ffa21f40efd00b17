"""Masks merged into a label map, against a loop over voxels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.masks import merge_masks
from dask_slicer.core.volume import Voxels
from dask_slicer.errors import LabelValues

SHAPE = (3, 4, 5)


def merged_by_loop(masks: list[np.ndarray]) -> tuple[np.ndarray, Counter]:
    label, overlaps = np.zeros(SHAPE, int), Counter()
    for value, mask in enumerate(masks, start=1):
        for index in np.ndindex(SHAPE):
            if mask[index] and label[index]:
                overlaps[int(label[index]), value] += 1
            elif mask[index]:
                label[index] = value
    return label, overlaps


@given(
    seed=st.integers(0, 2**32 - 1),
    n_masks=st.integers(1, 5),
    foreground=st.sampled_from([1, 255]),
    dtype=st.sampled_from(["uint8", "int16", "float32", ">f8"]),
    axes=st.permutations([0, 1, 2]),
)
def test_masks_are_merged_as_a_loop_over_voxels_does_it(
    seed, n_masks, foreground, dtype, axes
) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random(SHAPE) > rng.random() for _ in range(n_masks)]
    stored = [
        np.ascontiguousarray((mask * foreground).astype(dtype).transpose(axes)).transpose(
            np.argsort(axes)
        )
        for mask in masks
    ]
    label, overlaps = merge_masks(
        ((value, Voxels(stored=array)) for value, array in enumerate(stored, start=1)),
        like=stored[0],
        largest=n_masks,
    )
    expected_label, expected_overlaps = merged_by_loop(masks)
    np.testing.assert_array_equal(label, expected_label)
    assert overlaps == expected_overlaps
    assert label.dtype == np.uint8


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "foreground"),
    [
        pytest.param([0, 1, 0], 1.0, 0.0, [1], id="0 and 1"),
        pytest.param([0, 255, 255], 1.0, 0.0, [1, 2], id="0 and 255"),
        pytest.param([0, 3, 0], 0.25, 0.0, [1], id="scaled"),
        pytest.param([1, 2, 1], 1.0, -1.0, [1], id="stored as 1 and 2, read as 0 and 1"),
        pytest.param([0, 0, 0], 1.0, 0.0, [], id="empty"),
        pytest.param([1, 1, 1], 1.0, 0.0, [0, 1, 2], id="everywhere"),
    ],
)
def test_a_mask_is_0_and_one_other_value(stored, slope, intercept, foreground) -> None:
    array = np.array([[stored]])
    mask = Voxels(stored=array, slope=slope, intercept=intercept)
    label, overlaps = merge_masks([(300, mask)], like=array, largest=300)
    assert np.flatnonzero(label).tolist() == foreground
    assert set(label[label > 0].tolist()) <= {300}
    assert not overlaps


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ([0, 1, 2], "found 0, 1, 2 in m.nii"),
        ([0.0, 0.5, 1.0], "found 0, 0.5, 1 in m.nii"),
        ([1.0, np.nan, 0.0], "found 0, 1, nan in m.nii"),
        (list(range(9)), "found 0, 1, 2, 3, 4, … in m.nii"),
    ],
)
def test_a_mask_with_more_values_is_refused(stored, shown) -> None:
    array = np.array([[stored]])
    with pytest.raises(LabelValues, match="--label_name") as error:
        merge_masks([(1, Voxels(stored=array, source="m.nii"))], like=array, largest=1)
    assert shown in str(error.value)
