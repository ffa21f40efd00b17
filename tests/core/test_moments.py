"""Sums over slabs in any order, against all values at once."""

from __future__ import annotations

import statistics as exact

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.moments import RunningSums, moments, moments_within

slabs_of_numbers = st.lists(
    st.lists(st.integers(-50, 50), min_size=1, max_size=6), min_size=1, max_size=5
)


@given(slabs_of_numbers)
def test_the_lowest_value_may_come_in_any_slab(slabs: list[list[int]]) -> None:
    sums = RunningSums.of(np.array(slab, np.float64) for slab in slabs)
    values = [value for slab in slabs for value in slab]
    low = min(values)
    assert (sums.n, sums.low, sums.high) == (len(values), low, max(values))
    assert sums.n_low == values.count(low)
    assert sums.first == sum(value - low for value in values)
    assert sums.second == sum((value - low) ** 2 for value in values)
    above = [value for value in values if value > low] or values
    mean, variance = moments(sums, len(above))
    assert mean == pytest.approx(exact.fmean(above))
    assert variance == pytest.approx(exact.pvariance(above), abs=1e-9)


@given(slabs_of_numbers, st.integers(0, 3))
def test_values_far_from_the_lowest_are_counted_with_those_clipped_to_it(slabs, n_clipped) -> None:
    low = -60  # below all
    values = [value for slab in slabs for value in slab] + [low] * n_clipped
    arrays = (np.array([low, *slab], np.float64) for slab in slabs)
    mean, variance = moments_within(arrays, low, n_clipped)
    assert mean == pytest.approx(exact.fmean(values))
    assert variance == pytest.approx(exact.pvariance(values), abs=1e-9)
