"""Intensities of an output, sampled from some of its slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.intensity import intensities
from dask_slicer.core.statistics import Statistics
from dask_slicer.errors import CaseError
from dask_slicer.output.formats.base import damage
from dask_slicer.output.index import SliceIndex, case_reader
from dask_slicer.output.output import Output
from dask_slicer.report.histogram import Histogram, histogram, spread_rows

# An .npz slice of five 512×512 channels takes 20 ms to read.
_MOST_SLICES = 200
# Of one slice, about; larger ones are thinned out, or all of them would not fit into memory.
_MOST_PIXELS = 20_000
_MOST_BINS = 60
# Of a scan's brightest voxels, a few are metal, and would push all others into one bin.
_TAIL = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Intensities of some slices.

    Attributes
    ----------
    n_slices, n_cases : int
        Read.
    histograms : tuple of Histogram
        One per modality; empty where no slice could be read.
    in_file_units : bool
        Else as they are stored, normalised.
    problems : tuple of str
        Slices that could not be read, and why.
    """

    n_slices: int
    n_cases: int
    histograms: tuple[Histogram, ...]
    in_file_units: bool
    problems: tuple[str, ...]


def sample_intensities(
    output: Output, statistics: Mapping[str, tuple[Statistics, ...]], *, most: int = _MOST_SLICES
) -> Sample:
    """Return the intensities of at most `most` slices, spread over the cases.

    Parameters
    ----------
    output : Output
    statistics : mapping of case id to statistics per modality
        Normalisation is undone with them; cases without are left out, unless none has any.
    most : int
    """
    index = output.index
    known = np.array([case.case_id in statistics for case in index.cases], dtype=bool)
    if known.any() and not known.all():
        index = index.select(known[index.case])
    method = output.config.normalize if known.any() else "none"
    values: list[list[NDArray[np.float64]]] = []
    problems: list[str] = []
    cases: set[int] = set()
    n_slices = 0
    for number, slice_index in _chosen(index, most):
        case = index.cases[number]
        try:
            image, _ = case_reader(output.path, case).read(slice_index, 0)
        except (CaseError, OSError) as error:
            problems.append(str(damage(case.case_id, slice_index, error)))
            continue
        step = math.ceil(math.sqrt(image[0].size / _MOST_PIXELS))
        values.append(
            [
                intensities(channel[::step, ::step], found, method).ravel()
                for channel, found in zip(
                    image, statistics.get(case.case_id, (_UNKNOWN,) * len(image)), strict=False
                )
            ]
        )
        cases.add(number)
        n_slices += 1
    n_modalities = max(map(len, values), default=0)
    return Sample(
        n_slices=n_slices,
        n_cases=len(cases),
        histograms=tuple(
            histogram(
                np.concatenate([one[modality] for one in values if modality < len(one)]),
                most_bins=_MOST_BINS,
                tail=_TAIL,
            )
            for modality in range(n_modalities)
        ),
        in_file_units=bool(known.any()) or output.config.normalize == "none",
        problems=tuple(problems),
    )


_UNKNOWN = Statistics(mean=0.0, std=1.0, min=0.0, max=1.0, n_foreground=0)


def _chosen(index: SliceIndex, most: int) -> list[tuple[int, int]]:
    """Return which slices are read: number of the case, slice_index."""
    order = np.argsort(index.case, kind="stable")
    ends = np.searchsorted(index.case[order], np.arange(len(index.cases) + 1))
    rows = order[spread_rows(ends.tolist(), most)]
    return list(zip(index.case[rows].tolist(), index.slice_index[rows].tolist(), strict=True))
