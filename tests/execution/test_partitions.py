"""Shares of a run, one after another or side by side, and what `merge` makes of them."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import faults
import pytest
import slice_formats
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

import dask_slicer
from dask_slicer.config.partition import Partition, parse_partition
from dask_slicer.errors import OutputError
from dask_slicer.execution import partitions
from dask_slicer.execution.partitions import record_plan
from dask_slicer.output import atomic, directory, layout, lock
from dask_slicer.output.journal import Journal, histories, last_records
from dask_slicer.output.layout import journals, partition_files, temporary_folders
from dask_slicer.output.lock import locked
from dask_slicer.records import RemovedCase

CASES = ("a", "b", "c", "d", "e", "f", "g")
FORMATS = pytest.mark.parametrize("format_", slice_formats.FORMATS)
N_ROUNDS = int(os.environ.get("DASK_SLICER_SHARE_ROUNDS", "5"))
# What tells of times, or where it is.
TOLD = {"dataset_info.json", "journal.jsonl", "config.yaml", layout.HEADERS}
# In CPU-starved surroundings, a process may take long to start.
PATIENCE = 120


# -- which cases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case_ids", "shard", "expected"),
    [
        ("abcdefg", "1/3", "adg"),
        ("abcdefg", "3/3", "cf"),
        ("gfedcba", "2/3", "be"),
        ("abc", "1/1", "abc"),
        ("abc", "4/5", ""),
        ("", "1/2", ""),
    ],
)
def test_a_partition_is_every_nth_of_the_sorted_cases(case_ids, shard, expected) -> None:
    assert parse_partition(shard).cases(case_ids) == list(expected)


@given(st.sets(st.text(min_size=1)), st.integers(1, 20))
def test_partitions_are_disjoint_and_differ_by_at_most_one_case(case_ids, n_shares) -> None:
    shares = [Partition(number, n_shares).cases(case_ids) for number in range(1, n_shares + 1)]
    assert sorted(case for share in shares for case in share) == sorted(case_ids)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_only_chooses_among_the_cases_of_the_partition(shares, output_dir) -> None:
    assert shares("1/3", "--only", "a", "b").exit_code == 0
    assert committed(output_dir) == ["a"]


# -- the same bytes --------------------------------------------------------------------------------


@FORMATS
def test_partitions_and_merge_write_what_one_run_writes(shares, whole, invoke, output_dir, format_):
    for number in (3, 1, 2):
        result = shares(f"{number}/3", *slice_formats.options(format_, output_dir.parent))
        assert result.exit_code == 0, result.output
        assert f"of partition {number}/3 in this process" in result.stdout
        assert f"dask-slicer merge {output_dir}" in result.stdout
        for name in ("slices.csv", "dataset_info.json", "failures.csv", "journal.jsonl"):
            assert not (output_dir / name).exists(), name
    result = invoke("merge", output_dir)
    assert result.exit_code == 0, result.output
    assert "Merged 3 partitions: 70 slices of 7 cases" in result.stdout
    assert_same(output_dir, whole(*slice_formats.options(format_, output_dir.parent)))
    assert invoke("verify", output_dir, "--num_workers", 0).exit_code == 0


@pytest.mark.slow
@FORMATS
def test_partitions_that_run_at_once_write_what_one_run_writes(
    start, whole, invoke, output_dir, format_
) -> None:
    chosen = slice_formats.options(format_, output_dir.parent)
    running = [start(f"{number}/3", *chosen) for number in (1, 2, 3)]
    for process in running:
        assert process.wait(PATIENCE) == 0
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole(*slice_formats.options(format_, output_dir.parent)))


def test_with_more_partitions_than_cases_some_are_empty(shares, whole, invoke, output_dir):
    for number in range(1, 10):
        result = shares(f"{number}/9")
        assert result.exit_code == 0
    assert "Partition 9/9 has no case" in result.stdout
    assert len(journals(output_dir)) == 1 + len(CASES)
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole())


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.slow
def test_partitions_may_start_at_the_same_moment_in_a_new_directory(
    dataset_of_seven, whole, invoke, tmp_path
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", START_AT_ONCE, dataset_of_seven, tmp_path / "rounds", str(N_ROUNDS)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    expected = whole("--format", "zarr")
    for number in range(N_ROUNDS):
        made = tmp_path / "rounds" / str(number)
        assert invoke("merge", made).exit_code == 0
        assert_same(made, expected)


# Forked when everything is imported, they begin within a millisecond of each other.
START_AT_ONCE = """
import multiprocessing, sys
import dask_slicer
from dask_slicer.execution import partitions, pipeline
from dask_slicer.output.formats import zarr_writer

N = 4
context = multiprocessing.get_context("fork")

def run(number, output_dir, barrier):
    config = dask_slicer.RunConfig(
        input_dir=sys.argv[1], output_dir=output_dir, num_workers=0, format="zarr", train_ratio=0.5,
        shard=f"{number}/{N}",
    )
    barrier.wait()
    dask_slicer.run(config)

for round_ in range(int(sys.argv[3])):
    barrier = context.Barrier(N)
    output_dir = f"{sys.argv[2]}/{round_}"
    processes = [
        context.Process(target=run, args=(number, output_dir, barrier))
        for number in range(1, N + 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(1)
"""


# -- failures --------------------------------------------------------------------------------------


@FORMATS
def test_failures_are_printed_by_their_partition_and_listed_by_merge(
    shares, whole, invoke, dataset, output_dir, format_
) -> None:
    dataset.image_path("b").write_bytes(b"")  # the plan sees it
    damage_voxels(dataset.image_path("f"))  # only who loads it sees it
    options = (*slice_formats.options(format_, output_dir.parent), "--retries", 0)
    assert [shares(f"{n}/3", *options).exit_code for n in (1, 2)] == [0, 1]
    result = shares("3/3", *options)
    assert result.exit_code == 1
    assert "1 case failed (1 CorruptFile):" in result.stdout
    assert "failures.csv" not in result.output
    result = invoke("merge", output_dir)
    assert result.exit_code == 1
    assert f"2 cases failed (2 CorruptFile), see {output_dir}/failures.csv:" in result.stdout
    assert [row["case_id"] for row in rows(output_dir / "failures.csv")] == ["b", "f"]
    assert_same(output_dir, whole(*options))


def test_failed_cases_are_retried_and_the_last_attempt_counts(
    shares, invoke, dataset, output_dir
) -> None:
    sound = dataset.image_path("b").read_bytes()
    dataset.image_path("b").write_bytes(b"")
    for number in (1, 2):
        shares(f"{number}/2")
    assert invoke("merge", output_dir).exit_code == 1
    dataset.image_path("b").write_bytes(b"text")
    assert shares("2/2").exit_code == 1
    result = invoke("merge", output_dir)
    assert result.exit_code == 1
    (row,) = rows(output_dir / "failures.csv")
    (failure,) = (one for one in last_records(output_dir / "journal.jsonl") if one.case_id == "b")
    assert row["message"] == failure.message
    dataset.image_path("b").write_bytes(sound)
    assert shares("2/2").exit_code == 0
    assert invoke("merge", output_dir).exit_code == 0
    assert not (output_dir / "failures.csv").exists()
    assert committed(output_dir) == list(CASES)


def test_a_case_whose_scan_has_changed_is_written_again(
    shares, whole, invoke, dataset, output_dir
) -> None:
    for number in (1, 2, 3):
        shares(f"{number}/3", "--compression_level", 0)
    dataset.add("b", dataset_volume(seed=99))  # stored, its slices are as long as before
    assert shares("1/2", "--compression_level", 0).exit_code == 0
    assert shares("2/2", "--compression_level", 0).exit_code == 0
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole("--compression_level", 0))
    again = shares("2/2", "--compression_level", 0)
    assert "Nothing to do" in again.stdout


@pytest.mark.parametrize("merged_before", [False, True])
def test_slices_of_a_case_stay_when_its_scan_is_unreachable(
    shares, whole, invoke, dataset, output_dir, merged_before
) -> None:
    whole()
    for number in (1, 2):
        shares(f"{number}/2")
    if merged_before:
        invoke("merge", output_dir)
    label = dataset.label_path("b")
    label.rename(label.with_suffix(".away"))
    assert shares("1/2").exit_code == 0
    assert shares("2/2").exit_code == 1
    result = invoke("merge", output_dir)
    assert result.exit_code == 1
    assert "b: MissingLabel" in result.stdout
    assert committed(output_dir) == list(CASES)
    assert_same(output_dir, whole())


def test_a_scan_that_is_reachable_again_is_no_failure(
    shares, whole, invoke, dataset, output_dir
) -> None:
    for number in (1, 2):
        shares(f"{number}/2")
    label = dataset.label_path("b")
    label.rename(label.with_suffix(".away"))
    assert shares("2/2").exit_code == 1
    label.with_suffix(".away").rename(label)
    assert shares("2/2").exit_code == 0
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole())


# -- shares that died, other numbers of them, a run of the whole -----------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills")
def test_a_killed_partition_is_repeated(start, shares, whole, invoke, output_dir) -> None:
    for number in (1, 3):
        assert shares(f"{number}/3").exit_code == 0
    kill_within(start("2/3", e="sleep"), output_dir / "journal.2of3.jsonl")
    leave_unfinished(output_dir, Partition(2, 3))
    result = invoke("merge", output_dir)
    assert result.exit_code == 1
    assert "1 case still to run: e; run the missing partitions" in result.stdout
    result = shares("2/3")
    assert result.exit_code == 0
    assert "1 case of partition 2/3 in this process, 1 skipped" in result.stdout
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole())


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux", reason="kills")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(N_ROUNDS))
def test_partitions_and_merges_killed_repeatedly_complete(
    start, whole, invoke, output_dir, number
) -> None:
    chosen = random.Random(number)
    options = ("--format", ("npz", "zarr")[number % 2])
    for n_shares in (3, 2):
        for _ in range(3):
            running = [start(f"{one}/{n_shares}", *options) for one in range(1, n_shares + 1)]
            time.sleep(chosen.uniform(0, 3))
            for process in chosen.sample(running, chosen.randint(0, n_shares)):
                process.kill()
            assert {process.wait(PATIENCE) for process in running} <= {0, -signal.SIGKILL}
        merge = [sys.executable, "-m", "dask_slicer", "merge", str(output_dir)]
        with subprocess.Popen(merge, stdout=subprocess.DEVNULL) as process:
            time.sleep(chosen.uniform(0.5, 2))
            process.kill()
    assert [start(f"{one}/2", *options).wait(PATIENCE) for one in (1, 2)] == [0, 0]
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole(*options))


@pytest.mark.skipif(sys.platform != "linux", reason="kills")
@pytest.mark.slow
def test_the_lock_of_a_dead_partition_is_taken_over_with_a_note(
    start, shares, whole, invoke, output_dir
) -> None:
    kill_within(start("2/3", e="sleep"), output_dir / "journal.2of3.jsonl")
    leave_unfinished(output_dir, Partition(2, 3))
    assert (output_dir / ".dask_slicer.2of3.lock").exists()
    result = shares("2/3")
    assert "took over the lock of a run that died" in result.stdout
    assert result.exit_code == 0
    assert list(output_dir.glob(".dask_slicer.*of3.*")) == []
    for number in (1, 3):
        shares(f"{number}/3")
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole())


@pytest.mark.parametrize("ends_with", ["merge", "run"])
def test_temporary_lock_files_of_dead_processes_are_removed(
    shares, whole, invoke, output_dir, ends_with
) -> None:
    expected = whole()
    for number in (1, 2, 3):
        shares(f"{number}/3")
    died = f"{socket.gethostname()} {os.getpid()} born-at-another-time"
    for name, text in (
        (".dask_slicer.2of3.lock.86c9423e", f"{died} tcp://127.0.0.1:1"),
        (".dask_slicer.lock.0123abcd", ""),
        (".dask_slicer.shares.json.0123abcd", "{"),
    ):
        (output_dir / name).write_text(text)
    living = output_dir / ".dask_slicer.lock.89abcdef"
    living.write_text(lock.run_text(""))
    if ends_with == "merge":
        assert invoke("merge", output_dir).exit_code == 0
    else:
        assert shares(None).exit_code == 0
    living.unlink()
    assert_same(output_dir, expected)


def test_a_partition_leaves_the_files_of_others_alone(shares, output_dir) -> None:
    others = [
        output_dir / partition_files(share).temporary
        for share in (Partition(1, 3), Partition(3, 3))
    ]
    for aside in (*others, output_dir / "train", output_dir / "val"):
        aside.mkdir(parents=True, exist_ok=True)
    (others[0] / "a_000.npz").write_bytes(b"half")
    for aside in (output_dir / "train", output_dir / "val"):
        aside.rmdir()
    assert shares("2/3").exit_code == 0
    assert (others[0] / "a_000.npz").read_bytes() == b"half"
    assert others[1].is_dir()


@pytest.mark.parametrize("then", ["other shares", "whole"])
def test_partitions_are_continued_by(shares, whole, invoke, output_dir, then) -> None:
    shares("1/3")
    shares("3/3")
    before = written_at(output_dir)
    if then == "whole":
        result = shares(None)
        assert "merged the partitions that earlier runs left unmerged" in result.stdout
        assert "2 cases in this process, 5 skipped" in result.stdout
    else:
        assert [shares(f"{number}/2").exit_code for number in (1, 2)] == [0, 0]
        assert len(journals(output_dir)) == 1 + 4
        result = invoke("merge", output_dir)
    assert result.exit_code == 0
    assert before.items() <= written_at(output_dir).items()
    assert_same(output_dir, whole())


def test_a_refused_whole_run_keeps_the_work_of_partitions(shares, invoke, output_dir) -> None:
    shares("1/3")
    before = sorted(path.name for path in output_dir.iterdir())
    assert shares(None, "--plane", "sagittal").exit_code == 2
    assert sorted(path.name for path in output_dir.iterdir()) == before
    assert "not merged yet" in invoke("verify", output_dir).stderr


def test_partitions_continue_a_whole_run(shares, whole, invoke, output_dir) -> None:
    assert shares(None, "--only", "a", "b").exit_code == 0
    before = written_at(output_dir)
    for number in (1, 2):
        assert shares(f"{number}/2").exit_code == 0
    assert invoke("merge", output_dir).exit_code == 0
    assert before.items() <= written_at(output_dir).items()
    assert_same(output_dir, whole())


def test_overwrite_removes_the_work_of_partitions(shares, whole, output_dir) -> None:
    shares("1/2")
    result = shares(None, "--overwrite", "--only", "a")
    assert "--overwrite removed 3 cases that this command does not write" in result.stdout
    assert committed(output_dir) == ["a"]
    assert shares(None).exit_code == 0
    assert_same(output_dir, whole())


# -- who may run beside whom -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holder", "command", "refused"),
    [
        (None, "1/3", "in use by another run"),
        ("1/3", None, "in use by partition 1/3 of a run"),
        ("1/3", "1/3", "in use by another run of partition 1/3"),
        ("1/3", "1/2", "in use by partition 1/3 of a run"),
        ("1/3", "merge", "in use by partition 1/3 of a run"),
        ("1/3", "verify", "in use by partition 1/3 of a run"),
        ("1/3", "repair", "in use by partition 1/3 of a run"),
        (None, "merge", "in use by another run"),
    ],
)
def test_runs_that_exclude_each_other(shares, invoke, output_dir, holder, command, refused) -> None:
    shares(None)
    before = contents_of(output_dir)
    commands = {
        "merge": ("merge", output_dir),
        "verify": ("verify", output_dir, "--num_workers", 0),
        "repair": ("verify", output_dir, "--num_workers", 0, "--repair"),
    }
    with locked(output_dir, parse_partition(holder)):
        result = invoke(*commands[command]) if command in commands else shares(command)
    assert result.exit_code == 2
    assert refused in result.stderr
    assert f"process {os.getpid()} on {socket.gethostname()}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents_of(output_dir) == before


def test_partitions_of_the_same_number_run_at_once(shares, output_dir) -> None:
    with locked(output_dir, Partition(1, 3)), locked(output_dir, Partition(3, 3)):
        assert shares("2/3").exit_code == 0


def test_every_partition_that_holds_the_output_is_named(shares, invoke, output_dir) -> None:
    shares(None)
    with locked(output_dir, Partition(1, 3)), locked(output_dir, Partition(3, 3)):
        result = invoke("merge", output_dir)
    assert "in use by 2 partitions of a run: 1/3 (process" in result.stderr
    assert ".dask_slicer.1of3.lock, .dask_slicer.3of3.lock" in result.stderr


def test_the_lock_of_a_partition_on_another_host_is_respected(shares, invoke, output_dir) -> None:
    shares("1/3")
    (output_dir / ".dask_slicer.2of3.lock").write_text("node17.cluster 4711 1700000000.0")
    result = invoke("merge", output_dir)
    assert result.exit_code == 2
    assert "process 4711 on node17.cluster" in result.stderr
    assert "remove .dask_slicer.2of3.lock if it no longer runs" in result.stderr
    assert shares("2/3").exit_code == 2
    assert shares("3/3").exit_code == 0


def test_a_refused_partition_leaves_no_lock(output_dir) -> None:
    with (
        locked(output_dir),
        pytest.raises(OutputError, match="another run"),
        locked(output_dir, Partition(1, 2)),
    ):
        pass
    assert not output_dir.exists()


def test_a_new_directory_that_another_process_removes_is_made_again(
    monkeypatch, output_dir
) -> None:
    taken_away = []

    def after_another(path: Path, **options: bool) -> AbstractContextManager[BinaryIO]:
        if not taken_away:  # what comes to nothing removes the directory that it has made
            taken_away.append(output_dir.rmdir())
        return atomic.atomic_write(path, **options)

    monkeypatch.setattr(lock, "atomic_write", after_another)
    with locked(output_dir, Partition(1, 2)):
        assert [path.name for path in output_dir.iterdir()] == [".dask_slicer.1of2.lock"]
    assert taken_away


def test_a_directory_marked_as_ours_while_it_is_listed_is_ours(
    shares, monkeypatch, output_dir
) -> None:
    shares("1/2")
    listed = iter([["splits.json"], ["config.yaml", "splits.json"]])
    monkeypatch.setattr(directory.layout, "names_in", lambda _: next(listed))
    assert directory.existing_config(output_dir) is not None


# -- shares that do not agree ----------------------------------------------------------------------


def test_a_partition_with_other_cases_must_merge_first(
    shares, whole, invoke, dataset, output_dir
) -> None:
    shares("1/2")
    dataset.add("aa")
    dataset.image_path("g").unlink()
    dataset.label_path("g").unlink()
    before = contents_of(output_dir)
    result = shares("2/2")
    assert result.exit_code == 2
    assert "1 case more (aa), 1 case fewer (g); run dask-slicer merge" in result.stderr
    assert contents_of(output_dir) == before
    assert invoke("merge", output_dir).exit_code == 1
    for number in (1, 2):
        assert shares(f"{number}/2").exit_code == 0
    assert invoke("merge", output_dir).exit_code == 0
    assert committed(output_dir) == ["a", "aa", *CASES[1:]]  # g stays, as in a run of the whole


@pytest.mark.parametrize("at_the_same_moment", [False, True])
def test_a_refused_partition_touches_no_file_of_a_case(
    shares, dataset, output_dir, monkeypatch, at_the_same_moment
) -> None:
    if at_the_same_moment:  # then it is seen only when it would write down its own
        monkeypatch.setattr(
            "dask_slicer.execution.pipeline.check_partition_plan", lambda plan: None
        )
    shares("1/2")
    dataset.add("aa")  # now b is the third, and falls to the first share
    moving = output_dir / "train" / "b_000.npz"  # of the second share, not journaled yet
    moving.parent.mkdir(exist_ok=True)
    moving.write_bytes(b"just moved there")
    assert shares("1/2").exit_code == 2
    assert moving.exists()


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (("--nonfinite", "zero"), "nonfinite was error, is now zero"),
        (("--window_size", 1), "window_size was 2, is now 1"),
        (("--allow_missing_labels",), "allow_missing_labels was False, is now True"),
    ],
    ids=lambda value: value[0],
)
def test_a_partition_with_other_settings_is_refused(shares, output_dir, options, changed) -> None:
    shares("1/2")
    result = shares("2/2", *options)
    assert result.exit_code == 2
    assert changed in result.stderr


def test_one_of_two_partitions_that_disagree_at_once_is_refused(
    dataset_of_seven, output_dir
) -> None:
    plans = [
        dask_slicer.plan(
            dask_slicer.RunConfig(
                input_dir=dataset_of_seven, output_dir=output_dir, window_size=size, shard="1/2"
            )
        )
        for size in (1, 2)
    ]
    output_dir.mkdir()
    assert record_plan(plans[0]).config.window_size == 1
    with pytest.raises(OutputError, match="window_size was 1, is now 2"):
        record_plan(plans[1])


def test_partitions_may_differ_in_how_they_run(shares, whole, invoke, output_dir) -> None:
    shares("2/2", "--retries", 7)
    shares("1/2", "--retries", 1, "--fail_fast")
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole("--retries", 7))


@pytest.mark.parametrize("setting", ["--overwrite", "--prune"])
def test_settings_of_the_whole_output_are_refused_for_a_partition(
    shares, output_dir, setting
) -> None:
    result = shares("1/2", setting)
    assert result.exit_code == 2
    assert "shard only a part" in result.stderr


def test_a_damaged_partition_record_is_named(shares, monkeypatch, output_dir) -> None:
    monkeypatch.setattr("dask_slicer.execution.partitions._WAIT_SECONDS", 0.001)
    shares("1/2")
    (output_dir / layout.PARTITION_PLAN).write_text("{")
    result = shares("2/2")
    assert result.exit_code == 2
    assert f"{layout.PARTITION_PLAN} is damaged" in result.stderr


# -- merge -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    ["dask_slicer.execution.partitions.finalize",
     "dask_slicer.execution.partitions.remove_partition_files",
     "dask_slicer.execution.partitions.remove_stale_locks",
     "dask_slicer.output.journal.Journal.append"],
)  # fmt: skip
def test_an_interrupted_merge_may_be_repeated(
    shares, whole, invoke, monkeypatch, output_dir, broken
) -> None:
    for number in (1, 2):
        shares(f"{number}/2")
    with monkeypatch.context() as patched:
        patched.setattr(broken, stop)
        with pytest.raises(Stopped):
            partitions.merge(output_dir)
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, whole())
    lines = (output_dir / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len(CASES)  # none twice


def test_the_merged_journal_is_on_disk_before_those_of_partitions_are_removed(
    shares, invoke, output_dir, monkeypatch
) -> None:
    for number in (1, 2):
        shares(f"{number}/2")
    synced: list[tuple[int, int]] = []

    def record(descriptor: int) -> None:
        status, merged = os.fstat(descriptor), output_dir / "journal.jsonl"
        if merged.exists() and status.st_ino == merged.stat().st_ino:
            n_left = len(list(output_dir.glob("journal.*of2.jsonl")))
            synced.append((status.st_size, n_left))

    monkeypatch.setattr(os, "fsync", record)
    assert invoke("merge", output_dir).exit_code == 0
    assert ((output_dir / "journal.jsonl").stat().st_size, 2) in synced


def test_merge_without_partitions_writes_the_index_again(shares, invoke, output_dir) -> None:
    shares(None)
    before = contents_of(output_dir)
    (output_dir / "slices.csv").unlink()
    result = invoke("merge", output_dir)
    assert result.exit_code == 0
    assert "No partition was left to merge" in result.stdout
    assert contents_of(output_dir) == before


def test_a_merge_names_the_cases_that_are_missing(shares, invoke, output_dir) -> None:
    shares("1/3")
    result = invoke("merge", "--quiet", output_dir)
    assert result.exit_code == 1
    assert result.stdout == (
        "4 cases still to run: b, c, e and 1 more; run the missing partitions, "
        "or the same run command without --shard\n"
    )
    verified = invoke("verify", output_dir, "--num_workers", 0)
    assert verified.exit_code == 0
    missing = "4 planned cases not written: 4 not run yet, repeat the run command to continue"
    assert missing in verified.stdout


def test_a_merge_needs_no_scan(shares, whole, invoke, dataset, output_dir) -> None:
    expected = whole()
    for number in (1, 2):
        shares(f"{number}/2")
    dataset.root.rename(dataset.root.with_name("away"))
    assert invoke("merge", output_dir).exit_code == 0
    assert_same(output_dir, expected)


def test_an_output_may_be_moved_before_it_is_merged(shares, whole, invoke, output_dir) -> None:
    for number in (1, 2):
        shares(f"{number}/2")
    moved = output_dir.rename(output_dir.with_name("moved"))
    assert invoke("merge", moved).exit_code == 0
    assert_same(moved, whole())


def test_an_output_may_be_moved_between_two_partitions(
    shares, whole, invoke, dataset_of_seven, output_dir
) -> None:
    shares("1/2")
    moved = output_dir.rename(output_dir.with_name("moved"))
    assert invoke(*command(dataset_of_seven, moved), "--shard", "2/2").exit_code == 0
    assert not output_dir.exists()
    assert invoke("merge", moved).exit_code == 0
    assert_same(moved, whole())
    assert f"output_dir: {moved}\n" in (moved / "config.yaml").read_text()


def test_files_that_are_missing_by_now_are_not_merged(shares, whole, invoke, output_dir) -> None:
    for number in (1, 2):
        shares(f"{number}/2")
    next(output_dir.glob("*/b_*.npz")).unlink()
    result = invoke("merge", output_dir)
    assert result.exit_code == 1
    assert "1 case still to run: b;" in result.stdout
    assert list(output_dir.glob("*/b_*.npz")) == []
    assert shares(None).exit_code == 0
    assert_same(output_dir, whole())


@pytest.mark.parametrize("what", ["foreign", "missing", "empty", "a file"])
def test_merge_refuses_what_is_no_output_in_one_line(invoke, tmp_path, what) -> None:
    place = tmp_path / "place"
    if what in ("foreign", "empty"):
        place.mkdir()
    if what == "foreign":
        (place / "thesis.tex").write_text("mine")
    if what == "a file":
        place.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    result = invoke("merge", place)
    assert result.exit_code == 2
    assert "is not an output of dask-slicer" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


# -- before it is merged ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "look", [dask_slicer.open_output, dask_slicer.SliceDataset], ids=lambda look: look.__name__
)
def test_readers_ask_for_a_merge_first(shares, output_dir, look) -> None:
    shares("1/2")
    with pytest.raises(OutputError, match=r"journal\.1of2\.jsonl.*run dask-slicer merge "):
        look(output_dir)


def test_verify_reports_no_stray_files_before_the_merge(shares, invoke, output_dir) -> None:
    shares("1/2")
    for repair in ((), ("--repair",)):
        result = invoke("verify", output_dir, *repair)
        assert result.exit_code == 2
        assert "has partitions that are not merged yet" in result.stderr
    assert list(output_dir.glob("*/a_*.npz"))


def test_benchmarks_are_of_whole_runs(invoke, dataset_of_seven, tmp_path) -> None:
    result = invoke(
        *("benchmark", "--input_dir", dataset_of_seven, "--output_dir", tmp_path / "b"),
        *("--shard", "1/2"),
    )
    assert result.exit_code == 2
    assert "--shard" in result.stderr


# -- what journals say together --------------------------------------------------------------------


def test_of_several_journals_the_newest_record_comes_first(shares, output_dir) -> None:
    shares(None, "--only", "a")
    (done,) = last_records(output_dir / "journal.jsonl")
    removed = RemovedCase(case_id="a", at=done.at - 1000)  # by a clock that is behind
    with Journal(output_dir / "journal.1of2.jsonl") as journal:
        journal.append(removed)
    (history,) = histories(journals(output_dir))
    # A share's record is newer than the output's own, whatever clocks say.
    assert history.records == (removed, done)
    assert history.own == done
    assert history.committed == ()
    with Journal(output_dir / "journal.2of3.jsonl") as journal:
        journal.append(done)
    (history,) = histories(journals(output_dir))
    assert history.committed == (done,)


# -- helpers ---------------------------------------------------------------------------------------


@pytest.fixture
def dataset_of_seven(dataset) -> Path:
    for case_id in CASES:
        dataset.add(case_id)
    return dataset.root


@pytest.fixture
def output_dir(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def shares(dataset_of_seven, invoke, output_dir) -> Callable[..., Result]:
    """Return what runs a share, or the whole, in this process."""

    def run(shard: str | None, *options: object) -> Result:
        own = () if shard is None else ("--shard", shard)
        return invoke(*command(dataset_of_seven, output_dir), *own, *options)

    return run


@pytest.fixture
def start(dataset_of_seven, output_dir) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return what starts a share in a process of its own."""
    started = []

    def run(shard: str, *options: object, **poison: str):
        arguments = [*command(dataset_of_seven, output_dir), "--quiet", "--shard", shard, *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "dask_slicer", *map(str, arguments)],
            env=os.environ | faults.variables(poison),
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def whole(dataset_of_seven, invoke, tmp_path) -> Callable[..., Path]:
    """Return what runs the whole, into a directory of its own."""

    def run(*options: object) -> Path:
        invoke(*command(dataset_of_seven, tmp_path / "whole"), *options)
        return tmp_path / "whole"

    return run


def command(input_dir: Path, output_dir: Path) -> tuple[object, ...]:
    return (
        *("run", "--input_dir", input_dir, "--output_dir", output_dir),
        *("--num_workers", 0, "--train_ratio", 0.5),
    )


def dataset_volume(seed: int):
    import numpy as np

    return np.random.default_rng(seed).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)


def damage_voxels(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF  # the checksum of the gzip stream
    path.write_bytes(content)


def contents_of(output_dir: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output_dir).as_posix(): path.read_bytes()
        for path in output_dir.rglob("*")
        if path.is_file() and path.name not in TOLD and not path.name.endswith(".lock")
    }


def assert_same(made: Path, expected: Path) -> None:
    """Assert that nothing differs but times and places."""
    contents, wanted = contents_of(made), contents_of(expected)
    assert contents.keys() == wanted.keys()
    assert [name for name in contents if contents[name] != wanted[name]] == []
    assert summary(made) == summary(expected)
    assert settings(made) == settings(expected)
    assert sorted(path.name for path in made.iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )


def summary(output_dir: Path) -> dict:
    told = json.loads((output_dir / "dataset_info.json").read_text())
    for name in ("elapsed_seconds", "slices_per_second"):
        assert told.pop(name) >= 0
    assert told["config"].pop("output_dir") == str(output_dir)
    return told


def settings(output_dir: Path) -> list[str]:
    lines = (output_dir / "config.yaml").read_text().splitlines()
    return [line for line in lines if not line.startswith("output_dir:")]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def committed(output_dir: Path) -> list[str]:
    """Return the cases that are written, whichever journal has them."""
    return sorted(
        history.case_id for history in histories(journals(output_dir)) if history.committed
    )


def written_at(output_dir: Path) -> dict[str, int]:
    return {
        path.relative_to(output_dir).as_posix(): path.stat().st_mtime_ns
        for path in output_dir.glob("*/*.npz")
    }


def kill_within(process: subprocess.Popen[bytes], journal: Path) -> None:
    """Kill a share when it has written its first case, and hangs in the next."""
    deadline = time.monotonic() + PATIENCE
    while not (journal.exists() and journal.read_bytes().endswith(b"\n")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def leave_unfinished(output_dir: Path, share: Partition) -> None:
    """Leave what a share leaves that is killed while it moves a case's files."""
    aside = output_dir / partition_files(share).temporary
    aside.mkdir(exist_ok=True)
    (aside / "e_001.npz").write_bytes(b"half")
    (output_dir / "train").mkdir(exist_ok=True)
    (output_dir / "train" / "e_000.npz").write_bytes(b"not journaled")
    assert aside in temporary_folders(output_dir)


class Stopped(Exception):
    pass


def stop(*_: object, **__: object) -> None:
    raise Stopped
