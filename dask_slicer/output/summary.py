"""Files that describe a whole output: slices.csv, failures.csv and dataset_info.json."""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dask_slicer.config.schema import RunConfig
from dask_slicer.core.foreground import IntensityProperties
from dask_slicer.core.splits import SPLITS
from dask_slicer.core.statistics import Statistics, pooled
from dask_slicer.core.steps.label_map import LabelMap
from dask_slicer.errors import CorruptFile, UsageError
from dask_slicer.output import directory, layout
from dask_slicer.output.folds import (
    WrittenCases,
    final_folds,
    recorded_settings,
    remove_other_folds,
    write_folds,
)
from dask_slicer.output.formats.base import is_normalized, read_json, statistics_by_name
from dask_slicer.output.index_table import csv_lines, list_lines, write_index
from dask_slicer.output.journal import last_records
from dask_slicer.output.properties import properties_json
from dask_slicer.planning.folds import Folds, FoldSettings
from dask_slicer.planning.names import NO_NAMES, Names
from dask_slicer.planning.plan import FORMAT_VERSION
from dask_slicer.records import CommittedCase, FailedCase
from dask_slicer.utils.formatting import first_few, plural
from dask_slicer.utils.modalities import for_each_modality

# For the user, about a Zarr store of many cases.
UNCONSOLIDATED = (
    f"{layout.ZARR} has many cases, so its metadata is not consolidated: it opens at once, and is "
    "read as before, but not with use_consolidated=True of zarr-python"
)
_REPORTED_VERSIONS = ("dask_slicer", "dask", "distributed", "isal", "nibabel", "numpy", "zarr")


def _by_value(counted: tuple[str, int]) -> int:
    return int(counted[0])


@dataclass(slots=True)
class LabelTotals:
    """What became of labels, by the steps, over all cases."""

    mapped: Counter[str] = field(default_factory=Counter)  # voxels by value before a label map
    lost: Counter[str] = field(default_factory=Counter)  # voxels by value
    losing: list[str] = field(default_factory=list)  # cases
    n_removed: int = 0  # voxels of small components

    def add(self, record: CommittedCase) -> None:
        """Add one case."""
        first, *_ = each = [part.steps for part in record.parts]
        self.mapped.update(first.get("mapped_voxels", {}))  # before planes part
        self.n_removed += first.get("removed_voxels", 0)
        lost: Counter[str] = Counter()
        for steps in each:
            lost |= Counter(steps.get("lost_voxels", {}))  # most in any plane
        self.lost += lost
        self.losing += [record.case_id] if lost else []

    def summary(self) -> dict[str, Any]:
        """Return the totals as JSON values; nothing where no step changed a label."""
        content: dict[str, Any] = {
            "mapped_voxels": dict(sorted(self.mapped.items(), key=_by_value)),
            "removed_voxels": self.n_removed,
            "lost_voxels": dict(sorted(self.lost.items(), key=_by_value)),
            "cases_with_lost_voxels": sorted(self.losing),
        }
        return {name: value for name, value in content.items() if value}

    def notes(self, config: RunConfig) -> Iterator[str]:
        """Yield notes for the last lines of a run."""
        if self.losing:
            each = [
                f"{n} of label {value}" for value, n in sorted(self.lost.items(), key=_by_value)
            ]
            yield (
                f"labelled voxels were cut off or vanished in {plural(len(self.losing), 'case')} "
                f"({first_few(self.losing)}), by --size or --spacing: {first_few(each, 6)}"
            )
        if self.n_removed:
            yield f"small components of labels: {plural(self.n_removed, 'voxel')} removed"
        pairs = () if config.label_map is None else LabelMap.parse(config.label_map).pairs
        for old, _ in pairs:
            if self.mapped and old.isdecimal() and old != "0" and old not in self.mapped:
                yield f"no case has the label value {old} of --label_map"


@dataclass(slots=True)
class DatasetTotals:
    """Running totals over committed cases; its size does not grow with the number of slices."""

    split_of: dict[str, str] = field(default_factory=dict)  # by case id, in the order of `add`
    n_slices: int = 0
    n_bytes: int = 0
    slices_by_split: Counter[str] = field(default_factory=Counter)
    label_voxels: Counter[int] = field(default_factory=Counter)
    intensity: tuple[Statistics, ...] = ()
    n_overlapping: int = 0
    clipped: list[str] = field(default_factory=list)  # cases that the clip range does not suit
    group_of: dict[str, str] = field(default_factory=dict)  # by case id
    labels_of: dict[str, tuple[str, ...]] = field(default_factory=dict)  # see `label_classes`
    label_changes: LabelTotals = field(default_factory=LabelTotals)
    notes: list[str] = field(default_factory=list)
    is_consolidated: bool = True  # of a Zarr store: its root holds the metadata of all cases

    def add(self, record: CommittedCase) -> None:
        """Add one case."""
        n_slices = record.n_slices
        self.split_of[record.case_id] = record.split
        self.group_of[record.case_id] = record.group or record.case_id
        self.labels_of[record.case_id] = label_classes(record)
        if not record.clip_fits:
            self.clipped.append(record.case_id)
        self.n_slices += n_slices
        self.n_bytes += record.n_bytes
        self.slices_by_split[record.split] += n_slices
        self.n_overlapping += record.n_overlapping
        if record.steps or record.planes:
            self.label_changes.add(record)
        most: Counter[int] = Counter()  # in any plane
        for part in record.parts:
            voxels: Counter[int] = Counter()
            for written in part.slices:
                voxels.update(written.labels or {})
            most |= voxels
        self.label_voxels.update(most)
        self.intensity = (
            tuple(map(pooled, self.intensity, record.statistics))
            if self.intensity
            else record.statistics
        )


def finalize(
    config: RunConfig,
    failures: list[FailedCase],
    *,
    planned: set[str],
    n_modalities: int | None,
    names: Names | None,
    elapsed_seconds: float,
    slices_this_run: int,
    n_lost_workers: int = 0,
    is_complete: bool,
) -> DatasetTotals:
    """Write the files that describe the whole output, which the caller holds; return the totals.

    Failures of `planned` cases in the journal are appended to `failures`. Unless the run
    `is_complete`, files of cases that were stopped before their commit are removed. Without
    `names`, dataset_info.json keeps those that it has.
    """
    totals = DatasetTotals()
    output_dir = config.output_dir

    def committed() -> Iterator[CommittedCase]:
        for record in last_records(output_dir / layout.JOURNAL):
            if isinstance(record, CommittedCase):
                totals.add(record)
                yield record
            elif isinstance(record, FailedCase) and record.case_id in planned:
                failures.append(record)

    directory.remove_temporary(output_dir)
    try:
        write_index(output_dir, committed(), config)
        if not is_complete:
            # Cases that were stopped before they could be committed.
            stopped = planned - totals.split_of.keys()
            for paths in layout.find_entries(output_dir, config, of=stopped).values():
                directory.remove_case_files(output_dir, paths)
        directory.write_lines(output_dir, layout.FAILURES, _failure_lines(failures))
        for template in config.lists:
            records = last_records(output_dir / layout.JOURNAL)
            directory.write_lines(output_dir, template.path, list_lines(records, template))
        if config.format == "zarr":
            from dask_slicer.output.formats.zarr_writer import GROUP_TEXT, root_text

            text = root_text(output_dir / layout.ZARR, totals.split_of, config.plane_folders)
            totals.is_consolidated = text != GROUP_TEXT
            directory.write_lines(output_dir, layout.ZARR_ROOT, [text])
        unfinished = planned - totals.split_of.keys() - {failure.case_id for failure in failures}
        totals.notes += totals.label_changes.notes(config)
        folds = _final_folds(config, totals, unfinished)
        info = dataset_info(
            config,
            totals,
            failures=failures,
            n_modalities=n_modalities,
            names=existing_names(output_dir) if names is None else names,
            properties=directory.existing_properties(output_dir) if config.uses_statistics else (),
            folds=recorded_settings(output_dir) if folds is None else folds.settings,
            elapsed_seconds=elapsed_seconds,
            slices_this_run=slices_this_run,
            n_lost_workers=n_lost_workers,
        )
        if folds is not None:
            remove_other_folds(output_dir, folds.settings)
        text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
        directory.write_lines(output_dir, layout.SUMMARY, [text])
        if folds is not None:
            write_folds(output_dir, folds)
    finally:  # also if the disk is too full for these files
        directory.remove_temporary(output_dir)
    return totals


def _final_folds(
    config: RunConfig, totals: DatasetTotals, unfinished: Collection[str]
) -> Folds | None:
    """Return the folds to write, None if there are none; note why."""
    written = WrittenCases(groups=totals.group_of, labels=totals.labels_of, unfinished=unfinished)
    try:
        folds, note = final_folds(config, written)
    except UsageError as error:  # the slices are written all the same
        folds, note = None, f"{layout.FOLDS} is not written: {error}"
    totals.notes += [note] if note else []
    return folds


def label_classes(record: CommittedCase) -> tuple[str, ...]:
    """Return the label values in a case, as classes for stratification."""
    slices = [written for part in record.parts for written in part.slices]
    values = {value for written in slices for value in written.labels or ()}
    if not values:
        return ("background only",) if slices and slices[0].labels == {} else ()
    return tuple(sys.intern(str(value)) for value in sorted(values))  # many cases have the same


def existing_names(output_dir: Path) -> Names:
    """Return the names in dataset_info.json; none if there is no such file, or it is damaged."""
    with suppress(FileNotFoundError, CorruptFile, ValueError):
        return Names.parse(read_json(output_dir / layout.SUMMARY))
    return NO_NAMES


def _failure_lines(failures: Iterable[FailedCase]) -> Iterable[str] | None:
    """Return the lines of failures.csv; None without failures."""
    rows = [
        [getattr(failure, name) for name in layout.FAILURE_COLUMNS]
        for failure in sorted(failures, key=lambda failure: failure.case_id)
    ]
    return csv_lines([layout.FAILURE_COLUMNS, *rows]) if rows else None


def _clip_range(config: RunConfig) -> list[Any] | None:
    """Return lower and upper limit, None without limits; a pair for each modality if they differ.

    >>> config = RunConfig(input_dir="a", output_dir="b", clip_min=-160, clip_max=[240, None])
    >>> _clip_range(config)
    [[-160.0, 240.0], [-160.0, None]]
    """
    low, high = config.clip_min, config.clip_max
    if low is None and high is None:
        return None
    n = max((len(limits) for limits in (low, high) if isinstance(limits, tuple)), default=0)
    if not n:
        return [low, high]
    pairs = zip(for_each_modality(low, n), for_each_modality(high, n), strict=True)
    return [list(pair) for pair in pairs]


def _pixels(config: RunConfig) -> dict[str, Any]:
    """Return what pixels of PNG files are; nothing with other formats."""
    if config.format != "png":
        return {}
    offset = config.offset if config.is_exact else None
    is_exact = config.is_exact and not config.resamples
    return {"bits": config.bits, "offset": offset, "exact": is_exact}


def dataset_info(
    config: RunConfig,
    totals: DatasetTotals,
    *,
    failures: Iterable[FailedCase] = (),
    n_modalities: int | None = None,
    names: Names = NO_NAMES,
    properties: Sequence[IntensityProperties] = (),
    folds: FoldSettings | None = None,
    elapsed_seconds: float = 0,
    slices_this_run: int = 0,
    n_lost_workers: int = 0,
) -> dict[str, Any]:
    """Return the content of dataset_info.json; without a run, the part that the journal decides."""
    failed = {failure.case_id: failure for failure in failures}
    cases_by_split = Counter(totals.split_of.values())
    n_modalities = n_modalities or len(totals.intensity) // config.n_windows or 1
    return {
        "window_size": config.window_size,
        "total_channels": config.n_channels(n_modalities),
        "padding_mode": config.padding_mode,
        "normalized": is_normalized(config),
        "clip_range": _clip_range(config),
        "num_cases": len(totals.split_of),
        "num_slices": totals.n_slices,
        "case_names": list(totals.split_of),
        "format": config.format,
        "format_version": FORMAT_VERSION,
        "plane": config.plane,
        "dtype": config.dtype,
        **_pixels(config),
        "splits": {
            split: {"cases": cases_by_split[split], "slices": totals.slices_by_split[split]}
            for split in SPLITS
        },
        "num_failed": len(failed),
        "failures": [
            {name: getattr(failure, name) for name in layout.FAILURE_COLUMNS}
            for _, failure in sorted(failed.items())
        ],
        "label_voxels": {str(value): count for value, count in sorted(totals.label_voxels.items())},
        **({"overlapping_voxels": totals.n_overlapping} if totals.n_overlapping else {}),
        **({"label_changes": changes} if (changes := totals.label_changes.summary()) else {}),
        **names.summary(),
        **(properties_json(properties) if properties else {}),
        **({} if folds is None else {"folds": folds.summary()}),
        "intensity": statistics_by_name(totals.intensity),
        "elapsed_seconds": round(elapsed_seconds, 3),
        "slices_per_second": round(slices_this_run / max(elapsed_seconds, 1e-9), 1),
        **({"lost_workers": n_lost_workers} if n_lost_workers else {}),
        "bytes_written": totals.n_bytes,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _REPORTED_VERSIONS},
        "config": config.model_dump(mode="json"),
    }
