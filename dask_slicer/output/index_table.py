"""The table of slices, slices.csv: writing it with its columns as numbers, and reading both."""

from __future__ import annotations

import csv
import io
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from math import nan
from pathlib import Path

import numpy as np

from dask_slicer.config.file_settings import ListTemplate, format_template, stem_digits
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.slices import foreground_share
from dask_slicer.errors import OutputError
from dask_slicer.output import directory
from dask_slicer.output.atomic import atomic_write
from dask_slicer.output.formats import columns
from dask_slicer.output.formats.columns import LABEL, ROW, UNREADABLE, Block, Put
from dask_slicer.output.index import (
    IndexedCase,
    SliceIndex,
    ends_of,
    indexed_case,
    joined,
    narrowed,
)
from dask_slicer.output.journal import last_records
from dask_slicer.output.layout import (
    COLUMNS,
    COLUMNS_OF_PLANES,
    INDEX,
    INDEX_COLUMNS,
    JOURNAL,
    TEMPORARY,
    section,
)
from dask_slicer.output.lock import still_held
from dask_slicer.records import CaseRecord, CommittedCase
from dask_slicer.utils.files import open_file

# Of a block of columns, or a few more: it ends with a case.
_ROWS_OF_BLOCK = 1 << 16


class _Rows:
    """Rows of the index while they are collected: an object for each would take more memory."""

    def __init__(self) -> None:
        self.cases: list[IndexedCase] = []
        self.case, self.slice_index, self.n_labels = array("i"), array("i"), array("i")
        self.foreground = array("f")
        self.values, self.counts = array("q"), array("q")

    def __len__(self) -> int:
        return len(self.case)

    def add_case(self, case: IndexedCase, part: CommittedCase, shares: Iterable[str]) -> None:
        """Add the slices of a case in a plane; `shares` are those of slices.csv."""
        self.case.extend([len(self.cases)] * len(part.slices))
        self.cases.append(case)
        self.slice_index.extend([written.slice_index for written in part.slices])
        self.foreground.extend([float(share) if share else nan for share in shares])
        for *_, labels in part.slices:
            self.n_labels.append(len(labels) if labels else 0)
            if labels:
                self.values.extend(labels)
                self.counts.extend(labels.values())

    def index(self) -> SliceIndex:
        """Return the rows."""
        return SliceIndex(
            cases=tuple(self.cases),
            case=np.array(self.case, np.int32),
            slice_index=np.array(self.slice_index, np.int32),
            foreground=np.array(self.foreground, np.float32),
            label_ends=ends_of(np.array(self.n_labels, np.int32)),
            label_values=narrowed(np.array(self.values, np.int64)),
            label_counts=narrowed(np.array(self.counts, np.int64)),
        )

    def block(self) -> Block:
        """Return the rows as a block of the file with columns."""
        rows, labels = np.empty(len(self), ROW), np.empty(len(self.values), LABEL)
        for name in ROW.names or ():
            rows[name] = getattr(self, name)
        labels["value"], labels["count"] = self.values, self.counts
        first = np.searchsorted(rows["case"], np.arange(len(self.cases)))
        cells = [
            _cells(case, slice_index)
            for case, slice_index in zip(
                self.cases, rows["slice_index"][first].tolist(), strict=True
            )
        ]
        return Block(cells, rows, labels)


def _cells(case: IndexedCase, slice_index: int) -> tuple[str, ...]:
    """Return the first cells of a row, with the column `plane`."""
    place = case.case_id, case.split, case.plane, str(slice_index)
    return *place, case.path_of(slice_index), str(slice_index) if case.is_shared else ""


# -- writing ---------------------------------------------------------------------------------------


def write_index(
    output_dir: Path, committed: Iterable[CommittedCase], settings: SliceSettings
) -> None:
    """Write slices.csv, and its columns as numbers; cases come in the order of their ids."""
    create = partial(atomic_write, temporary=output_dir / TEMPORARY)
    with columns.writing(output_dir / INDEX_COLUMNS, create) as put:
        directory.write_lines(output_dir, INDEX, index_text(committed, settings, put))
        still_held()


def index_text(
    committed: Iterable[CommittedCase], settings: SliceSettings, put: Put
) -> Iterator[str]:
    """Yield the text of slices.csv, case after case, and hand its columns on to `put`.

    Cases come in the order of their ids. The column `plane` is there only with several planes.
    Less than a block has no columns: slices.csv itself is read at once.
    """
    has_plane = bool(settings.plane_folders)
    n_blocks, rows, total = 0, _Rows(), _Counted()
    yield total.count(",".join(COLUMNS_OF_PLANES if has_plane else COLUMNS) + "\n")
    for record in committed:
        for case, part in _indexed_parts(record, settings):
            shares = _shares(part)
            rows.add_case(case, part, shares)
            yield total.count(_case_text(case, part, shares, has_plane=has_plane))
        if len(rows) >= _ROWS_OF_BLOCK:
            columns.put_block(put, n_blocks, rows.block())
            n_blocks, rows = n_blocks + 1, _Rows()
    if n_blocks and len(rows):
        columns.put_block(put, n_blocks, rows.block())
    if n_blocks:
        columns.put_table(put, total.size, total.crc32)


class _Counted:
    """Bytes and CRC-32 of a text that is written in pieces."""

    size = crc32 = 0

    def count(self, text: str) -> str:
        """Add a piece; return it."""
        content = directory.encode(text)
        self.size, self.crc32 = self.size + len(content), zlib.crc32(content, self.crc32)
        return text


def _indexed_parts(
    record: CommittedCase, settings: SliceSettings
) -> Iterator[tuple[IndexedCase, CommittedCase]]:
    """Yield a case in each plane that has slices of it."""
    is_zarr = settings.format == "zarr"
    template = None if is_zarr else settings.image_template(record.split)
    for part in record.parts:
        if part.slices:
            digits = stem_digits(part.shape[1])
            yield IndexedCase(part.case_id, part.split, digits, part.plane, template), part


def _shares(part: CommittedCase) -> list[str]:
    """Return the share of labelled pixels in each slice, as slices.csv has it."""
    n_pixels = part.shape[2] * part.shape[3]
    return [
        "" if labels is None else f"{foreground_share(labels, n_pixels):.6g}"
        for *_, labels in part.slices
    ]


def _case_text(
    case: IndexedCase, part: CommittedCase, shares: Sequence[str], *, has_plane: bool
) -> str:
    """Return the rows of a case as text."""
    place = (case.case_id, case.split, case.plane) if has_plane else (case.case_id, case.split)
    start = "".join(csv_lines([place]))[:-1]
    is_shared = case.is_shared
    indices = [written.slice_index for written in part.slices]
    paths = case.paths_of(indices)
    if "," in paths[0]:  # all that a case id may hold that needs quotes
        paths = [f'"{path}"' for path in paths]
    lines = []
    for (index, _, _, labels), path, share in zip(part.slices, paths, shares, strict=True):
        counts = ";".join([f"{value}:{n}" for value, n in labels.items()]) if labels else ""
        lines.append(f"{start},{index},{path},{index if is_shared else ''},{share},{counts}\n")
    return "".join(lines)


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


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredIndex:
    """The index of an output, which can be read part by part, again and again.

    Attributes
    ----------
    cases : tuple of IndexedCase
    n_rows, n_labels : int
        Number of slices, and of label values in them.
    n_committed : int or None
        See `SliceIndex`.
    """

    cases: tuple[IndexedCase, ...]
    n_rows: int
    n_labels: int
    n_committed: int | None
    _parts: Callable[[], Iterable[SliceIndex]]

    @classmethod
    def of(cls, index: SliceIndex) -> StoredIndex:
        """Return an index that is in memory."""
        n_labels = len(index.label_values)
        return cls(index.cases, len(index), n_labels, index.n_committed, lambda: [index])

    def __iter__(self) -> Iterator[SliceIndex]:
        """Yield the index of some cases at a time."""
        return iter(self._parts())

    @cached_property
    def label_values(self) -> list[int]:
        """Return the label values that any slice holds, ascending."""
        values = np.zeros(0, np.int32)
        for part in self:
            values = np.union1d(values, part.label_values)
        return values.tolist()

    def selected(self, select: Callable[[SliceIndex], SliceIndex]) -> SliceIndex:
        """Return the index of slices that are selected from each part; others are not kept."""
        parts = map(select, self)
        first = [*islice(parts, 2)]
        if len(first) == 1:
            return first[0]
        return joined(chain(first, parts), most_rows=self.n_rows, most_labels=self.n_labels)

    def whole(self) -> SliceIndex:
        """Return the index of all slices."""
        return replace(self.selected(lambda part: part), n_committed=self.n_committed)


def open_index(output_dir: Path, settings: SliceSettings) -> StoredIndex:
    """Return the slices of an output: of slices.csv, or of the journal if that is newer.

    Columns as numbers are read in place of slices.csv if they are those of the file as it is now.
    """
    table, journal = output_dir / INDEX, output_dir / JOURNAL
    if not table.exists() or (
        journal.exists() and journal.stat().st_mtime_ns > table.stat().st_mtime_ns
    ):
        # A run is active, or was killed before it wrote slices.csv.
        return StoredIndex.of(_of_journal(journal, settings))
    with suppress(*UNREADABLE):
        if columns.is_of_table(output_dir / INDEX_COLUMNS, table):
            return _of_columns(output_dir / INDEX_COLUMNS, settings)
    return StoredIndex.of(_of_table(table, settings))


def _of_journal(journal: Path, settings: SliceSettings) -> SliceIndex:
    rows, n_committed = _Rows(), 0
    for record in last_records(journal):
        if isinstance(record, CommittedCase):
            n_committed += 1
            for case, part in _indexed_parts(record, settings):
                first = part.slices[0].slice_index
                place = case.case_id, case.split, case.plane, case.path_of(first)
                rows.add_case(indexed_case(*place, first, settings), part, _shares(part))
    return replace(rows.index(), n_committed=n_committed)


def _of_columns(path: Path, settings: SliceSettings) -> StoredIndex:
    """Return the index in a file of columns; raise one of `UNREADABLE` if it is damaged."""
    of_blocks = []
    n_rows = n_labels = 0
    for block in columns.blocks(path):
        of_blocks.append(tuple(_parsed_case(cells, settings) for cells in block.cases))
        n_rows, n_labels = n_rows + len(block.rows), n_labels + len(block.labels)
    cases = tuple(chain.from_iterable(of_blocks))
    if len({(case.case_id, case.split, case.plane) for case in cases}) < len(cases):
        raise ValueError("a case is in several blocks")

    def parts() -> Iterator[SliceIndex]:
        try:
            for block, own in zip(columns.blocks(path), of_blocks, strict=True):
                yield _index_of(block, own)
        except UNREADABLE as error:
            raise OutputError(
                f"{path} changed while it was read ({error}); open it again"
            ) from None

    return StoredIndex(cases, n_rows, n_labels, None, parts)


def _index_of(block: Block, cases: tuple[IndexedCase, ...]) -> SliceIndex:
    _, rows, labels = block
    case, slice_index, foreground, n_labels = (
        np.ascontiguousarray(rows[name]) for name in ROW.names or ()
    )
    return SliceIndex(
        cases=cases,
        case=case,
        slice_index=slice_index,
        foreground=foreground,
        label_ends=ends_of(n_labels),
        label_values=narrowed(labels["value"]),
        label_counts=narrowed(labels["count"]),
    )


def _of_table(table: Path, settings: SliceSettings) -> SliceIndex:
    try:
        with io.TextIOWrapper(open_file(table), encoding="utf-8", newline="") as lines:
            cells = csv.reader(lines, strict=True)
            if tuple(next(cells)) == COLUMNS_OF_PLANES:
                return _parsed(cells, settings)
            return _parsed(
                ((case_id, split, "", *rest) for case_id, split, *rest in cells), settings
            )
    except (ValueError, OverflowError, StopIteration, csv.Error) as error:
        raise OutputError(
            f"{table} is damaged ({error}); remove it: the journal has the same data"
        ) from None


def _parsed(table: Iterable[Iterable[str]], settings: SliceSettings) -> SliceIndex:
    """Return the index in rows with the column `plane`; cases come in any order."""
    rows = _Rows()
    numbers: dict[tuple[str, str, str], int] = {}
    for case_id, split, plane, index, path, row, share, labels in table:
        number = numbers.setdefault((case_id, split, plane), len(rows.cases))
        if number == len(rows.cases):
            rows.cases.append(_parsed_case((case_id, split, plane, index, path, row), settings))
        rows.case.append(number)
        rows.slice_index.append(int(index))
        rows.foreground.append(float(share) if share else nan)
        pairs = labels.split(";") if labels else ()
        rows.n_labels.append(len(pairs))
        for pair in pairs:
            value, _, count = pair.partition(":")
            rows.values.append(int(value))
            rows.counts.append(int(count))
    if min(rows.slice_index, default=0) < 0 or min(rows.counts, default=0) < 0:
        raise ValueError("a number is negative")
    return rows.index()


def _parsed_case(cells: Sequence[str], settings: SliceSettings) -> IndexedCase:
    """Return the case of a row; raise ValueError if its files are not where a run writes them."""
    case_id, split, plane, index, path, row = cells
    case = indexed_case(case_id, split, plane, path, int(index), settings)
    if (row != "") != case.is_shared:
        raise ValueError(f"{path!r} has row {row!r}")
    return case
