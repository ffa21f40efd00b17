"""slices.csv: one row for every slice, in the order of case ids and slices."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dask_slicer.journal import CommittedCase
from dask_slicer.slices import foreground_share
from dask_slicer.stores import TEMPORARY, slice_paths

INDEX = "slices.csv"
COLUMNS = ("case_id", "split", "slice_index", "path", "row", "foreground", "labels")


def index_rows(record: CommittedCase) -> Iterator[tuple[object, ...]]:
    """Yield the rows of a case."""
    n_pixels = record.shape[2] * record.shape[3]
    in_zarr = bool(record.files)
    paths = list(slice_paths(record)) * (len(record.slices) if in_zarr else 1)
    for written, path in zip(record.slices, paths, strict=True):
        foreground = labels = ""
        if written.labels is not None:
            foreground = f"{foreground_share(written.labels, n_pixels):.6g}"
            labels = ";".join(f"{value}:{count}" for value, count in written.labels.items())
        row = written.slice_index if in_zarr else ""
        yield record.case_id, record.split, written.slice_index, path, row, foreground, labels


def index_lines(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield rows as lines, with their ends."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        text.seek(0)
        text.truncate()
        writer.writerow(row)
        yield text.getvalue()


class IndexWriter:
    """Writes slices.csv, case after case; `close` moves it into its place."""

    def __init__(self, output_dir: Path) -> None:
        (output_dir / TEMPORARY).mkdir(exist_ok=True)
        self._place = output_dir / INDEX
        self._temporary = output_dir / TEMPORARY / INDEX
        self._file = self._temporary.open("w", encoding="utf-8", newline="")
        self._file.writelines(index_lines([COLUMNS]))

    def add(self, record: CommittedCase) -> None:
        """Write one row for every slice of a case."""
        self._file.writelines(index_lines(index_rows(record)))

    def close(self) -> None:
        """Move the index into its place."""
        self._file.close()
        os.replace(self._temporary, self._place)
