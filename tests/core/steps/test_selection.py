"""Selection of slices against tables written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.steps.selection import SliceRange, candidates, thin_empty


@pytest.mark.parametrize(
    ("text", "n_slices", "expected"),
    [
        ("80:-26", 200, range(80, 174)),
        ("10%:90%", 50, range(5, 45)),
        ("10%:90%", 7, range(1, 6)),  # 0.7 and 6.3
        (":5", 10, range(5)),
        ("5:", 10, range(5, 10)),
        (":", 4, range(4)),
        ("-3:", 10, range(7, 10)),
        ("2:50%", 10, range(2, 5)),
        ("50%:-1", 10, range(5, 9)),
        (" 1 : 3 ", 10, range(1, 3)),
        ("0%:100%", 3, range(3)),
        ("20:30", 10, range(10, 10)),
        ("80:-26", 90, range(80, 64)),
    ],
)
def test_range(text, n_slices, expected) -> None:
    chosen = SliceRange.parse(text).of(n_slices)
    assert list(chosen) == list(expected)


@pytest.mark.parametrize(
    "text", ["", "5", "a:b", "1:2:3", "5:5", "7:3", "-3:-5", "90%:10%", "101%:", "1.5:3", "-5%:"]
)
def test_a_range_that_is_none(text) -> None:
    with pytest.raises(ValueError, match="must be A:B"):
        SliceRange.parse(text)


def test_a_stride_starts_at_the_first_slice_of_the_range() -> None:
    assert list(candidates(10, within=SliceRange.parse("1:"), stride=4)) == [1, 5, 9]
    assert list(candidates(3, stride=5)) == [0]


def test_a_list_keeps_the_order_of_slices() -> None:
    assert list(candidates(10, stride=2, listed={8, 3, 4})) == [4, 8]


@given(
    n=st.integers(0, 60),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
    case_id=st.text(min_size=1, max_size=5),
)
def test_a_share_of_the_empty_slices_stays(n, share, seed, case_id) -> None:
    is_empty = [index % 3 > 0 for index in range(n)]
    kept = thin_empty(range(n), is_empty, share=share, seed=seed, case_id=case_id)
    assert kept == sorted(kept)
    assert [index for index in kept if not is_empty[index]] == [
        index for index in range(n) if not is_empty[index]
    ]
    n_kept = sum(is_empty[index] for index in kept)
    assert abs(n_kept - share * sum(is_empty)) <= 0.5
    assert kept == thin_empty(range(n), is_empty, share=share, seed=seed, case_id=case_id)


def test_which_empty_slices_stay_depends_on_seed_and_case() -> None:
    def kept(seed: int, case_id: str) -> tuple[int, ...]:
        return tuple(thin_empty(range(40), [True] * 40, share=0.5, seed=seed, case_id=case_id))

    assert len({kept(1, "a"), kept(2, "a"), kept(1, "b")}) == 3


def test_fewer_empty_slices_are_a_part_of_more() -> None:
    few, many = (
        set(thin_empty(range(40), [True] * 40, share=share, seed=1, case_id="a"))
        for share in (0.2, 0.6)
    )
    assert few < many
