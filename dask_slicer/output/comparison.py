"""Written cases compared with what their scans give now: slices, or arrays of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dask_slicer.config.file_settings import stem_digits
from dask_slicer.config.schema import SliceSettings
from dask_slicer.output import layout
from dask_slicer.output.formats.base import CaseReader
from dask_slicer.output.formats.npz_reader import NpzReader
from dask_slicer.output.formats.zarr_reader import ZarrReader
from dask_slicer.output.index import IndexedCase, case_reader
from dask_slicer.records import CommittedCase

_TOLERANCE = 1e-5


def is_readable(record: CommittedCase, settings: SliceSettings) -> bool:
    """Return whether slices of a case can be read: some layouts are read by other projects only."""
    return not record.output_files or settings.is_readable


def reader_of(
    folder: Path, record: CommittedCase, settings: SliceSettings
) -> NpzReader | ZarrReader:
    """Return a reader of a case, in one plane, whose files are in a folder."""
    if record.output_files:
        template, digits = settings.image_template(record.split), stem_digits(record.shape[1])
        case = IndexedCase(record.case_id, record.split, digits, record.plane, template)
        return case_reader(folder, case)
    if record.files:
        return ZarrReader(folder)
    return NpzReader(
        lambda index: folder / layout.slice_name(record.case_id, index, record.shape[1])
    )


def compare_slices(
    stored: CaseReader, derived: CaseReader, slice_indices: Iterable[int]
) -> Iterator[tuple[int, str]]:
    """Yield index and problem of slices that differ from what their scan gives now."""
    # The whole window for .npz. Zarr: only the slice itself, since its neighbours are slices too.
    window_size = 0 if isinstance(stored, ZarrReader) else None
    for slice_index in slice_indices:
        image, label = stored.read(slice_index, window_size)
        expected, expected_label = derived.read(slice_index, window_size)
        if image.shape != expected.shape:
            yield slice_index, f"has shape {image.shape}, but its scan now gives {expected.shape}"
        elif not np.allclose(image, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            difference = np.abs(image - expected).max()
            yield slice_index, f"differs by up to {difference:.3g} from what its scan now gives"
        if (label is None) != (expected_label is None):
            has, gives = ("no label", "one") if label is None else ("a label", "none")
            yield slice_index, f"has {has}, but its scan now gives {gives}"
        elif label is not None and (label != expected_label).any():
            yield slice_index, "has a label that differs from the one its scan now gives"


def differing_files(output_dir: Path, folder: Path, record: CommittedCase) -> Iterator[str]:
    """Yield the path of each file whose arrays differ from those of the same file in a folder."""
    from dask_slicer.output.formats.array_files import same_arrays

    for path, _, _ in record.output_files:
        if not same_arrays(output_dir / path, folder / path, tolerance=_TOLERANCE):
            yield path
