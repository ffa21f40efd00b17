"""Outcomes of cases: committed, failed or removed, as the journal holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from dask_slicer.core.statistics import Statistics
from dask_slicer.utils.repr_html import html_table

if TYPE_CHECKING:
    pass


def failure_table(failures: Sequence[FailedCase]) -> str:
    """Return a table of cases that failed, and why."""
    rows = [(one.case_id, one.kind, one.step, one.message) for one in failures]
    return html_table(("failed case", "kind", "step", "message"), rows, of="failed case")


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


def failure_line(failure: FailedCase) -> str:
    """Return why a case failed, on one line."""
    return f"{failure.case_id}: {failure.kind} ({failure.step}): {failure.message}"
