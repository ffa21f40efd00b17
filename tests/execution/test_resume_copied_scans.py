"""Scans that were copied without their times: same sizes, other times."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

CASES = ("liver_001", "liver_002", "liver_003")
SAME = "same sizes, other times: 3 cases (liver_001, liver_002, liver_003)"


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "slices"


@pytest.fixture
def slice_again(dataset, output, invoke) -> Callable[..., Result]:
    """Return a function that slices the dataset, of three cases, into `output`."""
    for case_id in CASES:
        dataset.add(case_id)

    def call(*options: object) -> Result:
        result = invoke(
            *("run", "--input_dir", dataset.root, "--output_dir", output, "--num_workers", 0),
            *options,
        )
        assert result.exit_code == 0, result.output
        return result

    return call


@pytest.fixture
def copied(dataset, slice_again) -> Callable[..., Result]:
    """Return `slice_again`, after a run, for the dataset as `cp -r` copies it."""
    slice_again()
    copy = dataset.root.with_name("copy")
    shutil.copytree(dataset.root, copy, copy_function=shutil.copyfile)
    for number, path in enumerate(sorted(copy.rglob("*.nii.gz"))):
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    dataset.root = copy
    return slice_again


def identities(output: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in output.rglob("*.npz")
    }


def rewrite_journal(output: Path, change: Callable[[dict], object]) -> None:
    journal = output / "journal.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in records:
        change(record)
    journal.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def test_copied_scans_are_written_again_with_a_note_that_names_the_option(copied, output) -> None:
    before = identities(output)
    result = copied()
    shown = " ".join(result.stdout.split())
    assert SAME in shown
    assert "--trust_size keeps such cases" in shown
    assert "Wrote 30 slices of 3 cases" in shown
    assert identities(output) != before
    assert "other times" not in copied().stdout


def test_trusted_scans_are_compared_once_and_their_times_kept(copied, output) -> None:
    before = identities(output)
    result = copied("--trust_size")
    shown = " ".join(result.stdout.split())
    assert f"{SAME}; comparing" in shown
    assert "Skipped 3 cases" in shown
    assert identities(output) == before
    again = copied()
    assert "Skipped 3 cases" in again.stdout
    assert "other times" not in again.stdout
    assert identities(output) == before
    lines = (output / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert json.loads(lines[-1])["sources"][0][2] >= 1_700_000_000_000_000_000
    assert "trust_size" not in (output / "config.yaml").read_text()


def test_a_scan_of_the_same_size_with_other_contents_is_written_again(
    copied, dataset, output
) -> None:
    path = dataset.label_path(CASES[1])
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time in the header of gzip, of no meaning for the voxels
    path.write_bytes(content)
    result = copied("--trust_size")
    shown = " ".join(result.stdout.split())
    assert "other contents: 1 case (liver_002), written again" in shown
    assert "Wrote 10 slices of 1 case" in shown
    assert "Skipped 2 cases" in shown


def test_a_scan_of_another_size_is_not_trusted(copied, dataset, output) -> None:
    dataset.add(CASES[2], np.zeros((8, 9, 10), np.int16))
    shown = " ".join(copied("--trust_size").stdout.split())
    assert "other times: 2 cases (liver_001, liver_002)" in shown
    assert "Wrote 10 slices of 1 case" in shown


def test_a_changed_split_or_setting_is_no_matter_of_times(copied, dataset, output) -> None:
    rewrite_journal(output, lambda record: record.update(digest="0" * 16))
    result = copied("--trust_size")
    assert "other times" not in result.stdout
    assert "Wrote 30 slices of 3 cases" in result.stdout


def test_cases_of_an_earlier_version_are_written_again(copied, output) -> None:
    rewrite_journal(output, lambda record: record.pop("sources"))
    shown = " ".join(copied("--trust_size").stdout.split())
    assert "no sizes of scans in the journal, from an earlier version: 3 cases" in shown
    assert "Wrote 30 slices of 3 cases" in shown
    assert "earlier version" not in copied("--trust_size").stdout


def test_without_checksums_sizes_alone_decide_and_the_note_says_so(copied, output) -> None:
    def forget(record: dict) -> None:
        record["sources"] = [[*source[:3], None] for source in record["sources"]]

    rewrite_journal(output, forget)
    shown = " ".join(copied("--trust_size").stdout.split())
    assert "no checksums in the journal, compared by size alone: 3 cases" in shown
    assert "Skipped 3 cases" in shown


def test_a_damaged_slice_is_written_again_although_its_scan_is_trusted(copied, output) -> None:
    next(output.rglob(f"{CASES[0]}*.npz")).unlink()
    shown = " ".join(copied("--trust_size").stdout.split())
    assert "other times: 2 cases (liver_002, liver_003)" in shown
    assert "Wrote 10 slices of 1 case" in shown


def test_partitions_trust_sizes_too(copied, output, invoke) -> None:
    before = identities(output)
    for number in (1, 2):
        assert "Skipped" in copied("--trust_size", "--shard", f"{number}/2").stdout
    assert invoke("merge", output).exit_code == 0
    assert "Skipped 3 cases" in copied().stdout
    assert identities(output) == before


def test_a_scan_that_cannot_be_read_is_not_trusted(copied, output, monkeypatch) -> None:
    from dask_slicer.execution import resume

    def fail(path: str) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(resume, "checksum", fail)
    assert "other contents: 3 cases" in copied("--trust_size").stdout.replace("\n", " ")
