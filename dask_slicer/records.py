"""Outcomes of cases: committed, failed or removed, as the journal holds them; plans of many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from dask_slicer.core.statistics import Statistics
from dask_slicer.errors import CaseError
from dask_slicer.utils.formatting import as_utf8, first_few, plural
from dask_slicer.utils.packed import PackedList
from dask_slicer.utils.repr_html import html_table


class WrittenSlice(NamedTuple):
    """A slice on disk: index, size in bytes and CRC-32 of its file, pixels by label value.

    Size and CRC-32 are 0 if slices share files.
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


class OutputFile(NamedTuple):
    """A file of a case: path below the output, size in bytes, CRC-32."""

    path: str
    size: int
    crc32: int


class SourceFile(NamedTuple):
    """A file that a case was read from: path below the input root, size, mtime in ns, CRC-32.

    The CRC-32 is None if it is not known.
    """

    path: str
    size: int
    mtime_ns: int
    crc32: int | None


class SourceGrid(NamedTuple):
    """The grid of a scan, so that predictions get it back without the scan.

    That of its first image: shape and affine, voxel → RAS+ mm, of the array in the file, and the
    header in base64, empty if it is not NIfTI.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    header: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPlane:
    """What differs between the planes of a case, as `CommittedCase` has it for one plane."""

    plane: str
    shape: tuple[int, int, int, int]
    spacing: tuple[float, float, float]
    slices: tuple[WrittenSlice, ...]
    files: tuple[WrittenFile, ...] = ()
    output_files: tuple[OutputFile, ...] = ()
    steps: dict[str, Any] = field(default_factory=dict)
    voxel_volume: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedCase:
    """A case that is completely on disk.

    With several planes, `slices`, `files`, `output_files` and `steps` are empty here: use `parts`.
    """

    case_id: str
    split: str
    digest: str  # of everything that decides the output, see `planning.headers.case_digest`
    shape: tuple[int, int, int, int]  # (n_images, n_slices, height, width), see `SliceStack.image`
    spacing: tuple[float, float, float]  # (slice, row, column), mm
    statistics: tuple[Statistics, ...]  # one per image
    slices: tuple[WrittenSlice, ...]  # the kept slices, ascending
    seconds: dict[str, float]  # by step
    files: tuple[WrittenFile, ...] = ()  # of a Zarr group; empty if each slice is a file
    # Of formats in which a case is several kinds of files: images first.
    output_files: tuple[OutputFile, ...] = ()
    # The patient. If the case leaves the dataset, its patient's other cases stay in its split.
    group: str = ""
    run_id: str = ""
    n_overlapping: int = 0  # voxels in the masks of two structures
    header_notes: tuple[tuple[str, str], ...] = ()  # oddities of headers: file, text
    structures: dict[str, int] = field(default_factory=dict)  # values of masks that were merged
    voxel_volume: float | None = None  # mm³; None in lines of earlier versions
    # What the steps made of grid and label, see `SliceStack.changes`; empty without steps.
    steps: dict[str, Any] = field(default_factory=dict)
    sources: tuple[SourceFile, ...] = ()  # empty in lines of earlier versions
    grid: SourceGrid | None = None  # None in lines of earlier versions
    plane: str = ""  # of a part; empty if there is one plane
    planes: tuple[WrittenPlane, ...] = ()  # of a case with several planes
    # Of the journal line, in seconds since 1970; 0 in lines of earlier versions.
    at: float = field(default=0.0, compare=False)
    status: Literal["committed"] = "committed"

    @property
    def parts(self) -> tuple[CommittedCase, ...]:
        """Return the case in each of its planes; itself if there is one plane."""
        if not self.planes:
            return (self,)
        names = [each.name for each in fields(WrittenPlane)]
        return tuple(
            replace(self, planes=(), **{name: getattr(own, name) for name in names})
            for own in self.planes
        )

    @property
    def n_slices(self) -> int:
        """Return the number of slices in all planes."""
        return sum(len(own.slices) for own in self.planes or (self,))

    @property
    def n_bytes(self) -> int:
        """Return the size of the case on disk."""
        return sum(
            sum(written.size for written in own.slices)
            + sum(file.size for file in own.files)
            + sum(file.size for file in own.output_files)
            for own in self.planes or (self,)
        )

    def without_slices(self) -> CommittedCase:
        """Return the record without what takes memory for each slice."""
        nothing: dict[str, Any] = {"slices": (), "files": (), "output_files": ()}
        planes = tuple(replace(own, **nothing) for own in self.planes)
        return replace(self, **nothing, planes=planes)

    @property
    def clip_fits(self) -> bool:
        """Return whether the clip range suits each modality; True in lines of earlier versions."""
        return all(stats.clip_fits for stats in self.statistics)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """A case that failed: step, kind, and one line with what happened, where, and what to do."""

    case_id: str
    step: str
    kind: str
    message: str
    details: str = ""
    at: float = field(default=0.0, compare=False)
    status: Literal["failed"] = "failed"

    @classmethod
    def of(cls, case_id: str, error: CaseError) -> FailedCase:
        """Return the record of an error."""
        return cls(
            case_id=case_id,
            step=error.step,
            kind=error.kind,
            message=error.one_line,
            details=error.details,
        )

    def __post_init__(self) -> None:
        for name in ("message", "details"):
            object.__setattr__(self, name, as_utf8(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedCase:
    """A case whose files were removed, on request or to write them again."""

    case_id: str
    at: float = field(default=0.0, compare=False)
    status: Literal["removed"] = "removed"


CaseRecord = CommittedCase | FailedCase | RemovedCase


def failure_line(failure: FailedCase) -> str:
    """Return the reason of a failure, on one line."""
    return f"{failure.case_id}: {failure.kind} ({failure.step}): {failure.message}"


def why_not_written(n_failed: int, n_left: int) -> str:
    """Return why planned cases have no slices: failed, or not run yet."""
    why = [f"{n_failed} failed, see failures.csv"] if n_failed else []
    why += [f"{n_left} not run yet, repeat the run command to continue"] if n_left > 0 else []
    return "; ".join(why)


Limit = float | tuple[float | None, ...] | None


def clip_note(clip_min: Limit, clip_max: Limit, case_ids: Sequence[str]) -> str:
    """Return a note on cases that a clip range does not suit.

    >>> clip_note(None, (240.0, None), ["mr_1"]).partition(":")[0]
    'more than half of the bright voxels lie outside clip_max 240,none in 1 case (mr_1)'
    """
    limits = {"clip_min": clip_min, "clip_max": clip_max}
    given = [f"{name} {_limit(value)}" for name, value in limits.items() if value is not None]
    outside = ", ".join(given) or "the percentiles in the statistics of the dataset"
    return (
        f"more than half of the bright voxels lie outside {outside} in "
        f"{plural(len(case_ids), 'case')} ({first_few(case_ids)}): check that these limits suit "
        "these scans (CT is in HU, MR is not), or leave them out"
    )


def _limit(value: Limit) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_limit, value))
    return "none" if value is None else f"{value:g}"


def failure_table(failures: Sequence[FailedCase]) -> str:
    """Return an HTML table of failed cases and their reasons."""
    rows = [(failure.case_id, failure.kind, failure.step, failure.message) for failure in failures]
    return html_table(("failed case", "kind", "step", "message"), rows, of="failed case")


# -- plans of many cases --------------------------------------------------------------------------


class _Planned(Protocol):
    @property
    def case_id(self) -> str: ...
    @property
    def problem(self) -> FailedCase | None: ...


P = TypeVar("P", bound=_Planned)


class CasePlans(PackedList[P]):
    """Plans of many cases; ids and problems are there without looking at each.

    Parameters
    ----------
    cases : iterable of CasePlan
    """

    def __init__(self, cases: Iterable[P] = ()) -> None:
        self.ids: list[str] = []
        self.problems: dict[int, FailedCase] = {}  # by number
        self._numbers: dict[str, int] = {}  # by id, made on use
        super().__init__(cases)

    def append(self, record: P) -> None:
        """Add a case at the end."""
        if record.problem is not None:
            self.problems[len(self)] = record.problem
        self.ids.append(record.case_id)
        super().append(record)

    @property
    def runnable(self) -> Sequence[P]:
        """Return the cases without a problem."""
        if not self.problems:
            return self
        return self.select([n for n in range(len(self)) if n not in self.problems])

    def of_id(self, case_id: str) -> P:
        """Return the case with an id; raise KeyError if there is none."""
        if len(self._numbers) < len(self):
            self._numbers = {name: number for number, name in enumerate(self.ids)}
        return self[self._numbers[case_id]]

    def of_ids(self, wanted: set[str]) -> Sequence[P]:
        """Return the cases with these ids."""
        return self.select([n for n, case_id in enumerate(self.ids) if case_id in wanted])
