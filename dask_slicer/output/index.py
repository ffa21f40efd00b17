"""The slices of an output, as columns: filtering and weights; readers of their cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.config.fields import PLANES
from dask_slicer.config.file_settings import PNG, FileTemplate
from dask_slicer.config.schema import SliceSettings
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import UsageError
from dask_slicer.inputs.case import case_id_problem
from dask_slicer.output.journal import committed_case
from dask_slicer.output.layout import JOURNAL, ZARR, case_files, section

if TYPE_CHECKING:
    from dask_slicer.output.formats.npz_reader import NpzReader
    from dask_slicer.output.formats.zarr_reader import ZarrReader

# The field of a template that says which slice it is, and its digits.
_OF_SLICE = re.compile(r"\{(stem|slice_index|slice_number)(?::0([0-9]+)d)?\}")
_LARGEST = np.iinfo(np.int32).max
_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class IndexedCase:
    """A case in the index, in one of its planes, and the names of its files."""

    case_id: str
    split: str
    digits: int = 0  # of the slice index in the names of files
    plane: str = ""  # empty if the output has one plane
    template: FileTemplate | None = None  # of the file with the image; None for a Zarr group

    @property
    def is_shared(self) -> bool:
        """Return whether slices of the case share a file, or a Zarr group."""
        return self.template is None or not self.template.is_per_slice

    def path_of(self, slice_index: int) -> str:
        """Return the path of the image of a slice, or of its Zarr group, relative to the output."""
        place = section(self.split, self.plane)
        if self.template is None:
            return f"{ZARR}/{place}/{self.case_id}"
        return self.template.file(self.case_id, place, slice_index, digits=self.digits)

    def paths_of(self, slice_indices: Sequence[int]) -> list[str]:
        """Return `path_of` for many slices, of which each takes a tenth of the time."""
        if self.template is None or not self.template.is_per_slice:
            return [self.path_of(0)] * len(slice_indices)
        before, name, digits, after = _OF_SLICE.split(self.template.path)
        first, n_digits = int(name == "slice_number"), int(digits or 1)
        if name == "stem":
            before, n_digits = before + "{case_id}_", self.digits
        fields = {"case_id": self.case_id, "split": section(self.split, self.plane)}
        before, after = before.format(**fields), after.format(**fields)
        return [f"{before}{index + first:0{n_digits}d}{after}" for index in slice_indices]


@dataclass(frozen=True, slots=True, eq=False)
class SliceIndex:
    """One row per slice, sorted by case, plane and slice, as columns.

    Attributes
    ----------
    cases : tuple of IndexedCase
        With several planes, one for each plane of a case.
    case : (n,) ndarray of int32
        Position of each slice's case in `cases`.
    slice_index : (n,) ndarray of int32
    foreground : (n,) ndarray of float32
        Share of labelled pixels; NaN without a label.
    label_ends : (n + 1,) ndarray of int32, or int64 if there are more
        Label values of slice i are `label_values[label_ends[i] : label_ends[i + 1]]`.
    label_values, label_counts : (m,) ndarray of int32, or int64 if numbers are larger
        Values other than 0, and their pixels.
    n_committed : int or None
        Number of cases written, including cases without a kept slice; None if unknown, which it is
        when slices.csv was read and not the journal.
    """

    cases: tuple[IndexedCase, ...]
    case: NDArray[np.int32]
    slice_index: NDArray[np.int32]
    foreground: NDArray[np.float32]
    label_ends: NDArray[np.int32 | np.int64]
    label_values: NDArray[np.int32 | np.int64]
    label_counts: NDArray[np.int32 | np.int64]
    n_committed: int | None = None

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Return the ids of the cases, each once, whatever the number of planes."""
        return tuple(dict.fromkeys(case.case_id for case in self.cases))

    def __len__(self) -> int:
        return len(self.case)

    def labels(self, row: int) -> dict[int, int]:
        """Return the number of pixels of each label value in one slice."""
        own = slice(self.label_ends[row], self.label_ends[row + 1])
        return dict(
            zip(self.label_values[own].tolist(), self.label_counts[own].tolist(), strict=True)
        )

    def rows_with(self, values: Collection[int]) -> NDArray[np.bool_]:
        """Return a mask of the slices that hold at least one of some label values."""
        wanted = np.array(list(values))
        mask = np.zeros(len(self), dtype=bool)
        for rows, labels in self._pieces():
            own = np.isin(self.label_values[labels], wanted)
            mask[rows][self._rows_of_labels(rows)[own]] = True
        return mask

    def balanced_weights(self) -> NDArray[np.float64]:
        """Return weights, of sum 1, that give each value, and no label, the same total weight."""
        empty = self.label_ends[1:] == self.label_ends[:-1]
        values, n_slices = np.unique(self.label_values, return_counts=True)
        # Each value divides 1 among its slices; so do the slices without labels.
        weights = np.where(empty, 1.0 / max(int(empty.sum()), 1), 0.0)
        for rows, labels in self._pieces():
            value = np.searchsorted(values, self.label_values[labels])
            np.add.at(weights[rows], self._rows_of_labels(rows), 1.0 / n_slices[value])
        return np.asarray(weights / weights.sum())

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows and their labels, piece by piece: arrays of all would take more memory."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, len(self))
            yield slice(start, end), slice(int(self.label_ends[start]), int(self.label_ends[end]))

    def _rows_of_labels(self, rows: slice) -> NDArray[np.intp]:
        """Return the row of each label value, counted from the first of some rows."""
        n_values = np.diff(self.label_ends[rows.start : rows.stop + 1])
        return np.repeat(np.arange(len(n_values)), n_values)

    def of_cases(self, wanted: Callable[[IndexedCase], bool]) -> SliceIndex:
        """Return the index of the slices of some cases."""
        return self.select(np.array(list(map(wanted, self.cases)), dtype=bool)[self.case])

    def select(self, rows: NDArray[np.bool_]) -> SliceIndex:
        """Return the index of some rows, with the cases that they belong to."""
        if rows.all():
            return replace(self, n_committed=None)
        case = self.case[rows]
        is_used = np.zeros(len(self.cases), dtype=bool)
        is_used[case] = True
        lengths = np.diff(self.label_ends)
        labels = np.repeat(rows, lengths)
        return SliceIndex(
            cases=tuple(compress(self.cases, is_used.tolist())),
            case=(is_used.cumsum(dtype=np.int32) - 1)[case],
            slice_index=self.slice_index[rows],
            foreground=self.foreground[rows],
            label_ends=ends_of(lengths[rows]),
            label_values=self.label_values[labels],
            label_counts=self.label_counts[labels],
        )


def ends_of(lengths: NDArray[np.integer]) -> NDArray[Any]:
    """Return where parts of some lengths end, behind 0.

    >>> ends_of(np.array([2, 0, 1])).tolist()
    [0, 2, 2, 3]
    """
    is_small = lengths.sum(dtype=np.int64) <= _LARGEST
    ends = np.zeros(len(lengths) + 1, dtype=np.int32 if is_small else np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def narrowed(numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Return integers as int32 if all of them fit."""
    if numbers.max(initial=0) > _LARGEST or numbers.min(initial=0) < -_LARGEST:
        return numbers
    return numbers.astype(np.int32)


def joined(parts: Iterable[SliceIndex], *, most_rows: int, most_labels: int) -> SliceIndex:
    """Return the indices of different cases as one, of at most so many rows and label values.

    Parts are not kept: memory that is not filled is not taken, and then returned.
    """
    cases: list[IndexedCase] = []
    rows: dict[str, Any] = {
        name: np.empty(most_rows, dtype)
        for name, dtype in (("case", "i4"), ("slice_index", "i4"), ("foreground", "f4"))
    }
    labels: dict[str, Any] = {
        name: np.empty(most_labels, np.int32) for name in ("label_values", "label_counts")
    }
    ends: NDArray[Any] = np.zeros(most_rows + 1, np.int32 if most_labels <= _LARGEST else np.int64)
    n_rows = n_labels = 0
    for part in parts:
        own, own_labels = len(part), len(part.label_values)
        rows["case"][n_rows : n_rows + own] = part.case + len(cases)
        for name in ("slice_index", "foreground"):
            rows[name][n_rows : n_rows + own] = getattr(part, name)
        for name, column in labels.items():
            numbers = getattr(part, name)
            if numbers.dtype != column.dtype:
                labels[name] = column = column.astype(np.int64)
            column[n_labels : n_labels + own_labels] = numbers
        # The sum may be too large for the numbers of the part.
        own_ends = np.add(part.label_ends[1:], n_labels, dtype=ends.dtype)
        ends[n_rows + 1 : n_rows + own + 1] = own_ends
        cases += part.cases
        n_rows, n_labels = n_rows + own, n_labels + own_labels
    ends.resize(n_rows + 1, refcheck=False)
    for columns, n in ((rows, n_rows), (labels, n_labels)):
        for column in columns.values():
            column.resize(n, refcheck=False)
    return SliceIndex(cases=tuple(cases), label_ends=ends, **rows, **labels)


def indexed_case(
    case_id: str, split: str, plane: str, path: str, slice_index: int, settings: SliceSettings
) -> IndexedCase:
    """Return a case of the index; raise ValueError if its files are not where a run writes them."""
    if split in SPLITS and plane in ("", *PLANES) and not case_id_problem(case_id):
        images = [each for each in settings.templates_of(split) if "image" in each.contents]
        templates: list[FileTemplate | None] = [*images] or [None]
        for template in templates:
            parsed = None if template is None else template.parse(path.rpartition("/")[2])
            digits = 0 if parsed is None else parsed.digits
            case = IndexedCase(case_id, split, digits, plane, template)
            if case.path_of(slice_index) == path:
                return case
    raise ValueError(f"{path!r} is not the file of slice {slice_index} of {case_id!r} in {split!r}")


class _Checksums:
    """CRC-32 of the files of a case, as the journal has them, which is read when one is asked for.

    None if it has none, as without a journal. A file that was written since has another.
    """

    def __init__(self, output_dir: Path, case: IndexedCase) -> None:
        self._output_dir, self._case = output_dir, case

    def __call__(self, slice_index: int) -> int | None:
        slices, crc32 = self._columns
        row = int(np.searchsorted(slices, slice_index))
        return int(crc32[row]) if slice_index in slices[row : row + 1] else None

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return slices, ascending, and their CRC-32; a dict would take ten times the memory."""
        rows = []
        case, record = self._case, committed_case(self._output_dir / JOURNAL, self._case.case_id)
        for part in () if record is None else record.parts:
            files = case_files(part) if part.plane == case.plane else {}
            paths = (
                (written.slice_index, case.path_of(written.slice_index)) for written in part.slices
            )
            rows += [(index, files[path][1]) for index, path in paths if path in files]
        slices, crc32 = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        return slices, crc32


def case_reader(output_dir: Path, case: IndexedCase) -> NpzReader | ZarrReader:
    """Return a reader of a case; raise CorruptFile or OSError if it is damaged or missing.

    Raises
    ------
    UsageError
        If the files are in a layout that only the project that it is for reads.
    """
    # Imported here, since a run reads no slices: Blosc has a lock, which a process that starts
    # workers must not have before it starts the process that they are forked from.
    template = case.template
    if template is None:
        from dask_slicer.output.formats.zarr_reader import ZarrReader

        return ZarrReader(output_dir / case.path_of(0))
    if template.is_readable:
        from dask_slicer.output.formats.npz_reader import NpzReader

        checksums = _Checksums(output_dir, case)
        return NpzReader(lambda slice_index: output_dir / case.path_of(slice_index), checksums)
    if template == PNG[0]:
        from dask_slicer.output.formats.png_reader import PngReader

        _, masks, metadata = (replace(case, template=each) for each in PNG)
        return PngReader(
            lambda slice_index: output_dir / case.path_of(slice_index),
            lambda slice_index: output_dir / masks.path_of(slice_index),
            output_dir / metadata.path_of(0),
        )
    raise UsageError(
        f"{case.path_of(0)} is in a layout of another project, which its loader reads; make an "
        "output with --format npz, zarr or png to look at slices or to train with SliceDataset"
    )
