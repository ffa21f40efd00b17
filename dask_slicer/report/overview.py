"""Facts of an output for the report: counts, spacings, labels, times, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from dask_slicer.output.lock import check_free
from dask_slicer.output.output import Output
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.report.histogram import Histogram, histogram
from dask_slicer.report.sampling import Sample, sample_intensities

_MOST_LABELS = 100
_SLOWEST = 20
_SPACING_BINS, _LABEL_BINS = 24, 16
# Spacings are rounded to a micrometre; headers hold them as float32.
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
class WrittenCase:
    """The part of a case's journal record that the report needs."""

    case_id: str
    split: str
    spacing: tuple[float, float, float]  # mm: between slices, per row, per column
    statistics: tuple[Statistics, ...]
    n_slices: int
    n_bytes: int
    seconds: dict[str, float]  # by step
    at: float  # seconds since 1970

    @property
    def total(self) -> float:
        """Return the seconds of all steps."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Facts about a whole output: spacings in mm, durations in s, moments in s since 1970."""

    path: Path
    config: RunConfig
    original_path: str  # path of the output during the last completed run
    n_slices: int
    n_unlabelled: int  # slices of cases without a label map
    n_bytes: int
    first_at: float | None  # when the first of its cases was written
    last_at: float | None
    elapsed_seconds: float | None  # of the last completed run
    slices_per_second: float | None  # of the last completed run
    versions: dict[str, str]  # of packages, in the last completed run
    is_in_use: bool  # a run is writing to it
    splits: tuple[SplitFacts, ...]
    missing: tuple[str, ...]  # planned cases, neither written nor failed
    empty: tuple[str, ...]  # written cases of which no slice was kept
    sample: Sample
    spacings: dict[str, Histogram]  # by axis; rows and columns together where they are equal
    n_labels: int
    labels: tuple[LabelFacts, ...]  # by value; at most the 100 that most cases hold
    step_seconds: dict[str, float]  # of all cases, by step
    slowest: tuple[WrittenCase, ...]
    failures: tuple[FailedCase, ...]  # by case id

    @property
    def n_planned(self) -> int:
        """Return the number of planned cases."""
        return sum(split.n_planned for split in self.splits)

    @property
    def n_written(self) -> int:
        """Return the number of written cases."""
        return sum(split.n_written for split in self.splits)


def overview(output: Output) -> Overview:
    """Return the facts about an output, from its journal, its index and some of its slices.

    Raises OutputError if it is damaged, or if no case was written and none failed.
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
    return Overview(
        path=output.path,
        config=output.config,
        original_path=_texts(output.summary.get("config")).get("output_dir", str(output.path)),
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
        step_seconds=_sum_by_step(written.values()),
        slowest=tuple(sorted(written.values(), key=lambda case: -case.total)[:_SLOWEST]),
        failures=tuple(failure for _, failure in sorted(failures.items())),
    )


def _records(output: Output) -> tuple[dict[str, WrittenCase], dict[str, FailedCase]]:
    """Return the written and the failed cases, by case id."""
    planned = {case_id for ids in output.splits.values() for case_id in ids}
    written: dict[str, WrittenCase] = {}
    # Cases that failed in planning are not in the journal.
    failures = {
        row["case_id"]: FailedCase(
            case_id=row["case_id"], step=row["step"], kind=row["kind"], message=row["message"]
        )
        for row in output.failures
    }
    for record in last_records(output.path / JOURNAL):
        if isinstance(record, CommittedCase):
            written[record.case_id] = WrittenCase(
                case_id=record.case_id,
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
    output: Output, written: Mapping[str, WrittenCase], failures: Mapping[str, FailedCase]
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
    index: SliceIndex, written: Mapping[str, WrittenCase]
) -> tuple[int, tuple[LabelFacts, ...]]:
    """Return the number of label values, and the facts of those that most cases hold."""
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


def _voxel_ml(index: SliceIndex, written: Mapping[str, WrittenCase]) -> NDArray[np.float64]:
    """Return the volume of a voxel of each case; NaN where the journal lacks it."""
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
    counted = {name: _histogram(columns[:, axis], _SPACING_BINS) for name, axis in names.items()}
    return {name: counts for name, counts in counted.items() if counts is not None}


def _histogram(values: NDArray[np.float64], most_bins: int) -> Histogram | None:
    return histogram(values, most_bins=most_bins) if np.isfinite(values).any() else None


def _sum_by_step(cases: Iterable[WrittenCase]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for case in cases:
        total.update(case.seconds)
    return dict(total)


def _is_in_use(output_dir: Path) -> bool:
    try:
        check_free(output_dir)
    except OutputError:
        return True
    return False


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
