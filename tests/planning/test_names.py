"""Label values of structures whose masks are merged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.errors import DatasetError, OutputError
from dask_slicer.planning.names import number_structures

NAMES = st.sets(st.sampled_from("abcdefg"))

TABLE = {
    "by name": ({"b", "a"}, {}, {"a": 1, "b": 2}),
    "in the order of the option": ({"b", "a"}, {"wanted": ("b", "a")}, {"b": 1, "a": 2}),
    "in the order of columns": (
        {"b", "a", "c"},
        {"columns": ("c", "x", "b")},
        {"c": 1, "b": 2, "a": 3},
    ),
    "as in the output": ({"b", "a"}, {"frozen": {"b": 1, "a": 2}}, {"b": 1, "a": 2}),
    "new ones after those of the output": (
        {"a", "b", "c"},
        {"frozen": {"b": 1}, "wanted": ("b", "c")},
        {"b": 1, "c": 2, "a": 3},
    ),
    "one of the output that has left the dataset": (
        {"a"},
        {"frozen": {"b": 1, "a": 2}, "wanted": ("b", "a")},
        {"b": 1, "a": 2},
    ),
    "none": (set(), {}, {}),
}


@pytest.mark.parametrize(("present", "settings", "expected"), TABLE.values(), ids=TABLE)
def test_structures_are_numbered(present, settings, expected) -> None:
    numbers = number_structures(present, **settings)
    assert numbers == expected
    assert list(numbers.values()) == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    ("frozen", "wanted"),
    [({"a": 1, "b": 2}, ("b", "a")), ({"a": 1, "b": 2}, ("b",)), ({"a": 1, "b": 2}, ("a", "c"))],
)
def test_an_order_that_contradicts_the_output_is_refused(frozen, wanted) -> None:
    with pytest.raises(OutputError, match="structures was a,b, is now"):
        number_structures({"a", "b", "c"}, frozen=frozen, wanted=wanted)


def test_a_structure_that_no_case_has_is_refused() -> None:
    with pytest.raises(DatasetError, match="no case has a mask of it; did you mean liver"):
        number_structures({"liver"}, wanted=("lever",))


@given(first=NAMES, more=NAMES)
def test_numbers_never_change_when_cases_come_or_go(first, more) -> None:
    numbers = number_structures(first)
    later = number_structures(more, frozen=numbers)
    assert numbers.items() <= later.items()
    assert sorted(later.values()) == list(range(1, len(first | more) + 1))
