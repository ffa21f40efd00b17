"""The append-only journal of cases: writing, and reading it back.

One JSON object per line, written by the driver alone, as cases end. The last line of a case counts.
A line that a crash cut short is ignored: its case runs again.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError

from dask_slicer.records import CaseRecord, CommittedCase, FailedCase, RemovedCase

_LINE: TypeAdapter[CaseRecord] = TypeAdapter(Annotated[CaseRecord, Field(discriminator="status")])


class Line(NamedTuple):
    """Position of a line in a journal, in bytes, and when it was written."""

    offset: int
    at: float


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
    """A journal, open for appending; `fsync` forces each line to disk before `append` returns."""

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self._fsync = fsync
        self._file = path.open("ab", buffering=0)
        if self._file.tell():
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                is_cut = file.read() != b"\n"
            if is_cut:  # start on a new line
                self._file.write(b"\n")

    def append(self, record: CaseRecord) -> None:
        """Append one record; the operating system has it when this returns.

        After an OSError, the journal is as it was before.
        """
        if not record.at:
            record = replace(record, at=round(time.time(), 3))
        end = self._file.seek(0, os.SEEK_END)  # the line before may have failed
        remaining = _LINE.dump_json(record) + b"\n"
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


def last_records(path: Path) -> Iterator[CaseRecord]:
    """Yield the last record of every case, by case id; the journal may be missing.

    Only one is in memory at a time, because a large dataset has millions of slices.
    """
    last = dict(lines(path))
    if not last:
        return
    with path.open("rb") as file:
        for case_id in sorted(last):
            record = read_line(file, last[case_id].offset)
            if record is not None:
                yield record


def histories(journals: Sequence[Path]) -> Iterator[History]:
    """Yield the history of each case, one at a time; the output's own journal comes first.

    Journals may be missing.
    """
    places: defaultdict[str, list[_Place]] = defaultdict(list)
    for number, path in enumerate(journals):
        positions = lines(path)
        # Of the output's own journal, the last line of each case; of partitions, every line.
        for case_id, line in positions if number else dict(positions).items():
            places[case_id].append(_Place(number > 0, line.at, number, line.offset))
    by_case = [sorted(case_places, reverse=True) for case_places in places.values()]
    # By journal: most cases are in only one, which is then read from start to end.
    by_case.sort(key=lambda case_places: case_places[0][2:])
    with closing(_Reader(journals)) as reader:
        for newest_first in by_case:
            records = [reader.read(place) for place in newest_first]
            yield History(
                records=tuple(record for record in records if record is not None),
                own=None if newest_first[-1].is_of_partition else records[-1],
            )


def lines(path: Path) -> Iterator[tuple[str, Line]]:
    """Yield case id and position of every undamaged line; the journal may be missing."""
    offset, at = 0, 0.0
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            record = _parse(line)
            if record is not None:
                at = max(at, record.at)  # a clock may be set back, but lines stay in order
                yield record.case_id, Line(offset, at)
            offset += len(line)


def read_line(journal: BinaryIO, offset: int) -> CaseRecord | None:
    """Return the record in the line at a position."""
    journal.seek(offset)
    return _parse(journal.readline())


def _parse(line: bytes) -> CaseRecord | None:
    """Return the record in a line, None if it is damaged or of an unknown version."""
    try:
        return _LINE.validate_json(line)
    except ValidationError:
        return None


class _Reader:
    """Reads lines of several journals, and keeps one of them open."""

    def __init__(self, journals: Sequence[Path]) -> None:
        self._journals = journals
        self._number = -1
        self._file: BinaryIO | None = None

    def read(self, place: _Place) -> CaseRecord | None:
        if self._file is None or place.journal != self._number:
            self.close()
            self._number, self._file = place.journal, self._journals[place.journal].open("rb")
        return read_line(self._file, place.offset)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
