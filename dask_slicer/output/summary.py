"""dataset_info.json and the other files that describe a whole output."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from dask_slicer.config.schema import RunConfig
from dask_slicer.core.splits import SPLITS
from dask_slicer.core.statistics import Statistics
from dask_slicer.output import directory, layout
from dask_slicer.output.index import IndexWriter
from dask_slicer.output.journal import last_records
from dask_slicer.planning.plan import FORMAT_VERSION
from dask_slicer.records import CommittedCase, FailedCase

_REPORTED_VERSIONS = ("dask_slicer", "dask", "distributed", "isal", "nibabel", "numpy", "zarr")


@dataclass(slots=True)
class DatasetTotals:
    """Running totals over committed cases; its size does not grow with their number of slices."""

    case_names: list[str] = field(default_factory=list)
    n_slices: int = 0
    n_bytes: int = 0
    cases_by_split: Counter[str] = field(default_factory=Counter)
    slices_by_split: Counter[str] = field(default_factory=Counter)
    label_voxels: Counter[int] = field(default_factory=Counter)
    intensity: tuple[Statistics, ...] = ()

    def add(self, record: CommittedCase) -> None:
        """Count one case."""
        n_slices = len(record.slices)
        self.case_names.append(record.case_id)
        self.n_slices += n_slices
        self.n_bytes += record.n_bytes
        self.cases_by_split[record.split] += 1
        self.slices_by_split[record.split] += n_slices
        for written in record.slices:
            self.label_voxels.update(written.labels or {})
        self.intensity = (
            tuple(map(pooled, self.intensity, record.statistics))
            if self.intensity
            else record.statistics
        )


def pooled(one: Statistics, other: Statistics) -> Statistics:
    """Return the statistics of two sets of voxels taken together.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.

    Examples
    --------
    >>> one = Statistics(mean=0.0, std=0.0, min=0.0, max=0.0, n_foreground=1)
    >>> other = Statistics(mean=2.0, std=0.0, min=2.0, max=2.0, n_foreground=1)
    >>> pooled(one, other).mean, pooled(one, other).std
    (1.0, 1.0)
    """
    n = one.n_foreground + other.n_foreground
    weight = other.n_foreground / n
    step = other.mean - one.mean
    variance = one.std**2 * (1 - weight) + other.std**2 * weight + step**2 * weight * (1 - weight)
    return Statistics(
        mean=one.mean + step * weight,
        std=math.sqrt(variance),
        min=min(one.min, other.min),
        max=max(one.max, other.max),
        n_foreground=n,
        n_nonfinite=one.n_nonfinite + other.n_nonfinite,
    )


def dataset_info(
    tally: DatasetTotals,
    config: RunConfig,
    *,
    n_modalities: int,
    failures: Iterable[FailedCase],
    elapsed_seconds: float,
    slices_this_run: int,
) -> dict[str, Any]:
    """Return the content of dataset_info.json."""
    failed = {failure.case_id: failure for failure in failures}
    clipped = config.clip_min is not None or config.clip_max is not None
    return {
        "window_size": config.window_size,
        "total_channels": (2 * config.window_size + 1) * n_modalities,
        "padding_mode": config.padding_mode,
        "normalized": config.normalize != "none",
        "clip_range": [config.clip_min, config.clip_max] if clipped else None,
        "num_cases": len(tally.case_names),
        "num_slices": tally.n_slices,
        "case_names": tally.case_names,
        "format": config.format,
        "format_version": FORMAT_VERSION,
        "plane": config.plane,
        "dtype": config.dtype,
        "splits": {
            split: {"cases": tally.cases_by_split[split], "slices": tally.slices_by_split[split]}
            for split in SPLITS
        },
        "num_failed": len(failed),
        "failures": [
            {"case_id": f.case_id, "step": f.step, "kind": f.kind, "message": f.message}
            for _, f in sorted(failed.items())
        ],
        "label_voxels": {str(value): count for value, count in sorted(tally.label_voxels.items())},
        "intensity": _intensity(tally.intensity),
        "elapsed_seconds": round(elapsed_seconds, 3),
        "slices_per_second": round(slices_this_run / max(elapsed_seconds, 1e-9), 1),
        "bytes_written": tally.n_bytes,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _REPORTED_VERSIONS},
        "config": config.model_dump(mode="json"),
    }


def _intensity(statistics: tuple[Statistics, ...]) -> dict[str, Any]:
    def of(name: str) -> Any:
        values = [getattr(found, name) for found in statistics]
        return values[0] if len(values) == 1 else values or None

    return {name: of(name) for name in ("mean", "std", "min", "max")}


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
    """Write index, failures, summary and the store's metadata; return the totals.

    Parameters
    ----------
    config : RunConfig
        Names the output, which the caller holds.
    failures : list of FailedCase
        Those that the journal does not have; its own are added.
    planned : collection of str
        Cases whose failures count, and whose files go if they are not committed.
    n_modalities : int or None
        None: as many as the committed cases have.
    elapsed_seconds : float
    slices_this_run : int
    is_complete : bool
        Whether nothing was stopped, or failed, that may have left files.
    """
    directory.remove_temporary(config.output_dir)
    try:
        planned = set(planned)
        tally = DatasetTotals()
        written: list[tuple[str, str]] = []
        index = IndexWriter(config.output_dir)
        for record in last_records(config.output_dir / layout.JOURNAL):
            if isinstance(record, CommittedCase):
                tally.add(record)
                index.add(record)
                written.append((record.split, record.case_id))
            elif isinstance(record, FailedCase) and record.case_id in planned:
                failures.append(record)
        index.close()
        directory.write_failures(config.output_dir, failures)
        if not is_complete and (stopped := planned.difference(tally.case_names)):
            # Their files were written before they could be committed.
            for paths in layout.find_entries(config.output_dir, of=stopped).values():
                directory.remove_case_files(config.output_dir, paths)
        if config.format == "zarr":
            directory.write_store_metadata(config.output_dir, written)
        directory.write_summary(
            config.output_dir,
            dataset_info(
                tally,
                config,
                n_modalities=n_modalities or len(tally.intensity) or 1,
                failures=failures,
                elapsed_seconds=elapsed_seconds,
                slices_this_run=slices_this_run,
            ),
        )
    finally:  # also where the disk is too full for what is said here
        directory.remove_temporary(config.output_dir)
    return tally
