"""Intensities of an output, sampled from some of its slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_slicer.core.intensity import intensities
from dask_slicer.core.statistics import Statistics
from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import damage_named
from dask_slicer.output.index import case_reader
from dask_slicer.output.output import Output
from dask_slicer.report.histogram import Histogram, histogram
from dask_slicer.report.selection import spread_rows

# Reading an .npz slice of five 512×512 channels takes 20 ms.
_MOST_SLICES = 200
# Per slice, about: larger slices are thinned out so that all samples fit into memory.
_MOST_PIXELS = 20_000
_MOST_BINS = 60
# A scan's few brightest voxels are often metal and would push all others into one bin.
_TAIL = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Intensities of some slices of an output."""

    n_slices: int  # read
    n_cases: int  # read
    histograms: tuple[Histogram, ...]  # one per modality; empty if no slice could be read
    in_file_units: bool  # False: as stored, normalised
    problems: tuple[str, ...]  # slices that could not be read, and why


def sample_intensities(output: Output, statistics: Mapping[str, tuple[Statistics, ...]]) -> Sample:
    """Return the intensities of some slices, spread over the cases.

    `statistics`, by case id, undo the normalisation; cases without are left out if others have it.
    """
    index = output.index
    known = np.array([case.case_id in statistics for case in index.cases], dtype=bool)
    if known.any() and not known.all():
        index = index.select(known[index.case])
    values: list[list[NDArray[np.floating]]] = []  # by slice and modality
    problems: list[str] = []
    cases: set[str] = set()
    ends = np.searchsorted(index.case, np.arange(len(index.cases) + 1)).tolist()
    for row in spread_rows(ends, _MOST_SLICES):
        case, slice_index = index.cases[index.case[row]], int(index.slice_index[row])
        try:
            with damage_named(case.case_id, slice_index):
                image, _ = case_reader(output.path, case).read(slice_index, 0)
        except CorruptFile as error:
            problems.append(str(error))
            continue
        step = math.ceil(math.sqrt(image[0].size / _MOST_PIXELS))
        channels = [channel[::step, ::step].ravel() for channel in image]
        if known.any():
            channels = [
                intensities(channel, stats, output.config.normalize)
                for channel, stats in zip(channels, statistics[case.case_id], strict=False)
            ]
        values.append(channels)
        cases.add(case.case_id)
    return Sample(
        n_slices=len(values),
        n_cases=len(cases),
        histograms=tuple(
            histogram(np.concatenate(numbers), most_bins=_MOST_BINS, tail=_TAIL)
            for numbers in zip(*values, strict=False)
        ),
        in_file_units=bool(known.any()) or output.config.normalize == "none",
        problems=tuple(problems),
    )
