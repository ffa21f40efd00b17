"""Panels of a figure: slices of an output, read, with their grey levels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from dask_slicer.errors import CorruptFile
from dask_slicer.output.formats.base import CaseReader, check_finite, damage_named
from dask_slicer.output.index import IndexedCase, SliceIndex, case_reader
from dask_slicer.output.output import Output
from dask_slicer.report.pixels import display_range, sides, to_grey
from dask_slicer.report.selection import spread

# Slices of a case that its range of greys is taken from.
_SAMPLED = 5
# More is damage, of which the picture would be endless: mm per row to mm per column.
_MOST_STRETCHED = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One slice with its window, in greys of 0 to 1 that are the same in all slices of a case."""

    case_id: str
    split: str
    slice_index: int
    total_slices: int  # of the volume
    image: NDArray[np.float64]  # (modality, offset, row, column); the slice is the middle offset
    modalities: tuple[str, ...]  # their names, or numbers
    label: NDArray[np.integer] | None  # (row, column)
    spacing: tuple[float, float]  # mm per row, per column
    sides: tuple[str, str, str, str]  # of the patient, at the left, right, top and bottom
    plane: str = ""  # empty if the output has one plane


def read_panels(
    output: Output,
    index: SliceIndex,
    rows: Iterable[int],
    *,
    window_size: int | None,
    whole: SliceIndex | None = None,
) -> list[Panel]:
    """Read the slices in some rows of an index, those of a case together, as panels.

    `whole` has all slices of these cases; by default, `index` has.
    """
    panels = []
    for number, of_case in groupby(rows, key=lambda row: int(index.case[row])):
        case = index.cases[number]
        with damage_named(case.case_id, None):
            reader = case_reader(output.path, case)
        black, white = _ranges(reader, case, index if whole is None else whole)[:, :, None, None]
        modalities = output.channel_names
        if len(modalities) != len(black):
            modalities = tuple(f"modality {number}" for number in range(len(black)))
        for row in of_case:
            slice_index = int(index.slice_index[row])
            with damage_named(case.case_id, slice_index):
                metadata = reader.metadata(slice_index)
                image, label = reader.read(slice_index, window_size)
                check_finite(image)
                _, per_row, per_column = map(float, metadata["spacing"])
                if not 1 / _MOST_STRETCHED <= per_row / per_column <= _MOST_STRETCHED:
                    raise CorruptFile(f"its spacing is {metadata['spacing']}")
                # Channels are ordered by offset, and within an offset by modality.
                by_offset = image.reshape(-1, len(black), *image.shape[1:])
                panel = Panel(
                    case_id=case.case_id,
                    split=case.split,
                    plane=case.plane,
                    slice_index=slice_index,
                    total_slices=int(metadata["total_slices"]),
                    image=to_grey(by_offset, black, white).swapaxes(0, 1),
                    modalities=modalities,
                    label=label,
                    spacing=(per_row, per_column),
                    sides=sides(np.array(metadata["affine"], dtype=np.float64)),
                )
            panels.append(panel)
    return panels


def _ranges(reader: CaseReader, case: IndexedCase, index: SliceIndex) -> NDArray[np.float64]:
    """Return black and white, (2, modality), the same for every choice of slices of the case."""
    written = index.slice_index[index.case == index.cases.index(case)].tolist()
    sampled = []
    for place in spread(len(written), _SAMPLED):
        with damage_named(case.case_id, written[place]):
            image, _ = reader.read(written[place], 0)
            check_finite(image)
            sampled.append(image)
    with damage_named(case.case_id, None):
        return np.transpose([display_range(modality) for modality in np.stack(sampled, axis=1)])
