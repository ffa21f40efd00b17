"""Tasks that run on a worker: the volume of a case out of its predictions, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_slicer.assembly.metrics import LabelMetrics, label_metrics
from dask_slicer.assembly.nifti_writer import SUFFIX, write_nifti
from dask_slicer.assembly.predictions import FoundFiles, Kind, PredictedSlices
from dask_slicer.assembly.restoring import (
    Restored,
    Slices,
    restore_labels,
    restore_probabilities,
)
from dask_slicer.assembly.slice_grid import SliceGrid, slice_grids
from dask_slicer.core.geometry import Grid, align, reorient, spacing, voxel_volume
from dask_slicer.core.steps.steps import LabelChanges, Steps, changed_label
from dask_slicer.errors import GeometryMismatch, MissingLabel
from dask_slicer.execution.tasks import timed_step
from dask_slicer.inputs.case import Case
from dask_slicer.inputs.load import load_volume
from dask_slicer.output.layout import TEMPORARY
from dask_slicer.output.lock import check_held
from dask_slicer.records import CommittedCase, SourceGrid

PROBABILITIES = "_probabilities"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledFile:
    """A file that was written: name and size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledCase:
    """A case whose volume is written, as the journal has it.

    `digest` is of everything that decides the files.
    """

    case_id: str
    split: str
    digest: str
    files: tuple[AssembledFile, ...]
    n_slices: int
    seconds: dict[str, float]
    metrics: tuple[LabelMetrics, ...] = ()
    at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Predictions of a case: those of one folder in one plane."""

    folder: str
    plane: str
    files: FoundFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyCase:
    """A case to assemble.

    `scan` and `steps` are of its label, needed for metrics only.
    """

    record: CommittedCase
    grid: SourceGrid
    sources: tuple[Source, ...] = ()
    digest: str = ""
    scan: Case | None = None
    steps: Steps | None = None

    @property
    def case_id(self) -> str:
        """Return the id of the case."""
        return self.record.case_id


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyTarget:
    """Where and how volumes are written: the same for all cases."""

    output_dir: str
    planes: tuple[str, ...]
    kind: Kind
    transposed: tuple[str, ...] = ()  # splits whose files have rows as columns
    threshold: float | None = None
    keep_probabilities: bool = False
    fill: int = 0
    labels: tuple[int, ...] = ()  # of metrics
    label_dtype: str = "int32"
    lock: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assembled:
    """The volume of a case in memory."""

    case: AssemblyCase
    volume: Restored
    metrics: tuple[LabelMetrics, ...]
    n_slices: int
    seconds: dict[str, float]


def assemble_case(case: AssemblyCase, target: AssemblyTarget) -> Assembled:
    """Return the volume that the files of predictions of a case make, and its metrics."""
    with timed_step("load", {}, target.run_id) as seconds:
        record, grid = case.record, case.grid
        all_grids = slice_grids(record, grid, target.planes, transposed=target.transposed)
        grids = {each.plane: each for each in all_grids}
        sources = [
            (
                grids[source.plane],
                PredictedSlices(source.files, grids[source.plane], target.kind, source.folder),
            )
            for source in case.sources
        ]
    return assemble_slices(case, sources, target, seconds)


def assemble_slices(
    case: AssemblyCase,
    sources: Sequence[tuple[SliceGrid, Slices]],
    target: AssemblyTarget,
    seconds: dict[str, float],
) -> Assembled:
    """Return the volume that predictions of a case make, and its metrics."""
    with timed_step("assemble", seconds, target.run_id) as seconds:
        if target.kind == "labels":
            volume = restore_labels(sources, fill=target.fill)
        else:
            volume = restore_probabilities(
                sources,
                threshold=target.threshold,
                keep=target.keep_probabilities,
                fill=target.fill,
            )
    n_slices = sum(len(slices.indices) for _, slices in sources)
    return with_metrics(case, volume, target, n_slices=n_slices, seconds=seconds)


def with_metrics(
    case: AssemblyCase,
    volume: Restored,
    target: AssemblyTarget,
    *,
    n_slices: int,
    seconds: dict[str, float],
) -> Assembled:
    """Return a volume with its metrics, if they are wanted."""
    metrics: tuple[LabelMetrics, ...] = ()
    if case.scan is not None:
        with timed_step("metrics", seconds, target.run_id) as seconds:
            metrics = _metrics(case, volume.labels, target)
    return Assembled(case=case, volume=volume, metrics=metrics, n_slices=n_slices, seconds=seconds)


def save_volume(assembled: Assembled, target: AssemblyTarget) -> AssembledCase:
    """Write the volume of a case, whole or not at all."""
    case = assembled.case
    with timed_step("save", assembled.seconds, target.run_id) as seconds:
        volumes: dict[str, NDArray[Any]] = {SUFFIX: assembled.volume.labels}
        if assembled.volume.probabilities is not None:
            volumes = {PROBABILITIES + SUFFIX: assembled.volume.probabilities, **volumes}
        files = []
        for suffix, volume in volumes.items():
            if target.lock:
                check_held(Path(target.output_dir, target.lock), target.run_id)
            path = Path(target.output_dir, case.case_id + suffix)
            size = write_nifti(path, volume, case.grid, temporary=path.parent / TEMPORARY)
            files.append(AssembledFile(name=path.name, size=size))
    return AssembledCase(
        case_id=case.case_id,
        split=case.record.split,
        digest=case.digest,
        files=tuple(files),
        n_slices=assembled.n_slices,
        seconds=seconds,
        metrics=assembled.metrics,
    )


def _metrics(
    case: AssemblyCase, labels: NDArray[np.integer], target: AssemblyTarget
) -> tuple[LabelMetrics, ...]:
    """Return the metrics against the label of the scan, after the label map of the output."""
    assert case.scan is not None  # noqa: S101  # of a case with metrics
    plane = target.planes[0]  # that of the slices of which small components were removed
    volume = load_volume(case.scan, plane)
    if volume.label is None:
        raise MissingLabel("its scan has no label to compare with; leave out --metrics")
    reference = changed_label(
        volume.label, target.label_dtype, case.steps or Steps(), LabelChanges()
    )
    name = case.scan.image_files[0]
    grids = (
        Grid(shape=case.grid.shape, affine=np.array(case.grid.affine), name="the volume"),
        Grid(shape=volume.label.stored.shape, affine=volume.affine, name=name),
    )
    try:
        (of_labels, of_reference), grid = align(grids, plane)
    except GeometryMismatch:
        raise GeometryMismatch(
            f"{name} does not lie on the grid of the scan that the slices were made of; name the "
            "folder of that with --source"
        ) from None
    predicted, reference = reorient(labels, of_labels), reorient(reference, of_reference)
    return label_metrics(
        predicted,
        reference,
        spacing=spacing(grid.affine),
        voxel_volume=voxel_volume(grid.affine),
        labels=target.labels or sorted({*np.unique(predicted), *np.unique(reference)} - {0}),
    )
