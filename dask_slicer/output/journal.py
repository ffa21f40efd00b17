"""The append-only journal of cases: writing, and reading it back.

One JSON object per line, written by the driver alone, as cases end. The last line of a case counts.
A line that a crash cut short is ignored: its case runs again.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, pairwise, takewhile
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError

from dask_slicer.config.fields import PLANES
from dask_slicer.core.splits import SPLITS
from dask_slicer.core.statistics import MOST_INTENSITY
from dask_slicer.inputs.case import case_id_problem
from dask_slicer.output.layout import JOURNAL, ZARR
from dask_slicer.output.lock import still_held
from dask_slicer.records import (
    CaseRecord,
    CommittedCase,
    FailedCase,
    RemovedCase,
    SourceGrid,
    WrittenPlane,
)
from dask_slicer.utils.files import open_file

_LINE: TypeAdapter[CaseRecord] = TypeAdapter(Annotated[CaseRecord, Field(discriminator="status")])
# A file below the Zarr group of a case.
_FILE = re.compile(r"zarr\.json|(image|label|slice_index)/(zarr\.json|c(/[0-9]{1,10}){1,4})")
# What a line begins with; a case id needs no escapes in JSON.
_CASE_ID = re.compile(rb'\{"case_id": ?"([^"\\]+)"')
# More is damage: seconds since 1970, voxels along an axis, and pixels of a slice.
_MOST_HEADER = 720  # base64 of the header of NIfTI-2
_MOST_SECONDS, _MOST_LENGTH, _MOST_COUNT = 1e11, 2**31, 2**62


class _Place(NamedTuple):
    """A line of one of several journals. Places sort by age."""

    is_of_partition: bool
    at: float
    journal: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All records of a case: of partitions, newest first, then the last of the output's own."""

    records: tuple[CaseRecord, ...]
    own: CaseRecord | None  # the last record of the output's own journal, if there is one

    @property
    def case_id(self) -> str:
        """Return the id of the case."""
        return self.records[0].case_id

    @property
    def committed(self) -> tuple[CommittedCase, ...]:
        """Return commits whose files were not removed since, newest first."""
        since = takewhile(lambda record: not isinstance(record, RemovedCase), self.records)
        return tuple(record for record in since if isinstance(record, CommittedCase))

    @property
    def failure(self) -> FailedCase | None:
        """Return the newest record if it is a failure."""
        newest = self.records[0]
        return newest if isinstance(newest, FailedCase) else None


# -- writing ---------------------------------------------------------------------------------------


class Journal:
    """A journal, open for appending; `fsync` forces each line to disk before `append` returns.

    Records are of cases, or of the type of `lines`, which also have case_id and at.
    """

    def __init__(self, path: Path, *, fsync: bool = False, lines: TypeAdapter[Any] = _LINE) -> None:
        self._fsync, self._lines = fsync, lines
        with suppress(FileNotFoundError):
            open_file(path).close()  # appending to a pipe would block
        self._file = path.open("ab", buffering=0)
        if self._file.tell():
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                is_cut = file.read() != b"\n"
            if is_cut:  # start on a new line
                self._file.write(b"\n")

    def append(self, record: Any) -> None:
        """Append one record; the operating system has it when this returns.

        After an OSError, the journal is as it was before. Raise LockLost if this run no longer
        holds its output.
        """
        still_held()
        if not record.at:
            record = replace(record, at=round(time.time(), 3))
        end = self._file.seek(0, os.SEEK_END)  # the line before may have failed
        remaining = self._lines.dump_json(record) + b"\n"
        try:
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
            if self._fsync:
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def sync(self) -> None:
        """Force all lines to disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LastRecords:
    """The last record of every case, by case id; they are read again in every iteration.

    Only one is in memory at a time, because a large dataset has millions of slices.
    """

    path: Path
    offsets: Sequence[int]

    def __iter__(self) -> Iterator[CaseRecord]:
        if self.offsets:
            with self.path.open("rb") as file:
                for offset in self.offsets:
                    record = read_line(file, offset)
                    if record is not None:
                        yield record


def last_records(path: Path) -> LastRecords:
    """Return the last record of every case; the journal may be missing."""
    last = _last_lines_of_cases(path)
    return LastRecords(path, array("q", (last[case_id] for case_id in sorted(last))))


def _last_lines_of_cases(path: Path) -> dict[str, int]:
    """Return where the last undamaged line of each case begins; if it has one, it may be damaged.

    Most cases have one line, which is parsed when it is read. The journal may be missing.
    """
    last: dict[str, int] = {}
    others: defaultdict[str, list[int]] = defaultdict(list)  # before the last line
    offset = 0
    with suppress(FileNotFoundError), open_file(path) as file:
        for line in file:
            start = _CASE_ID.match(line)
            if start is not None:
                case_id = start[1].decode("utf-8", "replace")
            elif (record := _parse(line)) is not None:
                case_id = record.case_id
            else:
                offset += len(line)
                continue
            if case_id in last:
                others[case_id].append(last[case_id])
            last[case_id] = offset
            offset += len(line)
        for case_id, earlier in others.items():
            while earlier and not _is_of(read_line(file, last[case_id]), case_id):
                last[case_id] = earlier.pop()
    return last


def _is_of(record: CaseRecord | None, case_id: str) -> bool:
    return record is not None and record.case_id == case_id


def committed_case(path: Path, case_id: str) -> CommittedCase | None:
    """Return the record of a case if its last line is one of a commit; the journal may be missing.

    Only this line is parsed; where it begins is remembered until the journal changes.
    """
    with suppress(FileNotFoundError), open_file(path) as journal:
        status = path.stat()
        offset = _last_lines(path, status.st_mtime_ns, status.st_size).get(case_id)
        record = None if offset is None else read_line(journal, offset)
        if isinstance(record, CommittedCase) and record.case_id == case_id:
            return record
    return None


@lru_cache(maxsize=8)
def _last_lines(path: Path, _mtime_ns: int, _size: int) -> dict[str, int]:
    """Return where the last line of each case begins, be it damaged behind the case id."""
    offset, last = 0, {}
    with open_file(path) as file:
        for line in file:
            if start := _CASE_ID.match(line):
                last[start[1].decode("utf-8", "replace")] = offset
            offset += len(line)
    return last


def histories(journals: Sequence[Path]) -> Iterator[History]:
    """Yield the history of each case; the output's own journal comes first. They may be missing."""
    if len(journals) == 1:
        yield from _own_histories(journals[0])
        return
    places: defaultdict[str, list[_Place]] = defaultdict(list)
    for number, path in enumerate(journals):
        for case_id, offset, at in _lines(path):
            if number == 0:  # of the output's own journal, only the last line of each case
                places[case_id].clear()
            places[case_id].append(_Place(number > 0, at, number, offset))
    by_case = [sorted(case_places, reverse=True) for case_places in places.values()]
    # By journal: most cases are in only one, which is then read from start to end.
    by_case.sort(key=lambda case_places: case_places[0][2:])
    for number, cases in groupby(by_case, key=lambda case_places: case_places[0].journal):
        with journals[number].open("rb") as journal:
            for newest_first in cases:
                records = []
                for place in newest_first:
                    if place.journal == number:
                        records.append(read_line(journal, place.offset))
                    else:
                        with journals[place.journal].open("rb") as other:
                            records.append(read_line(other, place.offset))
                yield History(
                    records=tuple(record for record in records if record is not None),
                    own=None if newest_first[-1].is_of_partition else records[-1],
                )


def _own_histories(journal: Path) -> Iterator[History]:
    """Yield the history of each case in an output's own journal, in its order."""
    offsets = array("q", sorted(_last_lines_of_cases(journal).values()))
    for record in LastRecords(journal, offsets):
        yield History(records=(record,), own=record)


def _lines(path: Path) -> Iterator[tuple[str, int, float]]:
    """Yield case id, offset and time of every undamaged line; the journal may be missing."""
    offset, at = 0, 0.0
    with suppress(FileNotFoundError), open_file(path) as file:
        for line in file:
            record = _parse(line)
            if record is not None:
                at = max(at, record.at)  # a clock may be set back, but lines stay in order
                yield record.case_id, offset, at
            offset += len(line)


def read_line(journal: BinaryIO, offset: int) -> CaseRecord | None:
    """Return the record in the line at a position."""
    journal.seek(offset)
    return _parse(journal.readline())


def _parse(line: bytes) -> CaseRecord | None:
    """Return the record in a line, None if it is damaged or of an unknown version."""
    try:
        record = _LINE.validate_json(line)
    except ValidationError:
        return None
    return record if _is_sound(record) else None


def _is_sound(record: CaseRecord) -> bool:
    """Return whether a record is one that a run could have written: no path leads elsewhere."""
    if case_id_problem(record.case_id) or not 0 <= record.at < _MOST_SECONDS:
        return False
    if not isinstance(record, CommittedCase):
        return True
    names = [own.plane for own in record.planes]
    stats = [x for s in record.statistics for x in (s.mean, s.std, s.min, s.max)]
    return (
        record.split in SPLITS
        and not record.plane
        and len(names) != 1
        and len(set(names)) == len(names)
        and set(names) <= set(PLANES)
        # All slices of a case are in its planes, if it has several.
        and not (names and (record.slices or record.files or record.output_files))
        and all(map(_is_sound_plane, record.planes))
        and _is_sound_plane(record)
        and all(0 <= seconds < _MOST_SECONDS for seconds in record.seconds.values())
        and all(abs(number) <= MOST_INTENSITY for number in stats)
        and all(0 < s.n_foreground < _MOST_COUNT for s in record.statistics)
        and (record.grid is None or _is_sound_grid(record.grid))
    )


def _is_below(path: str) -> bool:
    """Return whether a path is one of a file below the output."""
    parts = path.split("/")
    return not ({"", ".", ".."} & {*parts} or re.search(r"[\\\0:]", path)) and (
        parts[0] not in (ZARR, JOURNAL) and not parts[0].startswith(".")
    )


def _is_sound_grid(grid: SourceGrid) -> bool:
    return (
        all(0 < length < _MOST_LENGTH for length in grid.shape)
        and [len(row) for row in grid.affine] == [4] * 4
        and all(isfinite(number) for row in grid.affine for number in row)
        and len(grid.header) <= _MOST_HEADER
    )


def _is_sound_plane(own: CommittedCase | WrittenPlane) -> bool:
    """Return whether slices and files are some that a run could have written."""
    indices = [-1, *(written.slice_index for written in own.slices), own.shape[1]]
    return (
        all(0 < length < _MOST_LENGTH for length in own.shape)
        and all(low < high for low, high in pairwise(indices))
        and all(written.size >= 0 for written in own.slices)
        and all(file.size >= 0 and _FILE.fullmatch(file.path) for file in own.files)
        and all(file.size >= 0 and _is_below(file.path) for file in own.output_files)
        and all(0 < length < _MOST_LENGTH for length in own.spacing)
        and all(
            abs(value) < _MOST_COUNT and 0 <= n < _MOST_COUNT
            for written in own.slices
            if written.labels
            for value, n in written.labels.items()
        )
    )
