"""What became of each case: records, and the append-only file that holds them.

One JSON object a line, written by the driver alone, as cases end. The last line of a case counts. A
line that was torn by a crash is as if it had never been written: its case is run again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Literal, NamedTuple, Self

from pydantic import Field, TypeAdapter, ValidationError

from dask_slicer.statistics import Statistics


class WrittenSlice(NamedTuple):
    """One slice on disk: index, size in bytes and CRC-32 of its file, pixels by label value.

    Size and CRC-32 are 0 where slices share files.
    """

    slice_index: int
    size: int
    crc32: int
    labels: dict[int, int] | None


class WrittenFile(NamedTuple):
    """A file that slices share: path below the case's directory, size in bytes, CRC-32."""

    path: str
    size: int
    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedCase:
    """A case that is whole on disk.

    Attributes
    ----------
    case_id, split : str
    group : str
        The patient: also when the case is gone, the others stay in its split.
    digest : str
        Of everything that decides the output, see `plans.case_digest`.
    shape : tuple of int
        (n_modalities, n_slices, height, width).
    spacing : tuple of float
        (slice, row, column), mm.
    statistics : tuple of Statistics
        One per modality.
    slices : tuple of WrittenSlice
        Those kept, ascending.
    seconds : dict of step to float
    files : tuple of WrittenFile
        Those of a case that is a directory; empty where each slice is a file.
    at : float
        When its line was written, in seconds since 1970; 0 in lines of earlier versions.
    """

    case_id: str
    split: str
    digest: str
    shape: tuple[int, int, int, int]
    spacing: tuple[float, float, float]
    statistics: tuple[Statistics, ...]
    slices: tuple[WrittenSlice, ...]
    seconds: dict[str, float]
    files: tuple[WrittenFile, ...] = ()
    group: str = ""
    run_id: str = ""
    at: float = field(default=0.0, compare=False)
    status: Literal["committed"] = "committed"

    @property
    def n_bytes(self) -> int:
        """Return the size of the case on disk."""
        return sum(one.size for one in self.slices) + sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """A case that could not be done: step, kind, and one line that says what, where, what to do."""

    case_id: str
    step: str
    kind: str
    message: str
    details: str = ""
    at: float = field(default=0.0, compare=False)
    status: Literal["failed"] = "failed"

    def __post_init__(self) -> None:
        # Names of files may be in any encoding, or none; what is recorded is UTF-8.
        for name in ("message", "details"):
            text = getattr(self, name).encode("utf-8", "backslashreplace").decode("utf-8")
            object.__setattr__(self, name, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedCase:
    """A case whose files were taken away: on request, or to be written anew."""

    case_id: str
    at: float = field(default=0.0, compare=False)
    status: Literal["removed"] = "removed"


CaseRecord = CommittedCase | FailedCase | RemovedCase
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
