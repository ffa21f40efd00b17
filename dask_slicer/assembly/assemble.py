"""Assembling the volumes of all cases on workers; those that are written are skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dask_slicer.assembly.cases import Predicted
from dask_slicer.assembly.tasks import (
    AssembledCase,
    AssemblyCase,
    AssemblyTarget,
    assemble_case,
    save_volume,
)
from dask_slicer.assembly.volume_files import (
    JOURNAL,
    LINES,
    check_ours,
    remove_volumes,
    write_tables,
    written_cases,
)
from dask_slicer.cluster.preflight import Requirements
from dask_slicer.config.assembly_settings import AssemblySettings
from dask_slicer.config.loader import build_settings
from dask_slicer.config.run_settings import JobSettings, LocalSettings, SchedulerSettings
from dask_slicer.core.splits import SPLITS
from dask_slicer.errors import CaseError, OutputError
from dask_slicer.execution.graph import assembly_graph, compute_here
from dask_slicer.execution.workers import workers
from dask_slicer.monitoring.observer import Observer
from dask_slicer.output.directory import remove_temporary
from dask_slicer.output.journal import Journal
from dask_slicer.output.lock import HeldLock, locked
from dask_slicer.output.output import Output, open_output
from dask_slicer.records import FailedCase
from dask_slicer.utils import system
from dask_slicer.utils.formatting import first_few, plural

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client


OnCase = Callable[[int, int, FailedCase | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyReport:
    """What became of the cases.

    Attributes
    ----------
    output_dir : str
    n_written : int
        Volumes that this call wrote.
    n_skipped : int
        Volumes that an earlier call wrote.
    n_without : int
        Cases without any prediction.
    failures : tuple of FailedCase
    elapsed_seconds : float
    metrics : dict
        Mean, std and median by split, label and metric; empty without metrics.
    """

    output_dir: str
    n_written: int = 0
    n_skipped: int = 0
    n_without: int = 0
    failures: tuple[FailedCase, ...] = ()
    elapsed_seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


def assemble(
    slices_dir: str | Path,
    predictions: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    client: Client | None = None,
    observer: Observer | None = None,
    on_case: OnCase = lambda *_: None,
    **settings: Any,
) -> AssemblyReport:
    """Put predictions of slices together to volumes on the grids of their scans.

    Cases whose volume was written from the same predictions are skipped.

    Parameters
    ----------
    slices_dir : str or Path
        The output of a run.
    predictions : str, Path or sequence of them
        Folders with an array for each slice, ``<case_id>_<slice_index>.npy`` (or .npz, .png), or
        for each case, ``<case_id>.npy``. Of several planes, in folders named as these.
    output_dir : str or Path
        Folder of the volumes, ``<case_id>.nii.gz``.
    client : distributed.Client, optional
        Run on its workers.
    observer : Observer, optional
        Receives where cases run, and notes.
    on_case : callable
        Receives the number of cases to assemble, before the first and as each ends, with the number
        of its slices, and its failure or None.
    **settings
        Names of `AssemblySettings`, `LocalSettings`, `SchedulerSettings` and `JobSettings`.

    Returns
    -------
    AssemblyReport

    Raises
    ------
    UsageError
        If settings, output or predictions cannot be used; nothing was written.
    """
    started = time.monotonic()
    observer = observer or Observer()
    folders = [predictions] if isinstance(predictions, str | Path) else list(predictions)
    place = {
        name: settings.pop(name)
        for model in (JobSettings, SchedulerSettings, LocalSettings)
        for name in model.model_fields
        if name in settings
    }
    chosen = build_settings(
        AssemblySettings, {"predictions": folders, "output_dir": output_dir, **settings}
    )
    output = open_output(slices_dir)
    check_apart(chosen.output_dir, [output.path, *chosen.predictions])
    here = {
        name: value
        for model in (JobSettings, SchedulerSettings, LocalSettings)
        for name, value in build_settings(
            model, {name: value for name, value in place.items() if name in model.model_fields}
        )
    }
    if "num_workers" not in place:
        here["num_workers"] = min(here["num_workers"], system.cpu_count())
    config = output.config.model_copy(
        update={"output_dir": output.path, "performance_report": None, **here}
    )
    predicted = Predicted(output, chosen)
    if predicted.n_others:
        observer.note(f"{plural(predicted.n_others, 'file')} left out: not .npy, .npz or .png")
    folder = chosen.output_dir
    check_ours(folder)
    failures = predicted.unknown
    with locked(folder, note=observer.note) as held, ExitStack() as stack:
        check_ours(folder)
        stack.callback(remove_temporary, folder)
        remove_temporary(folder)  # of a call that was killed
        done = written_cases(folder)
        todo: list[AssemblyCase] = []
        current: dict[str, AssembledCase] = {}
        for case in predicted.cases():
            if isinstance(case, FailedCase):
                failures.append(case)
            elif (before := done.get(case.case_id)) and before.digest == case.digest:
                current[case.case_id] = before
            else:
                todo.append(case)
        n_skipped = len(current)
        stale = [case_id for case_id in predicted.wanted & done.keys() if case_id not in current]
        for case_id in stale:  # a failure must not leave the volume of other predictions
            remove_volumes(folder, done[case_id])
        kept = done.keys() - predicted.wanted
        current |= {case_id: done[case_id] for case_id in kept}
        if stale:  # nor their metrics, if this call is stopped
            write_tables(folder, current.values(), failures, output.label_names)
        target = assembly_target(output, chosen, held)
        run_client = stack.enter_context(
            workers(
                config,
                len(todo),
                peak_bytes=_peak_bytes(todo, target),
                needs=Requirements(
                    output_dir=folder, input_file=todo[0].sources[0].files.first if todo else ""
                ),
                client=client,
                observer=observer,
            )
        )
        journal = stack.enter_context(Journal(folder / JOURNAL, lines=LINES))
        steps = (partial(assemble_case, target=target), partial(save_volume, target=target))

        def graph_of(case: AssemblyCase) -> Delayed:
            return assembly_graph(f"{case.case_id} of {held.run_id[:8]}", case, steps)

        n_written = 0
        on_case(len(todo), 0, None)
        for case, outcome in _run(run_client, todo, graph_of):
            if isinstance(outcome, CaseError):
                failures.append(FailedCase.of(case.case_id, outcome))
                on_case(len(todo), 0, failures[-1])
            else:
                journal.append(outcome)
                current[case.case_id] = outcome
                n_written += 1
                on_case(len(todo), outcome.n_slices, None)
        if kept:
            observer.note(
                f"{plural(len(kept), 'volume')} of cases without predictions kept: "
                f"{first_few(sorted(kept))}"
            )
        summary = write_tables(folder, current.values(), failures, output.label_names)
    return AssemblyReport(
        output_dir=str(folder),
        n_written=n_written,
        n_skipped=n_skipped,
        n_without=len(predicted.splits) - len(predicted.wanted),
        failures=tuple(failures),
        elapsed_seconds=time.monotonic() - started,
        metrics=summary,
    )


def assembly_target(output: Output, settings: AssemblySettings, held: HeldLock) -> AssemblyTarget:
    """Return where and how the volumes of an output are written."""
    return AssemblyTarget(
        output_dir=str(settings.output_dir),
        planes=output.config.planes,
        kind=settings.kind,
        transposed=tuple(filter(output.config.is_transposed, SPLITS)),
        threshold=settings.threshold,
        keep_probabilities=settings.keep_probabilities,
        fill=settings.fill,
        labels=tuple(sorted(output.label_names.keys() - {0})),
        label_dtype=output.config.label_dtype,
        lock=held.path.name,
        run_id=held.run_id,
    )


def check_apart(output_dir: Path, others: Iterable[Path]) -> None:
    """Raise OutputError if volumes would lie among slices or predictions."""
    if output_dir in others:
        raise OutputError(
            f"output_dir {output_dir} holds slices or predictions; name another directory"
        )


def _run(
    client: Client | None, cases: Iterable[AssemblyCase], graph_of: Any
) -> Iterator[tuple[AssemblyCase, AssembledCase | CaseError]]:
    """Yield cases with what they were assembled to."""
    if client is None:
        for case in cases:
            try:
                yield case, compute_here(graph_of(case))
            except CaseError as error:
                yield case, error
        return
    from dask_slicer.execution import futures

    queue = iter(cases)
    yield from futures.run_graphs(client, lambda _: next(queue, None), graph_of)


def _peak_bytes(cases: Sequence[AssemblyCase], target: AssemblyTarget) -> int:
    """Return about how much memory the largest case takes."""
    if not cases:
        return 0
    case = max(cases, key=lambda case: np.prod(case.grid.shape, dtype=float))
    n_voxels = int(np.prod(case.grid.shape))
    n_slices = max(int(np.prod(part.shape[1:])) for part in case.record.parts)
    labels = (2 * len(case.sources) + 1) * n_voxels
    if case.scan is not None:
        labels += 12 * n_voxels  # the label of the scan, and masks
    if target.kind == "labels":
        return labels + 2 * n_slices
    n_classes = case.sources[0].files.n_classes
    return labels + 4 * (n_classes + 1) * (n_voxels + n_slices)
