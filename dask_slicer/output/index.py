"""The slice index, slices.csv: reading, writing, filtering and weights."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.fields import PLANES
from dask_slicer.core.slices import foreground_share
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import OutputError
from dask_slicer.inputs.case import case_id_problem
from dask_slicer.output.journal import last_records
from dask_slicer.output.layout import (
    COLUMNS,
    COLUMNS_OF_PLANES,
    INDEX,
    JOURNAL,
    ZARR,
    entries_of,
    section,
)
from dask_slicer.records import CommittedCase
from dask_slicer.utils.files import open_file

if TYPE_CHECKING:
    from dask_slicer.output.formats.npz import NpzReader
    from dask_slicer.output.formats.zarr_reader import ZarrReader

# Of a slice index in the name of a file.
_MOST_DIGITS = 10


@dataclass(frozen=True, slots=True)
class IndexedCase:
    """A case in the index, in one of its planes, and the names of its files."""

    case_id: str
    split: str
    folder: str  # the directory of its .npz files, or its Zarr group, relative to the output
    digits: int  # of the slice index in the names of .npz files; 0 for a Zarr group
    plane: str = ""  # empty if the output has one plane

    def path_of(self, slice_index: int) -> str:
        """Return the path of a slice, relative to the output."""
        if not self.digits:
            return self.folder
        return f"{self.folder}/{self.case_id}_{slice_index:0{self.digits}d}.npz"


@dataclass(frozen=True, slots=True, eq=False)
class SliceIndex:
    """One row per slice, sorted by case, plane and slice, as columns.

    Attributes
    ----------
    cases : tuple of IndexedCase
        With several planes, one for each plane of a case.
    case : (n,) ndarray of int32
        Position of each slice's case in `cases`.
    slice_index : (n,) ndarray of int32
    foreground : (n,) ndarray of float32
        Share of labelled pixels; NaN without a label.
    label_ends : (n + 1,) ndarray of int64
        Label values of slice i are `label_values[label_ends[i] : label_ends[i + 1]]`.
    label_values, label_counts : (m,) ndarray of int64
        Values other than 0, and their pixels.
    n_committed : int or None
        Number of cases written, including cases without a kept slice; None if unknown, which it is
        when slices.csv was read and not the journal.
    """

    cases: tuple[IndexedCase, ...]
    case: NDArray[np.int32]
    slice_index: NDArray[np.int32]
    foreground: NDArray[np.float32]
    label_ends: NDArray[np.int64]
    label_values: NDArray[np.int64]
    label_counts: NDArray[np.int64]
    n_committed: int | None = None

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Return the ids of the cases, each once, whatever the number of planes."""
        return tuple(dict.fromkeys(case.case_id for case in self.cases))

    def __len__(self) -> int:
        return len(self.case)

    def labels(self, row: int) -> dict[int, int]:
        """Return the number of pixels of each label value in one slice."""
        own = slice(self.label_ends[row], self.label_ends[row + 1])
        return dict(
            zip(self.label_values[own].tolist(), self.label_counts[own].tolist(), strict=True)
        )

    def rows_with(self, values: Collection[int]) -> NDArray[np.bool_]:
        """Return a mask of the slices that hold at least one of some label values."""
        wanted = np.isin(self.label_values, list(values))
        return np.diff(np.concatenate(([0], wanted.cumsum()))[self.label_ends]) > 0

    def balanced_weights(self) -> NDArray[np.float64]:
        """Return weights, of sum 1, that give each value, and no label, the same total weight."""
        n_values = np.diff(self.label_ends)
        empty = n_values == 0
        _, value, n_slices = np.unique(self.label_values, return_inverse=True, return_counts=True)
        # Each value divides 1 among its slices; so do the slices without labels.
        weights = np.where(empty, 1.0 / max(int(empty.sum()), 1), 0.0)
        np.add.at(weights, np.repeat(np.arange(len(self)), n_values), 1.0 / n_slices[value])
        return np.asarray(weights / weights.sum())

    def of_cases(self, wanted: Callable[[IndexedCase], bool]) -> SliceIndex:
        """Return the index of the slices of some cases."""
        return self.select(np.array(list(map(wanted, self.cases)), dtype=bool)[self.case])

    def select(self, rows: NDArray[np.bool_]) -> SliceIndex:
        """Return the index of some rows, with the cases that they belong to."""
        used, case = np.unique(self.case[rows], return_inverse=True)
        lengths = np.diff(self.label_ends)
        labels = np.repeat(rows, lengths)
        return SliceIndex(
            cases=tuple(self.cases[number] for number in used),
            case=case.astype(np.int32),
            slice_index=self.slice_index[rows],
            foreground=self.foreground[rows],
            label_ends=np.concatenate(([0], lengths[rows].cumsum())),
            label_values=self.label_values[labels],
            label_counts=self.label_counts[labels],
        )


def read_index(output_dir: Path) -> SliceIndex:
    """Return the slices of an output, from slices.csv, or from the journal if that is newer."""
    table, journal = output_dir / INDEX, output_dir / JOURNAL
    if not table.exists() or (
        journal.exists() and journal.stat().st_mtime_ns > table.stat().st_mtime_ns
    ):
        # A run is active, or was killed before it wrote slices.csv.
        committed = [
            record for record in last_records(journal) if isinstance(record, CommittedCase)
        ]
        index = _index(row for record in committed for row in _plane_rows(record))
        return replace(index, n_committed=len(committed))
    try:
        with io.TextIOWrapper(open_file(table), encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, strict=True)
            if tuple(next(rows)) == COLUMNS_OF_PLANES:
                return _index(rows)
            return _index((case_id, split, "", *rest) for case_id, split, *rest in rows)
    except (ValueError, OverflowError, StopIteration, csv.Error) as error:
        raise OutputError(
            f"{table} is damaged ({error}); remove it: the journal has the same data"
        ) from None


def _index(rows: Iterable[Iterable[Any]]) -> SliceIndex:
    cases: list[IndexedCase] = []
    numbers: dict[tuple[str, str, str], int] = {}
    case, slice_index, foreground, ends = [], [], [], [0]
    values: list[int] = []
    counts: list[int] = []
    for case_id, split, plane, index, path, row, share, labels in rows:
        number = numbers.setdefault((case_id, split, plane), len(cases))
        if number == len(cases):
            in_zarr = str(row) != ""
            cases.append(_indexed_case(case_id, split, plane, path, int(index), in_zarr=in_zarr))
        case.append(number)
        slice_index.append(int(index))
        foreground.append(float(share) if share else np.nan)
        for pair in labels.split(";") if labels else ():
            value, _, count = pair.partition(":")
            values.append(int(value))
            counts.append(int(count))
        ends.append(len(values))
    if min(slice_index, default=0) < 0 or min(counts, default=0) < 0:
        raise ValueError("a number is negative")
    return SliceIndex(
        cases=tuple(cases),
        case=np.array(case, dtype=np.int32),
        slice_index=np.array(slice_index, dtype=np.int32),
        foreground=np.array(foreground, dtype=np.float32),
        label_ends=np.array(ends, dtype=np.int64),
        label_values=np.array(values, dtype=np.int64),
        label_counts=np.array(counts, dtype=np.int64),
    )


def _indexed_case(
    case_id: str, split: str, plane: str, path: str, slice_index: int, *, in_zarr: bool
) -> IndexedCase:
    """Return a case of the index; raise ValueError if its files are not where a run writes them."""
    folder, _, name = path.rpartition("/")
    digits = 0 if in_zarr else len(name) - len(f"{case_id}_.npz")
    case = IndexedCase(case_id, split, path if in_zarr else folder, digits, plane)
    place = section(split, plane)
    expected = f"{ZARR}/{place}/{case_id}" if in_zarr else f"{place}/{name}"
    is_sound = plane in ("", *PLANES) and (in_zarr or 0 < digits <= _MOST_DIGITS)
    if split not in SPLITS or case_id_problem(case_id) or path != expected or not is_sound:
        raise ValueError(f"{path!r} is not a place of slices of case {case_id!r} in {split!r}")
    if case.path_of(slice_index) != path:
        raise ValueError(f"{path!r} is not the file of slice {slice_index} of case {case_id!r}")
    return case


def _plane_rows(record: CommittedCase) -> Iterator[tuple[object, ...]]:
    """Yield the rows of a case in slices.csv, with the column `plane`."""
    for part in record.parts:
        n_pixels = part.shape[2] * part.shape[3]
        in_zarr = bool(part.files)
        paths = list(entries_of(part)) * (len(part.slices) if in_zarr else 1)
        for written, path in zip(part.slices, paths, strict=True):
            foreground = labels = ""
            if written.labels is not None:
                foreground = f"{foreground_share(written.labels, n_pixels):.6g}"
                labels = ";".join(f"{value}:{count}" for value, count in written.labels.items())
            row = written.slice_index if in_zarr else ""
            place = part.case_id, part.split, part.plane, written.slice_index
            yield *place, path, row, foreground, labels


def index_lines(committed: Iterable[CommittedCase], *, with_planes: bool = False) -> Iterator[str]:
    """Yield the lines of slices.csv; cases come in the order of their ids.

    The column `plane` is there only `with_planes`, which are several.
    """
    rows = chain.from_iterable(map(_plane_rows, committed))
    if with_planes:
        return csv_lines(chain([COLUMNS_OF_PLANES], rows))
    return csv_lines(chain([COLUMNS], ((*row[:2], *row[3:]) for row in rows)))


def csv_lines(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield rows as lines of CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        text.seek(0)
        text.truncate()
        writer.writerow(row)
        yield text.getvalue()


def case_reader(output_dir: Path, case: IndexedCase) -> NpzReader | ZarrReader:
    """Return a reader of a case; raise CorruptFile or OSError if it is damaged or missing."""
    # Imported here, since a run reads no slices: Blosc has a lock, which a process that starts
    # workers must not have before it starts the process that they are forked from.
    if case.digits:
        from dask_slicer.output.formats.npz import NpzReader

        return NpzReader(lambda slice_index: output_dir / case.path_of(slice_index))
    from dask_slicer.output.formats.zarr_reader import ZarrReader

    return ZarrReader(output_dir / case.folder)
