"""Lists of packed records: equal to plain lists, in less memory."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from dask_slicer.utils import packed
from dask_slicer.utils.packed import Packed, PackedList, Selection, quick_to_pack


@pytest.fixture(autouse=True)
def few_open(monkeypatch) -> None:
    """Let lists of some dozens of records be packed."""
    monkeypatch.setattr(packed, "_BLOCK", 4)
    monkeypatch.setattr(packed, "_MOST_OPEN", 2)


@pytest.mark.parametrize("n", [0, 1, 4, 5, 8, 9, 50])
def test_it_is_equal_to_the_list_of_its_records(n) -> None:
    records = [f"record {number}" for number in range(n)]
    packed_list = PackedList(records)
    assert packed_list == records
    assert records == packed_list
    assert list(packed_list) == records
    assert [packed_list[number] for number in reversed(range(n))] == records[::-1]
    assert packed_list[1:-1] == tuple(records[1:-1])
    assert packed_list != [*records, "more"]
    assert pickle.loads(pickle.dumps(packed_list)) == records
    assert bool(packed_list) == bool(n)


def test_records_may_be_added_after_others_were_read() -> None:
    packed_list = PackedList(range(10))
    assert packed_list[0] == 0
    for number in range(10, 30):
        packed_list.append(number)
        assert packed_list[number // 2] == number // 2
    assert packed_list == list(range(30))


def test_a_number_that_is_too_large_is_an_error() -> None:
    with pytest.raises(IndexError):
        PackedList(range(9))[9]


def test_a_selection_has_the_records_with_its_numbers() -> None:
    packed_list = PackedList("abcdefghijkl")
    selected = packed_list.select([0, 5, 11])
    assert isinstance(selected, Selection)
    assert (list(selected), selected[1], selected[1:], len(selected)) == (
        ["a", "f", "l"],
        "f",
        ("f", "l"),
        3,
    )
    assert selected == ["a", "f", "l"]
    assert packed_list.select(range(12)) is packed_list


@quick_to_pack
@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    name: str
    more: dict[str, int] = field(default_factory=dict)


def test_records_that_are_quick_to_pack_stay_what_they_are() -> None:
    record = _Record(name="a", more={"b": 1})
    again = pickle.loads(pickle.dumps(record))
    assert again == record
    with pytest.raises(FrozenInstanceError):
        again.name = "c"


def test_most_records_are_in_memory_packed() -> None:
    def held(kind: type) -> int:
        tracemalloc.start()
        records = kind(_Record(name=f"case {number}", more={"x": number}) for number in range(3000))
        n_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(records) == 3000
        return n_bytes

    assert held(PackedList) < held(list) / 4


def test_packed_records_travel_in_little_space() -> None:
    records = [_Record(name=f"case {number}", more={"x": number}) for number in range(66)]
    sent = pickle.dumps(Packed(records))
    assert [*pickle.loads(sent)] == records
    assert len(sent) < len(pickle.dumps(records)) / 3
