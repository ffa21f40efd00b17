"""Facts of an output for the report: counts, spacings, labels, times, failures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.intensity import intensities
from dask_slicer.core.statistics import Statistics
from dask_slicer.errors import CorruptFile, OutputError
from dask_slicer.output.formats.base import check_finite, damage_named
from dask_slicer.output.index import SliceIndex, case_reader
from dask_slicer.output.journal import last_records
from dask_slicer.output.layout import CONFIG, JOURNAL
from dask_slicer.output.lock_owner import lock_owners
from dask_slicer.output.output import Output
from dask_slicer.output.summary import LabelTotals
from dask_slicer.planning.headers import grouped_notes
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.report.histogram import Histogram, histogram
from dask_slicer.report.selection import spread_rows
from dask_slicer.utils.modalities import for_each_modality

_MOST_LABELS = 100
_SLOWEST = 20
_SPACING_BINS, _LABEL_BINS = 24, 16
# Spacings are rounded to a micrometre; headers hold them as float32.
_SPACING_DIGITS = 3
# Reading an .npz slice of five 512×512 channels takes 20 ms.
_SAMPLED_SLICES = 200
# Per slice, about: larger slices are thinned out so that all samples fit into memory.
_SAMPLED_PIXELS = 20_000
_SAMPLE_BINS = 60
# A scan's few brightest voxels are often metal and would push all others into one bin.
_SAMPLE_TAIL = 0.001


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
    """The journal record of a case without its slices, of which large datasets have millions."""

    record: CommittedCase
    n_slices: int
    n_bytes: int

    @property
    def total(self) -> float:
        """Return the seconds of all steps."""
        return sum(self.record.seconds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Intensities of some slices of an output."""

    n_slices: int  # read
    n_cases: int  # read
    histograms: tuple[Histogram, ...]  # one per modality; empty if no slice could be read
    in_file_units: bool  # False: as stored, normalised
    problems: tuple[str, ...]  # slices that could not be read, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Counts of a whole output, and the distributions of what its slices hold."""

    n_slices: int
    n_unlabelled: int  # slices of cases without a label map
    n_bytes: int
    first_at: float | None  # when the first of its cases was written, seconds since 1970
    last_at: float | None
    is_in_use: bool  # a run is writing to it
    splits: tuple[SplitFacts, ...]
    missing: tuple[str, ...]  # planned cases, neither written nor failed
    empty: tuple[str, ...]  # written cases of which no slice was kept
    clipped: tuple[str, ...]  # written cases that the clip range does not suit
    sample: Sample
    spacings: dict[str, Histogram]  # mm, by axis; rows and columns together where they are equal
    n_labels: int
    labels: tuple[LabelFacts, ...]  # by value; at most the 100 that most cases hold
    absent_labels: tuple[str, ...]  # value and name of those with a name that no slice holds
    step_seconds: dict[str, float]  # of all cases, by step
    slowest: tuple[WrittenCase, ...]
    failures: tuple[FailedCase, ...]  # by case id
    header_notes: tuple[str, ...]  # oddities in headers of scans, a line for each kind
    n_overlapping: int  # voxels in the masks of two structures
    label_notes: tuple[str, ...]  # what steps made of labels

    @property
    def n_planned(self) -> int:
        """Return the number of planned cases."""
        return sum(split.n_planned for split in self.splits)

    @property
    def n_written(self) -> int:
        """Return the number of written cases."""
        return sum(split.n_written for split in self.splits)


def overview(output: Output) -> Overview:
    """Return the facts about an output, from its journal, its index and some of its slices."""
    written, failures = _records(output)
    index = output.index
    if not (written or failures or len(index)):
        raise OutputError(
            f"{output.path} has no slices yet; dask-slicer run --config {output.path / CONFIG} "
            "makes them"
        )
    records = {case_id: case.record for case_id, case in written.items()}
    planned = {case_id for ids in output.splits.values() for case_id in ids}
    # Without a journal, the index is all there is.
    split_of = {case.case_id: case.split for case in index.cases}
    split_of |= {case_id: record.split for case_id, record in records.items()}
    ended = [record.at for record in records.values() if record.at]
    step_seconds: Counter[str] = Counter()
    for record in records.values():
        step_seconds.update(record.seconds)
    n_labels, labels = _labels(index, records)
    return Overview(
        n_slices=len(index),
        header_notes=tuple(
            grouped_notes(note for record in records.values() for note in record.header_notes)
        ),
        n_overlapping=sum(record.n_overlapping for record in records.values()),
        label_notes=tuple(_label_totals(records).notes(output.config)),
        n_unlabelled=int(np.isnan(index.foreground).sum()),
        n_bytes=sum(case.n_bytes for case in written.values()),
        first_at=min(ended, default=None),
        last_at=max(ended, default=None),
        is_in_use=any(owner.is_alive for owner in lock_owners(output.path)),
        splits=_splits(output, split_of, failures),
        missing=tuple(sorted(planned - split_of.keys() - failures.keys())),
        empty=tuple(sorted(id_ for id_, case in written.items() if not case.n_slices)),
        clipped=tuple(sorted(id_ for id_, record in records.items() if not record.clip_fits)),
        sample=_sample(output, {id_: r.statistics for id_, r in records.items()}),
        spacings=_spacings(records.values()),
        n_labels=n_labels,
        labels=labels,
        absent_labels=tuple(
            f"{value} {output.label_names[value]}"
            for value in sorted(output.label_names.keys() - np.unique(index.label_values).tolist())
        ),
        step_seconds=dict(step_seconds),
        slowest=tuple(sorted(written.values(), key=lambda case: -case.total)[:_SLOWEST]),
        failures=tuple(failure for _, failure in sorted(failures.items())),
    )


def _label_totals(records: Mapping[str, CommittedCase]) -> LabelTotals:
    totals = LabelTotals()
    for _, record in sorted(records.items()):
        totals.add(record)
    return totals


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
                record=record.without_slices(),
                n_slices=record.n_slices,
                n_bytes=record.n_bytes,
            )
            failures.pop(record.case_id, None)
        elif isinstance(record, FailedCase) and record.case_id in planned:
            failures[record.case_id] = record
    return written, failures


def _splits(
    output: Output, split_of: Mapping[str, str], failures: Mapping[str, FailedCase]
) -> tuple[SplitFacts, ...]:
    """Return the counts of each split; `split_of` has the split of each written case."""
    index = output.index
    split_of_row = np.array([case.split for case in index.cases], dtype=str)[index.case]
    is_labelled = np.diff(index.label_ends) > 0
    facts = []
    for name, planned in output.splits.items():
        written = {case_id for case_id, split in split_of.items() if split == name}
        rows = split_of_row == name
        facts.append(
            SplitFacts(
                name=name,
                n_planned=len(written.union(planned)),
                n_written=len(written),
                n_failed=sum(case_id in failures for case_id in planned),
                n_slices=int(rows.sum()),
                n_labelled=int((rows & is_labelled).sum()),
            )
        )
    return tuple(facts)


def _labels(
    index: SliceIndex, records: Mapping[str, CommittedCase]
) -> tuple[int, tuple[LabelFacts, ...]]:
    """Return the number of label values, and the facts of those that most cases hold."""
    voxel_ml = np.array([_voxel_ml(records.get(case.case_id), case.plane) for case in index.cases])
    values, which = np.unique(index.label_values, return_inverse=True)
    case = np.repeat(index.case, np.diff(index.label_ends))
    # One number for each pair of a value and a case that holds it, ordered by value.
    n_cases = max(len(index.cases), 1)
    pairs, pair = np.unique(which.astype(np.int64) * n_cases + case, return_inverse=True)
    voxels: NDArray[np.float64]
    voxels = np.bincount(pair, weights=index.label_counts, minlength=len(pairs)).astype(float)
    volumes = voxels * voxel_ml[pairs % n_cases]
    if len(index.case_ids) < len(index.cases):  # of several planes, take the one with most
        number_of = {case_id: number for number, case_id in enumerate(index.case_ids)}
        numbers = np.array([number_of[case.case_id] for case in index.cases])
        pairs, pair = np.unique(
            pairs // n_cases * n_cases + numbers[pairs % n_cases], return_inverse=True
        )
        voxels, volumes = _most(voxels, pair, len(pairs)), _most(volumes, pair, len(pairs))
    ends = np.searchsorted(pairs, np.arange(len(values) + 1) * n_cases)
    n_slices = np.bincount(which, minlength=len(values))
    totals = np.bincount(pairs // n_cases, weights=voxels, minlength=len(values))
    shown = sorted(np.lexsort((-totals, -np.diff(ends)))[:_MOST_LABELS].tolist())
    facts = []
    for number in shown:
        of_value = volumes[ends[number] : ends[number + 1]]
        is_known = np.isfinite(of_value).any()
        facts.append(
            LabelFacts(
                value=int(values[number]),
                n_cases=len(of_value),
                n_slices=int(n_slices[number]),
                n_voxels=int(totals[number]),
                volumes=histogram(of_value, most_bins=_LABEL_BINS) if is_known else None,
            )
        )
    return len(values), tuple(facts)


def _most(values: NDArray[np.float64], group: NDArray[np.intp], n: int) -> NDArray[np.float64]:
    """Return the largest value in each of n groups; NaN only where all are."""
    most = np.full(n, np.nan)
    np.fmax.at(most, group, values)
    return most


def _voxel_ml(record: CommittedCase | None, plane: str) -> float:
    """Return the volume of a voxel in ml; NaN where the journal lacks the case, or its plane."""
    for part in () if record is None else record.parts:
        if part.plane == plane:
            mm3 = part.voxel_volume
            return (math.prod(part.spacing) if mm3 is None else mm3) / 1000
    return math.nan


def _sample(output: Output, statistics: Mapping[str, tuple[Statistics, ...]]) -> Sample:
    """Return the intensities of some slices, spread over the cases.

    `statistics`, by case id, undo the normalisation; cases without are left out if others have it.
    """
    index, normalize = output.index, output.config.normalize
    methods = {*for_each_modality(normalize, 1)}
    config = output.config
    if config.maps_limits or config.zeroes_background or "dataset" in methods:
        statistics = {}  # these do not undo it
    known = np.array([case.case_id in statistics for case in index.cases], dtype=bool)
    if known.any() and not known.all():
        index = index.select(known[index.case])
    values: list[list[NDArray[np.floating]]] = []  # by slice and modality
    problems: list[str] = []
    cases: set[str] = set()
    ends = np.searchsorted(index.case, np.arange(len(index.cases) + 1)).tolist()
    for row in spread_rows(ends, _SAMPLED_SLICES):
        case, slice_index = index.cases[index.case[row]], int(index.slice_index[row])
        try:
            with damage_named(case.case_id, slice_index):
                image, _ = case_reader(output.path, case).read(slice_index, 0)
                step = math.ceil(math.sqrt(image[0].size / _SAMPLED_PIXELS))
                channels = [channel[::step, ::step].ravel() for channel in image]
                if known.any():
                    each = for_each_modality(normalize, len(channels))
                    with np.errstate(all="ignore"):
                        channels = [
                            intensities(channel, stats, method)
                            for channel, stats, method in zip(
                                channels, statistics[case.case_id], each, strict=False
                            )
                        ]
                for channel in channels:
                    check_finite(channel)
        except CorruptFile as error:
            problems.append(str(error))
            continue
        values.append(channels)
        cases.add(case.case_id)
    return Sample(
        n_slices=len(values),
        n_cases=len(cases),
        histograms=tuple(
            histogram(np.concatenate(numbers), most_bins=_SAMPLE_BINS, tail=_SAMPLE_TAIL)
            for numbers in zip(*values, strict=False)
        ),
        in_file_units=bool(known.any()) or (methods == {"none"} and not config.maps_limits),
        problems=tuple(problems),
    )


def _spacings(records: Iterable[CommittedCase]) -> dict[str, Histogram]:
    """Return spacings between slices, rows and columns; the last two as one where they agree.

    Of each plane, if there are several.
    """
    of_plane: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for record in records:
        for part in record.parts:
            of_plane[part.plane].append(part.spacing)
    histograms = {}
    for plane, spacings in of_plane.items():
        slices, rows, columns = np.round(spacings, _SPACING_DIGITS).T
        if np.array_equal(rows, columns):
            axes = {"between slices": slices, "in plane": rows}
        else:
            axes = {"between slices": slices, "between rows": rows, "between columns": columns}
        for name, values in axes.items():
            name = f"{plane}, {name}" if plane else name
            histograms[name] = histogram(values, most_bins=_SPACING_BINS)
    return histograms
