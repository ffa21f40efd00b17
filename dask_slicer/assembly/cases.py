"""Cases to assemble: their predictions, and the grids of their scans."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from dask_slicer.assembly.metrics import require_scipy
from dask_slicer.assembly.predictions import find_predictions
from dask_slicer.assembly.slice_grid import slice_grids
from dask_slicer.assembly.tasks import PROBABILITIES, AssemblyCase, Source
from dask_slicer.config.assembly_settings import AssemblySettings
from dask_slicer.config.schema import RunConfig
from dask_slicer.core.geometry import Grid, grid_distance
from dask_slicer.errors import (
    CaseError,
    GeometryMismatch,
    MissingFile,
    MissingLabel,
    UnsupportedImage,
    UsageError,
    as_case_error,
)
from dask_slicer.execution.resume import prepare_plan
from dask_slicer.inputs.readers import read_header, stored_header
from dask_slicer.output.formats.base import damage_named
from dask_slicer.output.index import case_reader
from dask_slicer.output.journal import last_records
from dask_slicer.output.layout import JOURNAL
from dask_slicer.output.output import Output
from dask_slicer.planning.plan import CasePlan, RunPlan
from dask_slicer.planning.steps import steps_of
from dask_slicer.records import CommittedCase, FailedCase, SourceGrid

# Of what decides a volume beside predictions and settings.
_VERSION = 1
# In voxels: what two computations of one affine differ by is less.
_SAME_GRID = 0.01


class Scans:
    """The grids of the scans of an output, and their labels where metrics are wanted.

    Raise UsageError if metrics need scans or SciPy that are not there.
    """

    def __init__(self, output: Output, settings: AssemblySettings) -> None:
        self._output, self._settings = output, settings
        self._plan: RunPlan | None = None
        self._plans: Mapping[str, CasePlan] = {}
        if settings.source is not None and not settings.source.exists():
            raise UsageError(f"source: {settings.source} does not exist")
        if settings.metrics:
            require_scipy()
            self._plan = prepare_plan(self._config())
            self._plans = {case.case_id: case for case in self._plan.cases}

    def case(self, record: CommittedCase) -> tuple[AssemblyCase, str]:
        """Return a case without predictions, and a digest of its scan."""
        grid = record.grid or self._grid_of(record)
        slice_grids(record, grid, self._output.config.planes)  # fits, or raises
        case = AssemblyCase(record=record, grid=grid)
        if self._plan is None:
            return case, ""
        plan = self._plans.get(record.case_id)
        if plan is None:
            raise MissingFile(
                f"{self._plan.config.input_dir} has no scan of it; name the folder with --source"
            )
        if plan.problem is not None and plan.problem.kind == MissingLabel.__name__:
            raise MissingLabel("its scan has no label to compare with; leave out --metrics")
        if plan.problem is not None:
            raise MissingFile(f"its scan cannot be read: {plan.problem.message}")
        steps = steps_of(
            self._plan.steps,
            self._output.config.slice_settings,
            case_id=record.case_id,
            split=record.split,
            listed=None,
        )
        return replace(case, scan=plan.case, steps=steps), plan.digest

    def _config(self) -> RunConfig:
        config = self._output.config.model_copy(
            update={"output_dir": self._output.path, "statistics": None}
        )
        if self._settings.source is not None:
            config = config.model_copy(update={"input_dir": self._settings.source})
        if not config.input_dir.exists():
            raise UsageError(
                f"the scans are not in {config.input_dir} any more; name their place with --source"
            )
        return config

    def _grid_of(self, record: CommittedCase) -> SourceGrid:
        """Return the grid of the scan of a case that an earlier version wrote."""
        config = self._config()
        part = record.parts[0]
        metadata = self._metadata(part)
        source = metadata["source_file"]
        name = next(filter(None, source)) if isinstance(source, list) else source
        path = config.input_root / name
        header = read_header(path, orientation_from=config.orientation_from)
        grid = SourceGrid(
            shape=header.shape,
            affine=tuple(map(tuple, header.affine.tolist())),
            header=b64encode(stored_header(path)).decode(),
        )
        (first, *_) = slice_grids(record, grid, config.planes)
        stored = Grid(shape=grid.shape, affine=header.affine, name="")
        affine = first.steps.affine(stored.reoriented(first.orientation).affine)
        _, n_slices, height, width = part.shape
        distance, mm = grid_distance(
            np.array(metadata["affine"]), affine, (n_slices, height, width)
        )
        if distance > _SAME_GRID:
            raise GeometryMismatch(
                f"{path} lies up to {mm:.3g} mm off the slices, so it is not the scan that they "
                "were made of; name the folder of that with --source"
            )
        return grid

    def _metadata(self, part: CommittedCase) -> dict[str, Any]:
        """Return the metadata of the first slice of a case in a plane."""
        index = self._output.index
        for case in index.cases:
            if (case.case_id, case.plane) == (part.case_id, part.plane):
                with damage_named(part.case_id, None):
                    reader = case_reader(self._output.path, case)
                    return reader.metadata(part.slices[0].slice_index)
        raise MissingFile("the output has no slice of it")


class Predicted:
    """The predictions of all cases of an output.

    Parameters
    ----------
    output : Output
    settings : AssemblySettings

    Raises
    ------
    UsageError
        If a folder of predictions has none, or metrics need scans that are not there.
    """

    def __init__(self, output: Output, settings: AssemblySettings) -> None:
        self._output, self._settings = output, settings
        self._records = last_records(output.path / JOURNAL)
        self.splits = {
            record.case_id: record.split
            for record in self._records
            if isinstance(record, CommittedCase)
        }
        self._found = [
            find_predictions(folder, self.splits, output.config.planes, kind=settings.kind)
            for folder in settings.predictions
        ]
        for found in self._found:
            if not found.cases and not found.problems:
                raise UsageError(
                    f"predictions: {found.folder} has no file named <case_id>_<slice_index> or "
                    "<case_id>, with the ending .npy, .npz or .png"
                )
        self._planes = [found.planes for found in self._found]
        self._scans = Scans(output, settings)

    @property
    def n_others(self) -> int:
        """Return the number of files that are no predictions."""
        return sum(found.n_others for found in self._found)

    @property
    def unknown(self) -> list[FailedCase]:
        """Return the ids that only predictions have."""
        return [
            FailedCase.of(case_id, error)
            for found in self._found
            for case_id, error in found.problems.items()
            if case_id not in self.splits
        ]

    @property
    def wanted(self) -> set[str]:
        """Return the cases that have a prediction."""
        named = {id_ for found in self._found for id_ in (*found.cases, *found.problems)}
        return named & self.splits.keys()

    def cases(self) -> Iterator[AssemblyCase | FailedCase]:
        """Yield each case that has a prediction, or why it cannot be assembled."""
        wanted = self.wanted
        for record in self._records:
            if isinstance(record, CommittedCase) and record.case_id in wanted:
                try:
                    yield self._case(record)
                except (CaseError, OSError) as error:
                    yield FailedCase.of(record.case_id, as_case_error(error, step="load"))

    def _case(self, record: CommittedCase) -> AssemblyCase:
        case_id = record.case_id
        if self._settings.keep_probabilities and f"{case_id}{PROBABILITIES}" in self.splits:
            raise UnsupportedImage(
                f"its probabilities would have the file name of the case {case_id}{PROBABILITIES}"
            )
        sources = []
        empty = {part.plane for part in record.parts if not part.slices}
        for found, planes in zip(self._found, self._planes, strict=True):
            if case_id in found.problems:
                raise found.problems[case_id]
            by_plane = found.cases.get(case_id, {})
            for plane in sorted(planes, key=self._output.config.planes.index):
                if plane not in by_plane:
                    if plane in empty:  # every slice was left out
                        continue
                    where = f" of plane {plane}" if len(self._output.config.planes) > 1 else ""
                    raise MissingFile(f"{found.folder} has no prediction{where} of it, but others")
                sources.append(Source(folder=str(found.folder), plane=plane, files=by_plane[plane]))
        case, scan = self._scans.case(record)
        digest = self._digest(record, case.grid, sources, scan)
        return replace(case, sources=tuple(sources), digest=digest)

    def _digest(
        self, record: CommittedCase, grid: SourceGrid, sources: Sequence[Source], scan: str
    ) -> str:
        """Return a digest of everything that decides the volume of a case."""
        files = []
        for source in sources:
            for path in (*source.files.whole, *chain(*source.files.slices.values())):
                status = os.stat(path)  # noqa: PTH116, a Path takes longer
                files.append((path, status.st_size, status.st_mtime_ns))
        settings = self._settings.model_dump(
            mode="json", exclude={"output_dir", "source", "predictions"}
        )
        content: Any = [_VERSION, settings, record.digest, grid, files, scan]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
