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

# Reading an .npz slice of five 512×512 channels takes 20 ms.
_MOST_SLICES = 200
# Per slice, about: larger slices are thinned out so that all samples fit into memory.
_MOST_PIXELS = 20_000
_MOST_BINS = 60
# A scan's few brightest voxels are often metal and would push all others into one bin.
_TAIL = 0.001
_UNKNOWN = Statistics(mean=0.0, std=1.0, min=0.0, max=1.0, n_foreground=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Intensities of some slices of an output."""

    n_slices: int  # read
    n_cases: int  # read
    histograms: tuple[Histogram, ...]  # one per modality; empty if no slice could be read
    in_file_units: bool  # False: as stored, normalised
    problems: tuple[str, ...]  # slices that could not be read, and why


def sample_intensities(
    output: Output, statistics: Mapping[str, tuple[Statistics, ...]], *, most: int = _MOST_SLICES
) -> Sample:
    """Return the intensities of at most `most` slices, spread over the cases.

    `statistics`, by case id, undo the normalisation; cases without are left out if others have it.
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
    for number, slice_index in _choose_slices(index, most):
        case = index.cases[number]
        try:
            image, _ = case_reader(output.path, case).read(slice_index, 0)
        except (CaseError, OSError) as error:
            problems.append(str(damage(case.case_id, slice_index, error)))
            continue
        step = math.ceil(math.sqrt(image[0].size / _MOST_PIXELS))
        values.append(
            [
                intensities(channel[::step, ::step], stats, method).ravel()
                for channel, stats in zip(
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
                np.concatenate([sample[modality] for sample in values if modality < len(sample)]),
                most_bins=_MOST_BINS,
                tail=_TAIL,
            )
            for modality in range(n_modalities)
        ),
        in_file_units=bool(known.any()) or output.config.normalize == "none",
        problems=tuple(problems),
    )


def _choose_slices(index: SliceIndex, most: int) -> list[tuple[int, int]]:
    """Return the (case number, slice_index) of the slices to read."""
    order = np.argsort(index.case, kind="stable")
    ends = np.searchsorted(index.case[order], np.arange(len(index.cases) + 1))
    rows = order[spread_rows(ends.tolist(), most)]
    return list(zip(index.case[rows].tolist(), index.slice_index[rows].tolist(), strict=True))
