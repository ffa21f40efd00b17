"""Histograms against numpy's, and their charts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from dask_slicer.report.histogram import (
    chart,
    histogram,
    log_heights,
    round_step,
    ticks,
)

NUMBERS = stnp.arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False),
)


@given(NUMBERS, st.integers(1, 40), st.sampled_from([0.0, 0.1]))
def test_every_number_is_counted_once(values, most_bins, tail) -> None:
    found = histogram(values, most_bins=most_bins, tail=tail)
    assert found.n == values.size
    assert len(found.edges) == len(found.counts) + 1
    assert len(found.counts) <= most_bins + 2
    if not tail:
        assert found.n_beyond == 0
    assert (found.smallest, found.median) == (values.min(), np.median(values))


@given(stnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(-2000, 3000)))
def test_integers_are_counted_as_numpy_counts_them(values) -> None:
    found = histogram(values, most_bins=30)
    # numpy counts what lies on the last edge, too.
    expected, _ = np.histogram(values, bins=[*found.edges, np.inf])
    assert found.counts == tuple(expected[:-1])


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([5.0], (5.0, 6.0)),
        ([0.7, 0.7 + 1e-12], (0.0, 1.0)),
        ([1, 2, 3], (1.0, 2.0, 3.0, 4.0)),
        ([0.5, 1.0, np.nan, np.inf], (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)),
    ],
    ids=["one", "the same", "no bins between integers", "those that are finite"],
)
def test_edges_are_round(values, edges) -> None:
    found = histogram(np.array(values), most_bins=5)
    assert found.edges == edges
    assert (found.smallest == found.largest) == (len(edges) == 2)


def test_a_number_on_an_edge_is_in_the_bin_above() -> None:
    found = histogram(np.array([0.0, 1.0, 1.5, 9.9]), most_bins=5)
    assert found.edges == (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    assert found.counts == (3, 0, 0, 0, 1)


def test_a_digit_below_an_edge_counts_as_on_it() -> None:
    values = np.array([0, 10 - 1e-6, 20 - 1e-6, 30])
    assert histogram(values, most_bins=3).counts == (1, 1, 1, 1)


def test_values_in_the_tails_are_counted_outside() -> None:
    values = np.concatenate([np.arange(100.0), [-1e6, 1e6]])
    found = histogram(values, most_bins=10, tail=0.02)
    assert found.n_beyond == 2
    assert (found.edges[0], found.edges[-1]) == (0.0, 100.0)
    assert (found.smallest, found.largest) == (-1e6, 1e6)


@given(st.floats(1e-6, 1e9), st.integers(1, 100))
def test_a_round_step_is_the_smallest_sufficient_one(span, most) -> None:
    step = round_step(span, most)
    assert span / step <= most * (1 + 1e-9)
    assert span / step > most / 2.5 * (1 - 1e-9)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_within(low, span) -> None:
    found = ticks(low, low + span, 5)
    assert 1 <= len(found) <= 6
    assert min(found) >= low - 0.01 * span
    assert max(found) <= low + 1.01 * span


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any))
def test_a_logarithmic_axis_shows_every_bar_and_keeps_their_order(counts) -> None:
    n = sum(counts)
    found, axis = log_heights(counts, n)
    assert all(0 <= height <= 1 for height in found)
    by_count = [height for _, height in sorted(zip(counts, found, strict=True))]
    assert by_count == sorted(by_count)
    assert all(height == 0 for count, height in zip(counts, found, strict=True) if not count)
    assert axis == sorted(axis)
    assert all(0 < at <= 1 for at, _ in axis)


def test_bars_are_as_high_as_their_counts_and_the_highest_fills_the_height() -> None:
    found = histogram(np.array([1.0, 1.5, 2.5, 9.0]), most_bins=10)
    for made in (chart(found), chart(found, log=True)):
        assert [count for *_, count in made.bars] == list(found.counts)
        assert [low for _, low, _, _ in made.bars] == list(found.edges[:-1])
        assert all(0 <= at <= 1 for at, _ in (*made.x_ticks, *made.y_ticks))
    heights = [height for height, *_ in chart(found).bars]
    assert heights == [count / max(found.counts) for count in found.counts]


def test_counts_have_ticks_at_whole_numbers() -> None:
    found = histogram(np.array([0.0, 0.5, 1.0, 3.0]), most_bins=2)
    assert found.counts == (3, 1)
    assert chart(found).y_ticks == [(0.0, 0.0), (1 / 3, 1.0), (2 / 3, 2.0), (1.0, 3.0)]
