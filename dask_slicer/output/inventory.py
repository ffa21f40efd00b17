"""Contents of a journal, in memory that does not grow with the number of slices."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dask_slicer.config.file_settings import FileTemplate, stem_digits
from dask_slicer.config.schema import RunConfig
from dask_slicer.output import layout
from dask_slicer.output.summary import DatasetTotals
from dask_slicer.records import CaseRecord, CommittedCase, FailedCase

_ZARR_LEVELS = (3, 4)  # slices.zarr, split, a plane if there are several, and case


@dataclass(frozen=True, slots=True)
class _Files:
    """Files of a case in a plane: names below its Zarr group, or the indices of its slices."""

    split: str
    n_slices: int
    names: frozenset[str]
    kept: Sequence[int]
    has_label: bool


@dataclass(slots=True)
class Inventory:
    """Written and failed cases of a journal, and the names of all files of slices.

    `name in inventory` is whether a file, relative to the output, belongs to a written case.
    """

    settings: RunConfig
    totals: DatasetTotals = field(default_factory=DatasetTotals)
    failed: list[str] = field(default_factory=list)
    structures: dict[str, int] = field(default_factory=dict)  # values of masks that were merged
    most_bytes: int = 0  # of one case
    _files: dict[str, _Files] = field(default_factory=dict)  # by section and case id
    # Cases of one shape have files of the same names.
    _names: dict[frozenset[str], frozenset[str]] = field(default_factory=dict)

    def committed(self, records: Iterable[CaseRecord]) -> Iterator[CommittedCase]:
        """Add the last records of all cases; yield those of written cases."""
        for record in records:
            if isinstance(record, CommittedCase):
                self._add(record)
                yield record
            elif isinstance(record, FailedCase):
                self.failed.append(record.case_id)

    def _add(self, record: CommittedCase) -> None:
        self.totals.add(record)
        if record.structures:
            values = self.structures | record.structures
            self.structures = dict(sorted(values.items(), key=lambda item: item[1]))
        self.most_bytes = max(self.most_bytes, record.n_bytes)
        for part in record.parts:
            names = frozenset(file.path for file in part.files)
            kept: Sequence[int] = [written.slice_index for written in part.slices]
            if kept and kept[-1] - kept[0] + 1 == len(kept):
                kept = range(kept[0], kept[-1] + 1)
            place = f"{layout.section(part.split, part.plane)}/{part.case_id}"
            self._files[f"{layout.ZARR}/{place}" if names else place] = _Files(
                part.split,
                part.shape[1],
                self._names.setdefault(names, names),
                kept,
                any(written.labels is not None for written in part.slices),
            )

    def __contains__(self, name: str) -> bool:
        if name.startswith(f"{layout.ZARR}/"):
            parts = name.split("/")
            for n_levels in _ZARR_LEVELS:
                files = self._files.get("/".join(parts[:n_levels]))
                if files is not None and "/".join(parts[n_levels:]) in files.names:
                    return True
            return name in layout.zarr_groups(self.settings.plane_folders)
        return any(self._is_of(name, template) for template in self.settings.templates) or any(
            name == template.path for template in self.settings.lists
        )

    def _is_of(self, name: str, template: FileTemplate) -> bool:
        """Return whether a file is one of a template, of a written case and a kept slice."""
        parsed = template.parse(name.rpartition("/")[2])
        if parsed is None:
            return False
        for place in layout.sections(self.settings.plane_folders):
            files = self._files.get(f"{place}/{parsed.case_id}")
            if files is None or files.split not in template.splits or not files.kept:
                continue
            is_there = files.has_label or {*template.contents} != {"label"}
            index = parsed.slice_index
            if index is not None:
                number = bisect_left(files.kept, index)
                is_there &= number < len(files.kept) and files.kept[number] == index
            digits = stem_digits(files.n_slices)
            if is_there and name == template.file(parsed.case_id, place, index or 0, digits=digits):
                return True
        return False

    def has_entry(self, entry: str) -> bool:
        """Return whether a file, or the directory of a Zarr case, belongs to a written case."""
        return entry in self or entry in self._files
