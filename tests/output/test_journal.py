"""The journal says what became of each case, also after a crash in the middle of a line."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_slicer.core.splits import SPLITS
from dask_slicer.core.statistics import Statistics
from dask_slicer.inputs.case import case_id_problem
from dask_slicer.output.journal import Journal, committed_case, histories, last_records
from dask_slicer.records import (
    CaseRecord,
    CommittedCase,
    FailedCase,
    RemovedCase,
    WrittenFile,
    WrittenSlice,
)

COMMITTED = CommittedCase(
    case_id="a",
    split="train",
    digest="0123456789abcdef",
    shape=(1, 2, 3, 4),
    spacing=(3.0, 0.1 + 0.2, 1e-300),
    statistics=(Statistics(mean=-1 / 3, std=1.0, min=-1024.0, max=3e38, n_foreground=7),),
    slices=(WrittenSlice(0, 17, 2**32 - 1, {1: 5, 70_000: 2}), WrittenSlice(1, 18, 0, None)),
    seconds={"load": 0.1, "slice": 0.0},
    run_id="r",
)
FAILED = FailedCase(
    case_id="b", step="load", kind="CorruptFile", message='a "cut" file\\x', details="one\ntwo\n"
)
REMOVED = RemovedCase(case_id="c")


def journal_of(path: Path, *records: CaseRecord) -> bytes:
    """Append records; return what the journal then holds."""
    with Journal(path) as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes()


def read(path: Path) -> list[CaseRecord]:
    return list(last_records(path))


def naive_last(records: list[CaseRecord]) -> list[CaseRecord]:
    last = {}
    for record in records:
        last[record.case_id] = record
    return [last[case_id] for case_id in sorted(last)]


# -- what is written comes back ------------------------------------------------------------------


def test_records_are_read_back_equal_and_by_case_id(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    content = journal_of(path, REMOVED, FAILED, COMMITTED)
    assert read(path) == [COMMITTED, FAILED, REMOVED]
    assert content.count(b"\n") == 3
    assert content.endswith(b"\n")


def test_one_committed_case_is_read_by_its_last_line(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    assert committed_case(path, "a") is None
    odd = replace(COMMITTED, case_id="肝_b", digest="1" * 16)
    journal_of(path, REMOVED, FAILED, COMMITTED, odd)
    assert committed_case(path, "a") == COMMITTED
    assert committed_case(path, odd.case_id) == odd
    assert [committed_case(path, case_id) for case_id in ("b", "c", "d")] == [None] * 3
    again = replace(COMMITTED, digest="2" * 16)
    journal_of(path, again)
    assert committed_case(path, "a") == again
    journal_of(path, RemovedCase(case_id="a"))
    assert committed_case(path, "a") is None


def test_a_case_whose_last_line_is_damaged_is_not_known_as_committed(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    content = journal_of(path, COMMITTED)
    path.write_bytes(content + content.replace(b'"digest"', b'"dig'))
    assert committed_case(path, "a") is None
    path.write_bytes(content + content[:9])
    assert committed_case(path, "a") == COMMITTED


def test_a_missing_journal_is_empty(tmp_path) -> None:
    assert read(tmp_path / "journal.jsonl") == []


def test_an_empty_journal_holds_nothing(tmp_path) -> None:
    assert journal_of(tmp_path / "journal.jsonl") == b""
    assert read(tmp_path / "journal.jsonl") == []


FLOATS = st.floats(-1e149, 1e149)
COUNTS = st.integers(0, 2**62 - 1)
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
STATISTICS = st.builds(
    Statistics, mean=FLOATS, std=FLOATS, min=FLOATS, max=FLOATS, n_foreground=st.integers(1, 2**60)
)
CASE_IDS = IDS.filter(lambda text: not case_id_problem(text))
LENGTHS = st.integers(1, 2**31 - 1)
SECONDS = st.floats(0, 1e9)
SLICES = st.lists(st.integers(0, 2**31 - 2), max_size=2, unique=True).flatmap(
    lambda indices: st.tuples(
        *(st.builds(WrittenSlice, st.just(n), COUNTS, COUNTS, LABELS) for n in sorted(indices))
    )
)
LABELS = st.none() | st.dictionaries(st.integers(-(2**31), 2**31 - 1), COUNTS, max_size=3)
RECORDS = st.one_of(
    st.builds(RemovedCase, case_id=CASE_IDS),
    st.builds(FailedCase, case_id=CASE_IDS, step=IDS, kind=IDS, message=IDS, details=IDS),
    st.builds(
        CommittedCase,
        case_id=CASE_IDS,
        split=st.sampled_from(SPLITS),
        digest=IDS,
        shape=st.tuples(LENGTHS, st.just(2**31 - 1), LENGTHS, LENGTHS),
        spacing=st.tuples(*[st.floats(1e-300, 1e9)] * 3),
        statistics=st.lists(STATISTICS, max_size=2).map(tuple),
        slices=SLICES,
        seconds=st.dictionaries(IDS, SECONDS, max_size=2),
        run_id=IDS,
    ),
)


@given(records=st.lists(RECORDS, max_size=6), runs=st.integers(1, 3))
def test_any_records_are_read_back_and_the_last_of_a_case_counts(
    tmp_path_factory, records, runs
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    for run in range(runs):
        journal_of(path, *records[run::runs])
    in_order = [record for run in range(runs) for record in records[run::runs]]
    assert read(path) == naive_last(in_order)


@pytest.mark.parametrize(
    "change",
    [
        {"case_id": "../../a"}, {"case_id": "a/b"}, {"case_id": "C:a"}, {"split": "../train"},
        {"split": "/etc"}, {"shape": (1, -2, 3, 4)}, {"shape": (1, 2**40, 3, 4)},
        {"shape": (1, 1, 3, 4)}, {"spacing": (math.inf, 1.0, 1.0)}, {"at": 1e300},
        {"files": (WrittenFile("../../../a", 1, 0),)}, {"files": (WrittenFile("/etc/a", 1, 0),)},
        {"files": (WrittenFile("image\\..\\a", 1, 0),)}, {"seconds": {"load": math.inf}},
        {"slices": (WrittenSlice(1, 1, 1, None), WrittenSlice(0, 1, 1, None))},
        {"slices": (WrittenSlice(0, 1, 1, {10**30: 1}),)},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_no_run_writes_counts_as_damaged(tmp_path, change) -> None:
    path = tmp_path / "journal.jsonl"
    journal_of(path, FAILED, replace(COMMITTED, **change))
    path.write_bytes(path.read_bytes().replace(b"null", b"1e999"))
    assert read(path) == [FAILED]


@pytest.mark.parametrize(
    "records",
    [
        [FAILED, replace(COMMITTED, case_id="b")],
        [replace(COMMITTED, case_id="b"), FAILED],
        [COMMITTED, replace(COMMITTED, split="val"), replace(COMMITTED, split="test")],
        [COMMITTED, RemovedCase(case_id="a")],
    ],
    ids=["repaired", "broken_later", "moved", "removed"],
)
def test_the_last_line_of_a_case_counts(tmp_path, records) -> None:
    journal_of(tmp_path / "journal.jsonl", *records)
    assert read(tmp_path / "journal.jsonl") == [records[-1]]


def test_lines_of_a_journal_stay_in_order_when_the_clock_is_set_back(tmp_path) -> None:
    own, of_partition = tmp_path / "journal.jsonl", tmp_path / "journal.1of2.jsonl"
    failed, committed = replace(FAILED, case_id="a", at=100.0), replace(COMMITTED, at=50.0)
    journal_of(of_partition, failed, committed)
    (history,) = histories([own, of_partition])
    assert history.records == (committed, failed)  # newest first
    assert history.failure is None


def test_a_record_is_flushed_when_append_returns(tmp_path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(3):
            journal.append(replace(FAILED, case_id=str(number)))
            assert len(read(path)) == number + 1


def test_every_line_is_synced_to_disk_if_asked(tmp_path, monkeypatch) -> None:
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    with Journal(tmp_path / "journal.jsonl", fsync=True) as journal:
        journal.append(FAILED)
        journal.append(COMMITTED)
    assert len(forced) == 2


def test_a_message_that_names_a_file_in_another_encoding_is_recorded(tmp_path) -> None:
    message = os.fsdecode(b"/scans/\xe9.nii.gz is cut")
    journal_of(tmp_path / "journal.jsonl", replace(FAILED, message=message), COMMITTED)
    _, failed = read(tmp_path / "journal.jsonl")
    assert "/scans/" in failed.message


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [COMMITTED, FAILED, REMOVED], ids=lambda record: record.status)
def test_an_incomplete_line_is_ignored_wherever_it_was_cut(tmp_path, last) -> None:
    path = tmp_path / "journal.jsonl"
    earlier = [replace(last, case_id="0"), replace(FAILED, case_id=last.case_id)]
    before = journal_of(path, *earlier)
    whole = journal_of(path, last)
    later = replace(COMMITTED, case_id="z")
    for end in range(len(before), len(whole) + 1):
        path.write_bytes(whole[:end])
        kept = [*earlier, last] if end >= len(whole) - 1 else earlier  # the line end may be torn
        assert read(path) == naive_last(kept)
        assert journal_of(path, later).startswith(whole[:end])
        assert read(path) == naive_last([*kept, later])


GARBAGE = {
    "empty_line": b"",
    "text": b"Traceback (most recent call last):",
    "zeros": bytes(500),
    "not_utf8": b"\xff\xfe\x00",
    "number": b"7",
    "null": b"null",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "huge_number": b"9" * 10_000,
    "no_status": b'{"case_id": "a"}',
    "unknown_status": b'{"case_id": "a", "status": "archived"}',
    "too_little": b'{"case_id": "a", "status": "committed"}',
    "wrong_type": b'{"case_id": {}, "status": "removed"}',
    "two_in_one": b'{"case_id":"a","status":"removed"}{"case_id":"b","status":"removed"}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_lines_of_garbage_are_ignored(tmp_path, garbage) -> None:
    path = tmp_path / "journal.jsonl"
    lines = journal_of(path, COMMITTED, FAILED).splitlines()
    for at in range(3):
        path.write_bytes(b"\n".join([*lines[:at], garbage, *lines[at:]]) + b"\n")
        assert read(path) == [COMMITTED, FAILED]
        journal_of(path, REMOVED)
        assert read(path) == [COMMITTED, FAILED, REMOVED]
