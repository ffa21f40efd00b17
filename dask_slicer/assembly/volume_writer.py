"""Volumes written from inside a loop of inference, each as soon as it is whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dask_slicer.assembly.assemble import assembly_target, check_apart
from dask_slicer.assembly.cases import Scans
from dask_slicer.assembly.predictions import checked
from dask_slicer.assembly.restoring import LabelVolume, Restored, decide, narrowed
from dask_slicer.assembly.slice_grid import SliceGrid, slice_grids
from dask_slicer.assembly.tasks import (
    Assembled,
    AssembledCase,
    AssemblyCase,
    AssemblyTarget,
    assemble_slices,
    save_volume,
    with_metrics,
)
from dask_slicer.assembly.volume_files import (
    JOURNAL,
    LINES,
    check_ours,
    remove_volumes,
    write_tables,
    written_cases,
)
from dask_slicer.config.assembly_settings import AssemblySettings
from dask_slicer.config.loader import build_settings
from dask_slicer.errors import MissingFile, UsageError
from dask_slicer.output import layout
from dask_slicer.output.directory import remove_temporary
from dask_slicer.output.journal import Journal, last_records, read_line
from dask_slicer.output.lock import locked
from dask_slicer.output.output import check_plane, open_output
from dask_slicer.records import CommittedCase
from dask_slicer.utils.formatting import did_you_mean, first_few, plural


class VolumeWriter:
    """Writes the volumes of predictions, in one process and with little memory.

    Use it in a ``with`` block. A case is written when the last of its slices is added.

    Parameters
    ----------
    slices_dir : str or Path
        The output of a run.
    output_dir : str or Path
        Folder of the volumes, ``<case_id>.nii.gz``.
    **settings
        Names of `AssemblySettings`: kind, threshold, keep_probabilities, fill, metrics, source.

    Attributes
    ----------
    metrics : dict
        After the block, mean, std and median by split, label and metric; empty without metrics.

    Raises
    ------
    UsageError
        If settings, output or folder cannot be used.
    MissingFile
        At the end of the block, if a case has slices without a prediction; the others are written.

    Examples
    --------
    ::

        with ds.VolumeWriter("slices", "volumes", kind="logits") as writer:
            for batch in loader:
                logits = network(batch["image"])
                writer.add(batch["case_id"], batch["slice_index"], logits)
    """

    def __init__(self, slices_dir: str | Path, output_dir: str | Path, **settings: Any) -> None:
        output = open_output(slices_dir)
        chosen = build_settings(
            AssemblySettings, {"predictions": [output_dir], "output_dir": output_dir, **settings}
        )
        check_apart(chosen.output_dir, [output.path])
        check_ours(chosen.output_dir)
        self._output, self._settings = output, chosen
        self._scans = Scans(output, chosen)
        self._journal_path = output.path / layout.JOURNAL
        self._offsets: dict[str, int] = {}
        with self._journal_path.open("rb") as journal:
            for offset in last_records(self._journal_path).offsets:
                record = read_line(journal, offset)
                if isinstance(record, CommittedCase):
                    self._offsets[record.case_id] = offset
        self.metrics: dict[str, Any] = {}
        self._open: dict[str, _OpenCase] = {}
        self._written: dict[str, AssembledCase] = {}
        self._whole: set[str] = set()  # written in this block
        self._stack: ExitStack | None = None

    def __enter__(self) -> Self:
        folder = self._settings.output_dir
        with ExitStack() as stack:
            held = stack.enter_context(locked(folder))
            check_ours(folder)
            stack.callback(remove_temporary, folder)
            self._written = written_cases(folder)
            self._whole.clear()
            self._target = assembly_target(self._output, self._settings, held)
            self._journal = stack.enter_context(Journal(folder / JOURNAL, lines=LINES))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        assert self._stack is not None  # noqa: S101  # since `__enter__`
        with self._stack:
            self._stack = None
            names = self._output.label_names
            folder = self._settings.output_dir
            self.metrics = write_tables(folder, self._written.values(), (), names)
        if error is None and self._open:
            missing = [f"{id_} ({case.missing()})" for id_, case in self._open.items()]
            self._open.clear()
            raise MissingFile(
                f"{plural(len(missing), 'case')} not written, because slices have no prediction: "
                f"{first_few(missing)}"
            )

    def add(
        self,
        case_ids: Iterable[str],
        slice_indices: Iterable[int],
        predictions: ArrayLike,
        *,
        plane: str | None = None,
    ) -> None:
        """Add the predictions of a batch.

        Parameters
        ----------
        case_ids : sequence of str
        slice_indices : sequence or tensor of int
        predictions : array or tensor
            (slice, row, column) labels, or (slice, class, row, column) probabilities or logits.
        plane : str, optional
            Of all slices; needed if the output has several planes.

        Raises
        ------
        UsageError
            If a case is not of the output, or a slice is not of the case or was added before.
        CaseError
            If an array has another shape than its slice, or holds something else than announced.
        """
        if self._stack is None:
            raise UsageError("VolumeWriter.add needs a `with` block around it")
        planes = self._output.config.planes
        if plane is None and len(planes) > 1:
            raise UsageError(f"the output has slices of {', '.join(planes)}; give plane")
        check_plane(self._output, plane)
        ids, indices = list(case_ids), [int(index) for index in slice_indices]
        arrays = _as_array(predictions)
        if not len(ids) == len(indices) == len(arrays):
            raise UsageError(
                f"got {len(ids)} case_ids, {len(indices)} slice_indices and {len(arrays)} "
                "predictions; give one of each for a slice"
            )
        for case_id, index, array in zip(ids, indices, arrays, strict=True):
            self._add(case_id, plane or planes[0], index, array)

    def _add(self, case_id: str, plane: str, index: int, array: NDArray[Any]) -> None:
        case = self._open.get(case_id)
        if case is None:
            if case_id in self._whole:
                raise UsageError(
                    f"slice {index} of {case_id}: the case is written already, as each of its "
                    "slices was added before"
                )
            case = self._open[case_id] = self._opened(case_id)
            if before := self._written.pop(case_id, None):  # of other predictions
                remove_volumes(self._settings.output_dir, before)
        case.add(plane, index, array)
        if not case.is_whole:
            return
        del self._open[case_id]
        saved = save_volume(case.assembled(), self._target)
        self._journal.append(saved)
        self._written[case_id] = saved
        self._whole.add(case_id)

    def _opened(self, case_id: str) -> _OpenCase:
        offset = self._offsets.get(case_id)
        if offset is None:
            raise UsageError(
                f"no case {case_id} in {self._output.path}{did_you_mean(case_id, self._offsets)}"
            )
        with self._journal_path.open("rb") as journal:
            record = read_line(journal, offset)
        if not isinstance(record, CommittedCase):
            raise UsageError(f"{self._output.path} has changed since the VolumeWriter was made")
        case, _ = self._scans.case(record)
        return _OpenCase(case, self._target)


class _Arrays:
    """Predictions of the slices of a case in one plane, in memory."""

    def __init__(self) -> None:
        self.arrays: dict[int, NDArray[Any]] = {}

    @property
    def indices(self) -> Collection[int]:
        return self.arrays.keys()

    def read(self, slice_index: int) -> NDArray[Any]:
        return self.arrays[slice_index]


class _OpenCase:
    """A case of which slices may still come."""

    def __init__(self, case: AssemblyCase, target: AssemblyTarget) -> None:
        self._case, self._target = case, target
        self._planes: dict[str, tuple[SliceGrid, _Arrays]] = {
            grid.plane: (grid, _Arrays())
            for grid in slice_grids(
                case.record, case.grid, target.planes, transposed=target.transposed
            )
        }
        self._left = {(grid.plane, n) for grid, _ in self._planes.values() for n in grid.kept}
        self._n_kept, self._added = len(self._left), set[tuple[str, int]]()
        self._n_classes: int | None = None
        # Where each slice is decided alone, it goes into the volume at once.
        ((grid, _), *others) = self._planes.values()
        alone = not (others or grid.steps.interpolates or target.keep_probabilities)
        self._volume = LabelVolume(grid, target.fill) if alone else None

    @property
    def is_whole(self) -> bool:
        """Return whether every slice of the output has a prediction."""
        return not self._left

    def missing(self) -> str:
        """Return how many slices have no prediction, in words."""
        return f"{len(self._left)} of {plural(self._n_kept, 'slice')} missing"

    def add(self, plane: str, index: int, array: NDArray[Any]) -> None:
        """Add a slice; raise an error if it cannot be one."""
        grid, arrays = self._planes[plane]
        name = f"slice {index} of {self._case.case_id}"
        if not 0 <= index < grid.shape[0]:
            raise UsageError(f"{name}: the case has slices 0 to {grid.shape[0] - 1}")
        if (plane, index) in self._added:
            raise UsageError(f"{name} was added before")
        size, transposed = grid.shape[1:], grid.transposed
        values = checked(array, size, self._target.kind, name, transposed=transposed)
        if self._target.kind != "labels":
            self._n_classes = self._n_classes or len(values)
            if len(values) != self._n_classes:
                raise UsageError(
                    f"{name} has {len(values)} classes, others of the case {self._n_classes}"
                )
        if self._volume is None:
            # A view would keep the whole batch in memory.
            arrays.arrays[index] = values if values.base is None else values.copy()
        else:
            if self._target.kind != "labels":
                values = decide(values, threshold=self._target.threshold)
            self._volume.add(index, values)
        self._added.add((plane, index))
        self._left.discard((plane, index))

    def assembled(self) -> Assembled:
        """Return the volume of a whole case."""
        if self._volume is None:
            return assemble_slices(self._case, list(self._planes.values()), self._target, {})
        volume = Restored(labels=narrowed(self._volume.finished()))
        n_slices = len(self._added)
        return with_metrics(self._case, volume, self._target, n_slices=n_slices, seconds={})


def _as_array(predictions: Any) -> NDArray[Any]:
    """Return an array, or a tensor of any device, as an array."""
    if hasattr(predictions, "detach"):
        predictions = predictions.detach().cpu()
        if str(predictions.dtype) == "torch.bfloat16":  # which numpy does not have
            predictions = predictions.float()
    return np.asarray(predictions)
