"""Facts of an output for the report: counts, spacings, labels, times, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.schema import RunConfig
from dask_slicer.core.splits import SPLITS
from dask_slicer.core.statistics import Statistics
from dask_slicer.errors import OutputError
from dask_slicer.output.index import SliceIndex
from dask_slicer.output.journal import last_records
from dask_slicer.output.layout import CONFIG, JOURNAL
from dask_slicer.output.lock import check_not_in_use
from dask_slicer.output.output import Output
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.report.histogram import Histogram, histogram
from dask_slicer.report.sampling import Sample, sample_intensities

_MOST_LABELS = 100
_SLOWEST = 20
_SPACING_BINS, _LABEL_BINS = 24, 16
# Spacings are told apart in steps of a micrometre; headers hold them as float32.
_SPACING_DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """One split: cases planned, written and failed; slices, and those that hold labels."""

    name: str
    n_planned: int
    n_written: int
    n_failed: int
    n_slices: int
    n_labelled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """One label value: cases and slices that hold it, voxels, and its volume in those cases, ml."""

    value: int
    n_cases: int
    n_slices: int
    n_voxels: int
    volumes: Histogram | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseTime:
    """How long one case took, in seconds, by step."""

    case_id: str
    split: str
    n_slices: int
    n_bytes: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Return the seconds of all steps."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """An output as a whole.

    Attributes
    ----------
    path : Path
    config : RunConfig
    made_in : str
        Where the last run that ended knew it; it may have been moved since.
    n_slices, n_unlabelled : int
        Written; of them, those of cases without a label map.
    n_bytes : int
    first_at, last_at : float or None
        When the first and the last of its cases were written, in seconds since 1970.
    elapsed_seconds, slices_per_second : float or None
        Of the last run that ended.
    versions : dict
        Of packages, in that run.
    is_in_use : bool
        Whether a run is writing to it.
    splits : tuple of SplitFacts
    missing : tuple of str
        Cases that were planned, and are neither written nor failed.
    empty : tuple of str
        Cases that are written, and of which no slice was kept.
    sample : Sample
    spacings : dict of str to Histogram
        Of the cases, mm; rows and columns together where they are the same.
    n_labels : int
    labels : tuple of LabelFacts
        By value; where there are very many, those that most cases hold.
    step_seconds : dict of step to float
        Over all cases.
    slowest : tuple of CaseTime
    failures : tuple of FailedCase
        By case id.
    """

    path: Path
    config: RunConfig
    made_in: str
    n_slices: int
    n_unlabelled: int
    n_bytes: int
    first_at: float | None
    last_at: float | None
    elapsed_seconds: float | None
    slices_per_second: float | None
    versions: dict[str, str]
    is_in_use: bool
    splits: tuple[SplitFacts, ...]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    sample: Sample
    spacings: dict[str, Histogram]
    n_labels: int
    labels: tuple[LabelFacts, ...]
    step_seconds: dict[str, float]
    slowest: tuple[CaseTime, ...]
    failures: tuple[FailedCase, ...]

    @property
    def n_planned(self) -> int:
        """Return how many cases were planned."""
        return sum(split.n_planned for split in self.splits)

    @property
    def n_written(self) -> int:
        """Return how many cases are written."""
        return sum(split.n_written for split in self.splits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What is kept in memory of a case's record."""

    split: str
    spacing: tuple[float, float, float]
    statistics: tuple[Statistics, ...]
    n_slices: int
    n_bytes: int
    seconds: dict[str, float]
    at: float


def overview(output: Output) -> Overview:
    """Return what there is to say of an output.

    Reads the journal, the index, and some slices.

    Parameters
    ----------
    output : Output
        Also while a run writes to it, or after it was killed.

    Raises
    ------
    OutputError
        If it is damaged, or nothing came of any case so far.
    """
    written, failures = _records(output)
    index = output.index
    if not (written or failures or len(index)):
        raise OutputError(
            f"{output.path} has no slices yet; dask-slicer run --config {output.path / CONFIG} "
            "makes them"
        )
    split_of = {case_id: split for split, ids in output.splits.items() for case_id in ids}
    # Without a journal, the index is all there is.
    done = written.keys() | {case.case_id for case in index.cases}
    ended = [case.at for case in written.values() if case.at]
    n_labels, labels = _labels(index, written)
    times = [_time_of(case_id, case) for case_id, case in written.items()]
    return Overview(
        path=output.path,
        config=output.config,
        made_in=_texts(output.summary.get("config")).get("output_dir", str(output.path)),
        n_slices=len(index),
        n_unlabelled=int(np.isnan(index.foreground).sum()),
        n_bytes=sum(case.n_bytes for case in written.values()),
        first_at=min(ended, default=None),
        last_at=max(ended, default=None),
        elapsed_seconds=_number(output.summary.get("elapsed_seconds")),
        slices_per_second=_number(output.summary.get("slices_per_second")),
        versions=_texts(output.summary.get("versions")),
        is_in_use=_is_in_use(output.path),
        splits=_splits(output, written, failures),
        missing=tuple(sorted(split_of.keys() - done - failures.keys())),
        empty=tuple(sorted(id_ for id_, case in written.items() if not case.n_slices)),
        sample=sample_intensities(output, {id_: c.statistics for id_, c in written.items()}),
        spacings=_spacings([case.spacing for case in written.values()]),
        n_labels=n_labels,
        labels=labels,
        step_seconds=_summed([case.seconds for case in written.values()]),
        slowest=tuple(sorted(times, key=lambda time: -time.total)[:_SLOWEST]),
        failures=tuple(failure for _, failure in sorted(failures.items())),
    )


def _records(output: Output) -> tuple[dict[str, _Written], dict[str, FailedCase]]:
    """Return what became of each case: of those written, and of those failed."""
    planned = {case_id for ids in output.splits.values() for case_id in ids}
    written: dict[str, _Written] = {}
    # Those that failed before they were run are in no journal.
    failures = {
        row["case_id"]: FailedCase(
            case_id=row["case_id"], step=row["step"], kind=row["kind"], message=row["message"]
        )
        for row in output.failures
    }
    for record in last_records(output.path / JOURNAL):
        if isinstance(record, CommittedCase):
            written[record.case_id] = _Written(
                split=record.split,
                spacing=record.spacing,
                statistics=record.statistics,
                n_slices=len(record.slices),
                n_bytes=record.n_bytes,
                seconds=record.seconds,
                at=record.at,
            )
            failures.pop(record.case_id, None)
        elif isinstance(record, FailedCase) and record.case_id in planned:
            failures[record.case_id] = record
    return written, failures


def _splits(
    output: Output, written: Mapping[str, _Written], failures: Mapping[str, FailedCase]
) -> tuple[SplitFacts, ...]:
    index = output.index
    cases = {case.case_id: case.split for case in index.cases}
    cases |= {case_id: case.split for case_id, case in written.items()}
    done = Counter(cases.values())
    split_of_row = np.array([SPLITS.index(case.split) for case in index.cases], np.int64)[
        index.case
    ]
    n_slices = np.bincount(split_of_row, minlength=len(SPLITS))
    holds_label = np.diff(index.label_ends) > 0
    n_labelled = np.bincount(split_of_row[holds_label], minlength=len(SPLITS))
    return tuple(
        SplitFacts(
            name=name,
            n_planned=len(
                set(output.splits[name]) | {c for c, split in cases.items() if split == name}
            ),
            n_written=done[name],
            n_failed=sum(case_id in failures for case_id in output.splits[name]),
            n_slices=int(n_slices[number]),
            n_labelled=int(n_labelled[number]),
        )
        for number, name in enumerate(SPLITS)
    )


def _labels(
    index: SliceIndex, written: Mapping[str, _Written]
) -> tuple[int, tuple[LabelFacts, ...]]:
    """Return how many label values there are, and what is said of each, up to a number of them."""
    values, which = np.unique(index.label_values, return_inverse=True)
    case = np.repeat(index.case, np.diff(index.label_ends))
    # One number for each pair of a value and a case that holds it, ordered by value.
    n_cases = max(len(index.cases), 1)
    pairs, pair = np.unique(which.astype(np.int64) * n_cases + case, return_inverse=True)
    voxels = np.bincount(pair, weights=index.label_counts, minlength=len(pairs))
    volumes = voxels * _voxel_ml(index, written)[pairs % n_cases]
    ends = np.searchsorted(pairs, np.arange(len(values) + 1) * n_cases)
    n_slices = np.bincount(which, minlength=len(values))
    totals = np.bincount(pairs // n_cases, weights=voxels, minlength=len(values))
    shown = sorted(np.lexsort((-totals, -np.diff(ends)))[:_MOST_LABELS].tolist())
    return len(values), tuple(
        LabelFacts(
            value=int(values[number]),
            n_cases=int(ends[number + 1] - ends[number]),
            n_slices=int(n_slices[number]),
            n_voxels=int(totals[number]),
            volumes=_histogram(volumes[ends[number] : ends[number + 1]], _LABEL_BINS),
        )
        for number in shown
    )


def _voxel_ml(index: SliceIndex, written: Mapping[str, _Written]) -> NDArray[np.float64]:
    """Return the volume of a voxel of each case; NaN where it is not known."""
    return np.array(
        [
            np.prod(written[case.case_id].spacing) / 1000 if case.case_id in written else np.nan
            for case in index.cases
        ]
    )


def _spacings(spacings: Sequence[tuple[float, float, float]]) -> dict[str, Histogram]:
    """Return spacings between slices, rows and columns; the last two as one where they agree."""
    columns = np.round(np.array(spacings, dtype=np.float64).reshape(-1, 3), _SPACING_DIGITS)
    names = {"between slices": 0, "between rows": 1, "between columns": 2}
    if np.array_equal(columns[:, 1], columns[:, 2]):
        names = {"between slices": 0, "in plane": 1}
    found = {name: _histogram(columns[:, axis], _SPACING_BINS) for name, axis in names.items()}
    return {name: counted for name, counted in found.items() if counted is not None}


def _histogram(values: NDArray[np.float64], most_bins: int) -> Histogram | None:
    return histogram(values, most_bins=most_bins) if np.isfinite(values).any() else None


def _time_of(case_id: str, case: _Written) -> CaseTime:
    return CaseTime(
        case_id=case_id,
        split=case.split,
        n_slices=case.n_slices,
        n_bytes=case.n_bytes,
        seconds=case.seconds,
    )


def _summed(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for one in seconds:
        total.update(one)
    return dict(total)


def _is_in_use(output_dir: Path) -> bool:
    try:
        check_not_in_use(output_dir)
    except OutputError:
        return True
    return False


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
