"""The append-only journal of cases, and reading it back.

One JSON object a line, written by the driver alone, as cases end. The last line of a case counts. A
line that was torn by a crash is as if it had never been written: its case is run again.
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
from types import TracebackType
from typing import Annotated, BinaryIO, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError

from dask_slicer.records import CaseRecord, CommittedCase, FailedCase, RemovedCase

_LINE: TypeAdapter[CaseRecord] = TypeAdapter(Annotated[CaseRecord, Field(discriminator="status")])


def last_records(path: Path) -> Iterator[CaseRecord]:
    """Yield the last record of every case, by case id; damaged lines are passed over.

    One record is in memory at a time: a large dataset has millions of slices.

    Parameters
    ----------
    path : Path
        Need not exist.

    Yields
    ------
    CaseRecord
    """
    last = dict(lines(path))
    if not last:
        return
    with path.open("rb") as file:
        for case_id in sorted(last):
            record = read_line(file, last[case_id].offset)
            if record is not None:
                yield record


class Line(NamedTuple):
    """Where a line is in a journal, and when it was written."""

    offset: int
    at: float


def lines(path: Path) -> Iterator[tuple[str, Line]]:
    """Yield the case id and place of every line that is whole; there need be no journal."""
    offset, at = 0, 0.0
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            record = _parse(line)
            if record is not None:
                at = max(at, record.at)  # a clock may be set back, a journal only grows
                yield record.case_id, Line(offset, at)
            offset += len(line)


def read_line(journal: BinaryIO, offset: int) -> CaseRecord | None:
    """Return the record in a line of a journal."""
    journal.seek(offset)
    return _parse(journal.readline())


def _parse(line: bytes) -> CaseRecord | None:
    """Return the record in a line, None if it is torn or of a version we do not know."""
    try:
        return _LINE.validate_json(line)
    except ValidationError:
        return None


class Journal:
    """The journal of a run, open for appending.

    Parameters
    ----------
    path : Path
    fsync : bool
        Force every line to disk before `append` returns.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self.path = path
        self._fsync = fsync
        self._file = path.open("ab", buffering=0)
        self._start_on_a_new_line(path)

    def _start_on_a_new_line(self, path: Path) -> None:
        if self._file.tell():
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read() != b"\n"
            if torn:
                self._file.write(b"\n")

    def append(self, record: CaseRecord) -> None:
        """Write one record; it is with the operating system when this returns.

        Raises
        ------
        OSError
            The journal is then as it was before.
        """
        if not record.at:
            record = replace(record, at=round(time.time(), 3))
        before = self._file.seek(0, os.SEEK_END)  # whatever became of the line before
        left = _LINE.dump_json(record) + b"\n"
        try:
            while left:
                left = left[self._file.write(left) :]
            if self._fsync:
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise

    def sync(self) -> None:
        """Force to disk what was written."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What became of a case, time after time.

    Attributes
    ----------
    records : tuple of CaseRecord
        All that shares wrote, the newest first, then the last one of the output's own journal.
    own : CaseRecord or None
        That last one, if there is one.
    """

    records: tuple[CaseRecord, ...]
    own: CaseRecord | None

    @property
    def case_id(self) -> str:
        """Return the id of the case."""
        return self.records[0].case_id

    @property
    def committed(self) -> tuple[CommittedCase, ...]:
        """Return commits of which the files were not taken away since, the newest first."""
        since = takewhile(lambda record: not isinstance(record, RemovedCase), self.records)
        return tuple(record for record in since if isinstance(record, CommittedCase))

    @property
    def failure(self) -> FailedCase | None:
        """Return how the case failed, if that is the last that became of it."""
        newest = self.records[0]
        return newest if isinstance(newest, FailedCase) else None


def histories(journals: Sequence[Path]) -> Iterator[History]:
    """Yield what journals say of each case; one case is in memory at a time.

    Parameters
    ----------
    journals : sequence of Path
        The first is the output's own. They need not exist.
    """
    places: defaultdict[str, list[_Place]] = defaultdict(list)
    for number, path in enumerate(journals):
        found = lines(path)
        for case_id, line in found if number else dict(found).items():
            places[case_id].append(_Place(number > 0, line.at, number, line.offset))
    by_case = [sorted(ones, reverse=True) for ones in places.values()]
    # By journal: most cases are in one alone, which is then read from its start to its end.
    by_case.sort(key=lambda ones: ones[0][2:])
    with closing(_Reader(journals)) as reader:
        for newest_first in by_case:
            records = [reader.read(place) for place in newest_first]
            yield History(
                records=tuple(record for record in records if record is not None),
                own=None if newest_first[-1].is_of_share else records[-1],
            )


class _Place(NamedTuple):
    """A line of a journal; they sort by age."""

    is_of_share: bool
    at: float
    journal: int
    offset: int


class _Reader:
    """Reads lines of several journals, of which one is open at a time."""

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
