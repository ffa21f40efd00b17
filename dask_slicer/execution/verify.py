"""Re-reading an output on workers, and comparing it with the journal and the scans."""

from __future__ import annotations

import random
import tempfile
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dask_slicer.cluster.preflight import Requirements
from dask_slicer.config.run_settings import SchedulerSettings
from dask_slicer.errors import CaseError, OutputError, as_case_error
from dask_slicer.execution.graph import compute_here, target_of, verify_graph
from dask_slicer.execution.prepare import prepare_plan
from dask_slicer.execution.tasks import Target, load_case, slice_case
from dask_slicer.execution.workers import workers
from dask_slicer.monitoring.events import Observer
from dask_slicer.output import formats, layout
from dask_slicer.output.checks import (
    Issue,
    check_case,
    check_whole,
    compare_slices,
    not_checked,
    reader_of,
)
from dask_slicer.output.directory import existing_splits, restore_splits
from dask_slicer.output.journal import Journal, last_records
from dask_slicer.output.layout import CONFIG, JOURNAL, SPLITS_FILE, case_folder
from dask_slicer.output.lock import check_not_in_use, locked
from dask_slicer.output.output import open_output
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CommittedCase, FailedCase, RemovedCase

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was found.

    Attributes
    ----------
    output_dir : str
    n_cases, n_slices, n_bytes : int
        Checked.
    n_derived : int
        Slices that were made of their scans again, and compared.
    n_missing : int
        Cases that were planned and are not written.
    n_failed : int
        Those of them that failed.
    findings : tuple of Finding
    forgotten : tuple of str
        Cases that the next run writes anew.
    elapsed_seconds : float
    """

    output_dir: str
    n_cases: int
    n_slices: int
    n_bytes: int
    n_derived: int
    n_missing: int
    n_failed: int
    findings: tuple[Issue, ...]
    forgotten: tuple[str, ...]
    elapsed_seconds: float


def verify(
    output_dir: str | Path,
    *,
    deep: int = 0,
    repair: bool = False,
    seed: int = 0,
    num_workers: int = 4,
    where: SchedulerSettings | None = None,
    dashboard_address: str = "127.0.0.1:8787",
    client: Client | None = None,
    observer: Observer | None = None,
    on_case: Callable[[CommittedCase, int, Sequence[Issue]], None] = lambda *_: None,
) -> VerifyReport:
    """Check every file of an output against the journal; change nothing, unless it is to repair.

    Parameters
    ----------
    output_dir : str or Path
    deep : int
        So many slices, drawn at random, are made of their scans again and compared.
    repair : bool
        Forget cases that are not as they should be: the next run writes them anew.
    seed : int
        Of the drawing.
    num_workers, dashboard_address
        As for a run.
    where : SchedulerSettings, optional
        A running scheduler, if it is to be there.
    client : distributed.Client, optional
    observer : Observer, optional
        Is told where it runs.
    on_case : callable
        Told, as cases end, which, of how many, and what was found.

    Returns
    -------
    VerifyReport

    Raises
    ------
    OutputError
        If the directory is no output, or a run is writing to it.
    DatasetError
        If `deep` is asked for and the dataset cannot be planned.
    """
    started = time.monotonic()
    output = open_output(output_dir)
    config = output.config.model_copy(
        update={
            "output_dir": output.path,
            "num_workers": num_workers,
            "cluster": None,
            "dashboard_address": dashboard_address,
            "performance_report": None,
            **(where or SchedulerSettings()).model_dump(),
        }
    )
    with ExitStack() as stack:
        if repair:  # what a run commits from now on would be taken for damage
            stack.enter_context(locked(output.path))
        else:
            check_not_in_use(output.path)
        last = list(last_records(output.path / JOURNAL))
        records = [record for record in last if isinstance(record, CommittedCase)]
        failed = [record.case_id for record in last if isinstance(record, FailedCase)]
        missing = _planned(output.path) - {record.case_id for record in records}
        findings = list(check_whole(output.path, config, records, failed))
        drawn = _drawn(records, deep, seed)
        plans = {case.case_id: case for case in prepare_plan(config).cases} if drawn else {}
        target = target_of(config)
        found_client = stack.enter_context(
            workers(
                config,
                len(records),
                peak_bytes=max((record.n_bytes for record in records), default=0),
                needs=Requirements(
                    output_dir=output.path, input_file=str(output.path / CONFIG), temporary=""
                ),
                client=client,
                observer=observer or Observer(),
            )
        )

        def check_of(record: CommittedCase) -> Callable[[], list[Issue]]:
            plan, slices = plans.get(record.case_id), drawn.get(record.case_id, ())
            return partial(_check, record, plan, target, tuple(slices))

        for record, found in _checked(found_client, deque(records), check_of):
            findings += found
            on_case(record, len(records), found)
        findings.sort(key=lambda finding: (finding.path, finding.case_id))
        forgotten = _forget(output.path, records, findings) if repair and findings else ()
    return VerifyReport(
        output_dir=str(output.path),
        n_cases=len(records),
        n_slices=sum(len(record.slices) for record in records),
        n_bytes=sum(record.n_bytes for record in records),
        n_derived=sum(map(len, drawn.values())),
        n_missing=len(missing),
        n_failed=len(missing.intersection(failed)),
        findings=tuple(findings),
        forgotten=forgotten,
        elapsed_seconds=time.monotonic() - started,
    )


def _planned(output_dir: Path) -> set[str]:
    """Return the cases that splits.json names; none if it is damaged, which is a finding."""
    try:
        return set(existing_splits(output_dir))
    except OutputError:
        return set()


def _drawn(records: Sequence[CommittedCase], n: int, seed: int) -> dict[str, list[int]]:
    """Return slices drawn at random, by case."""
    ends = list(accumulate(len(record.slices) for record in records))
    total = ends[-1] if ends else 0
    drawn: defaultdict[str, list[int]] = defaultdict(list)
    for number in sorted(random.Random(seed).sample(range(total), min(n, total))):  # noqa: S311
        which = int(np.searchsorted(ends, number, side="right"))
        first = ends[which] - len(records[which].slices)
        drawn[records[which].case_id].append(records[which].slices[number - first].slice_index)
    return dict(drawn)


def _checked(
    client: Client | None,
    queue: deque[CommittedCase],
    check_of: Callable[[CommittedCase], Callable[[], list[Issue]]],
) -> Iterator[tuple[CommittedCase, list[Issue]]]:
    """Yield cases with what was found."""
    # Another output of the same dataset may be checked on the same scheduler at the same time.
    own = uuid.uuid4().hex[:8]

    def graph_of(record: CommittedCase) -> Delayed:
        return verify_graph(f"{record.case_id} of {own}", check_of(record))

    if client is None:
        while queue:
            record = queue.popleft()
            yield record, compute_here(graph_of(record))
        return
    from dask_slicer.execution import futures

    for record, found in futures.run_graphs(
        client, lambda _: queue.popleft() if queue else None, graph_of
    ):
        if isinstance(found, CaseError):
            found = [not_checked(record.case_id, found)]
        yield record, found


def _check(
    record: CommittedCase, case: CasePlan | None, target: Target, drawn: tuple[int, ...]
) -> list[Issue]:
    """Return what is wrong with a case; runs on a worker."""
    output_dir = Path(target.output_dir)
    found = check_case(output_dir, record, target.settings)
    if found or not drawn:
        return found
    folder = case_folder(output_dir, record)
    place = folder.relative_to(output_dir).as_posix()
    where = place if record.files else f"{place}/{record.case_id}"
    if case is None or _has_changed(case, record):
        said = f"cannot be made again: {_why(case)}"
        return [Issue(case_id=record.case_id, path=where, message=said, is_damage=False)]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            stack = slice_case(load_case(case, target), target).result
            formats.write_case(stack, case, target.settings, Path(scratch), fsync=False)
            again = Path(scratch, record.case_id) if record.files else Path(scratch)
            wrong = list(compare_slices(reader_of(folder, record), reader_of(again, record), drawn))
    except (CaseError, OSError) as error:
        return [not_checked(record.case_id, as_case_error(error, step="load"))]
    return [
        Issue(case_id=record.case_id, path=where, message=f"slice {slice_index} {message}")
        for slice_index, message in wrong
    ]


def _has_changed(case: CasePlan, record: CommittedCase) -> bool:
    return case.problem is not None or case.digest != record.digest


def _why(case: CasePlan | None) -> str:
    """Return why a case cannot be made again."""
    if case is None:
        return "its scan is not in the dataset any more"
    if case.problem is not None:
        return case.problem.message
    return "its scan, or how it is sliced, has changed since"


def _forget(
    output_dir: Path, records: Sequence[CommittedCase], findings: Sequence[Issue]
) -> tuple[str, ...]:
    """Remove cases that are damaged from journal and disk, and files too many; return which."""
    bad = sorted({finding.case_id for finding in findings if finding.is_damage} - {""})
    entries = layout.find_entries(output_dir)
    with Journal(output_dir / JOURNAL) as journal:
        for case_id in bad:
            journal.append(RemovedCase(case_id=case_id))
            layout.remove_entries(output_dir, entries.get(case_id, {}))
        for record in records:
            if record.case_id not in bad:
                extra = entries.get(record.case_id, {}).keys() - layout.slice_paths(record).keys()
                layout.remove_entries(output_dir, extra)
        # What looks like a slice, of a case that was never written.
        for case_id in entries.keys() - {record.case_id for record in records}:
            layout.remove_entries(output_dir, entries[case_id])
        for finding in findings:
            if finding.is_stray and finding.case_id not in {"", *bad}:  # within a Zarr group
                (output_dir / finding.path).unlink(missing_ok=True)
        if any(finding.path == SPLITS_FILE for finding in findings):
            kept = [record for record in records if record.case_id not in bad]
            restore_splits(output_dir, {record.case_id: record.split for record in kept})
    return tuple(bad)
