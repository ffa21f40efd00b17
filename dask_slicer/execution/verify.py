"""Checking an output on workers: its files against the journal, and against the scans."""

from __future__ import annotations

import random
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask_slicer.cluster.preflight import Requirements
from dask_slicer.config.run_settings import LocalSettings, SchedulerSettings
from dask_slicer.core.steps.steps import NO_STEPS
from dask_slicer.errors import CaseError, OutputError, as_case_error
from dask_slicer.execution.graph import compute_here, target_of, verify_graph
from dask_slicer.execution.resume import prepare_plan
from dask_slicer.execution.tasks import Target, load_case, slice_case
from dask_slicer.execution.workers import workers
from dask_slicer.monitoring.observer import Observer
from dask_slicer.output import checks, comparison, formats, layout
from dask_slicer.output.directory import (
    existing_splits,
    restore_splits,
    structures_text,
    summary_properties,
    write_lines,
)
from dask_slicer.output.inventory import Inventory
from dask_slicer.output.journal import Journal, last_records
from dask_slicer.output.lock import check_free, locked, still_held
from dask_slicer.output.output import open_output
from dask_slicer.output.properties import properties_text
from dask_slicer.planning.plan import CasePlan
from dask_slicer.records import CaseRecord, CommittedCase, RemovedCase
from dask_slicer.utils import system

if TYPE_CHECKING:
    from dask.delayed import Delayed
    from distributed import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Numbers of checked cases, slices and bytes, and the problems found."""

    output_dir: str
    n_cases: int
    n_slices: int
    n_bytes: int
    n_derived: int  # slices that were made from their scans again, and compared
    n_missing: int  # cases that were planned and are not written
    n_failed: int  # of these, the failed ones
    issues: tuple[checks.Issue, ...]
    to_rewrite: tuple[str, ...]  # cases that the next run writes again
    elapsed_seconds: float


def verify(
    output_dir: str | Path,
    *,
    deep: int = 0,
    repair: bool = False,
    seed: int = 0,
    observer: Observer | None = None,
    on_case: Callable[[CommittedCase, int, Sequence[checks.Issue]], None] = lambda *_: None,
    **place: Any,
) -> VerifyReport:
    """Check every file of an output against the journal; change nothing, except with `repair`.

    `deep` slices, drawn with `seed`, are made from their scans again. `on_case` gets each case, the
    number of cases, and the problems of the case; `place` has `LocalSettings`, `SchedulerSettings`.
    """
    started = time.monotonic()
    output = open_output(output_dir)
    path = output.path
    here = LocalSettings().model_dump() | SchedulerSettings().model_dump()
    here["num_workers"] = min(here["num_workers"], system.cpu_count())
    ours = {"output_dir": path, "cluster": None, "performance_report": None}
    config = output.config.model_copy(update=ours | here | place)
    with ExitStack() as stack:
        if repair:  # cases that a run writes at the same time would look damaged
            stack.enter_context(locked(path, note=(observer or Observer()).note))
        else:
            check_free(path)
        records = last_records(path / layout.JOURNAL)
        planned: dict[str, str] = {}
        with suppress(OutputError):  # splits.json is damaged, which `check_whole` reports
            planned = existing_splits(path)
        inventory, issues = checks.check_whole(path, config, records)
        totals = inventory.totals
        n_cases = len(totals.split_of)
        missing = planned.keys() - totals.split_of.keys()
        drawn = _drawn(_committed(records), totals.n_slices, deep, seed)
        # The output has its own copy of the statistics; their file may have changed.
        own = config.model_copy(update={"statistics": None})
        plan = prepare_plan(own) if drawn else None
        plans = {} if plan is None else {case.case_id: case for case in plan.cases}
        target = target_of(config, steps=NO_STEPS if plan is None else plan.steps)
        client = stack.enter_context(
            workers(
                config,
                n_cases,
                peak_bytes=inventory.most_bytes,
                needs=Requirements(output_dir=path, input_file=str(path / layout.CONFIG)),
                client=None,
                observer=observer or Observer(),
            )
        )
        # Another output of the same dataset may be checked on the same scheduler at the same time.
        verify_id = uuid.uuid4().hex[:8]

        def graph_of(record: CommittedCase) -> Delayed:
            plan, slices = plans.get(record.case_id), drawn.get(record.case_id, ())
            check = partial(_check, record, plan, target, tuple(slices))
            return verify_graph(f"{record.case_id} of {verify_id}", check)

        for record, case_issues in _checked(client, _committed(records), graph_of):
            issues += case_issues
            on_case(record, n_cases, case_issues)
        issues.sort(key=lambda issue: (issue.path, issue.case_id))
        to_rewrite = _repair(path, inventory, issues) if repair and issues else ()
    return VerifyReport(
        output_dir=str(path),
        n_cases=n_cases,
        n_slices=totals.n_slices,
        n_bytes=totals.n_bytes,
        n_derived=sum(map(len, drawn.values())),
        n_missing=len(missing),
        n_failed=len(missing.intersection(inventory.failed)),
        issues=tuple(issues),
        to_rewrite=to_rewrite,
        elapsed_seconds=time.monotonic() - started,
    )


def _committed(records: Iterable[CaseRecord]) -> Iterator[CommittedCase]:
    return (record for record in records if isinstance(record, CommittedCase))


def _drawn(
    records: Iterable[CommittedCase], total: int, n: int, seed: int
) -> dict[str, list[tuple[str, int]]]:
    """Return plane and index of `n` of the `total` slices, drawn at random, by case.

    The plane is empty if there is one.
    """
    if not n:
        return {}
    numbers = set(random.Random(seed).sample(range(total), min(n, total)))  # noqa: S311
    drawn: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    parts = (part for record in records for part in record.parts)
    slices = ((part, written) for part in parts for written in part.slices)
    for number, (part, written) in enumerate(slices):
        if number in numbers:
            drawn[part.case_id].append((part.plane, written.slice_index))
    return dict(drawn)


def _checked(
    client: Client | None,
    records: Iterable[CommittedCase],
    graph_of: Callable[[CommittedCase], Delayed],
) -> Iterator[tuple[CommittedCase, list[checks.Issue]]]:
    """Yield cases with their problems."""
    if client is None:
        for record in records:
            yield record, compute_here(graph_of(record))
        return
    from dask_slicer.execution import futures

    queue = iter(records)
    for record, issues in futures.run_graphs(client, lambda _: next(queue, None), graph_of):
        if isinstance(issues, CaseError):
            issues = [checks.not_checked(record.case_id, issues)]
        yield record, issues


def _check(
    record: CommittedCase, case: CasePlan | None, target: Target, drawn: tuple[tuple[str, int], ...]
) -> list[checks.Issue]:
    """Return the problems of a case; called on a worker."""
    output_dir = Path(target.output_dir)
    issues = checks.check_case(output_dir, record, target.settings)
    if issues or not drawn:
        return issues
    issue = partial(checks.Issue, case_id=record.case_id)
    why_not = ""
    if case is None:
        why_not = "the scan is no longer in the dataset"
    elif case.problem is not None:
        why_not = case.problem.message
    elif case.digest != record.digest:
        why_not = "the scan or the settings have changed since the slices were written"
    if case is None or why_not:
        message = f"cannot be compared with its scan: {why_not}"
        return [issue(path=layout.case_path(record.parts[0]), message=message, is_damage=False)]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            stacks = slice_case(load_case(case, target), target).result
            folders = [Path(scratch, part.plane) for part in record.parts]
            for folder in folders:
                folder.mkdir(exist_ok=True)
            formats.write_case(stacks, case, target.settings, folders, fsync=False)
            for part, folder in zip(record.parts, folders, strict=True):
                of_part = [index for plane, index in drawn if plane == part.plane]
                if not comparison.is_readable(part, target.settings):
                    issues += [
                        issue(path=path, message="differs from what its scan now gives")
                        for path in comparison.differing_files(output_dir, folder, part)
                    ]
                    continue
                own = layout.case_folder(output_dir, part)
                stored = comparison.reader_of(own, part, target.settings)
                folder = folder / record.case_id if part.files else folder
                again = comparison.reader_of(folder, part, target.settings)
                issues += [
                    issue(path=layout.case_path(part), message=f"slice {index} {message}")
                    for index, message in comparison.compare_slices(stored, again, of_part)
                ]
    except (CaseError, OSError) as error:
        return [checks.not_checked(record.case_id, as_case_error(error, step="load"))]
    return issues


def _repair(
    output_dir: Path, inventory: Inventory, issues: Sequence[checks.Issue]
) -> tuple[str, ...]:
    """Remove damaged cases and unknown files, so that a run writes them again; return the cases."""
    damaged = sorted({issue.case_id for issue in issues if issue.is_damage} - {""})
    kept = inventory.totals.split_of.keys() - {*damaged}
    with Journal(output_dir / layout.JOURNAL) as journal:
        for case_id in damaged:
            journal.append(RemovedCase(case_id=case_id))
        # Of damaged cases, and files named like slices that were never written.
        for case_id, entries in layout.find_entries(output_dir, inventory.settings).items():
            known = filter(inventory.has_entry, entries) if case_id in kept else ()
            still_held()
            layout.remove_entries(output_dir, entries.keys() - set(known))
        for issue in issues:
            if issue.is_stray and issue.case_id not in {"", *damaged}:  # within a Zarr group
                (output_dir / issue.path).unlink(missing_ok=True)
        if any(issue.path == layout.SPLITS_FILE for issue in issues):
            restore_splits(output_dir, {id_: inventory.totals.split_of[id_] for id_ in kept})
        structures = inventory.structures
        if structures and any(issue.path == layout.STRUCTURES_FILE for issue in issues):
            lines = [structures_text(structures)]
            write_lines(output_dir, layout.STRUCTURES_FILE, lines, fsync=True)
        properties = summary_properties(output_dir)
        if properties and any(issue.path == layout.STATISTICS_FILE for issue in issues):
            lines = [properties_text(properties)]
            write_lines(output_dir, layout.STATISTICS_FILE, lines, fsync=True)
    return tuple(damaged)
