"""Outputs of as many cases as wanted, without their slices: journal, splits and index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dask_slicer.core.splits import by_split
from dask_slicer.output import directory, layout
from dask_slicer.output.index_table import write_index
from dask_slicer.output.journal import Journal, last_records
from dask_slicer.records import CommittedCase, WrittenSlice


def committed(output: Path) -> Iterator[CommittedCase]:
    for record in last_records(output / layout.JOURNAL):
        if isinstance(record, CommittedCase):
            yield record


def multiply(output: Path, n_cases: int, n_slices: int) -> None:
    """Replace the cases of an output by others that are like its first one, with made-up labels."""
    first = next(committed(output))
    (output / layout.JOURNAL).unlink()
    splits = {}
    with Journal(output / layout.JOURNAL) as journal:
        for number in range(n_cases):
            case_id = f"case_{number:06d}"
            split = splits[case_id] = "train" if number % 4 else "val"
            slices = tuple(
                WrittenSlice(index, 100, 0, {1: 5} if index % 3 else {})
                for index in range(n_slices)
            )
            shape = (first.shape[0], n_slices, *first.shape[2:])
            own = {"case_id": case_id, "split": split, "shape": shape, "slices": slices}
            journal.append(replace(first, group="", **own))
    lines = [directory.splits_text(by_split(splits))]
    directory.write_lines(output, layout.SPLITS_FILE, lines)
    write_index(output, committed(output), directory.output_config(output))
