"""Slices chosen for pictures and samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.report.selection import choose_slices, shares, spread, spread_rows


@given(length=st.integers(0, 200), n=st.integers(0, 40))
def test_positions_are_spread_in_order_and_no_position_is_repeated(length: int, n: int) -> None:
    places = spread(length, n)
    assert len(places) == min(length, n)
    assert places == sorted(set(places))
    assert all(0 <= place < length for place in places)
    if 0 < n <= length:  # the gaps at both ends are alike
        assert abs(places[0] - (length - 1 - places[-1])) <= 1


@given(most=st.lists(st.integers(0, 30), min_size=1, max_size=6), n=st.integers(0, 60))
def test_shares_use_up_what_there_is_and_leave_no_part_out_while_there_is_enough(
    most: list[int], n: int
) -> None:
    taken = shares(most, n)
    assert sum(taken) == min(n, sum(most))
    assert all(got <= size for got, size in zip(taken, most, strict=True))
    if n >= sum(size > 0 for size in most):
        assert all(got > 0 for got, size in zip(taken, most, strict=True) if size > 0)


@pytest.mark.parametrize(
    ("foreground", "n", "chosen"),
    [
        pytest.param([0, 0, 0.2, 0.2, 0.2, 0, 0, 0], 1, [3], id="the middle of what is labelled"),
        pytest.param([0, 0.1, 0.1, 0.1, 0.9, 0, 0], 1, [4], id="where most is labelled"),
        pytest.param([0, 0, 0, 0.5, 0, 0, 0], 3, [1, 3, 5], id="others once labels are used up"),
        pytest.param([np.nan] * 5, 1, [2], id="the middle without a label"),
        pytest.param([0] * 7, 2, [1, 5], id="spread where nothing is labelled"),
        pytest.param([0, 0.9, 0.01, 0.01, 0.01], 2, [1, 3], id="no slice twice"),
        pytest.param([0.1, 0.2], 5, [0, 1], id="all there are"),
        pytest.param([], 3, [], id="none"),
    ],
)
def test_slices_are_chosen_where_labels_are(
    foreground: list[float], n: int, chosen: list[int]
) -> None:
    assert choose_slices(np.array(foreground, dtype=np.float32), n) == chosen


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_rows_are_spread_over_groups(lengths, most) -> None:
    ends = np.concatenate(([0], np.cumsum(lengths))).tolist()
    rows = spread_rows(ends, most)
    assert rows == sorted(set(rows))
    assert all(0 <= row < ends[-1] for row in rows)
    groups = set(np.searchsorted(ends, rows, side="right") - 1)
    assert len(groups) == min(len(lengths), most)
    if len(lengths) <= most:
        assert len(rows) == min(most, ends[-1])


def test_every_group_shows_another_part_of_itself() -> None:
    ends = list(range(0, 101 * 200, 200))
    rows = np.array(spread_rows(ends, 100))
    places, _ = np.histogram(rows % 200, bins=10, range=(0, 200))
    assert places.min() >= 8
