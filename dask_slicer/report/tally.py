"""Sums over the cases and slices of an output, in memory that does not grow with its slices."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dask_slicer.output.index import IndexedCase, SliceIndex
from dask_slicer.output.summary import LabelTotals
from dask_slicer.records import CommittedCase

SLOWEST = 20


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


@dataclass(slots=True)
class CaseTotals:
    """Sums over records of written cases, which come in the order of their ids."""

    split_of: dict[str, str] = field(default_factory=dict)  # by case id
    n_bytes: int = 0
    empty: list[str] = field(default_factory=list)  # cases of which no slice was kept
    clipped: list[str] = field(default_factory=list)  # cases that the clip range does not suit
    first_at: float | None = None
    last_at: float | None = None
    step_seconds: Counter[str] = field(default_factory=Counter)
    header_notes: list[tuple[str, str]] = field(default_factory=list)
    n_overlapping: int = 0
    label_changes: LabelTotals = field(default_factory=LabelTotals)
    # By plane, three numbers of each case, one case after another.
    spacings: defaultdict[str, array[float]] = field(
        default_factory=lambda: defaultdict(lambda: array("d"))
    )
    voxel_ml: dict[tuple[str, str], float] = field(default_factory=dict)  # by case id and plane
    _slowest: list[tuple[float, int, WrittenCase]] = field(default_factory=list)  # a heap

    def add(self, record: CommittedCase) -> None:
        """Add one case."""
        case = WrittenCase(
            record=record.without_slices(), n_slices=record.n_slices, n_bytes=record.n_bytes
        )
        # Of cases that took equally long, the first stay.
        heapq.heappush(self._slowest, (case.total, -len(self.split_of), case))
        if len(self._slowest) > SLOWEST:
            heapq.heappop(self._slowest)
        self.split_of[record.case_id] = record.split
        self.n_bytes += case.n_bytes
        if not case.n_slices:
            self.empty.append(record.case_id)
        if not record.clip_fits:
            self.clipped.append(record.case_id)
        if record.at:
            self.first_at = min(self.first_at or math.inf, record.at)
            self.last_at = max(self.last_at or 0.0, record.at)
        self.step_seconds.update(record.seconds)
        self.header_notes += record.header_notes
        self.n_overlapping += record.n_overlapping
        self.label_changes.add(record)
        for part in case.record.parts:
            self.spacings[part.plane].extend(part.spacing)
            mm3 = part.voxel_volume
            mm3 = math.prod(part.spacing) if mm3 is None else mm3
            self.voxel_ml[part.case_id, part.plane] = mm3 / 1000

    @property
    def slowest(self) -> tuple[WrittenCase, ...]:
        """Return the cases that took longest, the slowest first."""
        return tuple(case for *_, case in sorted(self._slowest, key=lambda each: each[:2])[::-1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceTotals:
    """Sums over the slices of each case of an index, and over each label value in a case.

    Attributes
    ----------
    cases : tuple of IndexedCase
    n_slices, n_labelled : (case,) ndarray of int64
    n_unlabelled : int
        Slices of cases without a label map.
    value : (pair,) ndarray of int32 or int64
        A label value, in pairs with a case that holds it.
    case : (pair,) ndarray of int64
        Number of the case.
    value_slices : (pair,) ndarray of int64
        Slices of the case that hold the value.
    value_voxels : (pair,) ndarray of float64
    """

    cases: tuple[IndexedCase, ...]
    n_slices: NDArray[np.int64]
    n_labelled: NDArray[np.int64]
    n_unlabelled: int
    value: NDArray[np.integer]
    case: NDArray[np.int64]
    value_slices: NDArray[np.int64]
    value_voxels: NDArray[np.float64]

    @classmethod
    def of(cls, parts: Iterable[SliceIndex]) -> SliceTotals:
        """Return the sums over an index that comes in parts of some cases."""
        first, n_unlabelled = 0, 0
        cases: list[IndexedCase] = []
        columns: defaultdict[str, list[NDArray[np.generic]]] = defaultdict(list)
        for part in parts:
            n = len(part.cases)
            lengths = np.diff(part.label_ends)
            n_unlabelled += int(np.isnan(part.foreground).sum())
            columns["n_slices"].append(np.bincount(part.case, minlength=n))
            columns["n_labelled"].append(np.bincount(part.case[lengths > 0], minlength=n))
            values, which = np.unique(part.label_values, return_inverse=True)
            of_case = np.repeat(part.case, lengths)
            pairs, pair = np.unique(which.astype(np.int64) * n + of_case, return_inverse=True)
            columns["value"].append(values[pairs // n])
            columns["case"].append(pairs % n + first)
            columns["value_slices"].append(np.bincount(pair, minlength=len(pairs)))
            voxels = np.bincount(pair, weights=part.label_counts, minlength=len(pairs))
            columns["value_voxels"].append(voxels)
            cases += part.cases
            first += n
        nothing: list[NDArray[np.generic]] = [np.zeros(0, np.int64)]
        numbers = {
            name: np.concatenate(columns[name] or nothing)
            for name in (*("n_slices", "n_labelled"), *("value", "case", "value_slices"))
        }
        value_voxels = np.concatenate([np.zeros(0), *columns["value_voxels"]])
        return cls(
            cases=tuple(cases), n_unlabelled=n_unlabelled, value_voxels=value_voxels, **numbers
        )


def slice_indices(parts: Iterable[SliceIndex], places: Sequence[tuple[int, int]]) -> list[int]:
    """Return the indices of slices, in the order of cases, from the case and the place in it."""
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for number, place in places:
        wanted[number].append(place)
    indices: list[int] = []
    first = 0
    for part in parts:
        for number in range(first, first + len(part.cases)):
            if number in wanted:
                own = part.slice_index[part.case == number - first]
                indices += own[wanted[number]].tolist()
        first += len(part.cases)
    return indices
