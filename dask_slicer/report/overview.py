"""Facts of an output for the report: counts, spacings, labels, times, failures."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.intensity import intensities
from dask_slicer.core.statistics import Statistics
from dask_slicer.errors import CorruptFile, OutputError
from dask_slicer.output.formats.base import check_finite, damage_named
from dask_slicer.output.index import case_reader
from dask_slicer.output.journal import committed_case, last_records
from dask_slicer.output.layout import CONFIG, JOURNAL
from dask_slicer.output.lock_owner import lock_owners
from dask_slicer.output.output import Output
from dask_slicer.planning.headers import grouped_notes
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.report.histogram import Histogram, histogram
from dask_slicer.report.selection import spread_rows
from dask_slicer.report.tally import CaseTotals, SliceTotals, WrittenCase, slice_indices
from dask_slicer.utils.modalities import for_each_modality

_MOST_LABELS = 100
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
    written, failures = _written_and_failed(output)
    slices = SliceTotals.of(output.stored_index)
    if not (written.split_of or failures or slices.cases):
        raise OutputError(
            f"{output.path} has no slices yet; dask-slicer run --config {output.path / CONFIG} "
            "makes them"
        )
    planned = {case_id for ids in output.splits.values() for case_id in ids}
    # Without a journal, the index is all there is.
    split_of = {case.case_id: case.split for case in slices.cases} | written.split_of
    n_labels, labels = _labels(slices, written.voxel_ml)
    return Overview(
        n_slices=int(slices.n_slices.sum()),
        header_notes=tuple(grouped_notes(written.header_notes)),
        n_overlapping=written.n_overlapping,
        label_notes=tuple(written.label_changes.notes(output.config)),
        n_unlabelled=slices.n_unlabelled,
        n_bytes=written.n_bytes,
        first_at=written.first_at,
        last_at=written.last_at,
        is_in_use=any(owner.is_alive for owner in lock_owners(output.path)),
        splits=_splits(output, slices, split_of, failures),
        missing=tuple(sorted(planned - split_of.keys() - failures.keys())),
        empty=tuple(written.empty),
        clipped=tuple(written.clipped),
        sample=_sample(output, slices, written.split_of.keys()),
        spacings=_spacings(written.spacings),
        n_labels=n_labels,
        labels=labels,
        absent_labels=tuple(
            f"{value} {output.label_names[value]}"
            for value in sorted(output.label_names.keys() - np.unique(slices.value).tolist())
        ),
        step_seconds=dict(written.step_seconds),
        slowest=written.slowest,
        failures=tuple(failure for _, failure in sorted(failures.items())),
    )


def _written_and_failed(output: Output) -> tuple[CaseTotals, dict[str, FailedCase]]:
    """Return sums over the written cases, and the failed cases by their id."""
    planned = {case_id for ids in output.splits.values() for case_id in ids}
    totals = CaseTotals()
    # Cases that failed in planning are not in the journal.
    failures = {
        row["case_id"]: FailedCase(
            case_id=row["case_id"], step=row["step"], kind=row["kind"], message=row["message"]
        )
        for row in output.failures
    }
    for record in last_records(output.path / JOURNAL):
        if isinstance(record, CommittedCase):
            totals.add(record)
            failures.pop(record.case_id, None)
        elif isinstance(record, FailedCase) and record.case_id in planned:
            failures[record.case_id] = record
    return totals, failures


def _splits(
    output: Output,
    slices: SliceTotals,
    split_of: Mapping[str, str],
    failures: Mapping[str, FailedCase],
) -> tuple[SplitFacts, ...]:
    """Return the counts of each split; `split_of` has the split of each written case."""
    split_of_case = np.array([case.split for case in slices.cases], dtype=str)
    facts = []
    for name, planned in output.splits.items():
        written = {case_id for case_id, split in split_of.items() if split == name}
        own = split_of_case == name
        facts.append(
            SplitFacts(
                name=name,
                n_planned=len(written.union(planned)),
                n_written=len(written),
                n_failed=sum(case_id in failures for case_id in planned),
                n_slices=int(slices.n_slices[own].sum()),
                n_labelled=int(slices.n_labelled[own].sum()),
            )
        )
    return tuple(facts)


def _labels(
    slices: SliceTotals, voxel_ml: Mapping[tuple[str, str], float]
) -> tuple[int, tuple[LabelFacts, ...]]:
    """Return the number of label values, and the facts of those that most cases hold.

    `voxel_ml` is the volume of a voxel by case id and plane, as far as it is known.
    """
    cases = slices.cases
    ml = np.array([voxel_ml.get((case.case_id, case.plane), math.nan) for case in cases])
    values, which = np.unique(slices.value, return_inverse=True)
    n_slices = np.bincount(which, weights=slices.value_slices, minlength=len(values))
    # One number for each pair of a value and a case that holds it, ordered by value.
    n_cases = max(len(cases), 1)
    pairs = which.astype(np.int64) * n_cases + slices.case
    order = np.argsort(pairs)
    pairs, voxels = pairs[order], slices.value_voxels[order]
    volumes = voxels * ml[pairs % n_cases]
    number_of = {case_id: n for n, case_id in enumerate(dict.fromkeys(c.case_id for c in cases))}
    if len(number_of) < len(cases):  # of several planes, take the one with most
        numbers = np.array([number_of[case.case_id] for case in cases])
        pairs, pair = np.unique(
            pairs // n_cases * n_cases + numbers[pairs % n_cases], return_inverse=True
        )
        voxels, volumes = _most(voxels, pair, len(pairs)), _most(volumes, pair, len(pairs))
    ends = np.searchsorted(pairs, np.arange(len(values) + 1) * n_cases)
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


def _sample(output: Output, slices: SliceTotals, recorded: Collection[str]) -> Sample:
    """Return the intensities of some slices, spread over the cases.

    Statistics of `recorded` cases undo the normalisation; cases without are left out if others have
    it.
    """
    config, normalize = output.config, output.config.normalize
    methods = {*for_each_modality(normalize, 1)}
    if config.maps_limits or config.zeroes_background or "dataset" in methods:
        recorded = ()  # their statistics do not undo it
    known = np.array([case.case_id in recorded for case in slices.cases], dtype=bool)
    numbers = np.flatnonzero(known if known.any() else ~known)
    ends = [0, *slices.n_slices[numbers].cumsum().tolist()]
    places = []  # of a slice: its case, and which of its slices it is
    for row in spread_rows(ends, _SAMPLED_SLICES):
        group = bisect_right(ends, row) - 1
        places.append((int(numbers[group]), row - ends[group]))
    indices = slice_indices(output.stored_index, places)
    values: list[list[NDArray[np.floating]]] = []  # by slice and modality
    problems: list[str] = []
    cases: set[str] = set()
    for (number, _), slice_index in zip(places, indices, strict=True):
        case = slices.cases[number]
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
                                channels, _statistics(output, case.case_id), each, strict=False
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


def _statistics(output: Output, case_id: str) -> tuple[Statistics, ...]:
    record = committed_case(output.path / JOURNAL, case_id)
    if record is None:
        raise CorruptFile(f"{case_id}: its last line in {JOURNAL} is damaged")
    return record.statistics


def _spacings(of_plane: Mapping[str, Sequence[float]]) -> dict[str, Histogram]:
    """Return spacings between slices, rows and columns; the last two as one where they agree.

    Of each plane, if there are several.
    """
    histograms = {}
    for plane, spacings in of_plane.items():
        slices, rows, columns = np.round(spacings, _SPACING_DIGITS).reshape(-1, 3).T
        if np.array_equal(rows, columns):
            axes = {"between slices": slices, "in plane": rows}
        else:
            axes = {"between slices": slices, "between rows": rows, "between columns": columns}
        for name, values in axes.items():
            name = f"{plane}, {name}" if plane else name
            histograms[name] = histogram(values, most_bins=_SPACING_BINS)
    return histograms
