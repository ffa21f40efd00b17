"""The slice index, slices.csv: reading, writing, filtering and weights."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.fields import PLANES
from dask_slicer.config.file_settings import (
    PNG,
    FileTemplate,
    ListTemplate,
    format_template,
    stem_digits,
)
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import foreground_share
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import OutputError, UsageError
from dask_slicer.inputs.case import case_id_problem
from dask_slicer.output.journal import committed_case, last_records
from dask_slicer.output.layout import (
    COLUMNS,
    COLUMNS_OF_PLANES,
    INDEX,
    JOURNAL,
    ZARR,
    case_files,
    section,
)
from dask_slicer.records import CaseRecord, CommittedCase
from dask_slicer.utils.files import open_file

if TYPE_CHECKING:
    from dask_slicer.output.formats.npz_reader import NpzReader
    from dask_slicer.output.formats.zarr_reader import ZarrReader


@dataclass(frozen=True, slots=True)
class IndexedCase:
    """A case in the index, in one of its planes, and the names of its files."""

    case_id: str
    split: str
    digits: int = 0  # of the slice index in the names of files
    plane: str = ""  # empty if the output has one plane
    template: FileTemplate | None = None  # of the file with the image; None for a Zarr group

    @property
    def is_shared(self) -> bool:
        """Return whether slices of the case share a file, or a Zarr group."""
        return self.template is None or not self.template.is_per_slice

    def path_of(self, slice_index: int) -> str:
        """Return the path of the image of a slice, or of its Zarr group, relative to the output."""
        place = section(self.split, self.plane)
        if self.template is None:
            return f"{ZARR}/{place}/{self.case_id}"
        return self.template.file(self.case_id, place, slice_index, digits=self.digits)


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


def read_index(output_dir: Path, settings: SliceSettings) -> SliceIndex:
    """Return the slices of an output, from slices.csv, or from the journal if that is newer."""
    table, journal = output_dir / INDEX, output_dir / JOURNAL
    if not table.exists() or (
        journal.exists() and journal.stat().st_mtime_ns > table.stat().st_mtime_ns
    ):
        # A run is active, or was killed before it wrote slices.csv.
        committed = [
            record for record in last_records(journal) if isinstance(record, CommittedCase)
        ]
        index = _index(chain.from_iterable(_plane_rows(r, settings) for r in committed), settings)
        return replace(index, n_committed=len(committed))
    try:
        with io.TextIOWrapper(open_file(table), encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, strict=True)
            if tuple(next(rows)) == COLUMNS_OF_PLANES:
                return _index(rows, settings)
            return _index(((case_id, split, "", *rest) for case_id, split, *rest in rows), settings)
    except (ValueError, OverflowError, StopIteration, csv.Error) as error:
        raise OutputError(
            f"{table} is damaged ({error}); remove it: the journal has the same data"
        ) from None


def _index(rows: Iterable[Iterable[Any]], settings: SliceSettings) -> SliceIndex:
    cases: list[IndexedCase] = []
    numbers: dict[tuple[str, str, str], int] = {}
    case, slice_index, foreground, ends = [], [], [], [0]
    values: list[int] = []
    counts: list[int] = []
    for case_id, split, plane, index, path, row, share, labels in rows:
        number = numbers.setdefault((case_id, split, plane), len(cases))
        if number == len(cases):
            indexed = _indexed_case(case_id, split, plane, path, int(index), settings)
            if (str(row) != "") != indexed.is_shared:
                raise ValueError(f"{path!r} has row {row!r}")
            cases.append(indexed)
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
    case_id: str, split: str, plane: str, path: str, slice_index: int, settings: SliceSettings
) -> IndexedCase:
    """Return a case of the index; raise ValueError if its files are not where a run writes them."""
    if split in SPLITS and plane in ("", *PLANES) and not case_id_problem(case_id):
        images = [each for each in settings.templates_of(split) if "image" in each.contents]
        templates: list[FileTemplate | None] = [*images] or [None]
        for template in templates:
            parsed = None if template is None else template.parse(path.rpartition("/")[2])
            digits = 0 if parsed is None else parsed.digits
            case = IndexedCase(case_id, split, digits, plane, template)
            if case.path_of(slice_index) == path:
                return case
    raise ValueError(f"{path!r} is not the file of slice {slice_index} of {case_id!r} in {split!r}")


def _plane_rows(record: CommittedCase, settings: SliceSettings) -> Iterator[tuple[object, ...]]:
    """Yield the rows of a case in slices.csv, with the column `plane`."""
    is_zarr = settings.format == "zarr"
    template = None if is_zarr else settings.image_template(record.split)
    for part in record.parts:
        n_pixels = part.shape[2] * part.shape[3]
        digits = stem_digits(part.shape[1])
        case = IndexedCase(part.case_id, part.split, digits, part.plane, template)
        for written in part.slices:
            foreground = labels = ""
            if written.labels is not None:
                foreground = f"{foreground_share(written.labels, n_pixels):.6g}"
                labels = ";".join(f"{value}:{count}" for value, count in written.labels.items())
            row = written.slice_index if case.is_shared else ""
            place = part.case_id, part.split, part.plane, written.slice_index
            yield *place, case.path_of(written.slice_index), row, foreground, labels


def index_lines(committed: Iterable[CommittedCase], settings: SliceSettings) -> Iterator[str]:
    """Yield the lines of slices.csv; cases come in the order of their ids.

    The column `plane` is there only with several planes.
    """
    rows = chain.from_iterable(_plane_rows(record, settings) for record in committed)
    if settings.plane_folders:
        return csv_lines(chain([COLUMNS_OF_PLANES], rows))
    return csv_lines(chain([COLUMNS], ((*row[:2], *row[3:]) for row in rows)))


def list_lines(records: Iterable[CaseRecord], template: ListTemplate) -> Iterator[str]:
    """Yield the lines of a list of cases or slices, in the order of slices.csv."""
    for record in records:
        if not isinstance(record, CommittedCase) or record.split not in template.splits:
            continue
        for part in record.parts:
            place, digits = section(part.split, part.plane), stem_digits(part.shape[1])
            indices = [written.slice_index for written in part.slices]
            for slice_index in indices if template.is_per_slice else indices[:1]:
                line = format_template(
                    template.line,
                    case_id=part.case_id,
                    split=place,
                    slice_index=slice_index,
                    digits=digits,
                )
                yield f"{line}\n"


def csv_lines(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield rows as lines of CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        text.seek(0)
        text.truncate()
        writer.writerow(row)
        yield text.getvalue()


class _Checksums:
    """CRC-32 of the files of a case, as the journal has them, which is read when one is asked for.

    None if it has none, as without a journal. A file that was written since has another.
    """

    def __init__(self, output_dir: Path, case: IndexedCase) -> None:
        self._output_dir, self._case = output_dir, case

    def __call__(self, slice_index: int) -> int | None:
        slices, crc32 = self._columns
        row = int(np.searchsorted(slices, slice_index))
        return int(crc32[row]) if slice_index in slices[row : row + 1] else None

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return slices, ascending, and their CRC-32; a dict would take ten times the memory."""
        rows = []
        case, record = self._case, committed_case(self._output_dir / JOURNAL, self._case.case_id)
        for part in () if record is None else record.parts:
            files = case_files(part) if part.plane == case.plane else {}
            paths = (
                (written.slice_index, case.path_of(written.slice_index)) for written in part.slices
            )
            rows += [(index, files[path][1]) for index, path in paths if path in files]
        slices, crc32 = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        return slices, crc32


def case_reader(output_dir: Path, case: IndexedCase) -> NpzReader | ZarrReader:
    """Return a reader of a case; raise CorruptFile or OSError if it is damaged or missing.

    Raises
    ------
    UsageError
        If the files are in a layout that only the project that it is for reads.
    """
    # Imported here, since a run reads no slices: Blosc has a lock, which a process that starts
    # workers must not have before it starts the process that they are forked from.
    template = case.template
    if template is None:
        from dask_slicer.output.formats.zarr_reader import ZarrReader

        return ZarrReader(output_dir / case.path_of(0))
    if template.is_readable:
        from dask_slicer.output.formats.npz_reader import NpzReader

        checksums = _Checksums(output_dir, case)
        return NpzReader(lambda slice_index: output_dir / case.path_of(slice_index), checksums)
    if template == PNG[0]:
        from dask_slicer.output.formats.png_reader import PngReader

        _, masks, metadata = (replace(case, template=each) for each in PNG)
        return PngReader(
            lambda slice_index: output_dir / case.path_of(slice_index),
            lambda slice_index: output_dir / masks.path_of(slice_index),
            output_dir / metadata.path_of(0),
        )
    raise UsageError(
        f"{case.path_of(0)} is in a layout of another project, which its loader reads; make an "
        "output with --format npz, zarr or png to look at slices or to train with SliceDataset"
    )
