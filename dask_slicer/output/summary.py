"""Files that describe a whole output: slices.csv, failures.csv and dataset_info.json."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from typing import Any

from dask_slicer.config.schema import RunConfig
from dask_slicer.core.splits import SPLITS
from dask_slicer.core.statistics import Statistics
from dask_slicer.output import directory, layout
from dask_slicer.output.index import csv_lines, index_rows
from dask_slicer.output.journal import last_records
from dask_slicer.planning.plan import FORMAT_VERSION
from dask_slicer.records import CommittedCase, FailedCase

_REPORTED_VERSIONS = ("dask_slicer", "dask", "distributed", "isal", "nibabel", "numpy", "zarr")
_FAILURE_COLUMNS = ("case_id", "step", "kind", "message")


@dataclass(slots=True)
class DatasetTotals:
    """Running totals over committed cases; its size does not grow with the number of slices."""

    split_of: dict[str, str] = field(default_factory=dict)
    n_slices: int = 0
    n_bytes: int = 0
    slices_by_split: Counter[str] = field(default_factory=Counter)
    label_voxels: Counter[int] = field(default_factory=Counter)
    intensity: tuple[Statistics, ...] = ()

    @property
    def case_names(self) -> list[str]:
        """Return the case ids, in the order in which they were added."""
        return list(self.split_of)

    def add(self, record: CommittedCase) -> None:
        """Add one case."""
        n_slices = len(record.slices)
        self.split_of[record.case_id] = record.split
        self.n_slices += n_slices
        self.n_bytes += record.n_bytes
        self.slices_by_split[record.split] += n_slices
        for written in record.slices:
            self.label_voxels.update(written.labels or {})
        self.intensity = (
            tuple(map(pooled, self.intensity, record.statistics))
            if self.intensity
            else record.statistics
        )


def finalize(
    config: RunConfig,
    failures: list[FailedCase],
    *,
    planned: Collection[str],
    n_modalities: int | None,
    elapsed_seconds: float,
    slices_this_run: int,
    is_complete: bool,
) -> DatasetTotals:
    """Write the files that describe the whole output, which the caller holds; return the totals.

    Failures of `planned` cases in the journal are appended to `failures`. Unless the run
    `is_complete`, files of cases that were stopped before their commit are removed.
    """
    planned = set(planned)
    totals = DatasetTotals()

    def committed() -> Iterator[CommittedCase]:
        for record in last_records(config.output_dir / layout.JOURNAL):
            if isinstance(record, CommittedCase):
                yield record
            elif isinstance(record, FailedCase) and record.case_id in planned:
                failures.append(record)

    directory.remove_temporary(config.output_dir)
    try:
        for name, lines in whole_files(
            config,
            committed(),
            totals,
            failures=failures,
            n_modalities=n_modalities,
            elapsed_seconds=elapsed_seconds,
            slices_this_run=slices_this_run,
        ):
            directory.write_lines(config.output_dir, name, lines)
            if name == layout.INDEX and not is_complete:  # now `totals` has every case
                # Cases that were stopped before they could be committed.
                stopped = planned - totals.split_of.keys()
                for paths in layout.find_entries(config.output_dir, of=stopped).values():
                    directory.remove_case_files(config.output_dir, paths)
    finally:  # also if the disk is too full for these files
        directory.remove_temporary(config.output_dir)
    return totals


def whole_files(
    config: RunConfig,
    committed: Iterable[CommittedCase],
    totals: DatasetTotals,
    *,
    failures: Sequence[FailedCase] = (),
    n_modalities: int | None = None,
    elapsed_seconds: float = 0,
    slices_this_run: int = 0,
) -> Iterator[tuple[str, Iterable[str] | None]]:
    """Yield name and lines of each file that describes the whole; None if it must not exist.

    slices.csv is first: reading its lines reads `committed`, and fills `totals` for the rest.
    """
    lines = csv_lines(chain([layout.COLUMNS], _counted_rows(committed, totals)))
    yield layout.INDEX, lines
    deque(lines, maxlen=0)  # a comparison may stop at the first difference
    yield layout.FAILURES, _failure_lines(failures) if failures else None
    if config.format == "zarr":
        from dask_slicer.output.formats.zarr_writer import consolidated

        cases = [(split, case_id) for case_id, split in totals.split_of.items()]
        yield f"{layout.ZARR}/zarr.json", [consolidated(config.output_dir / layout.ZARR, cases)]
    info = dataset_info(
        totals,
        config,
        n_modalities=n_modalities or len(totals.intensity) or 1,
        failures=failures,
        elapsed_seconds=elapsed_seconds,
        slices_this_run=slices_this_run,
    )
    yield layout.SUMMARY, [json.dumps(info, indent=2, ensure_ascii=False) + "\n"]


def _counted_rows(
    committed: Iterable[CommittedCase], totals: DatasetTotals
) -> Iterator[tuple[object, ...]]:
    for record in committed:
        totals.add(record)
        yield from index_rows(record)


def _failure_lines(failures: Iterable[FailedCase]) -> Iterator[str]:
    rows = [
        (failure.case_id, failure.step, failure.kind, failure.message)
        for failure in sorted(failures, key=lambda failure: failure.case_id)
    ]
    return csv_lines([_FAILURE_COLUMNS, *rows])


def dataset_info(
    totals: DatasetTotals,
    config: RunConfig,
    *,
    n_modalities: int,
    failures: Iterable[FailedCase],
    elapsed_seconds: float,
    slices_this_run: int,
) -> dict[str, Any]:
    """Return the content of dataset_info.json."""
    failed = {failure.case_id: failure for failure in failures}
    cases_by_split = Counter(totals.split_of.values())
    clipped = config.clip_min is not None or config.clip_max is not None
    return {
        "window_size": config.window_size,
        "total_channels": (2 * config.window_size + 1) * n_modalities,
        "padding_mode": config.padding_mode,
        "normalized": config.normalize != "none",
        "clip_range": [config.clip_min, config.clip_max] if clipped else None,
        "num_cases": len(totals.case_names),
        "num_slices": totals.n_slices,
        "case_names": totals.case_names,
        "format": config.format,
        "format_version": FORMAT_VERSION,
        "plane": config.plane,
        "dtype": config.dtype,
        "splits": {
            split: {"cases": cases_by_split[split], "slices": totals.slices_by_split[split]}
            for split in SPLITS
        },
        "num_failed": len(failed),
        "failures": [
            {name: getattr(failure, name) for name in _FAILURE_COLUMNS}
            for _, failure in sorted(failed.items())
        ],
        "label_voxels": {str(value): count for value, count in sorted(totals.label_voxels.items())},
        "intensity": _intensity(totals.intensity),
        "elapsed_seconds": round(elapsed_seconds, 3),
        "slices_per_second": round(slices_this_run / max(elapsed_seconds, 1e-9), 1),
        "bytes_written": totals.n_bytes,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _REPORTED_VERSIONS},
        "config": config.model_dump(mode="json"),
    }


def _intensity(statistics: Sequence[Statistics]) -> dict[str, Any]:
    def by_modality(name: str) -> Any:
        values = [getattr(stats, name) for stats in statistics]
        return values[0] if len(values) == 1 else values or None

    return {name: by_modality(name) for name in ("mean", "std", "min", "max")}


def pooled(first: Statistics, second: Statistics) -> Statistics:
    """Return the statistics of two sets of voxels taken together.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.

    Examples
    --------
    >>> first = Statistics(mean=0.0, std=0.0, min=0.0, max=0.0, n_foreground=1)
    >>> second = Statistics(mean=2.0, std=0.0, min=2.0, max=2.0, n_foreground=1)
    >>> pooled(first, second).mean, pooled(first, second).std
    (1.0, 1.0)
    """
    n = first.n_foreground + second.n_foreground
    weight = second.n_foreground / n
    step = second.mean - first.mean
    variance = first.std**2 * (1 - weight) + second.std**2 * weight
    variance += step**2 * weight * (1 - weight)
    return Statistics(
        mean=first.mean + step * weight,
        std=math.sqrt(variance),
        min=min(first.min, second.min),
        max=max(first.max, second.max),
        n_foreground=n,
        n_nonfinite=first.n_nonfinite + second.n_nonfinite,
    )
