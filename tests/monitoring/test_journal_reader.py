"""Progress of a run from the journals in its output."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from dask_slicer.config.partition import Partition
from dask_slicer.monitoring.journal_reader import JournalReader
from dask_slicer.output.journal import Journal
from dask_slicer.output.layout import WHOLE, partition_files
from dask_slicer.output.lock_owner import lock_text
from dask_slicer.records import CommittedCase, FailedCase, RemovedCase, WrittenSlice

NOW = time.time()
EARLIER = NOW - 1000


def written(case_id: str, split: str = "train", *, at: float = NOW) -> CommittedCase:
    return CommittedCase(
        case_id=case_id, split=split, digest="", shape=(1, 2, 1, 1), spacing=(1.0, 1.0, 1.0),
        statistics=(), slices=(WrittenSlice(0, 10, 1, None), WrittenSlice(1, 20, 1, None)),
        seconds={"load": 1.0}, at=at,
    )  # fmt: skip


def failed(case_id: str, *, at: float = NOW) -> FailedCase:
    return FailedCase(case_id=case_id, step="load", kind="CorruptFile", message="cut", at=at)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output of six cases that this process holds since ten seconds."""
    splits = {"train": ["a", "b", "c", "d"], "val": ["e"], "test": ["f"]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    hold(tmp_path / WHOLE.lock, 6, NOW - 10)
    return tmp_path


def hold(lock: Path, n_cases: int, began: float) -> None:
    lock.write_text(" ".join(map(str, [lock_text(), "-", n_cases, began])))


def append(path: Path, *records: object) -> None:
    with Journal(path) as journal:
        for record in records:
            journal.append(record)


def test_cases_of_this_run_count_and_those_of_earlier_ones_are_skipped(output) -> None:
    reader = JournalReader(output)
    assert reader.view().runs[0].n_cases == 6  # also before there is a journal
    append(
        output / WHOLE.journal,
        *(written("a", at=EARLIER), written("b", at=EARLIER), failed("e", at=EARLIER)),
        *(RemovedCase(case_id="b"), written("c"), failed("f"), written("a")),
    )
    hold(output / WHOLE.lock, 5, NOW - 10)
    (run,) = reader.view().runs
    assert (run.n_cases, run.n_skipped, run.n_todo) == (6, 1, 5)
    assert (run.n_done, run.n_failed, run.n_slices, run.n_bytes) == (1, 1, 2, 30)
    assert {name: (s.n_todo, s.n_done, s.n_failed) for name, s in run.splits.items()} == {
        "train": (3, 1, 0),
        "val": (1, 0, 0),
        "test": (1, 0, 1),
    }
    assert (run.kinds, run.process) == ({"CorruptFile": 1}, str(os.getpid()))
    assert (run.work, run.work_done) == (4, 1)
    assert 10 <= run.seconds < 86_400  # since NOW, before the first test


def test_a_partly_written_line_is_read_once_it_is_complete(output) -> None:
    reader = JournalReader(output)
    journal = output / WHOLE.journal
    append(journal, written("a"), written("b"))
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-30])
    assert reader.view().runs[0].n_done == 1
    journal.write_bytes(whole)
    assert [reader.view().runs[0].n_done for _ in range(2)] == [2, 2]


def test_a_new_journal_is_counted_from_its_start(output) -> None:
    reader = JournalReader(output)
    append(output / WHOLE.journal, written("a"), written("b"))
    assert reader.view().runs[0].n_done == 2
    (output / WHOLE.journal).unlink()
    append(output / WHOLE.journal, written("c"))
    assert reader.view().runs[0].n_done == 1


def test_partitions_that_run_at_once_are_counted_together(output) -> None:
    (output / WHOLE.lock).unlink()
    for number, case_id in enumerate("ab", 1):
        hold(output / partition_files(Partition(number, 3)).lock, 3, NOW - 10)
        append(output / partition_files(Partition(number, 3)).journal, written(case_id))
    (run,) = JournalReader(output).view().runs
    assert (run.n_todo, run.n_done) == (6, 2)


def test_cases_of_a_partition_that_has_ended_are_part_of_the_whole(output) -> None:
    (output / WHOLE.lock).unlink()
    first, second = (partition_files(Partition(number, 2)) for number in (1, 2))
    append(output / first.journal, written("a"), failed("c"), written("z", at=EARLIER))
    append(output / second.journal, written("b"))
    hold(output / second.lock, 1, NOW - 10)  # the first has ended, and removed its lock
    reader = JournalReader(output)
    for _ in range(2):
        (run,) = reader.view().runs
        assert (run.n_done, run.n_failed, run.n_todo) == (2, 1, 3)
    (output / first.lock).write_text("elsewhere")  # or it was killed
    assert reader.view().runs[0].n_todo == 3


def test_a_run_with_only_counts_the_number_of_cases_in_its_lock(output) -> None:
    append(output / WHOLE.journal, written("a", at=EARLIER), written("c"))
    hold(output / WHOLE.lock, 2, NOW - 10)
    (run,) = JournalReader(output).view().runs
    assert (run.n_todo, run.n_done, run.n_skipped, run.splits) == (2, 1, 0, {})
    hold(output / WHOLE.lock, 5, NOW - 10)  # all that is left
    (run,) = JournalReader(output).view().runs
    assert (run.n_todo, run.n_done, run.n_skipped) == (5, 1, 1)


def test_elapsed_time_is_by_the_clock_of_the_run_not_of_the_file_server(output) -> None:
    os.utime(output / WHOLE.lock, (NOW + 1000, NOW + 1000))
    append(output / WHOLE.journal, written("a", at=NOW - 5))
    assert JournalReader(output).view().runs[0].n_done == 1


def test_the_other_partitions_are_shown_after_one_ends(output) -> None:
    (output / WHOLE.lock).unlink()
    hold(output / partition_files(Partition(1, 3)).lock, 2, NOW - 10)
    (output / partition_files(Partition(2, 3)).lock).write_text("it has just gone")
    (run,) = JournalReader(output).view().runs
    assert run.n_todo == 2


def test_a_finished_run_has_no_snapshot(output) -> None:
    (output / WHOLE.lock).unlink()
    assert JournalReader(output).view() is None
